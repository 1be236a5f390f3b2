//! What only metrics need: values of a cgroup and of its processes that CRI's stats do not have.
//!
//! Nothing is kept between two readings, neither open files nor values, so that a node without a client for metrics
//! does not pay for them. A reading of a container opens 20 to 30 files of the kernel and looks at the descriptors of
//! its processes, within the limits of [`Budget`]. Blocking, but only for files of the kernel ([`Filesystem::of`] also
//! asks a file system).

use crate::cgroups::Cgroups;
use crate::stats::{cgroup, parse};
use folder::Folder;
use spec::resources::Version;
use std::io;
use std::os::fd::AsFd as _;
use std::path::PathBuf;

mod device;
mod filesystem;
mod folder;
mod group;
mod processes;
#[cfg(test)]
mod tests;
mod v1;
mod v2;

pub(crate) use filesystem::Filesystem;
pub(crate) use group::{Cpu, Group, Memory, Pressure};
#[cfg(test)]
pub(crate) use group::{DeviceIo, HugePages, Throttling};
pub(crate) use processes::{Budget, Processes};

/// Reads cgroups and processes.
#[derive(Debug)]
pub(crate) struct Reader {
    cgroups: Cgroups,
    version: Version,
    has_pressure: bool,
}

impl Reader {
    /// A reader for these hierarchies.
    pub(crate) fn new(cgroups: Cgroups) -> Self {
        let (version, has_pressure) = (cgroups.version(), cgroup::measures_pressure(&cgroups));
        Self { cgroups, version, has_pressure }
    }

    /// Whether the host accounts for huge pages by cgroup.
    pub(crate) fn has_huge_pages(&self) -> bool {
        self.cgroups.folder("hugetlb", "/").is_some()
    }

    /// Whether the host also remembers the highest usage of huge pages.
    pub(crate) fn has_peaks_of_huge_pages(&self) -> bool {
        self.has_huge_pages() && self.version == Version::V1
    }

    /// Whether the host measures pressure by cgroup.
    pub(crate) fn has_pressure(&self) -> bool {
        self.has_pressure
    }

    /// The values of a cgroup; `path` as in the record of a container.
    ///
    /// # Errors
    /// NotFound or ENODEV if the cgroup is gone, also if it was removed during the reading.
    pub(crate) fn group(&self, path: &str) -> io::Result<Group> {
        let at = |controller: &str| Folder(self.cgroups.folder(controller, path));
        read(self.version, self.has_pressure, &at)
    }

    /// The processes of a cgroup and of those below it. `init` is the pid of the container's first process, whose limits
    /// are reported if it is one of them.
    ///
    /// # Errors
    /// The cgroup is gone or has more cgroups below it than a walk visits.
    pub(crate) fn processes(&self, path: &str, init: u32, budget: &mut Budget) -> io::Result<Processes> {
        let folder = self.cgroups.folder("cpu", path).unwrap_or_else(|| PathBuf::from(path));
        let folder = std::fs::File::open(folder)?;
        processes::read(folder.as_fd(), init, budget)
    }
}

/// Reads the cgroup whose folder in the hierarchy of a controller is `at(controller)`. Files that must exist are read last
/// (in `cpu` and `memory`): if these can be read, the cgroup existed all the time, and no value is missing because it was
/// removed.
fn read(version: Version, has_pressure: bool, at: &dyn Fn(&str) -> Folder) -> io::Result<Group> {
    let pids = at("pids");
    let (tasks, task_limit) = (pids.number("pids.current"), parse::task_limit(&pids.optional("pids.max")));
    let pressure = if has_pressure { at("cpuacct").pressure() } else { Pressure::default() };
    let (io, huge_pages, cpu, memory) = match version {
        Version::V1 => (
            v1::io(&at("blkio")),
            v1::huge_pages(&at("hugetlb")),
            v1::cpu(&at("cpu"), &at("cpuacct"))?,
            v1::memory(&at("memory"))?,
        ),
        Version::V2 => (
            v2::io(&at("io")),
            v2::huge_pages(&at("hugetlb")),
            v2::cpu(&at("cpu"))?,
            v2::memory(&at("memory"))?,
        ),
    };
    Ok(Group { cpu, memory, io, huge_pages, tasks, task_limit, pressure })
}
