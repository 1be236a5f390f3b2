//! Locks the mounts of a container with a user namespace (mount_namespaces(7)), so that it cannot undo them with
//! CAP_SYS_ADMIN: unmount a volume or a mask, or make something writable that is read-only.
//!
//! The kernel locks mounts when their namespace is copied into another user namespace. That has locked what the worker
//! has attached, in the copy that init enters ([`copy_for`]), but not what init has attached itself. Only a process in the
//! host's user namespace can have everything locked, so the worker forks one:
//!
//! ```text
//! init, in the container's user namespace         this process, in the host's
//! attaches everything, enters its root
//! sends its pidfd                          ──▶    enters init's mount namespace and copies it: all is locked
//!                                                 enters the container's user namespace and copies the copy, which
//! enters that                              ◀──    belongs to the container now; ends
//! ```

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use super::stage::{Step, internal};
use super::users::Users;

const STAGE: &str = "locked mounts";
/// Length of an error in bytes.
const MAX_TEXT: usize = 512;

/// Init's end of the socket. When all copies of it are closed, the process ends.
pub(super) struct Locked(OwnedFd);

impl Locked {
    /// Forks the process. In the worker, before it joins the container's cgroups on v1. Nobody waits for the process: it has
    /// ended before init is reported, or ends with the worker and init, and then the shim reaps it.
    pub(super) fn fork(users: Users<'_>) -> Step<Self> {
        let fork = || {
            let (ours, theirs) = sys::scm::packet_pair()?;
            sys::fork::worker(&[theirs.as_fd(), users.namespace()], |fds| serve(&fds))?;
            Ok(Self(ours))
        };
        fork().map_err(internal(STAGE, "the process that makes them"))
    }

    /// Enters a locked copy of the caller's mount namespace. In init. Root and working directory become the root of the
    /// copy; descriptors still belong to the mounts that were copied.
    pub(super) fn enter(self) -> Step<()> {
        let enter = || {
            let own = sys::pidfd::open(std::process::id())?;
            sys::scm::send_with_fds(self.0.as_fd(), b"\n", &[own.as_fd()])?;
            sys::namespace::enter_mount(receive(self.0.as_fd())?.as_fd())
        };
        enter().map_err(internal(STAGE, "a copy of the mount namespace"))
    }
}

/// A copy of the worker's mount namespace `mounts` that belongs to the container's user namespace; init could not enter
/// another one. All mounts in it are locked. The process that makes it ends at once, or with the worker; the shim reaps
/// it.
pub(super) fn copy_for(users: Users<'_>, mounts: BorrowedFd<'_>) -> Step<OwnedFd> {
    let copy = || {
        let (ours, theirs) = sys::scm::packet_pair()?;
        let keep = [theirs.as_fd(), users.namespace(), mounts];
        sys::fork::worker(&keep, |fds| {
            let [socket, users, mounts] = fds.as_slice() else { return 1 };
            let copy = sys::namespace::owned_copy(mounts.as_fd(), users.as_fd());
            i32::from(answer(socket.as_fd(), copy).is_err())
        })?;
        drop(theirs);
        receive(ours.as_fd())
    };
    copy().map_err(internal(STAGE, "a copy for the container's user namespace"))
}

/// Receives what [`answer`] sends.
fn receive(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let (mut text, mut copy) = ([0; MAX_TEXT], None);
    let length = sys::scm::recv_with_fds(socket, &mut text, |fd| copy = Some(fd))?;
    match (copy, text.get(..length).unwrap_or_default()) {
        (Some(copy), _) => Ok(copy),
        (None, []) => Err(io::Error::other("the process that makes it has ended")),
        (None, text) => Err(io::Error::other(String::from_utf8_lossy(text).into_owned())),
    }
}

/// Runs in the process. `fds`: its end of the socket, the user namespace.
fn serve(fds: &[OwnedFd]) -> i32 {
    let [socket, users] = fds else { return 1 };
    let mut init = None;
    // End of file: the container was not created.
    if sys::scm::recv_with_fds(socket.as_fd(), &mut [0], |fd| init = Some(fd)).is_err() {
        return 1;
    }
    let Some(init) = init else { return 0 };
    let copy = sys::namespace::locked_copy(init.as_fd(), users.as_fd());
    i32::from(answer(socket.as_fd(), copy).is_err())
}

fn answer(socket: BorrowedFd<'_>, copy: io::Result<OwnedFd>) -> io::Result<usize> {
    match copy {
        Ok(copy) => sys::scm::send_with_fds(socket, b"\n", &[copy.as_fd()]),
        Err(error) => {
            let text: String = error.to_string().chars().take(MAX_TEXT / 4).collect();
            sys::scm::send_with_fds(socket, text.as_bytes(), &[])
        }
    }
}
