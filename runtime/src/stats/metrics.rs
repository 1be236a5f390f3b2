//! What only metrics need: values of a cgroup and of its processes that CRI's stats do not have.
//!
//! Nothing is kept between two readings, neither open files nor values, so that a node without a client for metrics
//! does not pay for them. A reading of a container opens about 25 files of the kernel and looks at the descriptors of
//! its processes, within the limits of [`Budget`]. Blocking, but only for files of the kernel ([`Filesystem::of`] also
//! asks a file system).

use crate::cgroups::Cgroups;
use std::io;
use std::os::fd::AsFd as _;
use std::path::PathBuf;

mod cgroup;
mod device;
mod filesystem;
mod processes;
#[cfg(test)]
mod tests;

pub(crate) use cgroup::{Cpu, Group, Memory};
#[cfg(test)]
pub(crate) use cgroup::{DeviceIo, HugePages, Throttling};
pub(crate) use filesystem::Filesystem;
pub(crate) use processes::{Budget, Processes};

/// Reads cgroups and processes.
#[derive(Debug)]
pub(crate) struct Reader {
    cgroups: Cgroups,
}

impl Reader {
    /// A reader for these hierarchies.
    pub(crate) fn new(cgroups: Cgroups) -> Self {
        Self { cgroups }
    }

    /// Whether the host accounts for huge pages by cgroup.
    pub(crate) fn has_huge_pages(&self) -> bool {
        self.cgroups.folder("hugetlb", "/").is_some()
    }

    /// The values of a cgroup; `path` as in the record of a container.
    ///
    /// # Errors
    /// NotFound or ENODEV if the cgroup is gone, also if it was removed during the reading.
    pub(crate) fn group(&self, path: &str) -> io::Result<Group> {
        let folder = |controller: &str| self.cgroups.folder(controller, path);
        cgroup::read(&folder)
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
