//! The mount API by descriptors: trees are cloned, configured while nobody sees them, and attached onto an
//! opened place. Attributes are those of mount_setattr(2).

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags,
};

/// Attributes of a mount.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Attributes {
    /// No writing.
    pub readonly: bool,
    /// No set-user-id.
    pub nosuid: bool,
    /// No device nodes.
    pub nodev: bool,
    /// No execve.
    pub noexec: bool,
}

impl Attributes {
    fn flags(self) -> MountAttrFlags {
        let mut flags = MountAttrFlags::empty();
        flags.set(MountAttrFlags::MOUNT_ATTR_RDONLY, self.readonly);
        flags.set(MountAttrFlags::MOUNT_ATTR_NOSUID, self.nosuid);
        flags.set(MountAttrFlags::MOUNT_ATTR_NODEV, self.nodev);
        flags.set(MountAttrFlags::MOUNT_ATTR_NOEXEC, self.noexec);
        flags
    }
}

/// How mounts pass between a mount and its origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spread {
    /// Not at all.
    Private,
    /// From the origin only.
    Slave,
}

/// struct mount_attr of mount_setattr(2).
#[repr(C)]
#[derive(Default)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns_fd: u64,
}

fn setattr(tree: BorrowedFd<'_>, recursive: bool, attr: &MountAttr) -> io::Result<()> {
    const RECURSIVE: libc::c_int = 0x8000;
    let flags = libc::AT_EMPTY_PATH | if recursive { RECURSIVE } else { 0 };
    // SAFETY: the path is a static empty C string; `attr` is a live struct mount_attr and its true size is
    // given; the kernel only reads both.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(attr),
            size_of::<MountAttr>(),
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Adds attributes to a mount (any descriptor on its root, detached or not); nothing is taken away.
///
/// # Errors
/// mount_setattr(2), Linux 5.12.
pub fn restrict(tree: BorrowedFd<'_>, attributes: Attributes, recursive: bool) -> io::Result<()> {
    let set = u64::from(attributes.flags().bits());
    if set == 0 {
        return Ok(());
    }
    setattr(tree, recursive, &MountAttr { set, ..MountAttr::default() })
}

/// Changes how mounts pass.
///
/// # Errors
/// mount_setattr(2), Linux 5.12.
pub fn spread(tree: BorrowedFd<'_>, how: Spread, recursive: bool) -> io::Result<()> {
    let propagation = match how {
        Spread::Private => MountPropagationFlags::PRIVATE,
        Spread::Slave => MountPropagationFlags::DOWNSTREAM,
    };
    let attr = MountAttr { propagation: u64::from(propagation.bits()), ..MountAttr::default() };
    setattr(tree, recursive, &attr)
}

/// Clones the mount that a path lies on, from that path down; `recursive` takes what is mounted below along.
///
/// # Errors
/// open_tree(2).
pub fn clone_path(path: &Path, recursive: bool) -> io::Result<OwnedFd> {
    let flags = clone_flags(recursive);
    Ok(rustix::mount::open_tree(CWD, path, flags)?)
}

/// As [`clone_path`], of an opened place. It must be in the caller's mount namespace.
///
/// # Errors
/// open_tree(2): EINVAL for a place in another namespace, or an unbindable one.
pub fn clone_fd(place: BorrowedFd<'_>, recursive: bool) -> io::Result<OwnedFd> {
    let flags = clone_flags(recursive) | OpenTreeFlags::AT_EMPTY_PATH;
    Ok(rustix::mount::open_tree(place, c"", flags)?)
}

fn clone_flags(recursive: bool) -> OpenTreeFlags {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive { flags | OpenTreeFlags::AT_RECURSIVE } else { flags }
}

/// Attaches a detached tree onto an opened place.
///
/// # Errors
/// move_mount(2): ENOTDIR when one is a folder and the other is not.
pub fn attach(tree: BorrowedFd<'_>, place: BorrowedFd<'_>) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(rustix::mount::move_mount(tree, c"", place, c"", flags)?)
}

