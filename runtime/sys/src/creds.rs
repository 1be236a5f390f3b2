//! Users, capabilities and what else survives execve(2). For the calling process, which has one thread:
//! the system calls are made raw, so glibc's copying to other threads does not happen.

use std::ffi::CStr;
use std::io;

/// CAP_SYS_ADMIN as a bit.
pub const SYS_ADMIN: u64 = 1 << 21;
/// _LINUX_CAPABILITY_VERSION_3.
const VERSION: u32 = 0x2008_0522;
/// No kernel has more capabilities than bits here.
const CAPS: u32 = 64;

/// Capability sets of the caller as masks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Caps {
    /// In force.
    pub effective: u64,
    /// May be put in force.
    pub permitted: u64,
    /// Kept for files with inheritable bits.
    pub inheritable: u64,
}

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

fn check(result: libc::c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// capget(2).
///
/// # Errors
/// None on any kernel we run on.
pub fn caps() -> io::Result<Caps> {
    let header = Header { version: VERSION, pid: 0 };
    let mut data = [0u32; 6];
    // SAFETY: version 3 writes two structs of three u32, which is `data`; the header lives across the call.
    check(unsafe { libc::syscall(libc::SYS_capget, &raw const header, data.as_mut_ptr()) })?;
    let [effective, permitted, inheritable, effective_high, permitted_high, inheritable_high] = data;
    let join = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    Ok(Caps {
        effective: join(effective, effective_high),
        permitted: join(permitted, permitted_high),
        inheritable: join(inheritable, inheritable_high),
    })
}

/// capset(2).
///
/// # Errors
/// EPERM for what is not permitted.
pub fn set_caps(caps: Caps) -> io::Result<()> {
    let header = Header { version: VERSION, pid: 0 };
    let low = |mask: u64| u32::try_from(mask & 0xffff_ffff).unwrap_or(0);
    let high = |mask: u64| low(mask >> 32);
    let data = [
        low(caps.effective),
        low(caps.permitted),
        low(caps.inheritable),
        high(caps.effective),
        high(caps.permitted),
        high(caps.inheritable),
    ];
    // SAFETY: version 3 reads two structs of three u32, which is `data`; the header lives across the call.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) })
}

/// Takes every capability that is not in `keep` from the bounding set.
///
/// # Errors
/// EPERM without CAP_SETPCAP.
pub fn bound_caps(keep: u64) -> io::Result<()> {
    for cap in (0..CAPS).filter(|cap| keep >> cap & 1 == 0) {
        // SAFETY: the option takes a number.
        let done = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(cap), 0, 0, 0) };
        if done != 0 {
            let error = io::Error::last_os_error();
            // The first number the kernel does not know: there are no more.
            return if error.raw_os_error() == Some(libc::EINVAL) { Ok(()) } else { Err(error) };
        }
    }
    Ok(())
}

/// Makes the ambient set what is asked for; each must be permitted and inheritable.
///
/// # Errors
/// EPERM when one is not.
pub fn set_ambient(wanted: u64) -> io::Result<()> {
    ambient(libc::PR_CAP_AMBIENT_CLEAR_ALL, 0)?;
    (0..CAPS)
        .filter(|cap| wanted >> cap & 1 == 1)
        .try_for_each(|cap| ambient(libc::PR_CAP_AMBIENT_RAISE, libc::c_ulong::from(cap)))
}

fn ambient(what: libc::c_int, cap: libc::c_ulong) -> io::Result<()> {
    // SAFETY: the option takes numbers.
    check(unsafe { libc::prctl(libc::PR_CAP_AMBIENT, what, cap, 0, 0) }.into())
}

/// Becomes a user: supplementary groups (set even when empty, or the caller's leak), gid, uid. The permitted
/// capabilities stay; effective ones are gone unless the user is root.
///
/// # Errors
/// EPERM; EINVAL for too many groups.
pub fn become_user(uid: u32, gid: u32, groups: &[u32]) -> io::Result<()> {
    // SAFETY: pointer and length are those of a live slice of u32, which is gid_t.
    check(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) })?;
    keep_caps(true)?;
    // SAFETY: takes numbers.
    check(unsafe { libc::syscall(libc::SYS_setresgid, gid, gid, gid) })?;
    // SAFETY: takes numbers.
    check(unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) })?;
    keep_caps(false)
}

