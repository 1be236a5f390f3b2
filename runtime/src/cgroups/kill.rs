//! The end of a cgroup: freeze, signal all, thaw until nobody is left; then its folders.

use super::{Error, Failures, Hierarchy, v1};
use rustix::process::{Pid, Signal, getpid, kill_process};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{fs, io, thread};

/// Longest that one round waits for a freeze: a process in D state freezes when it comes out of it.
const FREEZE_LIMIT: Duration = Duration::from_millis(100);
/// Longest pause between two rounds.
const LONGEST_PAUSE: Duration = Duration::from_millis(50);
/// Most folders of one cgroup in one hierarchy: a container with a writable cgroup makes what it likes.
const MOST_FOLDERS: usize = 10_000;
/// Pids named in an error.
const NAMED: usize = 16;

/// The cgroup's folder and those below it, parents first; none when it is absent.
fn tree(hierarchy: &Hierarchy, path: &str) -> Result<Vec<PathBuf>, Error> {
    let mut folders = vec![hierarchy.folder(path)];
    let mut at = 0;
    while let Some(folder) = folders.get(at) {
        let entries = match fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(source) if gone(&source) => {
                folders.remove(at);
                continue;
            }
            Err(source) => return Err(Error::io("list", folder, source)),
        };
        let below =
            entries.filter_map(Result::ok).filter(|entry| entry.file_type().is_ok_and(|t| t.is_dir()));
        let below: Vec<PathBuf> = below.map(|entry| entry.path()).collect();
        folders.extend(below);
        if folders.len() > MOST_FOLDERS {
            let source = io::Error::other("more than 10000 cgroups below it");
            return Err(Error::io("list", hierarchy.folder(path), source));
        }
        at += 1;
    }
    Ok(folders)
}

/// ENOENT; ENODEV for a file that was opened before its folder went; ENOTDIR for a path through a file, at
/// which no cgroup can be.
fn gone(error: &io::Error) -> bool {
    use io::ErrorKind;
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) || error.raw_os_error() == Some(19)
}

/// Who is at or below the cgroup, in any hierarchy: a process with rights may have left some of them.
pub(super) fn pids(hierarchies: &[Hierarchy], path: &str) -> Result<BTreeSet<i32>, Error> {
    let mut pids = BTreeSet::new();
    for hierarchy in hierarchies {
        for folder in tree(hierarchy, path)? {
            let file = folder.join("cgroup.procs");
            let text = match fs::read_to_string(&file) {
                Ok(text) => text,
                Err(source) if gone(&source) => continue,
                Err(source) => return Err(Error::io("read", file, source)),
            };
            // 0 is a process of another PID namespace, out of our reach.
            pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|pid| *pid > 0));
        }
    }
    Ok(pids)
}

pub(super) fn all(hierarchies: &[Hierarchy], path: &str, limit: Duration) -> Result<(), Error> {
    let freezer = hierarchies.iter().find(|hierarchy| hierarchy.has("freezer"));
    let start = Instant::now();
    let mut pause = Duration::from_millis(1);
    let mut left = pids(hierarchies, path)?;
    while !left.is_empty() {
        if start.elapsed() > limit {
            let pids = left.into_iter().take(NAMED).collect();
            return Err(Error::Busy { path: path.to_owned(), pids, waited: start.elapsed() });
        }
        // Frozen, nobody forks out from under the list and no pid is given to somebody else.
        if let Some(freezer) = freezer {
            freeze(&freezer.folder(path));
        }
        let round = pids(hierarchies, path).map(|frozen| frozen.into_iter().for_each(kill));
        if let Some(freezer) = freezer {
            thaw(freezer, path);
        }
        round?;
        thread::sleep(pause);
        pause = (pause * 2).min(LONGEST_PAUSE);
        left = pids(hierarchies, path)?;
    }
    Ok(())
}

fn kill(pid: i32) {
    // Init and ourselves are never members of a container; if a list says so, it is wrong.
    let Some(pid) = Pid::from_raw(pid).filter(|pid| !pid.is_init() && *pid != getpid()) else { return };
    // ESRCH: it has gone by itself. EPERM would show in the next round as still there.
    let _ = kill_process(pid, Signal::KILL);
}

/// Best effort: whom the freezer does not stop in time is killed all the same, only with more rounds.
fn freeze(folder: &Path) {
    let file = folder.join("freezer.state");
    let start = Instant::now();
    if v1::put(&file, "FROZEN").is_err() {
        return;
    }
    while start.elapsed() < FREEZE_LIMIT {
        match v1::read(&file) {
            Ok(state) if state != "FROZEN" => thread::sleep(Duration::from_millis(1)),
            _ => return,
        }
    }
}

/// Thaws every level: one that the container froze by itself would keep its processes from dying.
fn thaw(freezer: &Hierarchy, path: &str) {
    for folder in tree(freezer, path).unwrap_or_else(|_| vec![freezer.folder(path)]) {
        drop(v1::put(&folder.join("freezer.state"), "THAWED"));
    }
}

pub(super) fn remove(hierarchies: &[Hierarchy], path: &str, limit: Duration) -> Result<(), Error> {
    let start = Instant::now();
    let mut failures = Failures::default();
    for hierarchy in hierarchies {
        let folders = match tree(hierarchy, path) {
            Ok(folders) => folders,
            Err(error) => {
                failures.note::<()>(Err(error));
                continue;
            }
        };
        for folder in folders.iter().rev() {
            failures.note(rmdir(folder, start + limit));
        }
    }
    failures.into_result()
}

/// Removes a root of ours where it is empty; another pod may be using it, or making itself at home.
pub(super) fn remove_root(hierarchies: &[Hierarchy], root: &str) {
    for hierarchy in hierarchies {
        drop(fs::remove_dir(hierarchy.folder(root)));
    }
}

/// A dying process leaves its cgroups a moment after it is waited for: EBUSY is tried again until then.
fn rmdir(folder: &Path, until: Instant) -> Result<(), Error> {
    loop {
        match fs::remove_dir(folder) {
            Ok(()) => return Ok(()),
            Err(source) if gone(&source) => return Ok(()),
            Err(source) if source.kind() == io::ErrorKind::ResourceBusy && Instant::now() < until => {
                thread::sleep(Duration::from_millis(5));
            }
            Err(source) => return Err(Error::io("remove cgroup", folder, source)),
        }
    }
}
