//! The host's /proc in a process that has entered other namespaces, for the attributes of security modules
//! (proc_pid_attr(5)) that take effect at the next execve(2).

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};

use rustix::fs::{Mode, OFlags, PROC_SUPER_MAGIC, ResolveFlags, fstatfs};

use crate::beneath;

/// The /proc of the calling process, for use after it has entered another mount namespace: an attacker may have mounted
/// something at /proc there.
#[derive(Debug)]
pub struct HostProc(OwnedFd);

impl HostProc {
    /// Opens /proc.
    ///
    /// # Errors
    /// InvalidInput if it is not a procfs; open(2).
    pub fn open() -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open("/proc", flags, Mode::empty())?;
        if fstatfs(&root)?.f_type != PROC_SUPER_MAGIC {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "/proc is not a procfs"));
        }
        Ok(Self(root))
    }

    /// Writes a command to the file at `path` with one write(2), as the kernel requires.
    ///
    /// # Errors
    /// NotFound if the kernel has no such file; the errors of the security module.
    pub(crate) fn write(&self, path: &str, command: &str) -> io::Result<()> {
        // No mount that lies on the file is followed. `thread-self` is an ordinary symlink.
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_XDEV | ResolveFlags::NO_MAGICLINKS;
        let file = beneath::resolve(self.0.as_fd(), path, OFlags::WRONLY, Mode::empty(), resolve)?;
        match File::from(file).write(command.as_bytes())? {
            written if written == command.len() => Ok(()),
            written => Err(io::Error::other(format!("{written} of {} bytes were taken", command.len()))),
        }
    }
}
