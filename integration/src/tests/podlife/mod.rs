//! A pod's life cycle with interruptions: a killed daemon, a power loss, a stop during another call, a removal that
//! cannot succeed yet.

mod calls;
mod restart;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};

use crate::cgroup;
use crate::runner::Test;
use crate::wait::{self, secs};

pub(super) fn tests() -> Vec<Test> {
    [restart::tests(), calls::tests()].concat()
}

/// A frozen container; it is thawed on drop.
struct Frozen {
    file: PathBuf,
    thaw: &'static str,
}

impl Frozen {
    /// Freezes all processes of a container, and returns when they are frozen: a process that was only asked to freeze
    /// still completes the system call it sleeps in, if that becomes possible before the process is scheduled.
    async fn container(id: &str) -> Result<Self> {
        let folder = cgroup::find("freezer", id).context("the container has no cgroup with a freezer")?;
        let (file, freeze, thaw) = match cgroup::is_v2() {
            false => (folder.join("freezer.state"), "FROZEN", "THAWED"),
            true => (folder.join("cgroup.freeze"), "1", "0"),
        };
        // Thaws it also if it does not freeze.
        let frozen = Self { file, thaw };
        fs::write(&frozen.file, freeze).with_context(|| frozen.file.display().to_string())?;
        wait::until_true("the container to be frozen", secs(10), || frozen.is_complete()).await?;
        Ok(frozen)
    }

    /// Whether no process runs any more: v1 says FROZEN instead of FREEZING, v2 says so in cgroup.events.
    fn is_complete(&self) -> bool {
        let events = self.file.with_file_name("cgroup.events");
        match self.thaw {
            "THAWED" => fs::read_to_string(&self.file).is_ok_and(|state| state.trim_end() == "FROZEN"),
            _ => fs::read_to_string(events).is_ok_and(|events| events.lines().any(|line| line == "frozen 1")),
        }
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        drop(fs::write(&self.file, self.thaw));
    }
}
