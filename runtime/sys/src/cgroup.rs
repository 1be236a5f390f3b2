//! Cgroup folders by descriptor: join, list, freeze, kill. v1 hierarchies and v2.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::ops::ControlFlow;
use std::os::fd::BorrowedFd;

use rustix::fs::{Mode, OFlags, openat};

mod kill;
mod walk;

pub use kill::kill_all;
pub use walk::{each_folder, is_gone, is_too_many, prune};

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

/// Whether no process is in it, nor in a folder below it.
///
/// # Errors
/// As [`each_folder`]; a folder that is gone is empty.
pub fn is_empty(dir: BorrowedFd<'_>) -> io::Result<bool> {
    let mut empty = true;
    let walked = walk::visit(dir, walk::MOST_FOLDERS, &mut |folder| {
        let mut byte = [0; 1];
        let read = match open(folder, "cgroup.procs", OFlags::RDONLY)?.read(&mut byte) {
            // A threaded one of v2 lists threads only.
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                open(folder, "cgroup.threads", OFlags::RDONLY)?.read(&mut byte)?
            }
            read => read?,
        };
        empty = read == 0;
        Ok(if empty { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    });
    match walked {
        Ok(()) => Ok(empty),
        Err(error) if is_gone(&error) => Ok(empty),
        Err(error) => Err(error),
    }
}

/// Whether every process in it and below it has been killed and cannot run again, but is kept from leaving by
/// one that traces it (PTRACE_O_TRACEEXIT). False for an empty one.
///
/// # Errors
/// As [`each_folder`].
pub fn only_held(dir: BorrowedFd<'_>) -> io::Result<bool> {
    let (mut held, mut all) = (false, true);
    each_folder(dir, &mut |folder| {
        processes(folder, |pid| match crate::proc::stat(pid) {
            Ok(stat) if stat.is_over() => held = true,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            _ => all = false,
        })
    })?;
    Ok(held && all)
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