/// Makes `to` share mounts with `from`'s peers (MOVE_MOUNT_SET_GROUP, Linux 5.15).
///
/// # Errors
/// EINVAL when `from` is private, `to` is not, or they are of different file systems.
pub fn join_group(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
    const SET_GROUP: libc::c_uint = 0x100;
    const EMPTY_BOTH: libc::c_uint = 0x4 | 0x40;
    // SAFETY: both paths are static empty C strings, which the kernel reads.
    let done = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            from.as_raw_fd(),
            c"".as_ptr(),
            to.as_raw_fd(),
            c"".as_ptr(),
            EMPTY_BOTH | SET_GROUP,
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A file system being configured (fsopen(2)).
#[derive(Debug)]
pub struct NewFs {
    context: OwnedFd,
}

impl NewFs {
    /// Begins with a type's name, for example `tmpfs`.
    ///
    /// # Errors
    /// ENODEV for a type the kernel does not have.
    pub fn open(kind: &str) -> io::Result<Self> {
        Ok(Self { context: rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)? })
    }

    /// Sets `key=value`.
    ///
    /// # Errors
    /// EINVAL for an option or value the file system refuses, with its own words where it has some.
    pub fn set(&self, key: &str, value: &str) -> io::Result<()> {
        self.explain(rustix::mount::fsconfig_set_string(self.context.as_fd(), key, value))
    }

    /// Sets an option without a value.
    ///
    /// # Errors
    /// As [`Self::set`].
    pub fn flag(&self, key: &str) -> io::Result<()> {
        self.explain(rustix::mount::fsconfig_set_flag(self.context.as_fd(), key))
    }

    /// Makes the file system and returns a detached mount of it.
    ///
    /// # Errors
    /// What mount(2) would say.
    pub fn mount(self, attributes: Attributes) -> io::Result<OwnedFd> {
        self.explain(rustix::mount::fsconfig_create(self.context.as_fd()))?;
        let made =
            rustix::mount::fsmount(self.context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes.flags());
        self.explain(made)
    }

    /// Adds what the kernel left to read in the context, which says more than an errno. The errno stays
    /// to be had as [`io::Error::raw_os_error`] only where there is nothing to read.
    fn explain<T>(&self, result: rustix::io::Result<T>) -> io::Result<T> {
        result.map_err(|errno| {
            let mut buffer = [0u8; 256];
            match rustix::io::read(self.context.as_fd(), &mut buffer) {
                Ok(length) if length > 0 => {
                    let said = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()).into_owned();
                    Explained { errno: errno.raw_os_error(), said: said.trim().to_owned() }.into()
                }
                _ => errno.into(),
            }
        })
    }
}

/// A refusal with the file system's own words.
#[derive(Debug, thiserror::Error)]
#[error("{} ({said})", io::Error::from_raw_os_error(*errno))]
pub struct Explained {
    /// The errno.
    pub errno: i32,
    /// What the kernel logged, for example `e overlay: ...`.
    pub said: String,
}

impl From<Explained> for io::Error {
    fn from(error: Explained) -> Self {
        Self::new(Self::from_raw_os_error(error.errno).kind(), error)
    }
}

/// The errno in an error of this module, explained or not; 0 when there is none.
pub fn errno(error: &io::Error) -> i32 {
    error
        .raw_os_error()
        .or_else(|| error.get_ref()?.downcast_ref::<Explained>().map(|explained| explained.errno))
        .unwrap_or(0)
}

/// A detached tmpfs.
///
/// # Errors
/// As [`NewFs`].
pub fn tmpfs(mode: u32, size: u64, attributes: Attributes) -> io::Result<OwnedFd> {
    let fs = NewFs::open("tmpfs")?;
    fs.set("mode", &format!("{mode:o}"))?;
    if size > 0 {
        fs.set("size", &size.to_string())?;
    }
    fs.mount(attributes)
}

/// mount(2) of a file system by options, for kernels whose fsconfig(2) lacks one.
///
/// # Errors
/// mount(2).
pub fn classic(source: &str, target: &Path, kind: &str, options: &str) -> io::Result<()> {
    let options = std::ffi::CString::new(options)?;
    Ok(rustix::mount::mount(source, target, kind, MountFlags::empty(), Some(options.as_c_str()))?)
}

