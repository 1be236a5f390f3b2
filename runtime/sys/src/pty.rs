//! Pseudo-terminals, opened without trusting paths below /dev/pts.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags, fstat, minor, openat2};
use rustix::termios::{Winsize, tcsetwinsize};

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
    let master = open(devpts, "ptmx")?;
    rustix::pty::unlockpt(&master)?;
    let slave = peer(master.as_fd())?;
    Ok(Pty { master, slave })
}

/// Opens a file of a devpts instance, without following links or mounts.
fn open(devpts: BorrowedFd<'_>, name: &str) -> io::Result<OwnedFd> {
    if rustix::fs::fstatfs(devpts)?.f_type != DEVPTS {
        return Err(io::Error::other("/dev/pts is not a devpts"));
    }
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    Ok(openat2(devpts, name, flags, Mode::empty(), how)?)
}

/// Opens a slave again, through another mount of its devpts instance: programs look for the path of their terminal below
/// the mount through which it was opened (ttyname(3)).
///
/// # Errors
/// As [`open_in`]; the instance is another one.
pub fn reopen(slave: BorrowedFd<'_>, devpts: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let old = fstat(slave)?;
    // Its name is its number.
    let again = open(devpts, &minor(old.st_rdev).to_string())?;
    let new = fstat(&again)?;
    if (new.st_dev, new.st_ino) != (old.st_dev, old.st_ino) {
        return Err(io::Error::other("/dev/pts is another devpts"));
    }
    Ok(again)
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

/// Sets the size of a terminal, in characters. If it changes, the kernel signals the foreground group (SIGWINCH).
///
/// # Errors
/// No terminal.
pub fn set_size(terminal: BorrowedFd<'_>, columns: u16, rows: u16) -> io::Result<()> {
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    Ok(tcsetwinsize(terminal, size)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slave_is_found_again_in_its_instance_only() {
        let instance = || {
            let options = [crate::mount::FsOption::Value("ptmxmode", "0666")];
            crate::mount::create("devpts", &options, crate::mount::Attributes::default()).unwrap()
        };
        let (own, other) = (instance(), instance());
        let _first = open_in(own.as_fd()).unwrap();
        let (pty, wrong) = (open_in(own.as_fd()).unwrap(), open_in(other.as_fd()).unwrap());
        let again = reopen(pty.slave.as_fd(), own.as_fd()).unwrap();
        rustix::io::write(&again, b"x").unwrap();
        assert_eq!(rustix::io::read(&pty.master, &mut [0; 8]).unwrap(), 1);
        reopen(wrong.slave.as_fd(), own.as_fd()).unwrap_err();
        reopen(pty.slave.as_fd(), std::fs::File::open("/").unwrap().as_fd()).unwrap_err();
    }
}
