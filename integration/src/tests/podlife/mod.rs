//! A pod's life cycle with interruptions: a killed daemon, a power loss, a stop during another call, a removal that
//! cannot succeed yet.

mod calls;
mod restart;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};

use crate::cgroup;
use crate::runner::Test;

pub(super) fn tests() -> Vec<Test> {
    [restart::tests(), calls::tests()].concat()
}

/// Freezes a container and thaws it on drop. `None` if the host has no freezer.
struct Frozen {
    file: PathBuf,
    thaw: &'static str,
}

impl Frozen {
    fn container(id: &str) -> Result<Self> {
        let (file, freeze, thaw) = match cgroup::find("freezer", id) {
            Some(folder) => (folder.join("freezer.state"), "FROZEN", "THAWED"),
            None => {
                let folder = cgroup::hierarchies()
                    .into_iter()
                    .filter_map(|root| cgroup::find(root.file_name()?.to_str()?, id))
                    .find(|folder| folder.join("cgroup.freeze").exists());
                (folder.context("no cgroup that freezes")?.join("cgroup.freeze"), "1", "0")
            }
        };
        fs::write(&file, freeze).with_context(|| file.display().to_string())?;
        Ok(Self { file, thaw })
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        drop(fs::write(&self.file, self.thaw));
    }
}
