//! Descriptors: ranges of them (close_range(2), which neither rustix nor nix has), inherited ones, and flags.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// CLOSE_RANGE_CLOEXEC: marks descriptors close-on-exec instead of closing them.
const CLOEXEC: libc::c_uint = 4;
/// The first number after the standard streams.
const FIRST: u32 = 3;

/// Marks every descriptor from `first` on close-on-exec; none is closed before execve.
///
/// # Errors
/// close_range(2) with CLOSE_RANGE_CLOEXEC, Linux 5.11.
pub fn cloexec_from(first: u32) -> io::Result<()> {
    // SAFETY: the call reads no memory. With this flag it closes nothing, so every owner keeps its descriptor.
    let done = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, CLOEXEC) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Closes every descriptor from 3 on, except those in `keep`.
///
/// # Safety
/// Owners of other descriptors of this process must not use or drop them afterwards.
///
/// # Errors
/// close_range(2), Linux 5.9.
pub(crate) unsafe fn close_all_but(keep: &[OwnedFd]) -> io::Result<()> {
    let mut kept: Vec<u32> = keep.iter().map(|fd| fd.as_raw_fd().unsigned_abs()).collect();
    kept.sort_unstable();
    let mut from = FIRST;
    for fd in kept {
        if fd > from {
            // SAFETY: as the caller promises; none of `keep` is in this range.
            unsafe { close_range(from, fd - 1) }?;
        }
        from = from.max(fd.saturating_add(1));
    }
    // SAFETY: as the caller promises; all of `keep` are below `from`.
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

/// The descriptors from 3 on that this program inherited, with numbers that its parent has chosen ([`crate::spawn`]
/// closes all others). Those that are not taken are closed when this is dropped.
#[derive(Debug)]
pub struct Inherited(Vec<OwnedFd>);

/// Whether [`Inherited::claim`] was called.
static CLAIMED: AtomicBool = AtomicBool::new(false);

impl Inherited {
    /// Takes the inherited ones among the numbers 3 to 2 + `count`. These and all later numbers are marked close-on-exec. Call
    /// it at the start of a program, before anything is opened.
    ///
    /// Only descriptors without an owner are taken. An inherited one has no close-on-exec flag, or execve would have
    /// closed it; descriptors that this program has opened have the flag, because std and this crate always set it.
    ///
    /// They are not found by /proc/self/fd: the kernel would keep an inode for each entry as long as the process lives.
    ///
    /// # Errors
    /// AlreadyExists if it was called before; the errors of fcntl(2) and close_range(2).
    pub fn claim(count: u8) -> io::Result<Self> {
        if CLAIMED.swap(true, Ordering::Relaxed) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let end = FIRST + u32::from(count);
        let mut all = Vec::with_capacity(usize::from(count));
        for number in FIRST..end {
            all.extend(take(number.cast_signed())?);
        }
        cloexec_from(end)?;
        Ok(Self(all))
    }

    /// Returns the one with this number.
    ///
    /// # Errors
    /// EBADF if it was not inherited, or was taken before.
    pub fn take(&mut self, number: RawFd) -> io::Result<OwnedFd> {
        let place = self.0.iter().position(|fd| fd.as_raw_fd() == number);
        Ok(self.0.swap_remove(place.ok_or(rustix::io::Errno::BADF)?))
    }
}

/// The descriptor with this number; `None` if it is not open or has an owner ([`Inherited::claim`]).
fn take(number: RawFd) -> io::Result<Option<OwnedFd>> {
    // SAFETY: F_GETFD takes a number, which need not be open, and changes nothing. (The calls of rustix and nix
    // require an open descriptor.)
    let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
    if flags < 0 {
        let error = io::Error::last_os_error();
        return if error.raw_os_error() == Some(libc::EBADF) { Ok(None) } else { Err(error) };
    }
    if flags & libc::FD_CLOEXEC != 0 {
        return Ok(None);
    }
    // SAFETY: it is open, and without the flag it has no owner in this program (see `claim`, which runs once).
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC)?;
    Ok(Some(fd))
}

/// Makes these stdin, stdout and stderr of this process.
///
/// # Errors
/// The errors of dup2(2).
pub fn set_stdio(stdin: BorrowedFd<'_>, stdout: BorrowedFd<'_>, stderr: BorrowedFd<'_>) -> io::Result<()> {
    rustix::stdio::dup2_stdin(stdin)?;
    rustix::stdio::dup2_stdout(stdout)?;
    Ok(rustix::stdio::dup2_stderr(stderr)?)
}

/// Makes `fd` refer to the open file of `by`, close-on-exec (dup3(2)): for a descriptor that a library keeps open and does
/// not give away. Its owner still closes it.
///
/// # Errors
/// EINVAL if both are the same.
pub fn replace(fd: BorrowedFd<'_>, by: BorrowedFd<'_>) -> io::Result<()> {
    // rustix and nix take the owner of the number, which the caller does not have.
    // SAFETY: takes numbers and no memory. Both descriptors are open, because they are borrowed. The number of `fd` is open
    // afterwards as before, so its owner closes its own descriptor.
    let done = unsafe { libc::dup3(by.as_raw_fd(), fd.as_raw_fd(), libc::O_CLOEXEC) };
    if done >= 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sets O_NONBLOCK, also for other descriptors of the same open file description.
///
/// # Errors
/// The errors of fcntl(2).
pub fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    Ok(rustix::fs::fcntl_setfl(fd, rustix::fs::fcntl_getfl(fd)? | rustix::fs::OFlags::NONBLOCK)?)
}

/// /dev/null for reading and writing.
///
/// # Errors
/// Those of open(2).
pub fn null() -> io::Result<OwnedFd> {
    Ok(std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?.into())
}

/// read(2), repeated if a signal interrupts it.
///
/// # Errors
/// The errors of read(2).
pub fn read(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    Ok(rustix::io::retry_on_intr(|| rustix::io::read(fd, &mut *buffer))?)
}

/// Whether a process has the reading side of a pipe open; `fd` is the writing side.
pub fn has_reader(fd: BorrowedFd<'_>) -> bool {
    poll_now(fd, PollFlags::empty()).is_ok_and(|events| !events.contains(PollFlags::ERR))
}

/// Whether bytes can be read without waiting. End of file does not count.
pub fn is_readable(fd: BorrowedFd<'_>) -> bool {
    poll_now(fd, PollFlags::IN).is_ok_and(|events| events.contains(PollFlags::IN))
}

/// poll(2) of one descriptor, without waiting: which of `wanted` have occurred, and ERR and HUP.
///
/// # Errors
/// The errors of poll(2), except EINTR.
pub(crate) fn poll_now(fd: BorrowedFd<'_>, wanted: PollFlags) -> io::Result<PollFlags> {
    let mut fds = [PollFd::from_borrowed_fd(fd, wanted)];
    rustix::io::retry_on_intr(|| poll(&mut fds, Some(&Timespec::default())))?;
    let [fd] = fds;
    Ok(fd.revents())
}
