//! Pseudo-terminals, opened without trusting paths below /dev/pts.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};

/// DEVPTS_SUPER_MAGIC.
const DEVPTS: i64 = 0x1cd1;

/// Both ends.
#[derive(Debug)]
pub struct Pty {
    /// The side that the runtime keeps.
    pub master: OwnedFd,
    /// The side that becomes stdio.
    pub slave: OwnedFd,
}

/// Opens a pair in a devpts instance, by its folder (`/dev/pts` in a container). A container or a volume may
/// have replaced it, and opening another device can have any effect. So the folder's file system is checked
/// first, and `ptmx` is opened in it without following links or mounts. The slave is opened from the master
/// (TIOCGPTPEER), not by its name.
///
/// # Errors
/// No devpts (by file system type), or no more ptys.
pub fn open_in(devpts: BorrowedFd<'_>) -> io::Result<Pty> {
    if rustix::fs::fstatfs(devpts)?.f_type != DEVPTS {
        return Err(io::Error::other("/dev/pts is not a devpts"));
    }
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let master = openat2(devpts, "ptmx", flags, Mode::empty(), how)?;
    rustix::pty::unlockpt(&master)?;
    let slave = peer(master.as_fd())?;
    Ok(Pty { master, slave })
}

/// Opens the slave of a master without its path (TIOCGPTPEER), so also one of another mount namespace.
///
/// # Errors
/// No free descriptor; no master.
pub fn peer(master: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    use rustix::pty::OpenptFlags;
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    Ok(rustix::pty::ioctl_tiocgptpeer(master, flags)?)
}
