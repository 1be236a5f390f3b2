//! The open descriptors of pause, containers and execs, by the serials of the lifecycle. They are lists, not maps: they
//! are short, and their memory can be given back.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use sys::namespace::Namespaces;
use wire::Failure;

use crate::lifecycle::Serial;
use crate::packet::CgroupUses;
use crate::streams::Streams;

/// All open descriptors.
#[derive(Debug, Default)]
pub(crate) struct Descriptors {
    pub(crate) workers: Vec<Worker>,
    /// The namespaces that pause and each init had when they were adopted (`Action::Adopt`). They are closed at
    /// their end, because a container's mount namespace holds its mounts.
    namespaces: Vec<(Serial, Namespaces)>,
    containers: Vec<Container>,
}

/// The descriptors of a worker.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) serial: Serial,
    pub(crate) socket: OwnedFd,
    /// The pidfd of a container's init, until the worker reports the container.
    pub(crate) init: Option<OwnedFd>,
    /// The descriptor for the daemon that came with the pid of its process.
    pub(crate) fd: Option<OwnedFd>,
    /// The other end of its socket is closed.
    pub(crate) closed: bool,
}

/// The descriptors of a container that has not exited.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) serial: Serial,
    pub(crate) cgroups: Cgroups,
    pub(crate) streams: Streams,
}

impl Container {
    /// The first packet of its worker: what its cgroup folders are for, and the shim's ends of its streams.
    ///
    /// # Errors
    /// Descriptors are missing.
    pub(crate) fn receive(&mut self, uses: &CgroupUses, fds: Vec<OwnedFd>) -> Result<(), Failure> {
        let cgroups = &mut self.cgroups;
        (cgroups.unified, cgroups.memory) = (uses.unified, uses.memory);
        (cgroups.freezer, cgroups.search_all) = (uses.freezer, uses.search_all);
        self.streams.receive(fds)
    }
}

impl Descriptors {
    pub(crate) fn worker(&mut self, serial: Serial) -> Option<&mut Worker> {
        self.workers.iter_mut().find(|worker| worker.serial == serial)
    }

    pub(crate) fn add_worker(&mut self, serial: Serial, socket: OwnedFd) {
        self.workers.push(Worker { serial, socket, init: None, fd: None, closed: false });
    }

    pub(crate) fn drop_worker(&mut self, serial: Serial) -> Option<Worker> {
        let place = self.workers.iter().position(|worker| worker.serial == serial)?;
        Some(self.workers.swap_remove(place))
    }

    pub(crate) fn namespaces(&self, serial: Serial) -> Option<&Namespaces> {
        self.namespaces.iter().find(|(of, _)| *of == serial).map(|(_, namespaces)| namespaces)
    }

    pub(crate) fn all_namespaces(&self) -> impl Iterator<Item = (Serial, &Namespaces)> {
        self.namespaces.iter().map(|(serial, namespaces)| (*serial, namespaces))
    }

    pub(crate) fn add_namespaces(&mut self, serial: Serial, namespaces: Namespaces) {
        self.namespaces.push((serial, namespaces));
    }

    pub(crate) fn drop_namespaces(&mut self, serial: Serial) {
        self.namespaces.retain(|(of, _)| *of != serial);
    }

    pub(crate) fn container(&self, serial: Serial) -> Option<&Container> {
        self.containers.iter().find(|container| container.serial == serial)
    }

    pub(crate) fn container_mut(&mut self, serial: Serial) -> Option<&mut Container> {
        self.containers.iter_mut().find(|container| container.serial == serial)
    }

    /// What an exec in a container needs: its descriptors, and its namespaces.
    pub(crate) fn for_exec(&mut self, serial: Serial) -> Option<(&mut Container, &Namespaces)> {
        let namespaces =
            self.namespaces.iter().find(|(of, _)| *of == serial).map(|(_, namespaces)| namespaces);
        self.containers.iter_mut().find(|container| container.serial == serial).zip(namespaces)
    }

    pub(crate) fn add_container(&mut self, container: Container) {
        self.containers.push(container);
    }

    pub(crate) fn drop_container(&mut self, serial: Serial) -> Option<Container> {
        let place = self.containers.iter().position(|container| container.serial == serial)?;
        let dropped = self.containers.swap_remove(place);
        self.containers.shrink_to_fit();
        Some(dropped)
    }
}

/// The cgroup folders of a container, and their uses.
#[derive(Debug, Default)]
pub(crate) struct Cgroups {
    pub(crate) folders: Vec<OwnedFd>,
    /// On v1 the file `tasks` of each of them, from the first exec on: to open nine files takes a tenth of the time in which
    /// an exec joins them, but each open one takes a kilobyte, and many containers get no exec.
    pub(crate) tasks: Vec<OwnedFd>,
    /// They are of v2.
    pub(crate) unified: bool,
    /// Index of its folder in the memory hierarchy; on v2 of its only folder.
    pub(crate) memory: Option<usize>,
    /// Index of its folder in the freezer hierarchy; on v2 of its only folder.
    pub(crate) freezer: Option<usize>,
    /// The container is privileged on v1: its processes may have left some hierarchies and stayed in others, so they
    /// are searched in all.
    pub(crate) search_all: bool,
}

impl Cgroups {
    /// Their uses are not known yet ([`Container::receive`]).
    pub(crate) fn new(folders: Vec<OwnedFd>) -> Self {
        Self { folders, ..Self::default() }
    }

    /// What an exec joins: the folder on v2, the files `tasks` on v1.
    ///
    /// # Errors
    /// The errors of openat(2).
    pub(crate) fn joined(&mut self) -> io::Result<&[OwnedFd]> {
        if self.unified {
            return Ok(&self.folders);
        }
        if self.tasks.is_empty() {
            self.tasks =
                self.folders.iter().map(|dir| sys::cgroup::tasks(dir.as_fd())).collect::<io::Result<_>>()?;
        }
        Ok(&self.tasks)
    }

    /// The folders in which to look for its processes.
    pub(crate) fn folders_with_processes(&self) -> Vec<BorrowedFd<'_>> {
        if self.search_all {
            self.folders.iter().map(|fd| fd.as_fd()).collect()
        } else {
            self.procs_folder().into_iter().collect()
        }
    }

    /// The folder in which its processes are frozen.
    pub(crate) fn freezer_folder(&self) -> Option<BorrowedFd<'_>> {
        self.freezer.and_then(|place| self.folders.get(place)).map(|fd| fd.as_fd())
    }

    /// The folder in which its processes are listed and killed.
    fn procs_folder(&self) -> Option<BorrowedFd<'_>> {
        let place = self.freezer.unwrap_or(0);
        self.folders.get(place).or(self.folders.first()).map(|fd| fd.as_fd())
    }

    pub(crate) fn memory_folder(&self) -> Option<BorrowedFd<'_>> {
        self.memory.and_then(|place| self.folders.get(place)).map(|fd| fd.as_fd())
    }
}