fn keep_caps(keep: bool) -> io::Result<()> {
    // SAFETY: the option takes a number.
    check(unsafe { libc::prctl(libc::PR_SET_KEEPCAPS, libc::c_ulong::from(keep), 0, 0, 0) }.into())
}

/// PR_SET_NO_NEW_PRIVS: execve gives nothing any more, for good.
///
/// # Errors
/// prctl(2).
pub fn no_new_privs() -> io::Result<()> {
    // SAFETY: the option takes a number.
    check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }.into())
}

/// A new anonymous session keyring, so that the caller's keys are not had. A kernel without keys is fine.
///
/// # Errors
/// EDQUOT, ENOMEM.
pub fn new_keyring() -> io::Result<()> {
    const JOIN_SESSION_KEYRING: libc::c_int = 1;
    // SAFETY: a null name asks for an anonymous one; nothing is read or written.
    match check(unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, 0usize) }) {
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => Ok(()),
        done => done,
    }
}

/// Signals as after boot: every disposition default, none blocked. (Rust's start-up ignores SIGPIPE, signalfd
/// wants a mask, and execve keeps both.)
pub fn reset_signals() {
    /// struct sigaction of the kernel: SIG_DFL is all zeroes, and the mask has 8 bytes.
    const DEFAULT: [u64; 4] = [0; 4];
    const MASK_SIZE: usize = 8;
    for signal in 1..=64i32 {
        // SAFETY: `DEFAULT` is as large as the kernel's struct sigaction on 64-bit machines and only read;
        // no old one is asked for. KILL and STOP are refused, which changes nothing.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, DEFAULT.as_ptr(), 0usize, MASK_SIZE) };
    }
    let none = 0u64;
    // SAFETY: reads 8 bytes at `none`, and no old mask is asked for.
    unsafe { libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const none, 0usize, MASK_SIZE) };
}

/// Scheduling as after boot: class other, nice 0, no I/O class, every CPU the cpuset allows; execution domain
/// Linux, huge pages as the system has it. Errors are ignored: without CAP_SYS_NICE a lower nice value is not
/// given back, and that is the host's wish.
pub fn reset_scheduling() {
    const IOPRIO_WHO_PROCESS: libc::c_int = 1;
    let parameters = libc::sched_param { sched_priority: 0 };
    let every = [u64::MAX; 128];
    // SAFETY: `parameters` and `every` are live, and their true sizes are known to the kernel or given; the
    // other calls take numbers. 0 is the caller.
    unsafe {
        libc::syscall(libc::SYS_sched_setscheduler, 0, libc::SCHED_OTHER, &raw const parameters);
        libc::syscall(libc::SYS_setpriority, libc::PRIO_PROCESS, 0, 0);
        libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, 0);
        libc::syscall(libc::SYS_sched_setaffinity, 0, size_of_val(&every), every.as_ptr());
        libc::syscall(libc::SYS_personality, 0usize);
        libc::prctl(libc::PR_SET_THP_DISABLE, 0, 0, 0, 0);
    }
}

/// umask(2).
pub fn set_umask(mask: u32) {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(mask & 0o777));
}

/// execve(2); returns only what went wrong.
pub fn execve(program: &CStr, arguments: &Vector<'_>, environment: &Vector<'_>) -> io::Error {
    // SAFETY: the program is a C string, both vectors are arrays of pointers to C strings that end with a
    // null pointer ([`Vector::new`] sees to it) and are borrowed, so all of it lives across the call.
    unsafe {
        libc::syscall(
            libc::SYS_execve,
            program.as_ptr(),
            arguments.pointers.as_ptr(),
            environment.pointers.as_ptr(),
        )
    };
    io::Error::last_os_error()
}

/// A list of C strings as execve wants it, made ahead: after a seccomp filter nothing may be allocated.
#[derive(Debug)]
pub struct Vector<'a> {
    pointers: Vec<*const libc::c_char>,
    strings: std::marker::PhantomData<&'a CStr>,
}

impl<'a> Vector<'a> {
    /// Of these strings, in order.
    pub fn new(strings: impl IntoIterator<Item = &'a CStr>) -> Self {
        let pointers =
            strings.into_iter().map(CStr::as_ptr).chain(std::iter::once(std::ptr::null())).collect();
        Self { pointers, strings: std::marker::PhantomData }
    }
}
