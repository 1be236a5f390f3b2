//! Cgroups, v1 and v2, by descriptors of their folders: join, list, freeze, kill, remove.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::ops::ControlFlow;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, openat};

use crate::proc::unless_gone;

mod kill;
mod oom;
mod walk;

pub use kill::kill_all;
pub use oom::change_oom_score_adj;
pub use walk::{is_gone, is_too_many, prune};

use walk::each_folder;

/// Bytes of a file that are read; lines after them are ignored. No pids limit in use allows so many processes.
const MAX_LIST: u64 = 4 << 20;
/// Maximum number of cgroups that [`join_below`] looks at. A container decides how many there are.
const MAX_JOIN_FOLDERS: usize = 4096;
/// Maximum number of these that it tries to join, if not one has the wanted process. They stay open meanwhile.
const MAX_JOIN_TRIES: usize = 16;

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

/// Reads a file of the folder: its first 4 MiB, without an incomplete last line.
///
/// # Errors
/// The errors of the system calls.
fn read(dir: BorrowedFd<'_>, name: &str) -> io::Result<String> {
    let mut text = String::new();
    open(dir, name, OFlags::RDONLY)?.take(MAX_LIST).read_to_string(&mut text)?;
    if text.len() as u64 == MAX_LIST {
        // The beginning of a pid would be the pid of another process.
        text.truncate(text.rfind('\n').map_or(0, |end| end + 1));
    }
    Ok(text)
}

/// Whether the folder is in a cgroup2 file system (statfs(2)).
pub fn is_unified(dir: BorrowedFd<'_>) -> bool {
    rustix::fs::fstatfs(dir).is_ok_and(|facts| facts.f_type == libc::CGROUP2_SUPER_MAGIC)
}

/// Moves the calling process, which must have one thread, to this cgroup. On v1 by the file `tasks`, because
/// `cgroup.procs` waits for an RCU grace period; on v2 by `cgroup.procs`.
///
/// # Errors
/// The errors of the system calls; ENOSPC for a v1 cpuset without cpus or mems; EBUSY for a v2 cgroup whose controllers
/// are enabled for the cgroups below it ([`join_below`]).
pub fn join(dir: BorrowedFd<'_>, unified: bool) -> io::Result<()> {
    write(dir, if unified { "cgroup.procs" } else { "tasks" }, "0")
}

/// Opens the file of a v1 cgroup for [`join_by`].
///
/// # Errors
/// The errors of openat(2).
pub fn tasks(dir: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    Ok(open(dir, "tasks", OFlags::WRONLY)?.into())
}

/// [`join`] on v1, by a file that is open. The kernel checks the rights of who opened it.
///
/// # Errors
/// The errors of write(2).
pub fn join_by(tasks: BorrowedFd<'_>) -> io::Result<()> {
    // The kernel takes all of it or nothing.
    Ok(rustix::io::write(tasks, b"0").map(drop)?)
}

