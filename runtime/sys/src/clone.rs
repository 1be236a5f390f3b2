//! clone3(2) into new namespaces and (cgroup v2) into a cgroup; clone(2) for a sibling. Both return a pidfd. rustix has
//! neither call; nix's clone runs the child on another stack, while the child here continues on its copy of the
//! caller's.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};

use crate::fork;

/// The new namespaces of a child of [`clone3_pidfd`], and its parent. Flags with which it would share memory,
/// descriptors or signal handlers with the caller cannot be expressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flags(u64);

impl Flags {
    /// Network namespace.
    pub const NEWNET: Self = Self(libc::CLONE_NEWNET as u64);
    /// System V IPC and POSIX message queues.
    pub const NEWIPC: Self = Self(libc::CLONE_NEWIPC as u64);
    /// Host name.
    pub const NEWUTS: Self = Self(libc::CLONE_NEWUTS as u64);
    /// Process numbers.
    pub const NEWPID: Self = Self(libc::CLONE_NEWPID as u64);
    /// Users and groups. It is created first and owns the other namespaces; the child has all capabilities in it, and no
    /// uid until the mapping is written ([`crate::userns::write_mapping`]).
    pub const NEWUSER: Self = Self(libc::CLONE_NEWUSER as u64);
    /// Mounts.
    pub const NEWNS: Self = Self(libc::CLONE_NEWNS as u64);
    /// The child becomes a sibling: its parent is the caller's.
    pub const PARENT: Self = Self(libc::CLONE_PARENT as u64);
    /// No new namespace.
    const NONE: Self = Self(0);

    /// Combines two sets of flags.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// CLONE_INTO_CGROUP, Linux 5.7.
const INTO_CGROUP: u64 = 0x2_0000_0000;

/// A child process.
#[derive(Debug)]
pub struct Child {
    /// In the caller's PID namespace.
    pub pid: u32,
    /// Refers to the process even if its pid is reused.
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

/// clone3(2) with CLONE_PIDFD, into the cgroup of v2 if there is one. Returns `None` in the child, which continues on its
/// copy of the caller's memory.
///
/// # Errors
/// clone3(2).
///
/// # Safety
/// `flags` do not have CLONE_VM. If this process has threads, locks that they hold stay locked in the child: it may only make
/// system calls, and must end by execve or [`fork::exit_now`].
unsafe fn clone3(flags: u64, exit_signal: i32, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Option<Child>> {
    let mut pidfd: RawFd = -1;
    let mut args = Args {
        flags: flags | libc::CLONE_PIDFD as u64 | if cgroup.is_some() { INTO_CGROUP } else { 0 },
        pidfd: &raw mut pidfd as u64,
        exit_signal: u64::from(exit_signal.unsigned_abs()),
        cgroup: cgroup.map_or(0, |fd| u64::from(fd.as_raw_fd().unsigned_abs())),
        ..Args::default()
    };
    // SAFETY: the kernel reads `args`, of the size that is passed, and writes a number into `pidfd`; both live across
    // the call. Without CLONE_VM this is a fork. The caller has promised what its child does.
    match unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<Args>()) } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(None),
        pid => {
            // SAFETY: CLONE_PIDFD: the kernel has just opened it for us, and nobody else owns it.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Some(Child { pid: u32::try_from(pid).unwrap_or_default(), pidfd }))
        }
    }
}

/// Runs `work` in a child created with `flags`, on v2 in `cgroup`. The child is a copy of this process with
/// one thread. `work` may run any code but must not start threads (no fork handlers ran); the child exits
/// with its result. The caller reaps it, or with [`Flags::PARENT`] the caller's parent does.
///
/// # Errors
/// [`fork::single_threaded`] and clone3(2).
pub fn clone3_pidfd(
    flags: Flags,
    cgroup: Option<BorrowedFd<'_>>,
    work: impl FnOnce() -> i32,
) -> io::Result<Child> {
    fork::single_threaded()?;
    // With CLONE_PARENT the kernel takes the caller's exit signal and wants none here.
    let exit_signal = if flags.contains(Flags::PARENT) { 0 } else { libc::SIGCHLD };
    // SAFETY: `Flags` cannot contain CLONE_VM, and this process has one thread, as was just seen.
    match unsafe { clone3(flags.0, exit_signal, cgroup) }? {
        Some(child) => Ok(child),
        None => fork::run_and_exit(work),
    }
}

/// clone3(2) with a copy of the caller's memory, in a cgroup of v2. The calling thread waits until the child has called
/// execve or ended (CLONE_VFORK). Returns `None` in the child.
///
/// # Errors
/// clone3(2).
///
/// # Safety
/// This process may have threads, and locks that they hold stay locked in the child: it may only make system calls, and
/// must end by execve or [`fork::exit_now`].
pub(crate) unsafe fn copy_in(cgroup: BorrowedFd<'_>) -> io::Result<Option<Child>> {
    // SAFETY: CLONE_VFORK without CLONE_VM; the caller has promised that the child makes system calls only.
    unsafe { clone3(libc::CLONE_VFORK as u64, libc::SIGCHLD, Some(cgroup)) }
}

/// [`fork::worker`] for a child that is created in a cgroup of v2: joining one afterwards waits for an RCU grace period
/// (15 ms and more).
///
/// # Errors
/// [`fork::single_threaded`] and clone3(2): EBUSY for a cgroup whose controllers are enabled for the cgroups below it.
pub fn worker_in<F>(cgroup: BorrowedFd<'_>, keep: &[BorrowedFd<'_>], work: F) -> io::Result<u32>
where
    F: FnOnce(Vec<OwnedFd>) -> i32 + Clone + 'static,
{
    let child = clone3_pidfd(Flags::NONE, Some(cgroup), || fork::with_kept(keep, work))?;
    Ok(child.pid)
}

const SIBLING_FLAGS: libc::c_int = libc::CLONE_PARENT | libc::CLONE_PIDFD | libc::SIGCHLD;
/// The call that [`sibling`] makes, and its first argument.
pub const SIBLING: (i64, u64) = (libc::SYS_clone, SIBLING_FLAGS.unsigned_abs() as u64);

/// Creates a sibling with clone(CLONE_PARENT), the second step of an exec after it entered a PID namespace.
/// `work` runs in the sibling. The caller must get the proof before it enters a container, whose /proc does not show
/// its threads.
///
/// # Errors
/// clone(2).
pub fn sibling(_: &fork::SingleThreaded, work: impl FnOnce() -> i32) -> io::Result<Child> {
    let mut pidfd: RawFd = -1;
    // SAFETY: without CLONE_VM this is a fork, of a process that had one thread and, by the proof's contract, has. A
    // null stack lets the child continue on its copy of this one. The kernel writes a number into `pidfd`, which lives
    // across the call; the other pointers are null.
    match unsafe { libc::syscall(libc::SYS_clone, SIBLING_FLAGS, 0usize, &raw mut pidfd, 0usize, 0usize) } {
        -1 => Err(io::Error::last_os_error()),
        0 => fork::run_and_exit(work),
        pid => {
            // SAFETY: CLONE_PIDFD: the kernel has just opened it for us, and nobody else owns it.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Child { pid: u32::try_from(pid).unwrap_or_default(), pidfd })
        }
    }
}
