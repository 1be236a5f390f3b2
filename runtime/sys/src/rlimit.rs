//! Resource limits by kernel number (setrlimit(2)).

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

fn get(resource: u32) -> io::Result<libc::rlimit64> {
    let mut now = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: prlimit64(2) of the caller itself (pid 0), no new limit given; it writes `now`, which lives across the call.
    let done = unsafe {
        libc::syscall(libc::SYS_prlimit64, 0, resource, std::ptr::null::<libc::rlimit64>(), &raw mut now)
    };
    if done == 0 { Ok(now) } else { Err(io::Error::last_os_error()) }
}

fn put(resource: u32, soft: u64, hard: u64) -> io::Result<()> {
    let new = libc::rlimit64 { rlim_cur: soft, rlim_max: hard };
    // SAFETY: prlimit64(2) of the caller itself (pid 0); it reads `new`, which lives across the call, and is
    // asked for no old limit.
    let done = unsafe {
        libc::syscall(
            libc::SYS_prlimit64,
            0,
            resource,
            &raw const new,
            std::ptr::null_mut::<libc::rlimit64>(),
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sets a limit of the calling process. Where the hard limit cannot be raised (no CAP_SYS_RESOURCE, or above
/// fs.nr_open) both are cut to it.
///
/// # Errors
/// EINVAL for an unknown resource or a soft limit above the hard one.
pub fn set(resource: u32, soft: u64, hard: u64) -> io::Result<()> {
    match put(resource, soft, hard) {
        Err(e) if e.raw_os_error() == Some(libc::EPERM) => {
            let now = get(resource)?;
            put(resource, soft.min(now.rlim_max), hard.min(now.rlim_max))
        }
        other => other,
    }
}

/// Soft limit of open files that this process was started with; [`KEPT`] until it was raised.
static GIVEN: AtomicU64 = AtomicU64::new(KEPT);
const KEPT: u64 = u64::MAX;
/// Open files that the daemon or a shim may need: pipes, sockets and cgroup folders of every container.
const NEEDED: u64 = 65_536;

/// Raises the soft limit of open files as far as the hard one and the need go. What is started later is to
/// have the limit that this process was given: [`restore_open_files`].
///
/// # Errors
/// prlimit(2).
pub fn raise_open_files() -> io::Result<()> {
    let now = get(libc::RLIMIT_NOFILE)?;
    let soft = now.rlim_max.min(NEEDED);
    if soft > now.rlim_cur {
        put(libc::RLIMIT_NOFILE, soft, now.rlim_max)?;
        GIVEN.store(now.rlim_cur, Ordering::Relaxed);
    }
    Ok(())
}

/// The limit of open files that what this process starts is to have, where it has another.
pub(crate) fn given() -> Option<libc::rlimit64> {
    let soft = Some(GIVEN.load(Ordering::Relaxed)).filter(|soft| *soft != KEPT)?;
    let hard = get(libc::RLIMIT_NOFILE).ok()?.rlim_max;
    Some(libc::rlimit64 { rlim_cur: soft.min(hard), rlim_max: hard })
}

/// In a child: puts the soft limit of open files back to what its parent was started with.
///
/// # Errors
/// prlimit(2).
pub fn restore_open_files() -> io::Result<()> {
    given().map_or(Ok(()), |limit| put(libc::RLIMIT_NOFILE, limit.rlim_cur, limit.rlim_max))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lowers_and_refuses_nonsense() {
        let core = libc::RLIMIT_CORE;
        let hard = get(core).unwrap().rlim_max;
        set(core, 0, hard).unwrap();
        assert_eq!(get(core).unwrap().rlim_cur, 0);
        assert_eq!(set(999, 0, 0).unwrap_err().raw_os_error(), Some(libc::EINVAL));
    }
}