/// Moves the calling process, which must have one thread, to a v2 cgroup below `dir`: the one with the process
/// `preferred`, or else the first that has processes and accepts another one. For a cgroup that [`join`] refuses with
/// EBUSY: one with cgroups below it that have controllers cannot have processes itself (cgroups(7), "no internal
/// processes"). A container does that to its own cgroup, for example if it runs systemd.
///
/// # Errors
/// EBUSY if there is none, or none among the first 4096; the errors of the system calls.
pub fn join_below(dir: BorrowedFd<'_>, preferred: u32) -> io::Result<()> {
    let mut joined = false;
    let mut others = Vec::new();
    let walked = walk::visit(dir, MAX_JOIN_FOLDERS, &mut |folder| {
        let (mut any, mut found) = (false, false);
        processes(folder, |pid| {
            any = true;
            found |= pid == preferred;
        })?;
        joined = found && join(folder, true).is_ok();
        if any && others.len() < MAX_JOIN_TRIES {
            others.push(folder.try_clone_to_owned()?);
        }
        Ok(if joined { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    });
    match walked {
        Err(error) if !is_gone(&error) && !is_too_many(&error) => return Err(error),
        _ => {}
    }
    if joined || others.iter().any(|folder| join(folder.as_fd(), true).is_ok()) {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(libc::EBUSY))
    }
}

/// Calls `each` with the pid of each process in the cgroup, in the caller's PID namespace; 0 for a process that has
/// none there. Processes in cgroups below it are not listed, except those of threaded cgroups of v2.
///
/// # Errors
/// ENODEV if the cgroup was removed.
fn processes(dir: BorrowedFd<'_>, each: impl FnMut(u32)) -> io::Result<()> {
    match read(dir, "cgroup.procs") {
        Err(error) if is_threaded(&error) => processes_of_threads(dir, each),
        text => {
            numbers(&text?).for_each(each);
            Ok(())
        }
    }
}

/// Number of processes (not threads) in the cgroup and in all below it. A removed cgroup has none.
///
/// # Errors
/// E2BIG if there are more than `max_folders` cgroups; EXDEV if something is mounted on one; the errors of the system
/// calls.
pub fn count_below(dir: BorrowedFd<'_>, max_folders: usize) -> io::Result<u64> {
    let mut count = 0;
    let visited = walk::visit(dir, max_folders, &mut |folder| {
        processes(folder, |_| count += 1)?;
        Ok(ControlFlow::Continue(()))
    });
    match visited {
        Err(error) if !is_gone(&error) => Err(error),
        _ => Ok(count),
    }
}

/// Calls `each` with the pid of each process in the cgroup and in all below it, in the caller's PID namespace; 0 for a
/// process that has none there. A removed cgroup has no processes.
///
/// # Errors
/// E2BIG if there are more cgroups than one walk visits ([`is_too_many`]); EXDEV if something is mounted on one; the
/// errors of the system calls.
pub fn processes_below(dir: BorrowedFd<'_>, mut each: impl FnMut(u32)) -> io::Result<()> {
    match each_folder(dir, &mut |folder| processes(folder, &mut each)) {
        Err(error) if is_gone(&error) => Ok(()),
        listed => listed,
    }
}

/// The processes of the threads in a threaded cgroup, each once. A thread that ends meanwhile is skipped.
fn processes_of_threads(dir: BorrowedFd<'_>, each: impl FnMut(u32)) -> io::Result<()> {
    let mut pids = BTreeSet::new();
    for thread in numbers(&read(dir, "cgroup.threads")?) {
        // 0 stands for a thread of another PID namespace.
        let pid = if thread == 0 { Some(0) } else { unless_gone(crate::proc::process_of(thread))? };
        pids.extend(pid);
    }
    pids.into_iter().for_each(each);
    Ok(())
}

fn numbers(text: &str) -> impl Iterator<Item = u32> {
    text.lines().filter_map(|line| line.parse().ok())
}

/// Whether reading `cgroup.procs` failed because the cgroup is a threaded one of v2, which lists only threads.
fn is_threaded(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EOPNOTSUPP)
}

/// Whether the cgroup and all below it have no processes. A removed one counts as empty.
///
/// # Errors
/// As for [`processes_below`].
pub fn is_empty(dir: BorrowedFd<'_>) -> io::Result<bool> {
    let mut empty = true;
    let walked = walk::visit(dir, walk::MAX_FOLDERS, &mut |folder| {
        let mut byte = [0; 1];
        let read = match open(folder, "cgroup.procs", OFlags::RDONLY)?.read(&mut byte) {
            Err(error) if is_threaded(&error) => {
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

/// Whether every process in the cgroup and below it has ended or was killed, and exists only because a tracer keeps it
/// from being reaped ([`crate::proc::Stat::is_over`]). False for an empty cgroup.
///
/// # Errors
/// As for [`processes_below`].
pub fn only_unreapable(dir: BorrowedFd<'_>) -> io::Result<bool> {
    let (mut some, mut all) = (false, true);
    processes_below(dir, |pid| match unless_gone(crate::proc::stat(pid)) {
        Ok(Some(stat)) if stat.is_over() => some = true,
        Ok(None) => {}
        Ok(Some(_)) | Err(_) => all = false,
    })?;
    Ok(some && all)
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

#[cfg(test)]
mod tests;
