//! The mount interface by descriptors (fsopen(2), open_tree(2), move_mount(2), mount_setattr(2), openat2(2)):
//! a path is resolved only once.
//!
//! `attributes`: flags, propagation and id-mapping; `filesystem`: creating one. Here: copying, attaching, detaching and
//! telling mounts apart.

mod attributes;
mod filesystem;

pub use attributes::{
    Attributes, PropagationType, add_attributes, add_attributes_below, change, idmap, set_propagation,
};
pub use filesystem::{FsOption, create, create_at, errno, label, labelled_tmpfs, tmpfs, with_text};

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, StatxAttributes, StatxFlags, fstat, openat, statx,
};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags, move_mount, open_tree, unmount};

use crate::beneath;

/// Whether [`add_attributes_below`] works for the caller, tried on a new tmpfs that is attached nowhere.
pub fn can_set_attributes_below() -> bool {
    let readonly = Attributes { readonly: true, ..Attributes::default() };
    let tried = || -> io::Result<bool> {
        let tree = tmpfs(0o700, 4096, Attributes::default())?;
        add_attributes_below(tree.as_fd(), readonly)?;
        Ok(rustix::fs::fstatvfs(&tree)?.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY))
    };
    tried().unwrap_or(false)
}

/// A detached copy of the mount that contains `source`, with `source` as its root. The kernel removes it when the last
/// descriptor is closed, unless it is attached. The source must be in the caller's mount namespace.
///
/// # Errors
/// EINVAL for a source of another namespace or an unbindable one.
pub fn clone(source: BorrowedFd<'_>, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    Ok(open_tree(source, "", flags)?)
}

/// Attaches a tree at `target`: a directory, or a file if the tree is one file. A tree that is attached elsewhere is
/// moved; it receives propagated mounts before, meanwhile and afterwards.
///
/// # Errors
/// ENOTDIR when one is a directory and the other is not; ELOOP; EINVAL for a tree that is attached below a
/// shared mount.
pub fn attach(tree: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(tree, "", target, "", flags)?)
}

/// Adds the private mount `to` to the peer group of `from` and makes it a slave where `from` is one
/// (MOVE_MOUNT_SET_GROUP, Linux 5.15).
///
/// # Errors
/// EINVAL if `to` is not private, if one of them is not the root of a mount or not attached in the caller's namespace,
/// if they are of different file systems, and before Linux 5.15.
pub fn join_group(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH
        | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH
        | MoveMountFlags::MOVE_MOUNT_SET_GROUP;
    Ok(move_mount(from, "", to, "", flags)?)
}

/// Opens a path of the caller (O_PATH). Symlinks are followed; the object itself is not opened.
///
/// # Errors
/// Those of open(2).
pub fn open_path(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)
}

/// Opens `path` as if `root` were `/`: no symlink, `..` or magic link leads out.
///
/// # Errors
/// Those of openat2(2); ELOOP for a magic link.
pub fn open_in_root(root: BorrowedFd<'_>, path: &Path, flags: OFlags, mode: u32) -> io::Result<OwnedFd> {
    let how = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    Ok(beneath::resolve(root, path, flags, Mode::from_raw_mode(mode), how)?)
}

