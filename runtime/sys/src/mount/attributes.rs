//! Attributes, propagation types and id-mappings of mounts (mount_setattr(2)).

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::path::Path;

use rustix::fs::AtFlags;
use rustix::mount::{MountAttrFlags, MountPropagationFlags, mount_change};

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
    /// The bits of `struct mount_attr` and of fsmount(2).
    pub(super) fn bits(self) -> u64 {
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
