//! Executables that no container can write: executed by descriptor.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{Mode, OFlags};

/// struct mount_attr.
#[repr(C)]
#[derive(Default)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns_fd: u64,
}

const RDONLY: u64 = 1;

/// The file at `path` as a descriptor to execute: a detached read-only clone of its mount, so writing
/// through it gives EROFS while its pages stay shared; where the kernel refuses that, a sealed copy in memory.
///
/// # Errors
/// The file cannot be opened or copied.
pub fn sealed_binary(path: &Path) -> io::Result<OwnedFd> {
    match read_only_clone(path) {
        Ok(fd) => Ok(fd),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(error),
        Err(_) => copy(path),
    }
}

fn read_only_clone(path: &Path) -> io::Result<OwnedFd> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    const CLONE: libc::c_uint = 1;
    let flags = CLONE | libc::O_CLOEXEC.unsigned_abs();
    // SAFETY: `name` is a C string that lives across the call.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, name.as_ptr(), flags) };
    let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the kernel has just opened it for us.
    let tree = unsafe { OwnedFd::from_raw_fd(fd) };
    let attr = MountAttr { set: RDONLY, ..MountAttr::default() };
    // SAFETY: an empty C string and a mount_attr of the given size that live across the call.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    };
    if done == 0 { Ok(tree) } else { Err(io::Error::last_os_error()) }
}

fn copy(path: &Path) -> io::Result<OwnedFd> {
    let mut from = File::open(path)?;
    let flags = rustix::fs::MemfdFlags::CLOEXEC | rustix::fs::MemfdFlags::ALLOW_SEALING;
    let mut to = File::from(rustix::fs::memfd_create("copepod", flags)?);
    io::copy(&mut from, &mut to)?;
    rustix::fs::fchmod(&to, Mode::from_raw_mode(0o555))?;
    let seals = rustix::fs::SealFlags::WRITE
        | rustix::fs::SealFlags::GROW
        | rustix::fs::SealFlags::SHRINK
        | rustix::fs::SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&to, seals)?;
    // A descriptor that is open for writing makes execve fail with ETXTBSY.
    let again = format!("/proc/self/fd/{}", to.as_raw_fd());
    Ok(rustix::fs::open(again, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}
