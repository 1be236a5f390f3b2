//! The mount interface by descriptors (fsopen(2), open_tree(2), move_mount(2), mount_setattr(2), openat2(2)):
//! a path is resolved only once.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, StatxAttributes, StatxFlags, fstat, openat, statx,
};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
    UnmountFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount_change,
    move_mount, open_tree, unmount,
};

use crate::beneath;

/// Mount attributes of `mount_setattr(2)`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Read-only.
    pub readonly: bool,
    /// Set-user-id bits are ignored.
    pub nosuid: bool,
    /// Device nodes cannot be opened.
    pub nodev: bool,
    /// Programs cannot be executed.
    pub noexec: bool,
}

impl Attributes {
    fn bits(self) -> u64 {
        let bit = |on: bool, flag: MountAttrFlags| if on { u64::from(flag.bits()) } else { 0 };
        bit(self.readonly, MountAttrFlags::MOUNT_ATTR_RDONLY)
            | bit(self.nosuid, MountAttrFlags::MOUNT_ATTR_NOSUID)
            | bit(self.nodev, MountAttrFlags::MOUNT_ATTR_NODEV)
            | bit(self.noexec, MountAttrFlags::MOUNT_ATTR_NOEXEC)
    }
}

/// Propagation type of a mount (mount_namespaces(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PropagationType {
    /// Private.
    Private,
    /// Slave: mounts are received.
    Slave,
    /// Shared: mounts are received from the peer group and sent to it.
    Shared,
}

impl PropagationType {
    fn flags(self) -> MountPropagationFlags {
        match self {
            Self::Private => MountPropagationFlags::PRIVATE,
            Self::Slave => MountPropagationFlags::DOWNSTREAM,
            Self::Shared => MountPropagationFlags::SHARED,
        }
    }
}

#[repr(C)]
#[derive(Default)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns: u64,
}

