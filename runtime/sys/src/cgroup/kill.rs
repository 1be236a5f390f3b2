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
/// 5.14. Otherwise the processes are frozen first, so that they cannot fork. That takes at most `patience`, because a
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
    if let Some(dir) = freezing {
        freeze(dir, unified, patience);
    }
    let mut outcome = Ok(());
    for dir in folders {
        let killed = each_folder(*dir, &mut |folder| kill_members(&mut || members(folder)));
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

/// Freezes the cgroup, or gives up after `patience`: its processes can be killed all the same, but that may take more
/// rounds.
fn freeze(dir: BorrowedFd<'_>, unified: bool, patience: Duration) {
    let (file, value) = if unified { ("cgroup.freeze", "1") } else { ("freezer.state", "FROZEN") };
    if write(dir, file, value).is_err() {
        return;
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
            Ok(false) if start.elapsed() < patience => {
                thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_millis(1));
            }
            _ => return,
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

/// The processes in one cgroup that can be killed, not those below it, ascending.
fn members(dir: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    let mut pids = Vec::new();
    // 0 stands for a process without a pid in this PID namespace, which cannot be signalled. PID 1 and the caller never
    // belong to a container.
    processes(dir, |pid| {
        if pid > 1 && pid != std::process::id() {
            pids.push(pid);
        }
    })?;
    pids.sort_unstable();
    Ok(pids)
}

/// Kills the processes that `list` returns, which is [`members`] except in tests. It is called again when the pidfds are
/// open: the kernel may have given a pid to another process since it was listed, and the pidfd is of that one then. This
/// can happen although they are frozen: on v2 a frozen process can be killed, and on v1 a process of this hierarchy may be
/// elsewhere in that of the freezer.
fn kill_members(list: &mut impl FnMut() -> io::Result<Vec<u32>>) -> io::Result<()> {
    for some in list()?.chunks(MAX_OPEN) {
        let pidfds: Vec<_> =
            some.iter().filter_map(|pid| Some((*pid, crate::pidfd::open(*pid).ok()?))).collect();
        let members = list()?;
        for (_, fd) in pidfds.iter().filter(|(pid, _)| members.binary_search(pid).is_ok()) {
            // The only expected error is that it has ended.
            drop(crate::pidfd::send_signal(fd.as_fd(), libc::SIGKILL));
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

    /// As if its pid had belonged to a process of the cgroup, which has ended since.
    #[test]
    fn a_process_that_is_no_member_any_more_is_not_killed() {
        let mut other = Command::new("sleep").arg("1000").spawn().unwrap();
        let mut lists = [vec![other.id()], vec![]].into_iter();
        kill_members(&mut || Ok(lists.next().unwrap())).unwrap();
        assert_eq!((other.try_wait().unwrap(), lists.len()), (None, 0));
        kill_members(&mut || Ok(vec![other.id()])).unwrap();
        assert_eq!(other.wait().unwrap().signal(), Some(libc::SIGKILL));
    }

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
