//! Starts a program from a process with threads.
//!
//! Until execve the child shares the parent's memory (CLONE_VM and CLONE_VFORK, as with posix_spawn), so no page table
//! is copied. It has its own stack and only makes system calls, whose arguments the parent has prepared, so it does not
//! matter which locks other threads hold. Its descriptor table is a copy, so its changes do not affect the parent.
//!
//! A child that is to start in a cgroup of v2 is created by clone3(2), which has no wrapper that sets up a stack. It gets
//! a copy of the memory, which takes less time than joining the cgroup later, and shares one page with the parent.
//!
//! The child closes all descriptors that are not the program's before execve, because execve may wait for a disk for
//! ever. With close-on-exec instead, copies of the parent's connections and locks would stay open as long.

use std::ffi::{CStr, CString, c_char, c_void};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::ptr;
use std::sync::atomic::{AtomicI32, Ordering};

use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

pub use crate::clone::Child;
use crate::rlimit::Limit;
use crate::signal::Blocked;

/// Bytes of the child's stack: it calls a few functions without large frames.
const STACK: usize = 64 * 1024;
/// All descriptors are first copied to numbers from here on, which are above those that they get in the end.
const ABOVE: RawFd = 64;

/// The executable.
#[derive(Debug, Clone, Copy)]
pub enum Binary<'a> {
    /// An open executable ([`crate::seal`]). It must not be a script: the interpreter could not open it.
    Fd(BorrowedFd<'a>),
    /// An absolute path.
    Path(&'a CStr),
}

/// A program to start.
#[derive(Debug)]
pub struct Program<'a> {
    /// Which program.
    pub binary: Binary<'a>,
    /// argv.
    pub args: &'a [CString],
    /// The whole environment.
    pub env: &'a [CString],
    /// stdin, stdout and stderr; /dev/null for `None`.
    pub stdio: [Option<BorrowedFd<'a>>; 3],
    /// Descriptors 3, 4 and so on, at most 32. All others are closed.
    pub fds: &'a [BorrowedFd<'a>],
    /// The folder of a v2 cgroup in which it starts; `None` for the caller's.
    pub cgroup: Option<BorrowedFd<'a>>,
}

/// The child's input, prepared by the parent.
struct Plan {
    /// The executable, if `path` is null. It becomes descriptor `rest`, which execve closes.
    binary: RawFd,
    path: *const c_char,
    args: Vec<*const c_char>,
    env: Vec<*const c_char>,
    /// Each copy, and the number that it gets.
    places: Vec<(RawFd, RawFd)>,
    /// The first number after the program's descriptors.
    rest: RawFd,
    /// The limit of open files that this process was started with, if it has raised its own.
    files: Option<Limit>,
    /// Set by the child if a call failed. The parent sees it, because this memory is shared.
    errno: Shared,
}

/// A number in a page that a child with a copy of the memory shares (mmap(2), MAP_SHARED).
struct Shared(ptr::NonNull<AtomicI32>);

impl Shared {
    fn new() -> io::Result<Self> {
        let (flags, protection) = (MapFlags::SHARED, ProtFlags::READ | ProtFlags::WRITE);
        // SAFETY: a new mapping at a place of the kernel's choice overlaps nothing.
        let page = unsafe { mmap_anonymous(ptr::null_mut(), size_of::<AtomicI32>(), protection, flags) }?;
        ptr::NonNull::new(page.cast()).map(Self).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
    }

    fn number(&self) -> &AtomicI32 {
        // SAFETY: the page is mapped as long as `self` lives, aligned, and zero at first.
        unsafe { self.0.as_ref() }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: this is the mapping of `new`, and nothing refers to it any more. It fails for no mapping of one page.
        let _ = unsafe { munmap(self.0.as_ptr().cast(), size_of::<AtomicI32>()) };
    }
}

/// Starts a program. It leads a new session, its working directory is `/`, and all signals have their default actions
/// and are not blocked. Returns after execve has succeeded. The caller reaps the process.
///
/// # Errors
/// The errors of clone(2) and of the child's system calls, execve included. Then there is no child.
pub fn spawn(program: &Program<'_>) -> io::Result<Child> {
    if program.fds.len() > 32 {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "more than 32 descriptors"));
    }
    let above = |fd: BorrowedFd<'_>| rustix::io::fcntl_dupfd_cloexec(fd, ABOVE);
    let null = crate::fds::null()?;
    let stdio = program.stdio.iter().map(|fd| fd.unwrap_or(null.as_fd()));
    let copies = stdio.chain(program.fds.iter().copied()).map(above);
    let copies = copies.collect::<Result<Vec<OwnedFd>, _>>()?;
    let binary = match program.binary {
        Binary::Fd(fd) => Some(above(fd)?),
        Binary::Path(_) => None,
    };
    let places: Vec<_> = copies.iter().map(|fd| fd.as_raw_fd()).zip(0..).collect();
    let pointers = |strings: &[CString]| -> Vec<*const c_char> {
        strings.iter().map(|s| s.as_ptr()).chain([ptr::null()]).collect()
    };
    let plan = Plan {
        binary: binary.as_ref().map_or(-1, |fd| fd.as_raw_fd()),
        path: if let Binary::Path(path) = program.binary { path.as_ptr() } else { ptr::null() },
        args: pointers(program.args),
        env: pointers(program.env),
        rest: RawFd::try_from(places.len()).unwrap_or(3),
        files: crate::rlimit::original(),
        places,
        errno: Shared::new()?,
    };
    let blocked = Blocked::new()?;
    let child = match program.cgroup {
        Some(cgroup) => copy_of_memory(&plan, cgroup),
        None => same_memory(&plan),
    };
    drop(blocked);
    let child = child?;
    let errno = plan.errno.number().load(Ordering::Relaxed);
    if errno != 0 {
        // It exits at once, so this does not wait long. Its status is of no interest.
        let id = rustix::process::WaitId::PidFd(child.pidfd.as_fd());
        let reaped = || rustix::process::waitid(id.clone(), rustix::process::WaitIdOptions::EXITED);
        let _ = rustix::io::retry_on_intr(reaped);
        return Err(io::Error::from_raw_os_error(errno));
    }
    Ok(child)
}

