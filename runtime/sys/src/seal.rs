//! Executables that no container can write: executed by descriptor.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use crate::mount::{self, Attributes};

/// Opens the file at `path` for execution: on a detached read-only clone of its mount, so that writing through
/// the descriptor fails with EROFS and its pages stay shared; if the kernel refuses that, as a sealed memfd.
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
    let clone = mount::clone(mount::open_path(path)?.as_fd(), false)?;
    mount::add_attributes(clone.as_fd(), Attributes { readonly: true, ..Attributes::default() })?;
    Ok(clone)
}

fn copy(path: &Path) -> io::Result<OwnedFd> {
    let mut from = File::open(path)?;
    let flags = rustix::fs::MemfdFlags::CLOEXEC | rustix::fs::MemfdFlags::ALLOW_SEALING;
    let mut to = File::from(rustix::fs::memfd_create("copepod", flags)?);
    io::copy(&mut from, &mut to)?;
    rustix::fs::fchmod(&to, Mode::from_raw_mode(0o555))?;
    crate::memfd::seal(&to)?;
    // A descriptor that is open for writing makes execve fail with ETXTBSY.
    let again = format!("/proc/self/fd/{}", to.as_raw_fd());
    Ok(rustix::fs::open(again, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}
