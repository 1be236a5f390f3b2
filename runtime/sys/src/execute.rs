//! The last steps of a process before execve(2): inherited settings are reset to the defaults of a new
//! process.

use std::ffi::{CStr, CString, c_char};
use std::io;

use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::personality::{self, Persona};
use nix::sys::prctl;
use nix::unistd::Pid;

/// System calls between dropping privileges and execve, by number: a filter that refuses one of them cannot
/// be loaded earlier. Memory calls are included, because libraries may make them at any time.
pub mod calls {
    /// Of all processes: dropping the last capability, memory, closing, reporting a failure, execve.
    pub const LAST: &[i64] = &[
        libc::SYS_capset,
        libc::SYS_brk,
        libc::SYS_mmap,
        libc::SYS_munmap,
        libc::SYS_mremap,
        libc::SYS_madvise,
        libc::SYS_futex,
        libc::SYS_close,
        libc::SYS_close_range,
        libc::SYS_fcntl,
        libc::SYS_write,
        libc::SYS_sendmsg,
        libc::SYS_execve,
        libc::SYS_exit_group,
    ];
    /// Init: libcontainer reports that it is ready and waits on its socket.
    pub const INIT: &[i64] = &[
        libc::SYS_sendto,
        libc::SYS_accept,
        libc::SYS_accept4,
        libc::SYS_read,
        libc::SYS_recvfrom,
        libc::SYS_fstat,
        libc::SYS_statx,
        libc::SYS_lseek,
        libc::SYS_restart_syscall,
    ];
    /// Exec: a new session, its terminal; waiting for its execve.
    pub const EXEC: &[i64] = &[libc::SYS_setsid, libc::SYS_ioctl, libc::SYS_ppoll];
}

/// Arguments and environment in execve's format, allocated before a filter may forbid that.
pub struct Arguments {
    /// The arrays point into these.
    strings: Vec<CString>,
    args: Vec<*const c_char>,
    env: Vec<*const c_char>,
}

impl std::fmt::Debug for Arguments {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Not the strings: an environment has passwords.
        f.debug_struct("Arguments").field("strings", &self.strings.len()).finish_non_exhaustive()
    }
}

impl Arguments {
    /// From strings without their terminating NUL.
    ///
    /// # Errors
    /// InvalidInput for a NUL byte.
    pub fn new<'a>(
        args: impl Iterator<Item = &'a [u8]>,
        env: impl Iterator<Item = &'a [u8]>,
    ) -> io::Result<Self> {
        let args: Vec<CString> = args.map(CString::new).collect::<Result<_, _>>()?;
        let env: Vec<CString> = env.map(CString::new).collect::<Result<_, _>>()?;
        let pointers = |strings: &[CString]| -> Vec<*const c_char> {
            strings.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect()
        };
        let (arg_pointers, env_pointers) = (pointers(&args), pointers(&env));
        let strings = args.into_iter().chain(env).collect();
        Ok(Self { strings, args: arg_pointers, env: env_pointers })
    }

    /// Becomes the program at `path`. Returns only when it failed.
    pub fn execute(&self, path: &CStr) -> io::Error {
        // nix's call allocates arrays, which a filter may forbid.
        // SAFETY: `path` is a C string; both arrays end with a null pointer and point at C strings whose heap
        // memory `strings` owns (moving a CString moves no bytes). All live across the call; when it succeeds
        // nothing of this program is left.
        unsafe { libc::execve(path.as_ptr(), self.args.as_ptr(), self.env.as_ptr()) };
        io::Error::last_os_error()
    }
}

/// Resets settings that a child inherits from a parent with unusual ones: scheduling class, nice value, I/O priority,
/// use of huge pages, personality, and CPUs (to all of the cpuset; join that before). Errors are ignored.
pub fn reset_scheduling() {
    const PROCESS: libc::c_int = 1;
    // Best effort: none of these settings protects anything.
    let priority = libc::sched_param { sched_priority: 0 };
    // Neither nix nor rustix has it, and the C library's call of this name may be a stub.
    // SAFETY: reads `priority`, which lives across the call. The class SCHED_OTHER needs no privilege.
    unsafe { libc::syscall(libc::SYS_sched_setscheduler, 0, libc::SCHED_OTHER, &raw const priority) };
    // Neither nix nor rustix has it.
    // SAFETY: takes numbers and no memory: this process, and no I/O priority of its own.
    unsafe { libc::syscall(libc::SYS_ioprio_set, PROCESS, 0, 0) };
    crate::rlimit::reset_nice();
    // To the thread's default, which is the value that its parent had at the fork.
    let _ = prctl::set_timerslack(0);
    let _ = prctl::set_thp_disable(false);
    let mut cpus = CpuSet::new();
    for cpu in 0..CpuSet::count() {
        let _ = cpus.set(cpu);
    }
    let _ = sched_setaffinity(Pid::from_raw(0), &cpus);
    // PER_LINUX without flags.
    let _ = personality::set(Persona::empty());
}
