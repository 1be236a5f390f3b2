//! CNI configuration for one node: Debian's bridge, host-local and portmap plugins.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde_json::json;

/// Where Debian installs plugins.
pub(crate) const PLUGINS: &str = "/usr/lib/cni";

/// The network of one node: a bridge and a subnet.
#[derive(Debug, Clone)]
pub(crate) struct Network {
    /// The configuration folder that the daemon watches.
    pub(crate) conf_dir: PathBuf,
    /// The folder for plugins written by tests.
    pub(crate) bin_dir: PathBuf,
    /// host-local's leases.
    pub(crate) leases: PathBuf,
    /// Name of the bridge.
    pub(crate) bridge: String,
    /// The first three octets of its subnet: `10.88.N`.
    pub(crate) prefix: String,
}

impl Network {
    /// Creates the folders without a configuration.
    pub(crate) fn new(dir: &Path, number: u32) -> Result<Self> {
        let this = Self {
            conf_dir: dir.join("cni/net.d"),
            bin_dir: dir.join("cni/bin"),
            leases: dir.join("cni/leases"),
            bridge: format!("cpt{number}"),
            prefix: format!("10.88.{}", number % 250),
        };
        fs::create_dir_all(&this.conf_dir)?;
        fs::create_dir_all(&this.bin_dir)?;
        Ok(this)
    }

    /// Writes the bridge network's conflist.
    pub(crate) fn install(&self) -> Result<()> {
        self.bridge(true)
    }

    /// Like [`Self::install`], for a network whose addresses are routed everywhere: pods keep theirs when they leave the node.
    pub(crate) fn install_routed(&self) -> Result<()> {
        self.bridge(false)
    }

    fn bridge(&self, masquerade: bool) -> Result<()> {
        let plugins = json!([
            {
                "type": "bridge", "bridge": self.bridge, "isGateway": true, "ipMasq": masquerade, "hairpinMode": true,
                "ipam": {"type": "host-local", "dataDir": self.leases, "ranges": [[{"subnet": format!("{}.0/24", self.prefix)}]],
                         "routes": [{"dst": "0.0.0.0/0"}]},
            },
            {"type": "portmap", "capabilities": {"portMappings": true}, "snat": true},
        ]);
        self.conflist("10-test.conflist", &plugins)
    }

    /// Writes a conflist with these plugins.
    pub(crate) fn conflist(&self, file: &str, plugins: &serde_json::Value) -> Result<()> {
        let list = json!({"cniVersion": "1.0.0", "name": format!("net-{}", self.bridge), "plugins": plugins});
        let temporary = self.conf_dir.join(".new");
        fs::write(&temporary, list.to_string())?;
        fs::rename(temporary, self.conf_dir.join(file))?;
        Ok(())
    }

    /// Removes all configurations.
    pub(crate) fn uninstall(&self) -> Result<()> {
        for entry in fs::read_dir(&self.conf_dir)? {
            fs::remove_file(entry?.path())?;
        }
        Ok(())
    }

    /// Installs a shell script as a plugin.
    pub(crate) fn script(&self, name: &str, body: &str) -> Result<()> {
        let path = self.bin_dir.join(name);
        fs::write(&path, format!("#!/bin/sh\n{body}\n"))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        Ok(())
    }

    /// The addresses that host-local has allocated.
    pub(crate) fn leased(&self) -> Vec<String> {
        let dir = self.leases.join(format!("net-{}", self.bridge));
        let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
        let mut found: Vec<String> = entries
            .flatten()
            .filter_map(|e| e.file_name().into_string().ok())
            .filter(|n| n.starts_with("10."))
            .collect();
        found.sort();
        found
    }
}
