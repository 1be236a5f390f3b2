//! Cgroups, v1 and v2, by descriptors of their folders: join, list, freeze, kill, remove.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::ops::ControlFlow;
use std::os::fd::BorrowedFd;

use rustix::fs::{Mode, OFlags, openat};

mod kill;
mod walk;

pub use kill::kill_all;
pub use walk::{each_folder, is_gone, is_too_many, prune};

/// Longer files are cut. No pids limit in use allows so many processes.
const MAX_LIST: u64 = 4 << 20;

fn open(dir: BorrowedFd<'_>, name: &str, flags: OFlags) -> io::Result<File> {
    Ok(openat(dir, name, flags | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty())?.into())
}

/// Writes a value to a file of the folder.
///
/// # Errors
/// The errors of the system calls.
fn write(dir: BorrowedFd<'_>, name: &str, value: &str) -> io::Result<()> {
    open(dir, name, OFlags::WRONLY)?.write_all(value.as_bytes())
}

/// Reads a file of the folder.
///
/// # Errors
/// The errors of the system calls.
pub fn read(dir: BorrowedFd<'_>, name: &str) -> io::Result<String> {
    let mut text = String::new();
    open(dir, name, OFlags::RDONLY)?.take(MAX_LIST).read_to_string(&mut text)?;
    Ok(text)
}

/// Moves the calling process, which must have one thread, to this cgroup. On v1 by the file `tasks`, because
/// `cgroup.procs` waits for an RCU grace period; on v2 by `cgroup.procs`.
///
/// # Errors
/// The errors of the system calls; ENOSPC for a v1 cpuset without cpus or mems.
pub fn join(dir: BorrowedFd<'_>, unified: bool) -> io::Result<()> {
    write(dir, if unified { "cgroup.procs" } else { "tasks" }, "0")
}

/// Calls `each` with the pid of each process in the cgroup, in the caller's PID namespace; 0 for a process that has
/// none there.
///
/// # Errors
/// ENODEV if the cgroup was removed.
pub fn processes(dir: BorrowedFd<'_>, mut each: impl FnMut(u32)) -> io::Result<()> {
    for pid in read(dir, "cgroup.procs")?.lines().filter_map(|line| line.parse().ok()) {
        each(pid);
    }
    Ok(())
}

/// Whether the cgroup and all below it have no processes. A removed one counts as empty.
///
/// # Errors
/// As for [`each_folder`].
pub fn is_empty(dir: BorrowedFd<'_>) -> io::Result<bool> {
    let mut empty = true;
    let walked = walk::visit(dir, walk::MOST_FOLDERS, &mut |folder| {
        let mut byte = [0; 1];
        let read = match open(folder, "cgroup.procs", OFlags::RDONLY)?.read(&mut byte) {
            // A threaded cgroup of v2 lists only threads.
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

/// Whether every process in the cgroup and below it has ended or was killed, and exists only because a tracer holds it
/// ([`crate::proc::Stat::is_over`]). False for an empty cgroup.
///
/// # Errors
/// As for [`each_folder`].
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

/// The value of a key in a file with lines of `key value`; 0 if the key is missing.
///
/// # Errors
/// The errors of the system calls.
pub fn flat_key(dir: BorrowedFd<'_>, name: &str, key: &str) -> io::Result<u64> {
    let text = read(dir, name)?;
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok());
    Ok(value.unwrap_or(0))
}
