//! The machine: dpkg, systemctl, and the files of the package.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::cri::Cri;
use crate::expect::ensure;
use crate::isolation::command;
use crate::wait::{self, secs};

/// The CRI socket of the packaged daemon.
const SOCKET: &str = "/run/copepod/copepod.sock";
/// Its configuration.
const CONFIGURATION: &str = "/etc/copepod/config.toml";
/// Time limit for the service to do what it was told. Virtual machines without KVM are slow.
pub(super) const LIMIT: Duration = secs(90);

/// Permission bits of a file.
pub(super) fn mode(path: &str) -> Result<u32> {
    Ok(fs::metadata(path).with_context(|| path.to_owned())?.permissions().mode() & 0o7777)
}

/// The machine that this runs on.
#[derive(Debug)]
pub(super) struct Machine {
    /// Client of the packaged daemon.
    pub(super) cri: Cri,
}

impl Machine {
    /// Refuses a machine without systemd, and one on which the package is in use.
    pub(super) fn new() -> Result<Self> {
        ensure!(Path::new("/run/systemd/system").is_dir(), "this test needs systemd as process 1");
        for path in ["/usr/bin/copepod", "/etc/copepod", "/var/lib/copepod"] {
            ensure!(
                !Path::new(path).exists(),
                "{path} exists: this test would destroy it; use a virtual machine"
            );
        }
        Ok(Self { cri: Cri::connect(Path::new(SOCKET))? })
    }

    /// Installs a package as a user does, without a terminal to ask on, and waits until the daemon answers.
    pub(super) async fn install(&self, package: &Path) -> Result<()> {
        // dpkg warns of a downgrade on standard error, and succeeds.
        command("dpkg", &["--install", &package.display().to_string()])?;
        self.answers(LIMIT).await?;
        let state = self.property("ActiveState")?;
        ensure!(state == "active", "after the installation the service is {state}");
        Ok(())
    }

    /// Purges the package and returns what dpkg printed.
    pub(super) fn purge(&self) -> Result<String> {
        let out = Command::new("dpkg").args(["--purge", "copepod"]).stdin(Stdio::null()).output()?;
        let said =
            format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        ensure!(out.status.success(), "dpkg --purge: {said}");
        Ok(said)
    }

    /// A property of the service.
    pub(super) fn property(&self, name: &str) -> Result<String> {
        Ok(command("systemctl", &["show", "--value", "--property", name, "copepod.service"])?
            .trim()
            .to_owned())
    }

    /// The daemon's pid.
    pub(super) fn main_pid(&self) -> Result<u32> {
        let pid = self.property("MainPID")?.parse()?;
        ensure!(pid != 0, "the service does not run: {}", self.property("StatusText")?);
        Ok(pid)
    }

    /// Waits until the daemon answers.
    pub(super) async fn answers(&self, limit: Duration) -> Result<()> {
        wait::until("the daemon to answer", limit, || async { Ok(Some(self.cri.version().await?)) }).await?;
        Ok(())
    }

    /// Waits until another process than `before` is the daemon and answers.
    pub(super) async fn replaced(&self, before: u32, limit: Duration) -> Result<()> {
        wait::until("another daemon", limit, || async {
            Ok((self.main_pid()? != before && self.property("ActiveState")? == "active").then_some(()))
        })
        .await?;
        self.answers(LIMIT).await
    }

    /// The text of the configuration.
    pub(super) fn configuration(&self) -> Result<String> {
        fs::read_to_string(CONFIGURATION).context(CONFIGURATION)
    }

    /// Puts lines before the configuration.
    pub(super) fn configure(&self, lines: &str) -> Result<()> {
        let text = self.configuration()?;
        fs::write(CONFIGURATION, format!("{lines}{text}")).context(CONFIGURATION)
    }

    /// Replaces the configuration.
    pub(super) fn set_configuration(&self, text: &str) -> Result<()> {
        fs::write(CONFIGURATION, text).context(CONFIGURATION)
    }

    /// The last lines of the daemon's log.
    pub(super) fn journal(&self, lines: usize) -> String {
        let lines = lines.to_string();
        let log = command("journalctl", &["--no-pager", "--unit", "copepod", "--lines", &lines]);
        log.unwrap_or_else(|error| format!("{error:#}"))
    }
}
