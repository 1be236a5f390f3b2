//! Cgroup folders by descriptor: join, list, freeze, kill. v1 hierarchies and v2.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::BorrowedFd;

use rustix::fs::{Mode, OFlags, openat};

/// A list of pids above this is cut: more processes than any pids limit in use.
const MAX_LIST: u64 = 4 << 20;

fn open(dir: BorrowedFd<'_>, name: &str, flags: OFlags) -> io::Result<File> {
    Ok(openat(dir, name, flags | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty())?.into())
}

/// Writes a value to a file of the folder.
///
/// # Errors
/// As the kernel says.
pub fn write(dir: BorrowedFd<'_>, name: &str, value: &str) -> io::Result<()> {
    open(dir, name, OFlags::WRONLY)?.write_all(value.as_bytes())
}

/// Reads a file of the folder.
///
/// # Errors
/// As the kernel says.
pub fn read(dir: BorrowedFd<'_>, name: &str) -> io::Result<String> {
    let mut text = String::new();
    open(dir, name, OFlags::RDONLY)?.take(MAX_LIST).read_to_string(&mut text)?;
    Ok(text)
}

/// The calling process (of one thread) joins. v1: by `tasks`, which waits for no grace period as
/// `cgroup.procs` does; v2: by `cgroup.procs`.
///
/// # Errors
/// As the kernel says; ENOSPC for a v1 cpuset without cpus or mems.
pub fn join(dir: BorrowedFd<'_>, unified: bool) -> io::Result<()> {
    write(dir, if unified { "cgroup.procs" } else { "tasks" }, "0")
}

/// Calls `each` with the pid of each process in it, as the caller's PID namespace numbers them; 0 for
/// those it cannot see.
///
/// # Errors
/// ENODEV once it was removed.
pub fn processes(dir: BorrowedFd<'_>, mut each: impl FnMut(u32)) -> io::Result<()> {
    for pid in read(dir, "cgroup.procs")?.lines().filter_map(|line| line.parse().ok()) {
        each(pid);
    }
    Ok(())
}

/// Whether no process is in it (v1: a folder without subfolders is assumed).
///
/// # Errors
/// As the kernel says; a folder that is gone is empty.
pub fn is_empty(dir: BorrowedFd<'_>) -> io::Result<bool> {
    let mut byte = [0; 1];
    match open(dir, "cgroup.procs", OFlags::RDONLY).and_then(|mut file| file.read(&mut byte)) {
        Ok(bytes) => Ok(bytes == 0),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => Ok(true),
        Err(error) => Err(error),
    }
}

/// Value of a `key value` line of a flat-keyed file; 0 when it is not there.
///
/// # Errors
/// As the kernel says.
pub fn flat_key(dir: BorrowedFd<'_>, name: &str, key: &str) -> io::Result<u64> {
    let text = read(dir, name)?;
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok());
    Ok(value.unwrap_or(0))
}
