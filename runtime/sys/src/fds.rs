//! Descriptors: by range (close_range(2), which neither rustix nor nix has), by inheritance, and their flags.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

/// CLOSE_RANGE_CLOEXEC: mark them instead of closing them.
const CLOEXEC: libc::c_uint = 4;
/// First number that is not a standard stream's.
const FIRST: u32 = 3;

/// Marks every descriptor from `first` on close-on-exec: execve closes them, nothing does before.
///
/// # Errors
/// close_range(2) with CLOSE_RANGE_CLOEXEC, Linux 5.11.
pub fn cloexec_from(first: u32) -> io::Result<()> {
    // SAFETY: the call reads no memory. With this flag it closes nothing, so every owner keeps its descriptor.
    let done = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, CLOEXEC) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Closes every descriptor from 3 on but those in `keep`.
///
/// # Safety
/// Whoever owns another descriptor of this process neither uses nor drops it afterwards.
///
/// # Errors
/// close_range(2), Linux 5.9.
pub(crate) unsafe fn close_all_but(keep: &[OwnedFd]) -> io::Result<()> {
    let mut kept: Vec<u32> = keep.iter().map(|fd| fd.as_raw_fd().unsigned_abs()).collect();
    kept.sort_unstable();
    let mut from = FIRST;
    for fd in kept {
        if fd > from {
            // SAFETY: the caller's promise; none of `keep` lies between.
            unsafe { close_range(from, fd - 1) }?;
        }
        from = from.max(fd.saturating_add(1));
    }
    // SAFETY: the caller's promise; all of `keep` lie below.
    unsafe { close_range(from, u32::MAX) }
}

/// Closes every descriptor from `first` to `last`. Makes one system call and allocates nothing.
///
/// # Safety
/// As [`close_all_but`], for these numbers.
///
/// # Errors
/// close_range(2).
pub(crate) unsafe fn close_range(first: u32, last: u32) -> io::Result<()> {
    // SAFETY: the call reads no memory. That the descriptors may be closed is the caller's promise.
    let done = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Takes a descriptor that execve left open under a number agreed on with the parent, and marks it close-on-exec.
///
/// Only what nobody owns is given out. What was inherited has no close-on-exec flag, or execve would have closed
/// it; what this program opens has the flag from the start (std, rustix and this crate set it), and so has what was
/// taken.
///
/// # Errors
/// EBADF when nothing is open there; InvalidInput for a standard stream, and for what this program opened or took.
pub fn take_inherited(number: u32) -> io::Result<OwnedFd> {
    let refused = || {
        let text = format!("descriptor {number} was not inherited, or was taken already");
        io::Error::new(io::ErrorKind::InvalidInput, text)
    };
    let raw = i32::try_from(number).map_err(|_| refused())?;
    // SAFETY: F_GETFD takes a number, which need not be open, and changes nothing. (The calls of rustix and nix
    // want an open descriptor.)
    let flags = unsafe { libc::fcntl(raw, libc::F_GETFD) };
    if flags < 0 {
        return Err(io::Error::last_os_error());
    }
    if number < FIRST || flags & libc::FD_CLOEXEC != 0 {
        return Err(refused());
    }
    // SAFETY: it is open, and without the flag it has no owner in this program, see above.
    let fd = unsafe { OwnedFd::from_raw_fd(raw) };
    rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC)?;
    Ok(fd)
}

/// Closes every inherited descriptor from 3 on that was not taken.
///
/// # Errors
/// Reading /proc/self/fd.
pub fn close_inherited() -> io::Result<()> {
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let Some(number) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // An error says that it is somebody's, or closed.
        drop(take_inherited(number));
    }
    Ok(())
}

/// Makes these stdin, stdout and stderr of this process.
///
/// # Errors
/// dup2(2).
pub fn set_stdio(stdin: BorrowedFd<'_>, stdout: BorrowedFd<'_>, stderr: BorrowedFd<'_>) -> io::Result<()> {
    rustix::stdio::dup2_stdin(stdin)?;
    rustix::stdio::dup2_stdout(stdout)?;
    Ok(rustix::stdio::dup2_stderr(stderr)?)
}

/// Reads and writes return instead of waiting. Other descriptors of the same open file change too.
///
/// # Errors
/// fcntl(2).
pub fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    Ok(rustix::fs::fcntl_setfl(fd, rustix::fs::fcntl_getfl(fd)? | rustix::fs::OFlags::NONBLOCK)?)
}

/// /dev/null for reading and writing.
///
/// # Errors
/// There is none.
pub fn null() -> io::Result<OwnedFd> {
    Ok(std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?.into())
}

/// read(2).
///
/// # Errors
/// As the kernel says.
pub fn read(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    Ok(rustix::io::read(fd, buffer)?)
}

/// Whether reading would give bytes, without waiting. An end alone is none.
pub fn is_readable(fd: BorrowedFd<'_>) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec::default())).is_ok_and(|_| {
        let [fd] = fds;
        fd.revents().contains(PollFlags::IN)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_nobody_owns_is_taken() {
        let owned = std::fs::File::open("/dev/null").unwrap();
        let number = owned.as_raw_fd().unsigned_abs();
        assert_eq!(take_inherited(number).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert_eq!(take_inherited(1).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert_eq!(take_inherited(1 << 20).unwrap_err().raw_os_error(), Some(libc::EBADF));
        assert_eq!(take_inherited(u32::MAX).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        // As execve leaves one: open, without the flag, owned by nobody.
        rustix::io::fcntl_setfd(&owned, rustix::io::FdFlags::empty()).unwrap();
        std::mem::forget(owned);
        let taken = take_inherited(number).unwrap();
        assert!(rustix::io::fcntl_getfd(&taken).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
        assert!(take_inherited(number).is_err(), "it has an owner now");
    }
}
