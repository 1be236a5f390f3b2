//! Entering and making namespaces (setns(2), unshare(2)). The caller has one thread: others would stay.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

use crate::pidfd;

/// Descriptor of the caller's own mount namespace.
///
/// # Errors
/// Those of open(2) in /proc.
pub fn own_mount() -> io::Result<OwnedFd> {
    Ok(openat(CWD, "/proc/self/ns/mnt", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Enters a mount namespace; root and working directory become its root.
///
/// # Errors
/// EINVAL for another kind of namespace or with more than one thread; EPERM.
pub fn enter_mount(namespace: BorrowedFd<'_>) -> io::Result<()> {
    Ok(move_into_link_name_space(namespace, Some(LinkNameSpaceType::Mount))?)
}

/// Gives the caller a copy of its mount namespace.
///
/// # Errors
/// EPERM, ENOSPC.
pub fn unshare_mount() -> io::Result<()> {
    // SAFETY: what is unshared is the mount namespace and, with it, root and working directory (fs_struct). No
    // descriptor table is unshared, so no descriptor that another thread owns can come to differ.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }.map_err(Into::into)
}

/// Kinds of namespaces that a process is entered by: all but those of users and time. The mount namespace is
/// the last: with it goes the view of /proc.
const KINDS: [(&str, libc::c_int); 6] = [
    ("pid", libc::CLONE_NEWPID),
    ("net", libc::CLONE_NEWNET),
    ("ipc", libc::CLONE_NEWIPC),
    ("uts", libc::CLONE_NEWUTS),
    ("cgroup", libc::CLONE_NEWCGROUP),
    ("mnt", libc::CLONE_NEWNS),
];

/// The namespaces that a process had when this was made, as far as they are not the caller's own. They hold
/// whatever becomes of the process and of its number, and whatever namespaces it makes for itself.
#[derive(Debug, Default)]
pub struct Namespaces(Vec<(&'static str, OwnedFd)>);

impl Namespaces {
    /// Those of the process `pid`, which the caller must know to be the one it means: a child not waited for.
    ///
    /// # Errors
    /// The process is gone; CAP_SYS_PTRACE is missing.
    pub fn of(pid: u32) -> io::Result<Self> {
        let caller = std::process::id();
        let (process, own_process) = (pidfd::open(pid)?, pidfd::open(caller)?);
        let identity = |fd: &OwnedFd| rustix::fs::fstat(fd).map(|stat| (stat.st_dev, stat.st_ino));
        let mut all = Vec::new();
        for (name, _) in KINDS {
            let own = match pidfd::namespace(own_process.as_fd(), caller, name) {
                // A kernel without this kind.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                own => own?,
            };
            let theirs = pidfd::namespace(process.as_fd(), pid, name)?;
            if identity(&theirs)? != identity(&own)? {
                all.push((name, theirs));
            }
        }
        all.shrink_to_fit();
        Ok(Self(all))
    }

    /// The one of a kind, as /proc/PID/ns names it; `None` where it is the caller's.
    pub fn get(&self, kind: &str) -> Option<BorrowedFd<'_>> {
        self.0.iter().find(|(name, _)| *name == kind).map(|(_, fd)| fd.as_fd())
    }

    /// All of them.
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.0.iter().map(|(_, fd)| fd.as_fd())
    }

    /// Enters them all; of the PID namespace only children will be. Root and working directory become those of
    /// the mount namespace. The user namespace stays the caller's: capabilities count in no other.
    ///
    /// # Errors
    /// EPERM where one belongs to a user namespace that the caller has no power in; EINVAL with more than one
    /// thread.
    pub fn enter(&self) -> io::Result<()> {
        for (kind, flag) in KINDS {
            if let Some(fd) = self.get(kind) {
                // SAFETY: takes a descriptor, which is open because it is borrowed, and a number.
                if unsafe { libc::setns(fd.as_raw_fd(), flag) } != 0 {
                    return Err(io::Error::last_os_error());
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_namespaces_are_left_out() {
        let own = Namespaces::of(std::process::id()).unwrap();
        assert_eq!(own.fds().count(), 0);
        own.enter().unwrap();
        assert!(Namespaces::of(u32::MAX >> 1).is_err());
    }
}
