//! Exit files: one small file per container in the folder that the daemon created, written before the exit is
//! reported.

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::PathBuf;

use model::ContainerId;
use wire::ExitFacts;

/// The folder, as a descriptor: its path is in a mount namespace that the shim has left.
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

    /// Writes an exit file. It is on a tmpfs, so no disk can delay it, and nothing of it is needed after a
    /// power loss.
    pub(crate) fn write(&self, container: &ContainerId, facts: &ExitFacts) -> Result<(), state::Error> {
        state::file::write(&self.path(container), state::kind::EXIT, &self.boot, facts, false)
    }

    /// Removes an exit file, if it exists.
    pub(crate) fn remove(&self, container: &ContainerId) -> Result<(), state::Error> {
        state::file::remove(&self.path(container))
    }
}
