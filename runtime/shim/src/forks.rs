//! Forks a worker for each kind of work. The worker gets copies of the descriptors that it needs, and a description
//! of them.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use model::ContainerId;
use sys::namespace::Namespaces;

use crate::create::{self, StreamRequest};
use crate::{exec, packet, pause};

/// The worker's pid and the shim's end of its socket.
pub(crate) type Forked = (u32, OwnedFd);

/// Forks the worker that starts pause.
///
/// # Errors
/// The errors of socketpair and fork.
pub(crate) fn pause(fds: &[OwnedFd], binary: BorrowedFd<'_>) -> io::Result<Forked> {
    let mut keep: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
    keep.push(binary);
    packet::fork(None, &keep, |reporter, mut fds, _| match fds.pop() {
        Some(binary) => pause::work(&reporter, fds, binary.as_fd()),
        None => 1,
    })
}

/// Forks the worker that creates a container, on v2 in the container's cgroup. `targets`: the pod's containers and their
/// namespaces. The plan, which only the worker reads, says whose PID namespace it needs.
///
/// # Errors
/// The errors of socketpair and fork.
pub(crate) fn container<'a>(
    fds: &[OwnedFd],
    streams: StreamRequest,
    pause: &Namespaces,
    targets: impl Iterator<Item = (&'a ContainerId, &'a Namespaces)>,
) -> io::Result<Forked> {
    let mut keep: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
    keep.extend(pause.fds());
    let mut passed = create::Passed {
        requested: fds.len(),
        in_cgroup: false,
        streams,
        pause: pause.kinds(),
        targets: Vec::new(),
    };
    for (id, namespaces) in targets {
        passed.targets.push((id.clone(), namespaces.kinds().only("pid")));
        keep.extend(namespaces.get("pid"));
    }
    // After the plan and kubelet's mount namespace come the cgroup folders.
    let cgroup = fds.get(2).map(|fd| fd.as_fd()).filter(|folder| sys::cgroup::is_unified(*folder));
    packet::fork(cgroup, &keep, move |reporter, fds, in_cgroup| {
        create::work(reporter, fds, create::Passed { in_cgroup, ..passed })
    })
}

/// Forks the worker that starts a process in the container with this init, on v2 in the container's cgroup. `joined`: what it
/// joins ([`crate::descriptors::Cgroups::joined`]).
///
/// # Errors
/// The errors of socketpair and fork.
pub(crate) fn exec(
    fds: &[OwnedFd],
    joined: &[OwnedFd],
    unified: bool,
    namespaces: &Namespaces,
    init: u32,
) -> io::Result<Forked> {
    let passed = exec::Passed {
        requested: fds.len(),
        cgroups: joined.len(),
        namespaces: namespaces.kinds(),
        unified,
        in_cgroup: false,
        init,
    };
    let mut keep: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
    keep.extend(joined.iter().map(|fd| fd.as_fd()));
    keep.extend(namespaces.fds());
    let cgroup = joined.first().filter(|_| unified).map(|fd| fd.as_fd());
    packet::fork(cgroup, &keep, move |reporter, fds, in_cgroup| {
        exec::work(reporter, fds, exec::Passed { in_cgroup, ..passed })
    })
}
