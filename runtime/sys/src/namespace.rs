//! Entering and leaving namespaces. Callers have one thread: see [`crate::fork::single_threaded`].

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags};

/// Kinds of namespaces, as CLONE_NEW* flags.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Kinds(libc::c_int);

impl Kinds {
    /// None.
    pub const NONE: Self = Self(0);
    /// Mounts.
    pub const MOUNT: Self = Self(libc::CLONE_NEWNS);
    /// Network.
    pub const NETWORK: Self = Self(libc::CLONE_NEWNET);
    /// System V IPC and POSIX message queues.
    pub const IPC: Self = Self(libc::CLONE_NEWIPC);
    /// Host name.
    pub const UTS: Self = Self(libc::CLONE_NEWUTS);
    /// Process numbers; of children, not of the caller.
    pub const PID: Self = Self(libc::CLONE_NEWPID);
    /// Cgroup root.
    pub const CGROUP: Self = Self(libc::CLONE_NEWCGROUP);

    /// Both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// Joins namespaces of a process, by pidfd (all in one step, Linux 5.8), or one by a descriptor of it.
///
/// # Errors
/// setns(2).
pub fn join(target: BorrowedFd<'_>, kinds: Kinds) -> io::Result<()> {
    if kinds.is_empty() {
        return Ok(());
    }
    // SAFETY: takes numbers; the descriptor is open as long as it is borrowed.
    let done = unsafe { libc::setns(target.as_raw_fd(), kinds.0) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Moves the caller into new namespaces.
///
/// # Errors
/// unshare(2).
pub fn leave(kinds: Kinds) -> io::Result<()> {
    // SAFETY: takes a number. CLONE_FILES and CLONE_VM are not among the kinds: no state that Rust relies on
    // is torn from other threads.
    let done = unsafe { libc::unshare(kinds.0) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The caller's mount namespace, to come back to.
///
/// # Errors
/// No /proc.
pub fn own_mount() -> io::Result<OwnedFd> {
    Ok(rustix::fs::openat(CWD, "/proc/self/ns/mnt", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Whether two descriptors are of the same namespace.
///
/// # Errors
/// fstat(2).
pub fn same(a: BorrowedFd<'_>, b: BorrowedFd<'_>) -> io::Result<bool> {
    let (a, b) = (rustix::fs::fstat(a.as_fd())?, rustix::fs::fstat(b.as_fd())?);
    Ok((a.st_dev, a.st_ino) == (b.st_dev, b.st_ino))
}
