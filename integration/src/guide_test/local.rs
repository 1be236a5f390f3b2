//! What stands in for the network, which the guest does not have:
//!
//! | of the page | here |
//! | --- | --- |
//! | Debian's packages | installed in the guest's image already (`integration/vm/packages`); apt finds nothing to do |
//! | the repository of the Kubernetes project | a folder of packages, with kubelet as this project has built it |
//! | docker.io | a mirror in copepod's `certs.d`: the tests' registry, with an image of that name |

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};

use crate::config;
use crate::images::{catalog, digest};
use crate::isolation::command;
use crate::registry::Registry;

/// The unit of kubelet's package in that repository.
const UNIT: &str = "[Unit]
Description=kubelet: The Kubernetes Node Agent
Wants=network-online.target
After=network-online.target

[Service]
ExecStart=/usr/bin/kubelet
Restart=always
StartLimitInterval=0
RestartSec=10

[Install]
WantedBy=multi-user.target
";

/// Makes a repository of packages in `folder`, with kubelet, and the only source of apt.
pub(super) fn packages(folder: &Path, kubelet: &Path) -> Result<()> {
    let tree = folder.join("kubelet");
    let unit = tree.join("usr/lib/systemd/system/kubelet.service");
    let control = tree.join("DEBIAN/control");
    let binary = tree.join("usr/bin/kubelet");
    for file in [&unit, &control, &binary] {
        fs::create_dir_all(file.parent().context("a path without a folder")?)?;
    }
    fs::write(&unit, UNIT)?;
    fs::copy(kubelet, &binary).with_context(|| format!("{} (make kubelet)", kubelet.display()))?;
    let control_text = "Package: kubelet\nVersion: 1.37.2-1.1\nArchitecture: amd64\nMaintainer: tests <tests@localhost>\n\
                        Depends: iptables, iproute2, mount, util-linux\nDescription: kubelet for a test\n";
    fs::write(&control, control_text)?;
    let package = folder.join("kubelet.deb");
    let (from, to) = (tree.display().to_string(), package.display().to_string());
    command("dpkg-deb", &["-Znone", "--root-owner-group", "--build", &from, &to])?;
    fs::remove_dir_all(&tree)?;
    // apt reads it as another user.
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
    let bytes = fs::read(&package)?;
    let sha256 = digest(&bytes);
    let sha256 = sha256.strip_prefix("sha256:").context("another digest")?;
    let mut index = control_text.to_owned();
    writeln!(index, "Filename: ./kubelet.deb\nSize: {}\nSHA256: {sha256}", bytes.len())?;
    fs::write(folder.join("Packages"), index)?;
    // The guest's own sources name hosts that it cannot reach.
    for file in ["/etc/apt/sources.list", "/etc/apt/sources.list.d"] {
        if Path::new(file).exists() {
            fs::rename(file, format!("{file}.not-reachable"))?;
        }
    }
    fs::write("/etc/apt/sources.list", format!("deb [trusted=yes] file:{} ./\n", folder.display()))?;
    Ok(())
}

/// Starts a registry in `folder` and makes it the mirror of docker.io. It ends with the returned value.
pub(super) async fn docker_io(folder: &Path) -> Result<Registry> {
    let registry = Registry::start(folder).await?;
    let layers = tokio::task::spawn_blocking(catalog::layers).await??;
    for entry in catalog::all(&layers)?.iter().filter(|it| it.tag == "1") {
        if ["nginx", "busybox"].contains(&entry.name) {
            registry.push(&format!("library/{}", entry.name), entry.tag, &entry.image).await?;
        }
    }
    config::mirror(Path::new("/etc/copepod/certs.d"), "docker.io", &registry, "127.0.0.1")?;
    Ok(registry)
}
