//! Entering and making namespaces (setns(2), unshare(2)). The caller has one thread: others would stay.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

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
