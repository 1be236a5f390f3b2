//! clone3 with a pidfd, into new namespaces and (cgroup v2) into a cgroup; clone for a sibling.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use crate::fork;

/// New namespaces and other flags of clone3(2).
pub mod flags {
    /// Network namespace.
    pub const NEWNET: u64 = libc::CLONE_NEWNET as u64;
    /// System V IPC and POSIX message queues.
    pub const NEWIPC: u64 = libc::CLONE_NEWIPC as u64;
    /// Host name.
    pub const NEWUTS: u64 = libc::CLONE_NEWUTS as u64;
    /// Process numbers.
    pub const NEWPID: u64 = libc::CLONE_NEWPID as u64;
    /// Mounts.
    pub const NEWNS: u64 = libc::CLONE_NEWNS as u64;
    /// Cgroup root.
    pub const NEWCGROUP: u64 = libc::CLONE_NEWCGROUP as u64;
    /// The child becomes a sibling: its parent is the caller's.
    pub const PARENT: u64 = libc::CLONE_PARENT as u64;
}

/// CLONE_INTO_CGROUP, Linux 5.7.
const INTO_CGROUP: u64 = 0x2_0000_0000;

/// A child.
#[derive(Debug)]
pub struct Child {
    /// In the caller's PID namespace.
    pub pid: u32,
    /// Refers to it whatever becomes of the number.
    pub pidfd: OwnedFd,
}

/// struct clone_args, version 2.
#[repr(C, align(8))]
#[derive(Default)]
struct Args {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Runs `work` in a child made with `flags` ([`flags`]), on v2 born in `cgroup`. The child leaves with the
/// result; the caller reaps it (with [`flags::PARENT`] the caller's parent does). It has no fork handlers run:
/// no threads may be made in it.
///
/// # Errors
/// [`fork::single_threaded`] and clone3(2).
pub fn clone3_pidfd(
    flags: u64,
    cgroup: Option<BorrowedFd<'_>>,
    work: impl FnOnce() -> i32,
) -> io::Result<Child> {
    fork::single_threaded()?;
    let mut pidfd: i32 = -1;
    // With CLONE_PARENT the kernel takes the caller's exit signal and wants none here.
    let exit_signal = if flags & flags::PARENT == 0 { libc::SIGCHLD } else { 0 };
    let mut args = Args {
        flags: flags | libc::CLONE_PIDFD as u64 | if cgroup.is_some() { INTO_CGROUP } else { 0 },
        pidfd: &raw mut pidfd as u64,
        exit_signal: u64::from(exit_signal.unsigned_abs()),
        cgroup: cgroup.map_or(0, |fd| u64::from(fd.as_raw_fd().unsigned_abs())),
        ..Args::default()
    };
    // SAFETY: without CLONE_VM this is a fork, in a process with one thread; `args` and `pidfd` live across it.
    match unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<Args>()) } {
        -1 => Err(io::Error::last_os_error()),
        0 => fork::leave(work),
        pid => {
            // SAFETY: the kernel has just opened it for us.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Child { pid: u32::try_from(pid).unwrap_or_default(), pidfd })
        }
    }
}

/// The call that [`sibling`] makes, and its first argument.
pub const SIBLING: (i64, u64) = (libc::SYS_clone, (libc::CLONE_PARENT | libc::SIGCHLD).unsigned_abs() as u64);

/// Makes a sibling by clone(CLONE_PARENT), as exec's second step does after it entered a PID namespace.
/// `work` runs in the sibling. Returns its pid as the caller's namespace numbers it. The proof was had before
/// the caller entered a container, whose /proc does not show it.
///
/// # Errors
/// clone(2).
pub fn sibling(_: &fork::SingleThreaded, work: impl FnOnce() -> i32) -> io::Result<u32> {
    let flags = libc::CLONE_PARENT | libc::SIGCHLD;
    // SAFETY: without CLONE_VM this is a fork, in a process with one thread. Null pointers: same stack, no ids.
    match unsafe { libc::syscall(libc::SYS_clone, flags, 0usize, 0usize, 0usize, 0usize) } {
        -1 => Err(io::Error::last_os_error()),
        0 => fork::leave(work),
        pid => Ok(u32::try_from(pid).unwrap_or_default()),
    }
}
