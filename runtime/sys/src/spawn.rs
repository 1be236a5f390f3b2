//! Starting a program from a process with threads.
//!
//! The child shares memory with its parent until execve (CLONE_VM and CLONE_VFORK, as posix_spawn does),
//! runs on a stack of its own and makes system calls only, all of whose arguments were made before. So no
//! lock of another thread matters and no page table is copied. Its descriptor table is a copy: nothing it
//! does to it is seen by the parent. All that is not the program's is closed in it before execve, which may
//! wait for a disk for ever: close-on-exec would keep connections and locks of the parent open until then.

use std::ffi::{CStr, CString, c_char, c_void};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::ptr;

pub use crate::clone::Child;

/// Bytes of the child's stack: it calls a few functions without large frames.
const STACK: usize = 64 * 1024;
/// Copies of all descriptors are made from here on, above the numbers they are to get.
const ABOVE: RawFd = 64;

/// What is executed.
#[derive(Debug, Clone, Copy)]
pub enum Binary<'a> {
    /// What is open ([`crate::seal`]). Not a script: its interpreter could not open it.
    Fd(BorrowedFd<'a>),
    /// An absolute path.
    Path(&'a CStr),
}

/// What to start.
#[derive(Debug)]
pub struct Program<'a> {
    /// Which program.
    pub binary: Binary<'a>,
    /// argv.
    pub args: &'a [CString],
    /// The whole environment.
    pub env: &'a [CString],
    /// stdin, stdout and stderr; /dev/null where there is none.
    pub stdio: [Option<BorrowedFd<'a>>; 3],
    /// Become descriptors 3, 4 and so on (at most 32); all others are closed.
    pub fds: &'a [BorrowedFd<'a>],
}

/// What the child reads, all made by the parent.
struct Plan {
    /// What is executed where `path` is null: it gets the number `rest`, and is closed by execve.
    binary: RawFd,
    path: *const c_char,
    args: Vec<*const c_char>,
    env: Vec<*const c_char>,
    /// `(copy, number it gets)`.
    places: Vec<(RawFd, RawFd)>,
    /// First number that is not the program's.
    rest: RawFd,
    /// Limit of open files that this process was given, where it has raised its own.
    files: Option<libc::rlimit64>,
    /// Set by the child when a call failed; the memory is shared.
    errno: i32,
}

/// Starts it: leader of a new session, in `/`, all signals at their defaults and none blocked. Returns once
/// it was exec'd. The caller reaps it.
///
/// # Errors
/// clone(2), or what the child's calls failed with; then there is no child.
pub fn spawn(program: &Program<'_>) -> io::Result<Child> {
    if program.fds.len() > 32 {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "more than 32 descriptors"));
    }
    let above = |fd: BorrowedFd<'_>| rustix::io::fcntl_dupfd_cloexec(fd, ABOVE);
    let null = File::options().read(true).write(true).open("/dev/null")?;
    let null = std::os::fd::AsFd::as_fd(&null);
    let stdio = program.stdio.iter().map(|fd| fd.unwrap_or(null));
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
    let mut plan = Plan {
        binary: binary.as_ref().map_or(-1, |fd| fd.as_raw_fd()),
        path: if let Binary::Path(path) = program.binary { path.as_ptr() } else { ptr::null() },
        args: pointers(program.args),
        env: pointers(program.env),
        rest: RawFd::try_from(places.len()).unwrap_or(3),
        files: crate::rlimit::given(),
        places,
        errno: 0,
    };
    let mut stack = vec![0u128; STACK / size_of::<u128>()];
    let top = stack.as_mut_ptr_range().end;
    let mut pidfd: RawFd = -1;

    let masked = BlockedSignals::new();
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD | libc::SIGCHLD;
    // SAFETY: `top` is the aligned end of a stack that, like `plan` and `pidfd`, outlives the child's use:
    // CLONE_VFORK holds this thread until the child has exec'd or left. `child` makes system calls only, and
    // with every signal blocked no handler runs in it.
    let pid = unsafe {
        libc::clone(child, top.cast::<c_void>(), flags, (&raw mut plan).cast::<c_void>(), &raw mut pidfd)
    };
    let failed = io::Error::last_os_error();
    drop(masked);
    if pid < 0 {
        return Err(failed);
    }
    // SAFETY: the kernel has just opened it for us.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    // SAFETY: a place in a local; the child that wrote it has left or exec'd.
    let errno = unsafe { ptr::read_volatile(&raw const plan.errno) };
    if errno != 0 {
        // It leaves at once, so this does not wait long; its status says nothing more.
        let _ = rustix::process::waitid(
            rustix::process::WaitId::PidFd(std::os::fd::AsFd::as_fd(&pidfd)),
            rustix::process::WaitIdOptions::EXITED,
        );
        return Err(io::Error::from_raw_os_error(errno));
    }
    Ok(Child { pid: pid.unsigned_abs(), pidfd })
}

