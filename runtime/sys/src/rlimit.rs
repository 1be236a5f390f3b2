//! Limits by kernel number.

use std::io;

/// Soft and hard limit of the caller.
///
/// # Errors
/// EINVAL for a number the kernel does not know.
pub fn get(resource: u32) -> io::Result<(u64, u64)> {
    let mut old = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: no new limit is given; `old` lives across the call, which writes it.
    let done = unsafe { libc::syscall(libc::SYS_prlimit64, 0, resource, 0usize, &raw mut old) };
    if done == 0 { Ok((old.rlim_cur, old.rlim_max)) } else { Err(io::Error::last_os_error()) }
}

/// Sets both, or what is nearest: without CAP_SYS_RESOURCE the hard limit cannot be raised and the soft one
/// stays below it. Returns whether they are as asked for.
///
/// # Errors
/// EINVAL for a number the kernel does not know, or a soft limit above the hard one.
pub fn set(resource: u32, soft: u64, hard: u64) -> io::Result<bool> {
    match put(resource, soft, hard) {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
            let (_, ceiling) = get(resource)?;
            put(resource, soft.min(ceiling), hard.min(ceiling))?;
            Ok(false)
        }
        done => done.map(|()| true),
    }
}

fn put(resource: u32, soft: u64, hard: u64) -> io::Result<()> {
    let new = libc::rlimit64 { rlim_cur: soft, rlim_max: hard };
    // SAFETY: `new` lives across the call, which reads it; no old limit is asked for.
    let done = unsafe { libc::syscall(libc::SYS_prlimit64, 0, resource, &raw const new, 0usize) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