/// Opens a regular file for reading, `path` as in [`open_in_root`]. Other objects are not opened: opening a device can
/// have any effect, and opening a FIFO would block.
///
/// # Errors
/// As [`open_in_root`]; InvalidData for anything but a regular file; /proc must be mounted.
pub fn open_regular_in_root(root: BorrowedFd<'_>, path: &Path) -> io::Result<std::fs::File> {
    let found = open_in_root(root, path, OFlags::PATH, 0)?;
    if FileType::from_raw_mode(fstat(&found)?.st_mode) != FileType::RegularFile {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not a regular file"));
    }
    // Opens the same object that was checked.
    let again = format!("/proc/self/fd/{}", found.as_raw_fd());
    Ok(openat(CWD, again, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?.into())
}

/// The id of the mount that an open file is in, as in mountinfo.
///
/// # Errors
/// Those of statx(2); Unsupported before Linux 5.8.
pub fn mount_id(file: BorrowedFd<'_>) -> io::Result<u64> {
    let stat = statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?;
    if stat.stx_mask & StatxFlags::MNT_ID.bits() == 0 {
        return Err(io::ErrorKind::Unsupported.into());
    }
    Ok(stat.stx_mnt_id)
}

/// The identity of an open file: two descriptors with equal identities are the same place in the mount tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// The id of the mount, as in mountinfo.
    pub mount: u64,
    /// The file, within the mount's file system.
    pub inode: u64,
    /// Whether the file is the mount's root: some file systems (btrfs) use an inode number more than once.
    pub is_mount_root: bool,
}

/// The identity of an open file, from one statx(2).
///
/// # Errors
/// As [`mount_id`].
pub fn identity(file: BorrowedFd<'_>) -> io::Result<Identity> {
    let wanted = StatxFlags::MNT_ID | StatxFlags::INO;
    let stat = statx(file, "", AtFlags::EMPTY_PATH, wanted)?;
    if stat.stx_mask & StatxFlags::MNT_ID.bits() == 0 {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let is_mount_root = stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT);
    Ok(Identity { mount: stat.stx_mnt_id, inode: stat.stx_ino, is_mount_root })
}

/// Mounts a copy of the tree at `path` over it. The copy's top mount is not locked (mount_namespaces(7)), so it can be
/// moved or become the root. In contrast to [`clone`] and [`attach`], no mount that is propagated meanwhile is lost.
///
/// # Errors
/// EINVAL if a mount cannot be bound.
pub fn unlock(path: &Path) -> io::Result<()> {
    Ok(rustix::mount::mount_bind_recursive(path, path)?)
}

/// Detaches the mount at `path`. A copy of a shared tree must be made private first; otherwise its peers lose their
/// submounts too.
///
/// # Errors
/// EINVAL if nothing is mounted there.
pub fn detach(path: &Path) -> io::Result<()> {
    Ok(unmount(path, UnmountFlags::DETACH)?)
}

/// Detaches the mount whose root `mount` is.
///
/// # Errors
/// As [`detach`]; /proc must be mounted.
pub fn detach_fd(mount: BorrowedFd<'_>) -> io::Result<()> {
    detach(Path::new(&format!("/proc/self/fd/{}", mount.as_raw_fd())))
}

/// Like [`detach_fd`], without /proc, for a mount whose root is a folder. The working directory is that folder
/// meanwhile, and `/` afterwards.
///
/// # Errors
/// As [`detach`]; ENOTDIR if the root is not a folder.
pub fn detach_folder(mount: BorrowedFd<'_>) -> io::Result<()> {
    rustix::process::fchdir(mount)?;
    let detached = detach(Path::new("."));
    rustix::process::chdir("/")?;
    detached
}

/// Makes the mount at the working directory the root of the namespace and detaches the old one.
///
/// # Errors
/// EINVAL if the working directory is not the root of a mount, or if that mount, its parent or the old root's parent is
/// shared.
pub fn pivot_here() -> io::Result<()> {
    rustix::process::pivot_root(".", ".")?;
    detach(Path::new("."))
}

/// Makes the mount whose root `root` is the root of the namespace and of the caller, and detaches the old one
/// with everything in it. The working directory becomes the new root.
///
/// # Errors
/// EINVAL if `root` is not the root of a mount, or if it, its parent or the old root's parent is shared.
pub fn pivot_into(root: BorrowedFd<'_>) -> io::Result<()> {
    rustix::process::fchdir(root)?;
    pivot_here()?;
    Ok(rustix::process::chdir("/")?)
}

/// Mounts a detached tree at a path.
///
/// # Errors
/// As [`attach`], and those of opening the path.
pub fn attach_at(tree: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let target = open_path(path)?;
    attach(tree, target.as_fd())
}
