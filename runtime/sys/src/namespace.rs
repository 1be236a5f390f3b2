//! Entering and making namespaces (setns(2), unshare(2)). The caller has one thread: others would stay.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::thread::{
    LinkNameSpaceType, ThreadNameSpaceType, UnshareFlags, move_into_link_name_space,
    move_into_thread_name_spaces,
};

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
    // SAFETY: only unsharing the descriptor table is unsound: a descriptor would mean different files in two threads. This
    // unshares the mount namespace and, with it, root and working directory (fs_struct).
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }.map_err(Into::into)
}

/// Makes a copy of the mount namespace of `process`, a pidfd, in which all mounts are locked (mount_namespaces(7)): nobody
/// with capabilities in the user namespace `users` alone can unmount one, or take away that it is read-only, nosuid, nodev
/// or noexec. `users` owns the copy. Afterwards the caller is in both namespaces, with all capabilities
/// in `users` and none outside.
///
/// The kernel locks mounts when their namespace is copied into another user namespace than its owner's. That of `process`
/// may have been created in `users`, so two copies are made: the first one belongs to the caller's user namespace.
///
/// # Errors
/// EPERM without the capabilities of the host's root; EINVAL with more than one thread, if `users` is the caller's, or
/// before Linux 5.8; ENOSPC; /proc must be mounted.
pub fn locked_copy(process: BorrowedFd<'_>, users: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    copy_into(users, || {
        move_into_thread_name_spaces(process, ThreadNameSpaceType::MOUNT)?;
        unshare_mount()
    })
}

/// Makes a copy of the mount namespace `mounts`, which belongs to the caller's user namespace. `users` owns the copy, so
/// a process with all capabilities in `users` alone can enter it and mount there. The mounts that it has are locked, as
/// by [`locked_copy`]. Afterwards the caller is in both namespaces, with all capabilities in `users` and none outside.
///
/// # Errors
/// EPERM without the capabilities of the host's root; EINVAL with more than one thread, or if `users` is the caller's;
/// ENOSPC; /proc must be mounted.
pub fn owned_copy(mounts: BorrowedFd<'_>, users: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    copy_into(users, || enter_mount(mounts))
}

