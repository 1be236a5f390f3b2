//! Cgroup folders by descriptor: join, list, freeze, kill. v1 hierarchies and v2.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};

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

/// Whether no process is in it, nor in a folder below it.
///
/// # Errors
/// As the kernel says; a folder that is gone is empty.
pub fn is_empty(dir: BorrowedFd<'_>) -> io::Result<bool> {
    let mut empty = true;
    let walked = each_folder(dir, DEPTH, &mut |folder| {
        let mut byte = [0; 1];
        if !empty {
            return Ok(());
        }
        let read = match open(folder, "cgroup.procs", OFlags::RDONLY)?.read(&mut byte) {
            // A threaded one of v2 lists threads only.
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                open(folder, "cgroup.threads", OFlags::RDONLY)?.read(&mut byte)?
            }
            read => read?,
        };
        empty = read == 0;
        Ok(())
    });
    match walked {
        Ok(()) => Ok(empty),
        Err(error) if is_gone(&error) => Ok(empty),
        Err(error) => Err(error),
    }
}

/// Sends SIGKILL to every process in it and below it: v2 by cgroup.kill; v1 frozen meanwhile, so that none
/// forks away (`dir` is then its folder in the freezer hierarchy; elsewhere it is tried without). Processes
/// are signalled by descriptor, after they were seen to be members still. Those made meanwhile may live: look
/// again until [`is_empty`].
///
/// # Errors
/// As the kernel says; a folder that is gone has nothing to kill.
pub fn kill_all(dir: BorrowedFd<'_>, unified: bool) -> io::Result<()> {
    if unified && write(dir, "cgroup.kill", "1").is_ok() {
        return Ok(());
    }
    let (file, frozen, thawed) =
        if unified { ("cgroup.freeze", "1", "0") } else { ("freezer.state", "FROZEN", "THAWED") };
    // Best effort: without it new children may escape this round, not the next.
    let is_frozen = write(dir, file, frozen).is_ok();
    let killed = each_folder(dir, DEPTH, &mut kill_members);
    if is_frozen {
        write(dir, file, thawed)?;
    }
    match killed {
        Err(error) if !is_gone(&error) => Err(error),
        _ => Ok(()),
    }
}

/// Folders below folders that are looked into; containers that nest deeper are cut off there.
const DEPTH: u32 = 32;

fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV))
}

fn kill_members(dir: BorrowedFd<'_>) -> io::Result<()> {
    let mut held = Vec::new();
    processes(dir, |pid| {
        if let Ok(fd) = crate::pidfd::open(pid) {
            held.push((pid, fd));
        }
    })?;
    held.sort_unstable_by_key(|(pid, _)| *pid);
    processes(dir, |pid| {
        if let Ok(place) = held.binary_search_by_key(&pid, |(pid, _)| *pid)
            && let Some((_, fd)) = held.get(place)
        {
            // Gone is fine, and nothing else can be said to root.
            drop(crate::pidfd::send_signal(std::os::fd::AsFd::as_fd(fd), libc::SIGKILL));
        }
    })
}

/// Calls `each` with the folder and those below it.
fn each_folder(
    dir: BorrowedFd<'_>,
    depth: u32,
    each: &mut impl FnMut(BorrowedFd<'_>) -> io::Result<()>,
) -> io::Result<()> {
    each(dir)?;
    // A link count of two would say that there are none, but the kernel promises that for none of these.
    if depth == 0 {
        return Ok(());
    }
    for entry in std::fs::read_dir(format!("/proc/self/fd/{}", dir.as_raw_fd()))? {
        let entry = entry?;
        if !entry.file_type()?.is_dir() {
            continue;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        match openat(dir, entry.file_name(), flags, Mode::empty()) {
            Ok(folder) => match each_folder(folder.as_fd(), depth - 1, each) {
                Err(error) if !is_gone(&error) => return Err(error),
                _ => {}
            },
            // Removed meanwhile.
            Err(rustix::io::Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
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