fn set(mount: BorrowedFd<'_>, recursive: bool, attr: &MountAttr) -> io::Result<()> {
    const AT_RECURSIVE: u32 = 0x8000;
    let flags = AtFlags::EMPTY_PATH.bits() | if recursive { AT_RECURSIVE } else { 0 };
    let path: &CStr = c"";
    // Neither rustix nor nix has this call.
    // SAFETY: mount_setattr(2) reads the path, a C string, and `attr`, a `struct mount_attr` of the size that is passed;
    // both live across the call. The descriptor is open because it is borrowed.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            path.as_ptr(),
            flags,
            std::ptr::from_ref(attr),
            size_of::<MountAttr>(),
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Adds attributes to one mount, attached or not; no attribute is removed.
///
/// # Errors
/// EPERM; EINVAL if `mount` is not the root of a mount.
pub fn add_attributes(mount: BorrowedFd<'_>, attributes: Attributes) -> io::Result<()> {
    match attributes.bits() {
        0 => Ok(()),
        set_bits => set(mount, false, &MountAttr { set: set_bits, ..MountAttr::default() }),
    }
}

/// Adds attributes to a mount and to all mounts below it, or to none of them. The mounts below must not change in the
/// meantime, as in a detached private tree.
///
/// # Errors
/// As [`add_attributes`].
pub fn add_attributes_below(mount: BorrowedFd<'_>, attributes: Attributes) -> io::Result<()> {
    match attributes.bits() {
        0 => Ok(()),
        set_bits => set(mount, true, &MountAttr { set: set_bits, ..MountAttr::default() }),
    }
}

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

/// Id-maps one detached mount, not those below it: its files have the owners that the user namespace `users` maps them
/// to. An id that is not mapped becomes nobody's.
///
/// # Errors
/// EINVAL if the file system cannot be id-mapped, or the mount is attached; EPERM if it is id-mapped already, or the
/// file system belongs to another user namespace.
pub fn idmap(mount: BorrowedFd<'_>, users: BorrowedFd<'_>) -> io::Result<()> {
    const IDMAP: u64 = 0x10_0000;
    let userns = u64::from(users.as_raw_fd().unsigned_abs());
    set(mount, false, &MountAttr { set: IDMAP, userns, ..MountAttr::default() })
}

/// Sets the propagation type of one mount, or of it and all mounts below it.
///
/// # Errors
/// As [`add_attributes`].
pub fn set_propagation(mount: BorrowedFd<'_>, to: PropagationType, recursive: bool) -> io::Result<()> {
    let propagation = to.flags().bits().into();
    set(mount, recursive, &MountAttr { propagation, ..MountAttr::default() })
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

/// One option of a new file system.
#[derive(Debug, Clone, Copy)]
pub enum FsOption<'a> {
    /// `key`.
    Flag(&'a str),
    /// `key=value`.
    Value(&'a str, &'a str),
}

/// Creates a file system of `kind`, which is not attached yet. If the kernel gives reasons in addition to the errno,
/// the error contains them.
///
/// # Errors
/// ENODEV for an unknown kind; EINVAL for an unknown option; those of the file system.
pub fn create(kind: &str, options: &[FsOption<'_>], attributes: Attributes) -> io::Result<OwnedFd> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    let build = || {
        for option in options {
            match option {
                FsOption::Flag(key) => fsconfig_set_flag(&context, *key)?,
                FsOption::Value(key, value) => fsconfig_set_string(&context, *key, *value)?,
            }
        }
        fsconfig_create(&context)?;
        let bits = u32::try_from(attributes.bits()).unwrap_or(0);
        fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::from_bits_retain(bits))
    };
    build().map_err(|errno| explain(&context, errno))
}

/// Mounts a file system of `kind` at `target` by mount(2), for options that fsconfig(2) does not take.
///
/// # Errors
/// As [`create`]; EINVAL for options of more than a page.
pub fn create_at(kind: &str, target: &Path, options: &str) -> io::Result<()> {
    let options = std::ffi::CString::new(options)?;
    Ok(rustix::mount::mount(kind, target, kind, rustix::mount::MountFlags::empty(), options.as_c_str())?)
}

/// Adds the messages in the context's log (each read returns one).
fn explain(context: &OwnedFd, errno: rustix::io::Errno) -> io::Error {
    let mut text = String::new();
    let mut buffer = [0u8; 512];
    while text.len() < 2048 {
        match rustix::io::read(context, &mut buffer) {
            Ok(0) | Err(_) => break,
            Ok(length) => {
                text.push_str(" | ");
                text.push_str(String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()).trim());
            }
        }
    }
    let plain = io::Error::from(errno);
    if text.is_empty() {
        plain
    } else {
        io::Error::new(plain.kind(), Explained { errno: errno.raw_os_error(), text })
    }
}

/// The same error with more text; [`errno`] still returns its number.
pub fn with_text(error: &io::Error, text: impl std::fmt::Display) -> io::Error {
    io::Error::new(error.kind(), Explained { errno: errno(error), text: format!(" ({text})") })
}

/// An errno with the kernel's messages; [`errno`] returns the number.
#[derive(Debug, thiserror::Error)]
#[error("{}{text}", io::Error::from_raw_os_error(*.errno))]
struct Explained {
    errno: i32,
    text: String,
}

/// The errno of an error of this module; 0 if it has none.
pub fn errno(error: &io::Error) -> i32 {
    let inner = error.get_ref().and_then(|e| e.downcast_ref::<Explained>()).map(|e| e.errno);
    error.raw_os_error().or(inner).unwrap_or(0)
}

/// A tmpfs. `size` 0 leaves the kernel's default, half of memory.
///
/// # Errors
/// As [`create`].
pub fn tmpfs(mode: u32, size: u64, attributes: Attributes) -> io::Result<OwnedFd> {
    let (mode, size) = (format!("{mode:o}"), size.to_string());
    let options =
        [FsOption::Value("source", "tmpfs"), FsOption::Value("mode", &mode), FsOption::Value("size", &size)];
    let used = if size == "0" { 2 } else { 3 };
    create("tmpfs", options.get(..used).unwrap_or(&options), attributes)
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

/// Like [`set_propagation`], for the mount at `path`, by mount(2).
///
/// # Errors
/// EINVAL if `path` is not the root of a mount.
pub fn change(path: &Path, to: PropagationType, recursive: bool) -> io::Result<()> {
    let mut flags = to.flags();
    if recursive {
        flags |= MountPropagationFlags::REC;
    }
    Ok(mount_change(path, flags)?)
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
