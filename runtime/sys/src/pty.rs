//! Pseudo-terminals, opened without ever trusting a path below /dev/pts.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, open as open_file};

/// DEVPTS_SUPER_MAGIC.
pub(crate) const DEVPTS: i64 = 0x1cd1;

/// Both ends.
#[derive(Debug)]
pub struct Pty {
    /// The side that the runtime keeps.
    pub master: OwnedFd,
    /// The side that becomes stdio.
    pub slave: OwnedFd,
}

/// Opens a pair in the devpts instance whose `ptmx` is at the given path (`/dev/pts/ptmx` in a container).
/// The slave is had from the master (TIOCGPTPEER), not by its name.
///
/// # Errors
/// No devpts there (checked by file system type), or no more ptys.
pub fn open(ptmx: &Path) -> io::Result<Pty> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let master = open_file(ptmx, flags, Mode::empty())?;
    if rustix::fs::fstatfs(&master)?.f_type != DEVPTS {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{} is no devpts", ptmx.display())));
    }
    rustix::pty::unlockpt(&master)?;
    let slave = peer(master.as_fd())?;
    Ok(Pty { master, slave })
}

/// The other side of a master, whatever its path is and in whichever mount namespace (TIOCGPTPEER).
///
/// # Errors
/// Out of descriptors; no master.
pub fn peer(master: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let wanted = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: takes no pointer.
    let slave = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, wanted) };
    if slave < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just opened it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(slave) })
}

/// Makes a terminal the controlling one of the calling session leader.
///
/// # Errors
/// EPERM for anybody else.
pub fn make_controlling(terminal: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: takes no pointer; 0 does not steal it from another session.
    let done = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSCTTY, 0) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