/// All signals are blocked in this thread while it lives.
struct BlockedSignals(libc::sigset_t);

impl BlockedSignals {
    fn new() -> Self {
        // SAFETY: sigset_t is plain data that sigfillset and pthread_sigmask fill.
        unsafe {
            let mut all: libc::sigset_t = std::mem::zeroed();
            let mut before: libc::sigset_t = std::mem::zeroed();
            libc::sigfillset(&raw mut all);
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
            Self(before)
        }
    }
}

impl Drop for BlockedSignals {
    fn drop(&mut self) {
        // SAFETY: restores the set that pthread_sigmask gave.
        unsafe {
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, ptr::null_mut());
        }
    }
}

/// Runs in the child, which shares the parent's memory: system calls only, no allocation, no locks.
extern "C" fn child(plan: *mut c_void) -> libc::c_int {
    // SAFETY: the pointer is `spawn`'s plan, which nobody else touches while its thread is held.
    let plan = unsafe { &mut *plan.cast::<Plan>() };
    // SAFETY: numbers, and pointers into the plan that live until execve; see each call's manual page.
    unsafe {
        libc::setsid();
        // Signal handlers are not shared (no CLONE_SIGHAND). SIGKILL and SIGSTOP fail, which is fine.
        let default = [0u64; 4];
        for signal in 1..=64 {
            libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), 0usize, 8usize);
        }
        let mut failed = libc::chdir(c"/".as_ptr()) < 0;
        if let Some(files) = &plan.files {
            // Limits are the process's own: CLONE_VM shares none.
            libc::syscall(libc::SYS_prlimit64, 0, libc::RLIMIT_NOFILE, ptr::from_ref(files), 0usize);
        }
        for (copy, number) in &plan.places {
            failed = failed || libc::dup2(*copy, *number) < 0;
        }
        let by_fd = plan.path.is_null();
        if by_fd {
            failed = failed || libc::dup3(plan.binary, plan.rest, libc::O_CLOEXEC) < 0;
        }
        let first = plan.rest + libc::c_int::from(by_fd);
        failed = failed || libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) < 0;
        if !failed {
            let mask = 0u64;
            let (set, none) = (libc::SIG_SETMASK, 0usize);
            libc::syscall(libc::SYS_rt_sigprocmask, set, &raw const mask, none, 8usize);
            let (args, env) = (plan.args.as_ptr(), plan.env.as_ptr());
            if by_fd {
                let (empty, flags) = (c"".as_ptr(), libc::AT_EMPTY_PATH);
                libc::syscall(libc::SYS_execveat, plan.rest, empty, args, env, flags);
            } else {
                libc::execve(plan.path, args, env);
            }
        }
        ptr::write_volatile(&raw mut plan.errno, *libc::__errno_location());
        libc::_exit(127)
    }
}

#[cfg(test)]
mod tests;