/// Creates the child in the caller's memory. All signals must be blocked.
fn same_memory(plan: &Plan) -> io::Result<Child> {
    let mut stack = vec![0u128; STACK / size_of::<u128>()];
    let top = stack.as_mut_ptr_range().end;
    let mut pidfd: RawFd = -1;
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD | libc::SIGCHLD;
    // nix's clone cannot return a pidfd.
    // SAFETY: `top` is the aligned end of a stack that, like `plan`, `pidfd` and all that `plan` points to, outlives the
    // child's use: CLONE_VFORK stops this thread until the child has called execve or exited. `child` makes system calls
    // only, and no signal handler runs in it: every signal is blocked until it has reset the handlers.
    let pid = unsafe {
        libc::clone(
            child,
            top.cast::<c_void>(),
            flags,
            ptr::from_ref(plan).cast_mut().cast::<c_void>(),
            &raw mut pidfd,
        )
    };
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: CLONE_PIDFD: the kernel has just opened it for us, and nobody else owns it.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Child { pid: pid.unsigned_abs(), pidfd })
}

/// Creates the child with a copy of the caller's memory, in a cgroup. All signals must be blocked.
fn copy_of_memory(plan: &Plan, cgroup: BorrowedFd<'_>) -> io::Result<Child> {
    // SAFETY: the child makes system calls only, and ends by execve or exit.
    match unsafe { crate::clone::copy_in(cgroup) }? {
        Some(child) => Ok(child),
        None => begin(plan),
    }
}

/// Runs in the child, which shares the parent's memory: system calls only, no allocation, no locks.
extern "C" fn child(plan: *mut c_void) -> libc::c_int {
    // SAFETY: the pointer is `spawn`'s plan, which lives while its thread is held, and is only read but for an atomic.
    begin(unsafe { &*plan.cast::<Plan>() })
}

/// Runs in the child.
fn begin(plan: &Plan) -> ! {
    let errno = become_program(plan);
    plan.errno.number().store(errno.raw_os_error(), Ordering::Relaxed);
    crate::fork::exit_now(127)
}

/// Returns only on an error. The functions of rustix that are used here make one system call each.
fn become_program(plan: &Plan) -> Errno {
    // It fails only for the leader of a process group, which a new process is not.
    let _ = rustix::process::setsid();
    if let Err(errno) = rustix::process::chdir(c"/") {
        return errno;
    }
    if let Some(files) = plan.files {
        // Limits are not shared by CLONE_VM. This one was in force before, so setting it does not fail.
        let _ = files.apply_to_open_files();
    }
    for (copy, number) in &plan.places {
        // rustix's dup2 wants an owner for the number. In this table, which ends with execve, numbers have no owners.
        // SAFETY: takes numbers and no memory. The table is the child's own copy (no CLONE_FILES): what it closes
        // there the parent keeps.
        if unsafe { libc::dup2(*copy, *number) } < 0 {
            return last();
        }
    }
    let by_fd = plan.path.is_null();
    if by_fd {
        // SAFETY: takes numbers and no memory. The table is the child's own copy: what it closes there the parent keeps.
        if unsafe { libc::dup3(plan.binary, plan.rest, libc::O_CLOEXEC) } < 0 {
            return last();
        }
    }
    let first = plan.rest.unsigned_abs() + u32::from(by_fd);
    // SAFETY: the table is the child's own copy, so the parent's owners keep theirs. The child uses no descriptor any
    // more but its program, which lies below `first`.
    if unsafe { crate::fds::close_range(first, u32::MAX) }.is_err() {
        return last();
    }
    // Last, because it unblocks signals. Handlers and the mask are the child's own (no CLONE_SIGHAND).
    crate::signal::reset();
    let (args, env) = (plan.args.as_ptr(), plan.env.as_ptr());
    // nix's calls allocate.
    if by_fd {
        let (empty, flags) = (c"".as_ptr(), libc::AT_EMPTY_PATH);
        // SAFETY: `args` and `env` end in null and hold C strings of `spawn`'s caller, which live across the call, as
        // does the empty path. When it succeeds nothing of this program is left.
        unsafe { libc::syscall(libc::SYS_execveat, plan.rest, empty, args, env, flags) };
    } else {
        // SAFETY: `path` is a C string of `spawn`'s caller; `args` and `env` end in null and hold C strings of the same
        // caller. All live across the call. When it succeeds nothing of this program is left.
        unsafe { libc::execve(plan.path, args, env) };
    }
    last()
}

/// The C library's errno. The child shares it with the parent's thread, which is suspended meanwhile.
fn last() -> Errno {
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::INVAL)
}

#[cfg(test)]
mod tests;
