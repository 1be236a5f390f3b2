//! A containerd of the bench, for what needs no pods: with folders and a socket of its own, and its root on a new ext4.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;

use super::pulls::DISK;
use crate::cri::Cri;
use crate::disk::Disk;
use crate::isolation::command;
use crate::node::Peer;
use crate::{proc, wait};

/// A running containerd. Killed on drop.
#[derive(Debug)]
pub(super) struct Containerd {
    child: Child,
    peer: Peer,
    /// As it calls itself.
    version: String,
    _disk: Disk,
}

impl Containerd {
    /// Starts this program below `dir`, and waits until it answers.
    pub(super) async fn start(program: &Path, dir: &Path) -> Result<Self> {
        let dir = dir.join("containerd");
        let (root, state, certs) =
            (dir.join("root"), PathBuf::from("/run/containerd-bench"), dir.join("certs.d"));
        for made in [&root, &state, &certs] {
            fs::create_dir_all(made)?;
        }
        let disk = Disk::mount(&root, DISK.0, DISK.1)?;
        let socket = state.join("containerd.sock");
        let config = dir.join("config.toml");
        fs::write(&config, configuration(&root, &state, &socket, &certs))?;
        let log = dir.join("containerd.log");
        let child = proc::start(Command::new(program).arg("--config").arg(&config), &log)?;
        let (peer, version) = (Peer { socket: socket.clone(), certs: Some(certs) }, String::new());
        let mut this = Self { child, peer, version, _disk: disk };
        let answer = wait::until("containerd to answer", Duration::from_secs(20), || async {
            if !socket.exists() {
                return Ok(None);
            }
            Ok(Cri::connect(&socket)?.version().await.ok())
        });
        answer.await.with_context(|| fs::read_to_string(&log).unwrap_or_default())?;
        let version = command(&program.display().to_string(), &["--version"])?;
        // "containerd github.com/containerd/containerd 1.7.24 revision".
        this.version = version.split_whitespace().nth(2).unwrap_or("containerd").to_owned();
        Ok(this)
    }

    /// Its socket and registry configuration.
    pub(super) fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Its version, as it prints it.
    pub(super) fn version(&self) -> &str {
        &self.version
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        drop(proc::signal(self.child.id(), Signal::SIGTERM));
        if wait::ended(&mut self.child, Duration::from_secs(10)).is_err() {
            drop(self.child.kill());
            drop(self.child.wait());
        }
    }
}

/// Its configuration, in a version that 1.6 to 2.x read.
fn configuration(root: &Path, state: &Path, socket: &Path, certs: &Path) -> String {
    format!(
        "version = 2\nroot = \"{}\"\nstate = \"{}\"\n\
         [grpc]\naddress = \"{}\"\n\
         [plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"registry.test/pause:1\"\n\
         [plugins.\"io.containerd.grpc.v1.cri\".containerd]\nsnapshotter = \"overlayfs\"\n\
         [plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"{}\"\n",
        root.display(),
        state.display(),
        socket.display(),
        certs.display()
    )
}
