//! Exit records: one small file a container in the folder that the daemon made, written before anybody is told.

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::PathBuf;

use model::ContainerId;
use wire::ExitFacts;

/// The folder, by descriptor: its path belongs to a mount namespace that the shim has left.
#[derive(Debug)]
pub(crate) struct Records {
    dir: OwnedFd,
    boot: String,
}

impl Records {
    /// Takes the folder that the daemon passed.
    pub(crate) fn new(dir: OwnedFd, boot: String) -> Self {
        Self { dir, boot }
    }

    fn path(&self, container: &ContainerId) -> PathBuf {
        format!("/proc/self/fd/{}/{container}", self.dir.as_raw_fd()).into()
    }

    /// Writes one. It is on a tmpfs: no disk can hold it up, and power loss ends what it tells of anyway.
    pub(crate) fn write(&self, container: &ContainerId, facts: &ExitFacts) -> Result<(), state::Error> {
        state::file::write(&self.path(container), state::kind::EXIT, &self.boot, facts, false)
    }

    /// Removes one, if there is.
    pub(crate) fn remove(&self, container: &ContainerId) -> Result<(), state::Error> {
        state::file::remove(&self.path(container))
    }
}
