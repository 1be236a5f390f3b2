//! The last steps of a process before execve(2): what it inherited is put back to what a new process expects.

use std::ffi::{CStr, CString, c_char};
use std::io;

use rustix::process::{Signal, Uid};
use rustix::thread::CpuSet;

/// Default actions for every signal, none blocked. Handlers fall at execve by themselves; ignored signals and
/// the mask would stay.
pub fn reset_signals() {
    // SIG_DFL, no flags, no restorer, empty mask: the kernel's own struct sigaction is at most 32 bytes.
    let default = [0u64; 4];
    for number in 1..=64 {
        if number == Signal::KILL.as_raw() || number == Signal::STOP.as_raw() {
            continue;
        }
        // SAFETY: rt_sigaction(2) reads `default`, of the size told or more, and writes nothing back. It takes
        // a handler away, if any, and installs no code. The C library's call would refuse its own signals.
        unsafe {
            libc::syscall(libc::SYS_rt_sigaction, number, default.as_ptr(), std::ptr::null_mut::<u64>(), 8);
        }
    }
    let none = [0u64; 1];
    // SAFETY: rt_sigprocmask(2) reads one 8-byte mask of the size told and writes nothing back.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            none.as_ptr(),
            std::ptr::null_mut::<u64>(),
            8,
        );
    }
}

/// Joins the session keyring `name`, made empty by the first who asks, so that the caller's keys cannot be
/// seen; an empty name makes one that nobody else can join. A kernel without keyrings has none to hide.
///
/// A named one belongs to a user of its own, made from the name, that no process runs as: its bytes count
/// against nobody's quota (that of root is shared by every container, and one can use it up), and by name it
/// can be joined only as that user. Whoever has it as session keyring possesses it, whoever owns it.
///
/// # Errors
/// ENOMEM; EDQUOT of an anonymous one; InvalidInput for a NUL byte.
pub fn join_session_keyring(name: &str) -> io::Result<()> {
    if name.is_empty() {
        return join_keyring(name);
    }
    let (owner, root) = (Uid::from_raw(keyring_owner(name)), Uid::ROOT);
    match rustix::thread::set_thread_res_uid(owner, root, root) {
        Ok(()) => {
            set_fsuid(owner.as_raw());
            let joined = join_keyring(name);
            set_fsuid(root.as_raw());
            rustix::thread::set_thread_res_uid(root, root, root)?;
            joined
        }
        // A user namespace without that user.
        Err(rustix::io::Errno::INVAL) => join_keyring(name),
        Err(error) => Err(error.into()),
    }
}

/// One of half a milliard users at the upper end, by FNV-1a of the name.
fn keyring_owner(name: &str) -> u32 {
    let hash =
        name.bytes().fold(0x811c_9dc5u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    0xc000_0000 | hash >> 3
}

/// setfsuid(2): the user that keyrings are judged by.
fn set_fsuid(uid: u32) {
    // SAFETY: takes a number. It reports no failure; without effect the keyring is not found, and made anew.
    unsafe { libc::syscall(libc::SYS_setfsuid, uid) };
}

fn join_keyring(name: &str) -> io::Result<()> {
    const JOIN_SESSION_KEYRING: libc::c_int = 1;
    const SETPERM: libc::c_int = 5;
    const DESCRIBE: libc::c_int = 6;
    const USER_SEARCH: u32 = 0x0008_0000;
    let named = CString::new(name)?;
    let name_pointer = if name.is_empty() { std::ptr::null() } else { named.as_ptr() };
    // SAFETY: keyctl(2) reads the C string, which lives across the call; null makes an anonymous keyring.
    let ring = unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, name_pointer, 0, 0, 0) };
    if ring < 0 {
        let e = io::Error::last_os_error();
        return if e.raw_os_error() == Some(libc::ENOSYS) { Ok(()) } else { Err(e) };
    }
    if name.is_empty() {
        return Ok(());
    }
    // "keyring;uid;gid;permissions in hex;name"
    let mut text = [0u8; 256];
    // SAFETY: the kernel writes at most the length told into `text`, which lives across the call.
    let length = unsafe { libc::syscall(libc::SYS_keyctl, DESCRIBE, ring, text.as_mut_ptr(), text.len(), 0) };
    if length < 0 {
        return Err(io::Error::last_os_error());
    }
    let described = String::from_utf8_lossy(&text);
    let permissions = described.split(';').nth(3).and_then(|hex| u32::from_str_radix(hex, 16).ok());
    let Some(permissions) = permissions else { return Err(io::ErrorKind::InvalidData.into()) };
    // SAFETY: takes numbers only.
    match unsafe { libc::syscall(libc::SYS_keyctl, SETPERM, ring, permissions | USER_SEARCH, 0, 0) } {
        0 => Ok(()),
        // Made by a process of the container that has given up its power since: it can be searched already.
        _ if permissions & USER_SEARCH != 0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// System calls on the way from giving power away to execve, by number: a filter that refuses one of them cannot
/// be loaded before. Those that serve memory are in it because libraries may make them at any time.
pub mod calls {
    /// On every road: giving up the last capability, memory, closing, telling a failure, execve.
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
    /// Init: libcontainer says that it is ready and waits on its socket.
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
    /// Exec: a new session, its terminal.
    pub const EXEC: &[i64] = &[libc::SYS_setsid, libc::SYS_ioctl];
}

/// Arguments and environment in the form that execve takes, made before a filter may forbid memory.
pub struct Image {
    // The arrays point into these.
    _strings: Vec<CString>,
    args: Vec<*const c_char>,
    env: Vec<*const c_char>,
}

impl std::fmt::Debug for Image {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Image").field("strings", &self._strings).finish_non_exhaustive()
    }
}

impl Image {
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
        Ok(Self { _strings: strings, args: arg_pointers, env: env_pointers })
    }

    /// Becomes the program at `path`. Returns only when it failed.
    pub fn execute(&self, path: &CStr) -> io::Error {
        // SAFETY: `path` is a C string; both arrays end with a null pointer and point at C strings whose heap
        // memory `_strings` owns (moving a CString moves no bytes).
        unsafe { libc::execve(path.as_ptr(), self.args.as_ptr(), self.env.as_ptr()) };
        io::Error::last_os_error()
    }
}

/// Puts back what a child inherits from a parent with unusual settings: scheduling class, nice value, I/O
/// priority, CPUs (those of its cpuset, so after joining one), timer slack, use of huge pages, personality.
/// What cannot be put back stays.
pub fn reset_scheduling() {
    const PROCESS: libc::c_int = 1;
    // Best effort throughout: none of these guards anything.
    let priority = libc::sched_param { sched_priority: 0 };
    // SAFETY: reads `priority`, which lives across the call. The class SCHED_OTHER needs no privilege; the C
    // library's call of this name may be a stub.
    unsafe { libc::syscall(libc::SYS_sched_setscheduler, 0, libc::SCHED_OTHER, &raw const priority) };
    // SAFETY: takes numbers: this process, and no I/O priority of its own.
    unsafe { libc::syscall(libc::SYS_ioprio_set, PROCESS, 0, 0) };
    let _ = rustix::thread::set_current_timer_slack(None);
    let _ = rustix::thread::disable_transparent_huge_pages(false);
    let _ = rustix::process::setpriority_process(None, 0);
    let mut cpus = CpuSet::new();
    (0..CpuSet::MAX_CPU).for_each(|cpu| cpus.set(cpu));
    let _ = rustix::thread::sched_setaffinity(None, &cpus);
    // SAFETY: personality(2) takes a number; 0 is PER_LINUX without flags.
    unsafe { libc::personality(0) };
}
