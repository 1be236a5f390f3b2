//! Processes by descriptor: a signal never hits a stranger that got the number.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use rustix::process::{Pid, PidfdFlags};

/// ioctl PIDFD_GET_NET_NAMESPACE, Linux 6.11.
const GET_NET_NAMESPACE: libc::c_ulong = 0xff04;

fn pid(number: u32) -> io::Result<Pid> {
    i32::try_from(number)
        .ok()
        .and_then(Pid::from_raw)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, format!("pid {number}")))
}

/// pidfd_open(2).
///
/// # Errors
/// No such process.
pub fn open(number: u32) -> io::Result<OwnedFd> {
    Ok(rustix::process::pidfd_open(pid(number)?, PidfdFlags::empty())?)
}

/// As [`open`]; `None` when there is no such process any more. The number may be another's by now: what is read of
/// it after this is of the process that was opened, or that one has ended.
///
/// # Errors
/// Out of descriptors; a number that none has.
pub fn find(number: u32) -> io::Result<Option<OwnedFd>> {
    crate::proc::unless_gone(open(number))
}

/// Sends a signal by kernel number; 0 only asks whether the process is there.
///
/// # Errors
/// ESRCH when it was reaped, EINVAL for a number that is none.
pub fn send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // rustix takes named signals only: neither 0 nor those real-time ones that images ask for (STOPSIGNAL).
    // SAFETY: the null siginfo is the call's default, and it reads no other memory.
    let done = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, 0usize, 0u32) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The network namespace of a process; `number` is for kernels without the ioctl.
///
/// # Errors
/// The process is gone, or may not be looked at.
pub fn network_namespace(pidfd: BorrowedFd<'_>, number: u32) -> io::Result<OwnedFd> {
    // Neither rustix nor nix has this one.
    // SAFETY: this ioctl(2) takes no pointer; its argument must be 0.
    let fd = unsafe { libc::ioctl(pidfd.as_raw_fd(), GET_NET_NAMESPACE, 0usize) };
    if fd >= 0 {
        // SAFETY: the kernel has just opened it for us, close-on-exec, and nobody else owns it.
        return Ok(unsafe { OwnedFd::from_raw_fd(fd) });
    }
    let file = std::fs::File::open(format!("/proc/{number}/ns/net"))?;
    // The number may have been given to another process meanwhile, unless this one is still there.
    send_signal(pidfd, 0)?;
    Ok(file.into())
}

/// Whether the process has ended (it may wait to be reaped).
///
/// # Errors
/// poll(2).
pub fn has_ended(pidfd: BorrowedFd<'_>) -> io::Result<bool> {
    let mut fds = [rustix::event::PollFd::from_borrowed_fd(pidfd.as_fd(), rustix::event::PollFlags::IN)];
    Ok(rustix::event::poll(&mut fds, Some(&rustix::event::Timespec::default()))? > 0)
}
