//! The pressure files of a cgroup, which v2 has, and v1 with the kernels of some distributions (in `cpuacct`).

use super::super::parse;
use super::super::reading::Psi;
use super::file::{Failed, OpenFile};
use crate::cgroups::Cgroups;
use std::fs;

/// Whether the kernel measures pressure by cgroup. It has the files and refuses to read them if it was started with psi=0.
pub(in crate::stats) fn is_measured(cgroups: &Cgroups) -> bool {
    let root = cgroups.folder("cpuacct", "/");
    let text = root.and_then(|root| fs::read_to_string(root.join("cpu.pressure")).ok());
    text.is_some_and(|text| parse::psi(&text).is_some())
}

/// Those that this cgroup has: its owner can turn them off (`cgroup.pressure`).
#[derive(Debug, Default)]
pub(super) struct Files {
    cpu: Option<OpenFile>,
    memory: Option<OpenFile>,
    io: Option<OpenFile>,
}

impl Files {
    /// `open` opens a file of a controller.
    pub(super) fn open(open: impl Fn(&str, &str) -> Result<OpenFile, Failed>) -> Self {
        let open = |name: &str| open("cpuacct", name).ok();
        Self { cpu: open("cpu.pressure"), memory: open("memory.pressure"), io: open("io.pressure") }
    }

    pub(super) fn cpu(&self) -> Option<Psi> {
        read(self.cpu.as_ref())
    }

    pub(super) fn memory(&self) -> Option<Psi> {
        read(self.memory.as_ref())
    }

    pub(super) fn io(&self) -> Option<Psi> {
        read(self.io.as_ref())
    }
}

/// `None` also if it was turned off after it was opened: reading then fails.
fn read(file: Option<&OpenFile>) -> Option<Psi> {
    file?.read(parse::psi).ok()
}
