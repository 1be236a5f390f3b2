//! Kills the processes of a cgroup: freeze, signal all, thaw. The caller repeats it until none is left.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::thread;
use std::time::{Duration, Instant};

use super::walk::{each_folder, is_gone, is_too_many, prune};
use super::{processes, read, write};

/// Maximum number of pidfds that are open at once, so that a limit on descriptors does not keep processes from being
/// killed.
const MAX_OPEN: usize = 64;

/// Sends SIGKILL to every process in a cgroup and below it, once. Processes that are forked meanwhile may survive:
/// repeat it until [`super::is_empty`].
///
/// `folders` are the cgroup's folders in the hierarchies to search; `freezer` is its folder in v1's freezer hierarchy.
/// On v2 (`unified`) there is one folder, and cgroup.kill does all, unless the cgroup is threaded or the kernel older than
/// 5.14. Otherwise the processes are frozen first, so that none can fork. That takes at most `patience`, because a
/// process in D state freezes only when it leaves that state. Then each is signalled by a pidfd, if it is still a member.
/// At the end every level is thawed: on v1 a frozen process does not die, and the container may have frozen some levels
/// itself.
///
/// # Errors
/// The errors of the system calls; a removed folder is not an error. If there are more folders than one walk visits,
/// the processes in the visited ones are killed and empty ones are removed, so the next call visits others.
pub fn kill_all(
    folders: &[BorrowedFd<'_>],
    freezer: Option<BorrowedFd<'_>>,
    unified: bool,
    patience: Duration,
) -> io::Result<()> {
    let first = folders.first().copied();
    if unified && first.is_some_and(|dir| write(dir, "cgroup.kill", "1").is_ok()) {
        return Ok(());
    }
    let freezing = if unified { first } else { freezer };
    let frozen = freezing.is_some_and(|dir| freeze(dir, unified, patience));
    let mut outcome = Ok(());
    for dir in folders {
        let killed = each_folder(*dir, &mut |folder| kill_members(folder, frozen));
        outcome = outcome.and(except_gone(killed, *dir));
    }
    if let Some(dir) = freezing {
        outcome = outcome.and(except_gone(thaw(dir, unified), dir));
    }
    outcome
}

/// The outcome, without the error that `dir` was removed. If the tree is too large, its empty folders are removed, for
/// the next call.
fn except_gone(outcome: io::Result<()>, dir: BorrowedFd<'_>) -> io::Result<()> {
    match outcome {
        Err(error) if is_gone(&error) => Ok(()),
        Err(error) if is_too_many(&error) => {
            // It fails for folders with processes, which stay.
            drop(prune(dir, &mut || false));
            Err(error)
        }
        outcome => outcome,
    }
}

/// Freezes the cgroup. Returns whether all its processes are frozen now. If not, they can be killed too, but that may
/// take more rounds.
fn freeze(dir: BorrowedFd<'_>, unified: bool, patience: Duration) -> bool {
    let (file, value) = if unified { ("cgroup.freeze", "1") } else { ("freezer.state", "FROZEN") };
    if write(dir, file, value).is_err() {
        return false;
    }
    let start = Instant::now();
    // Sleeping processes freeze within some 50 µs.
    let mut pause = Duration::from_micros(50);
    loop {
        let is_frozen = if unified {
            super::flat_key(dir, "cgroup.events", "frozen").map(|frozen| frozen == 1)
        } else {
            read(dir, file).map(|state| state.trim_end() == "FROZEN")
        };
        match is_frozen {
            Ok(true) => return true,
            Ok(false) if start.elapsed() < patience => {
                thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_millis(1));
            }
            _ => return false,
        }
    }
}

/// Thaws the cgroup and all below it.
fn thaw(dir: BorrowedFd<'_>, unified: bool) -> io::Result<()> {
    let (file, value) = if unified { ("cgroup.freeze", "0") } else { ("freezer.state", "THAWED") };
    let own = write(dir, file, value);
    each_folder(dir, &mut |folder| {
        // Only an error of the top is reported: it is frozen by us, the others only by the container.
        drop(write(folder, file, value));
        Ok(())
    })
    .and(own)
}

/// Kills the processes in one cgroup, not those below it.
fn kill_members(dir: BorrowedFd<'_>, frozen: bool) -> io::Result<()> {
    let list = || -> io::Result<Vec<u32>> {
        let mut pids = Vec::new();
        // 0 stands for a process without a pid in this PID namespace, which cannot be signalled. PID 1 and the caller
        // never belong to a container.
        processes(dir, |pid| {
            if pid > 1 && pid != std::process::id() {
                pids.push(pid);
            }
        })?;
        pids.sort_unstable();
        Ok(pids)
    };
    for some in list()?.chunks(MAX_OPEN) {
        let pidfds: Vec<_> =
            some.iter().filter_map(|pid| Some((*pid, crate::pidfd::open(*pid).ok()?))).collect();
        // A frozen process cannot end, so the pidfd is its own. Otherwise its pid may have been reused before the pidfd
        // was opened: list again, and signal only those that are still members.
        let members = if frozen { None } else { Some(list()?) };
        for (pid, fd) in &pidfds {
            if members.as_ref().is_none_or(|members| members.binary_search(pid).is_ok()) {
                // The only expected error is that it has ended.
                drop(crate::pidfd::send_signal(fd.as_fd(), libc::SIGKILL));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{File, create_dir, write};
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::Command;

    /// There are more folders than names that the walk keeps. All processes are killed in one round.
    #[test]
    fn processes_in_the_last_of_many_folders_are_killed() {
        const FOLDERS: usize = 12_000;
        let temp = tempfile::tempdir().unwrap();
        let mut children: Vec<_> =
            (0..4).map(|_| Command::new("sleep").arg("1000").spawn().unwrap()).collect();
        let places = [0, 1, FOLDERS / 2, FOLDERS - 1];
        for n in 0..FOLDERS {
            let folder = temp.path().join(format!("c{n}"));
            create_dir(&folder).unwrap();
            let child = places.iter().position(|place| *place == n).map(|at| children[at].id());
            // Pid 0 stands for a process of another PID namespace.
            write(folder.join("cgroup.procs"), format!("{}\n", child.unwrap_or(0))).unwrap();
        }
        write(temp.path().join("cgroup.procs"), "").unwrap();
        let dir = File::open(temp.path()).unwrap();
        assert!(!crate::cgroup::is_empty(dir.as_fd()).unwrap());
        let killed = kill_all(&[dir.as_fd()], None, false, Duration::ZERO);
        let ends: Vec<_> = children
            .iter_mut()
            .map(|child| {
                if killed.is_err() {
                    child.kill().unwrap();
                }
                child.wait().unwrap().signal()
            })
            .collect();
        killed.unwrap();
        assert_eq!(ends, [Some(libc::SIGKILL); 4]);
    }
}
