//! Forks a worker for each kind of work. The worker's input is borrowed, because the fork copies it.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use model::ContainerId;
use sys::namespace::Namespaces;
use wire::ErrorKind;

use crate::create::{self, Streams};
use crate::exec::{self, Target};
use crate::failure::failure;
use crate::packet::{self, Reporter};
use crate::pause;

/// The worker's pid and the shim's end of its socket.
pub(crate) type Forked = (u32, OwnedFd);

/// Forks the worker that starts pause.
///
/// # Errors
/// The errors of socketpair and fork.
pub(crate) fn pause(fds: &[OwnedFd], binary: BorrowedFd<'_>) -> io::Result<Forked> {
    let mut keep: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
    keep.push(binary);
    packet::fork(&keep, |reporter| match copies(fds) {
        Ok(fds) => pause::work(&reporter, fds, binary),
        Err(error) => fail(&reporter, &error),
    })
}

/// Forks the worker that creates a container. `all`: all open namespaces; `of` returns those of the pod's
/// containers. The plan, which only the worker reads, says which ones it needs.
///
/// # Errors
/// The errors of socketpair and fork.
pub(crate) fn container<'a>(
    fds: &[OwnedFd],
    streams: Streams,
    pause: &'a Namespaces,
    all: impl Iterator<Item = &'a Namespaces>,
    of: impl Fn(&ContainerId) -> Option<&'a Namespaces>,
) -> io::Result<Forked> {
    let mut keep: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
    keep.extend(pause.fds());
    keep.extend(all.filter_map(|namespaces| namespaces.get("pid")));
    packet::fork(&keep, |reporter| match copies(fds) {
        Ok(fds) => create::work(&reporter, fds, streams, pause, of),
        Err(error) => fail(&reporter, &error),
    })
}

/// Forks the worker that starts a process in a container.
///
/// # Errors
/// The errors of socketpair and fork.
pub(crate) fn exec(fds: &[OwnedFd], target: &Target<'_>) -> io::Result<Forked> {
    let mut keep: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
    keep.extend(target.cgroups.iter().map(|fd| fd.as_fd()));
    keep.extend(target.namespaces.fds());
    packet::fork(&keep, |reporter| match copies(fds) {
        Ok(fds) => exec::work(reporter, fds, target),
        Err(error) => fail(&reporter, &error),
    })
}

fn copies(fds: &[OwnedFd]) -> io::Result<Vec<OwnedFd>> {
    fds.iter().map(OwnedFd::try_clone).collect()
}

fn fail(reporter: &Reporter, error: &io::Error) -> i32 {
    reporter.failed(&failure(ErrorKind::Internal, "descriptors", error));
    1
}
