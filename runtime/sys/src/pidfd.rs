//! Processes by pidfd: a signal never hits another process with a reused pid.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use rustix::event::PollFlags;
use rustix::process::{Pid, PidfdFlags};

/// ioctls PIDFD_GET_*_NAMESPACE, Linux 6.11, by the kind's name in /proc/PID/ns.
const GET_NAMESPACE: [(&str, libc::c_ulong); 7] = [
    ("cgroup", 0xff01),
    ("ipc", 0xff02),
    ("mnt", 0xff03),
    ("net", 0xff04),
    ("pid", 0xff05),
    ("user", 0xff09),
    ("uts", 0xff0a),
];

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

/// Like [`open`], but `None` if the process does not exist. The pid may be reused meanwhile: data that is
/// read by pid after this belongs to the opened process, or that process has ended.
///
/// # Errors
/// No free descriptor; an invalid pid.
pub fn find(number: u32) -> io::Result<Option<OwnedFd>> {
    crate::proc::unless_gone(open(number))
}

/// Sends a signal by kernel number; 0 only checks whether the process exists.
///
/// # Errors
/// ESRCH if it was reaped, EINVAL for an invalid number.
pub fn send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // rustix takes named signals only: neither 0 nor those real-time ones that images ask for (STOPSIGNAL).
    // SAFETY: the null siginfo is the call's default, and it reads no other memory.
    let done = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, 0usize, 0u32) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The network namespace of a process; `number` is for kernels without the ioctl.
///
/// # Errors
/// The process is gone, or access is denied.
pub fn network_namespace(pidfd: BorrowedFd<'_>, number: u32) -> io::Result<OwnedFd> {
    namespace(pidfd, number, "net")
}

/// Like [`network_namespace`], for the kind `name` (its name in /proc/PID/ns). Uses an ioctl instead of /proc if the
/// kernel has it: each path that is opened in /proc costs an inode of 700 bytes and a dentry of 200 as long as the
/// process lives.
///
/// # Errors
/// The process is gone, or access is denied; NotFound for a kind that the kernel does not know.
pub(crate) fn namespace(pidfd: BorrowedFd<'_>, number: u32, name: &str) -> io::Result<OwnedFd> {
    if let Some((_, request)) = GET_NAMESPACE.iter().find(|(kind, _)| *kind == name) {
        // Neither rustix nor nix has these.
        // SAFETY: this ioctl(2) takes no pointer; its argument must be 0.
        let fd = unsafe { libc::ioctl(pidfd.as_raw_fd(), *request, 0usize) };
        if fd >= 0 {
            // SAFETY: the kernel has just opened it for us, close-on-exec, and nobody else owns it.
            return Ok(unsafe { OwnedFd::from_raw_fd(fd) });
        }
    }
    let file = std::fs::File::open(format!("/proc/{number}/ns/{name}"))?;
    // The pid may have been reused meanwhile, unless this process still exists.
    send_signal(pidfd, 0)?;
    Ok(file.into())
}

/// Whether the process has ended (it may wait to be reaped).
///
/// # Errors
/// poll(2).
pub fn has_ended(pidfd: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(!crate::fds::poll_now(pidfd, PollFlags::IN)?.is_empty())
}