/// Enters a mount namespace by `enter`, then the user namespace `users`, and copies the mount namespace there.
fn copy_into(users: BorrowedFd<'_>, enter: impl FnOnce() -> io::Result<()>) -> io::Result<OwnedFd> {
    // Opened first: in the other mount namespace, /proc is not to be trusted.
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let own = openat(CWD, "/proc/self/ns", flags, Mode::empty())?;
    enter()?;
    move_into_link_name_space(users, Some(LinkNameSpaceType::User))?;
    unshare_mount()?;
    Ok(openat(&own, "mnt", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Gives the caller a new IPC namespace. The root of its mqueue file system belongs to the caller.
///
/// # Errors
/// EPERM, ENOSPC.
pub fn unshare_ipc() -> io::Result<()> {
    // SAFETY: only unsharing the descriptor table is unsound: a descriptor would mean different files in two threads. This
    // unshares the IPC namespace.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWIPC) }.map_err(Into::into)
}

/// Kinds of namespaces that are entered: all except time namespaces. The user namespace is first: it owns the others, and
/// after it the caller has no capabilities outside.
const KINDS: [(&str, LinkNameSpaceType); 7] = [
    ("user", LinkNameSpaceType::User),
    ("pid", LinkNameSpaceType::ProcessID),
    ("net", LinkNameSpaceType::Network),
    ("ipc", LinkNameSpaceType::InterProcessCommunication),
    ("uts", LinkNameSpaceType::HostNameAndNISDomainName),
    ("cgroup", LinkNameSpaceType::ControlGroup),
    ("mnt", LinkNameSpaceType::Mount),
];

/// The namespaces that a process had when this was created, without those that it shares with the caller. They stay
/// valid when the process ends, its pid is reused, or it creates other namespaces for itself.
#[derive(Debug, Default)]
pub struct Namespaces(Vec<(&'static str, OwnedFd)>);

impl Namespaces {
    /// The namespaces of the process `pid`. It must be a child that was not reaped, so that the pid is not reused.
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

    /// Their kinds, for [`Namespaces::from_fds`].
    pub fn kinds(&self) -> Kinds {
        let bits = KINDS.iter().zip(0..).filter(|((name, _), _)| self.get(name).is_some());
        Kinds(bits.fold(0, |all, (_, bit)| all | 1 << bit))
    }

    /// The inverse of [`Namespaces::kinds`] and [`Namespaces::fds`]: takes one descriptor per kind from `fds`.
    ///
    /// # Errors
    /// InvalidInput if there are too few: a process would stay in the caller's namespace of a missing kind.
    pub fn from_fds(kinds: Kinds, fds: &mut impl Iterator<Item = OwnedFd>) -> io::Result<Self> {
        let few = || io::Error::new(io::ErrorKind::InvalidInput, "the descriptor of a namespace is missing");
        let names =
            KINDS.iter().zip(0..).filter(|(_, bit)| kinds.0 & 1 << bit != 0).map(|((name, _), _)| *name);
        Ok(Self(names.map(|name| Ok((name, fds.next().ok_or_else(few)?))).collect::<io::Result<_>>()?))
    }

    /// The namespace of a kind (its name in /proc/PID/ns); `None` if it is the caller's.
    pub fn get(&self, kind: &str) -> Option<BorrowedFd<'_>> {
        self.0.iter().find(|(name, _)| *name == kind).map(|(_, fd)| fd.as_fd())
    }

    /// All of them.
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.0.iter().map(|(_, fd)| fd.as_fd())
    }

    /// Enters all of them; the PID namespace applies only to children. Root and working directory become those of the
    /// mount namespace. After entering a user namespace the caller has all capabilities in it, and none outside, but keeps
    /// its ids, which it may not map ([`crate::userns::become_root`]).
    ///
    /// # Errors
    /// EPERM if one belongs to a user namespace in which the caller has no capabilities; EINVAL with more than one
    /// thread.
    pub fn enter(&self) -> io::Result<()> {
        for (name, kind) in KINDS {
            if let Some(fd) = self.get(name) {
                move_into_link_name_space(fd, Some(kind))?;
            }
        }
        Ok(())
    }
}

/// Kinds of namespaces, without any descriptor: [`Namespaces::kinds`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Kinds(u8);

impl Kinds {
    /// Only `kind` (its name in /proc/PID/ns), if it is among these.
    #[must_use]
    pub fn only(self, kind: &str) -> Self {
        let bit = KINDS.iter().position(|(name, _)| *name == kind).map_or(0, |bit| 1 << bit);
        Self(self.0 & bit)
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

    #[test]
    fn descriptors_find_their_kinds_again() {
        let open = || OwnedFd::from(std::fs::File::open("/proc/self/ns/net").unwrap());
        let all = Namespaces(vec![("pid", open()), ("net", open()), ("mnt", open())]);
        let copies = || all.fds().map(|fd| fd.try_clone_to_owned().unwrap()).collect::<Vec<_>>().into_iter();
        let mut fds = copies();
        let again = Namespaces::from_fds(all.kinds(), &mut fds).unwrap();
        assert_eq!((again.kinds(), fds.len()), (all.kinds(), 0));
        let mut fds = copies();
        let pid = Namespaces::from_fds(all.kinds().only("pid"), &mut fds).unwrap();
        assert!(pid.get("pid").is_some() && pid.get("net").is_none());
        assert_eq!(fds.len(), 2);
        assert!(Namespaces::from_fds(all.kinds(), &mut fds).is_err(), "one is missing");
        assert_eq!(all.kinds().only("uts"), Kinds::default());
    }
}