/// Changes how mounts pass at a path of the caller's namespace.
///
/// # Errors
/// mount(2).
pub fn spread_path(path: &Path, how: Spread, recursive: bool) -> io::Result<()> {
    let mut flags = match how {
        Spread::Private => MountPropagationFlags::PRIVATE,
        Spread::Slave => MountPropagationFlags::DOWNSTREAM,
    };
    flags.set(MountPropagationFlags::REC, recursive);
    Ok(rustix::mount::mount_change(path, flags)?)
}

/// Takes a mount off, busy or not. What shares mounts with it loses it too: make it private before.
///
/// # Errors
/// EINVAL where nothing is mounted.
pub fn detach(path: &Path) -> io::Result<()> {
    Ok(rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?)
}

/// Makes a mount private with all below it, then takes it off: nobody else loses anything. By descriptor of
/// its root; `/proc` must be the caller's.
///
/// # Errors
/// mount_setattr(2), umount2(2).
pub fn detach_fd(tree: BorrowedFd<'_>) -> io::Result<()> {
    spread(tree, Spread::Private, true)?;
    let path = format!("/proc/self/fd/{}", tree.as_raw_fd());
    Ok(rustix::mount::unmount(path, UnmountFlags::DETACH)?)
}

/// Makes the folder `root`, which must be a mount, the root of this namespace and drops the old one, which
/// must not share mounts with anybody.
///
/// # Errors
/// pivot_root(2).
pub fn change_root(root: BorrowedFd<'_>) -> io::Result<()> {
    rustix::process::fchdir(root)?;
    // Stacks the old root on the new one, from where it is taken off again.
    rustix::process::pivot_root(".", ".")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH)?;
    Ok(rustix::process::chdir("/")?)
}

/// Opens a place below `root` without reading it (O_PATH): `..` and absolute links stay below, magic links
/// of /proc are refused.
///
/// # Errors
/// openat2(2).
pub fn open_in_root(root: BorrowedFd<'_>, path: &Path, extra: OFlags) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    open2(root, path, OFlags::PATH | extra, resolve)
}

/// As [`open_in_root`], but no symbolic link is followed anywhere.
///
/// # Errors
/// ELOOP at a link; openat2(2).
pub fn open_plain(root: BorrowedFd<'_>, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_SYMLINKS;
    open2(root, path, flags, resolve)
}

/// Opens a host path without reading it; links are followed.
///
/// # Errors
/// openat2(2).
pub fn open_host(path: &Path) -> io::Result<OwnedFd> {
    open2(CWD, path, OFlags::PATH, ResolveFlags::NO_MAGICLINKS)
}

fn open2(root: BorrowedFd<'_>, path: &Path, flags: OFlags, resolve: ResolveFlags) -> io::Result<OwnedFd> {
    // With RESOLVE_IN_ROOT the kernel gives up (EAGAIN) when something was renamed meanwhile.
    for _ in 0..32 {
        match rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            done => return Ok(done?),
        }
    }
    Err(io::Error::from_raw_os_error(libc::EAGAIN))
}

/// Number of the mount that an opened place lies on, as mountinfo names it.
///
/// # Errors
/// statx(2); a kernel that does not tell (before 5.8).
pub fn id_of(place: BorrowedFd<'_>) -> io::Result<u64> {
    let wanted = rustix::fs::StatxFlags::MNT_ID;
    let stat = rustix::fs::statx(place, c"", rustix::fs::AtFlags::EMPTY_PATH, wanted)?;
    if stat.stx_mask & wanted.bits() == 0 {
        return Err(io::Error::from_raw_os_error(libc::ENOSYS));
    }
    Ok(stat.stx_mnt_id)
}

/// Whether the mount table behind an opened mountinfo has changed since it was opened or last asked.
///
/// # Errors
/// poll(2).
pub fn table_changed(mountinfo: BorrowedFd<'_>) -> io::Result<bool> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::new(&mountinfo, PollFlags::PRI)];
    poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
    Ok(fds.iter().any(|fd| fd.revents().contains(PollFlags::PRI)))
}
