//! The daemon's configuration file for a test node.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::cni::{self, Network};
use crate::driver::{Driver, driver};
use crate::registry::Registry;
use crate::wait;

/// Folders and files of one node.
#[derive(Debug, Clone)]
pub(crate) struct Paths {
    /// The node's folder.
    pub(crate) dir: PathBuf,
    /// Durable state and images.
    pub(crate) root: PathBuf,
    /// Volatile state.
    pub(crate) run: PathBuf,
    /// The CRI socket.
    pub(crate) socket: PathBuf,
    /// Registry hosts.
    pub(crate) certs: PathBuf,
    /// Container logs.
    pub(crate) logs: PathBuf,
    /// The configuration.
    pub(crate) config: PathBuf,
    /// The daemon's own log.
    pub(crate) log: PathBuf,
}

impl Paths {
    /// Makes the folders below `dir`.
    pub(crate) fn new(dir: &Path) -> Result<Self> {
        // Volatile state is on the tmpfs that `isolation` mounted on /run.
        let run = Path::new("/run").join(dir.file_name().unwrap_or_default());
        let this = Self {
            dir: dir.to_owned(),
            root: dir.join("root"),
            socket: run.join("copepod.sock"),
            run,
            certs: dir.join("certs.d"),
            logs: dir.join("logs"),
            config: dir.join("config.toml"),
            log: dir.join("copepod.log"),
        };
        for made in [&this.root, &this.run, &this.certs, &this.logs] {
            fs::create_dir_all(made)?;
        }
        Ok(this)
    }
}

/// The text of the configuration file; `extra` is appended. `level` is that of the log.
pub(crate) fn text(paths: &Paths, bin: &Path, network: &Network, level: &str, extra: &str) -> String {
    let (root, run, socket, certs) =
        (paths.root.display(), paths.run.display(), paths.socket.display(), paths.certs.display());
    let (conf, own, bin) = (network.conf_dir.display(), network.bin_dir.display(), bin.display());
    let (plugins, plugin_seconds) = (cni::PLUGINS, wait::longer(wait::secs(5)).as_secs());
    let driver = match driver() {
        Driver::Cgroupfs => "cgroup_driver = \"cgroupfs\"\n",
        // Process 1 is then the host's, which does not see the mounts of the tests' namespace.
        Driver::Systemd => "cgroup_driver = \"systemd\"\nmount_namespace = \"self\"\n",
    };
    format!(
        "{driver}root = \"{root}\"\nstate = \"{run}\"\nsocket = \"{socket}\"\n\
         [log]\nlevel = \"{level}\"\n\
         [binaries]\nshim = \"{bin}/copepod-shim\"\npause = \"{bin}/pause\"\n\
         [network]\nconf_dir = \"{conf}\"\nbin_dirs = [\"{own}\", \"{plugins}\"]\ntimeout_seconds = {plugin_seconds}\n\
         [image]\ncerts_dir = \"{certs}\"\n\
         {extra}"
    )
}

/// Makes the HTTP registry the mirror and the server of a registry's name; `at` is the
/// address at which the node reaches it.
pub(crate) fn mirror(certs: &Path, host: &str, registry: &Registry, at: &str) -> Result<()> {
    let plain = format!("http://{at}:{}", registry.port);
    let text = format!("server = \"{plain}\"\n[host.\"{plain}\"]\ncapabilities = [\"pull\", \"resolve\"]\n");
    fs::create_dir_all(certs.join(host))?;
    fs::write(certs.join(host).join("hosts.toml"), text)?;
    Ok(())
}

/// Writes `certs.d`: the HTTP registry at its address and as a mirror of `registry.test` and `other.test`, the TLS
/// registry as a mirror of `tls.test`, `fallback.test`, whose mirror does not respond but whose server is the HTTP
/// registry, and `absent.test`, whose server does not respond. `at` is the address at which the node reaches the registries.
pub(crate) fn hosts(certs: &Path, registry: &Registry, at: &str) -> Result<()> {
    let plain = format!("http://{at}:{}", registry.port);
    let tls = format!("https://{at}:{}", registry.tls_port);
    let pull = "capabilities = [\"pull\", \"resolve\"]";
    let write = |host: &str, text: String| -> Result<()> {
        fs::create_dir_all(certs.join(host))?;
        fs::write(certs.join(host).join("hosts.toml"), text)?;
        Ok(())
    };
    write(&format!("127.0.0.1:{}", registry.port), format!("server = \"{plain}\"\n"))?;
    mirror(certs, "registry.test", registry, at)?;
    mirror(certs, "other.test", registry, at)?;
    write(
        "tls.test",
        format!("server = \"{tls}\"\n[host.\"{tls}\"]\n{pull}\nca = \"{}\"\n", registry.ca().display()),
    )?;
    write("fallback.test", format!("server = \"{plain}\"\n[host.\"http://127.0.0.1:1\"]\n{pull}\n"))?;
    write("absent.test", String::from("server = \"http://127.0.0.1:1\"\n"))
}
