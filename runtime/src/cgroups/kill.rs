//! Kills and removes cgroups: rounds of [`sys::cgroup::kill_all`] until no process is left, then the folders.

use super::{Error, Failures, Hierarchy};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use spec::resources::Version;
use std::collections::BTreeSet;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use std::{fs, io, thread};

/// How long one round waits for the freezer: a process in D state freezes only when it leaves that state.
const FREEZE_LIMIT: Duration = Duration::from_millis(100);
/// Longest pause between two rounds.
const MAX_PAUSE: Duration = Duration::from_millis(50);
/// Maximum number of cgroups of one container in which processes are counted: a few milliseconds. A privileged container
/// decides how many there are.
const MAX_COUNTED: usize = 256;
/// Maximum number of pids in an error message.
const MAX_PIDS: usize = 16;

/// The cgroup's folder in a hierarchy; `None` if it does not exist.
fn open(hierarchy: &Hierarchy, path: &str) -> Result<Option<OwnedFd>, Error> {
    let folder = hierarchy.folder(path);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match rustix::fs::open(&folder, flags, Mode::empty()) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(source) => Err(Error::io("open", folder, source.into())),
    }
}

/// The processes at or below the cgroup in any hierarchy: a privileged process may have left it in some of them.
pub(super) fn pids(hierarchies: &[Hierarchy], path: &str) -> Result<BTreeSet<i32>, Error> {
    let mut pids = BTreeSet::new();
    for hierarchy in hierarchies {
        let Some(folder) = open(hierarchy, path)? else { continue };
        let listed = sys::cgroup::processes_below(folder.as_fd(), |pid| {
            // 0 stands for a process of another PID namespace, which cannot be signalled.
            pids.extend(i32::try_from(pid).ok().filter(|pid| *pid > 0));
        });
        match listed {
            Err(source) if !is_absent(&source) => {
                return Err(Error::io("list the processes of", hierarchy.folder(path), source));
            }
            _ => {}
        }
    }
    Ok(pids)
}

/// Number of processes at or below the cgroup; 0 if it does not exist.
pub(super) fn count(hierarchy: &Hierarchy, path: &str) -> Result<u64, Error> {
    let Some(folder) = open(hierarchy, path)? else { return Ok(0) };
    sys::cgroup::count_below(folder.as_fd(), MAX_COUNTED)
        .map_err(|source| Error::io("count the processes of", hierarchy.folder(path), source))
}

/// ENOENT or ENODEV, or ENOTDIR for a path through a file, where no cgroup can exist.
fn is_absent(error: &io::Error) -> bool {
    sys::cgroup::is_gone(error) || error.kind() == io::ErrorKind::NotADirectory
}

/// Kills until no process is left, for at most `limit`.
pub(super) fn all(
    version: Version,
    hierarchies: &[Hierarchy],
    path: &str,
    limit: Duration,
) -> Result<(), Error> {
    let start = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        let left = match pids(hierarchies, path) {
            // Too many cgroups to list: the round below kills and removes as many as it can. 0 stands for any process.
            Err(Error::Io { source, .. }) if sys::cgroup::is_too_many(&source) && start.elapsed() < limit => {
                BTreeSet::from([0])
            }
            left => left?,
        };
        if left.is_empty() {
            return Ok(());
        }
        if start.elapsed() > limit {
            let pids = left.into_iter().take(MAX_PIDS).collect();
            return Err(Error::Busy { path: path.to_owned(), pids, waited: start.elapsed() });
        }
        let (mut folders, mut freezer) = (Vec::new(), None);
        for hierarchy in hierarchies {
            let Some(folder) = open(hierarchy, path)? else { continue };
            if hierarchy.has("freezer") {
                freezer = Some(folders.len());
            }
            folders.push(folder);
        }
        let borrowed: Vec<_> = folders.iter().map(OwnedFd::as_fd).collect();
        let freezer = freezer.and_then(|place| borrowed.get(place).copied());
        let unified = version == Version::V2;
        match sys::cgroup::kill_all(&borrowed, freezer, unified, FREEZE_LIMIT) {
            Err(source) if !sys::cgroup::is_too_many(&source) => {
                return Err(Error::io("kill", PathBuf::from(path), source));
            }
            _ => {}
        }
        thread::sleep(pause);
        pause = (pause * 2).min(MAX_PAUSE);
    }
}

/// Removes the cgroup from every hierarchy; waits until `until` for its last processes to leave.
pub(super) fn remove(hierarchies: &[Hierarchy], path: &str, until: Instant) -> Result<(), Error> {
    let mut failures = Failures::default();
    for hierarchy in hierarchies {
        failures.note(remove_one(hierarchy, path, until));
    }
    failures.into_result()
}

/// Removes everything below the cgroup in every hierarchy, but not the cgroup.
pub(super) fn remove_below(hierarchies: &[Hierarchy], path: &str, until: Instant) -> Result<(), Error> {
    let mut failures = Failures::default();
    for hierarchy in hierarchies {
        failures.note(prune(hierarchy, path, &mut retry_until(until)));
    }
    failures.into_result()
}

/// A dying process leaves its cgroups only near the end of its exit: EBUSY is retried until then.
fn retry_until(until: Instant) -> impl FnMut() -> bool {
    move || {
        let again = Instant::now() < until;
        if again {
            thread::sleep(Duration::from_millis(5));
        }
        again
    }
}

fn prune(hierarchy: &Hierarchy, path: &str, retry: &mut impl FnMut() -> bool) -> Result<(), Error> {
    let Some(fd) = open(hierarchy, path)? else { return Ok(()) };
    match sys::cgroup::prune(fd.as_fd(), retry) {
        Err(source) if !is_absent(&source) => {
            Err(Error::io("remove cgroups below", hierarchy.folder(path), source))
        }
        _ => Ok(()),
    }
}

fn remove_one(hierarchy: &Hierarchy, path: &str, until: Instant) -> Result<(), Error> {
    let folder = hierarchy.folder(path);
    let mut retry = retry_until(until);
    let mut pruned = false;
    loop {
        // Most cgroups have none below them, and to look for some takes longer than to remove it. So it is removed
        // first, and searched if that fails.
        match fs::remove_dir(&folder) {
            Ok(()) => return Ok(()),
            Err(source) if is_absent(&source) => return Ok(()),
            // For cgroups below it the kernel returns EBUSY as well; emulated cgroup file systems return ENOTEMPTY.
            Err(source) if is_busy(&source) && !pruned => {
                prune(hierarchy, path, &mut retry)?;
                pruned = true;
            }
            Err(source) if is_busy(&source) && retry() => {}
            Err(source) => return Err(Error::io("remove cgroup", folder, source)),
        }
    }
}

/// Whether a cgroup has processes, or cgroups below it.
fn is_busy(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ResourceBusy | io::ErrorKind::DirectoryNotEmpty)
}

/// Removes an empty root cgroup of ours. A failure is ignored: another pod may be using or creating it.
pub(super) fn remove_root(hierarchies: &[Hierarchy], root: &str) {
    for hierarchy in hierarchies {
        drop(fs::remove_dir(hierarchy.folder(root)));
    }
}
