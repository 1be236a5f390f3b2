//! The end of a cgroup: rounds of [`sys::cgroup::kill_all`] until nobody is left; then its folders.

use super::{Error, Failures, Hierarchy};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use std::{fs, io, thread};

/// Longest that one round waits for a freeze: a process in D state freezes when it comes out of it.
const FREEZE_LIMIT: Duration = Duration::from_millis(100);
/// Longest pause between two rounds.
const LONGEST_PAUSE: Duration = Duration::from_millis(50);
/// Pids named in an error.
const NAMED: usize = 16;

/// Its folder in a hierarchy; none when it is absent.
fn open(hierarchy: &Hierarchy, path: &str) -> Result<Option<OwnedFd>, Error> {
    let folder = hierarchy.folder(path);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match rustix::fs::open(&folder, flags, Mode::empty()) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(source) => Err(Error::io("open", folder, source.into())),
    }
}

/// Who is at or below the cgroup, in any hierarchy: a process with rights may have left some of them.
pub(super) fn pids(hierarchies: &[Hierarchy], path: &str) -> Result<BTreeSet<i32>, Error> {
    let mut pids = BTreeSet::new();
    for hierarchy in hierarchies {
        let Some(folder) = open(hierarchy, path)? else { continue };
        let mut note = |pid: u32| {
            // 0 is a process of another PID namespace, out of our reach.
            pids.extend(i32::try_from(pid).ok().filter(|pid| *pid > 0));
        };
        let listed =
            sys::cgroup::each_folder(folder.as_fd(), &mut |below| sys::cgroup::processes(below, &mut note));
        match listed {
            Err(source) if !gone(&source) => {
                return Err(Error::io("list the processes of", hierarchy.folder(path), source));
            }
            _ => {}
        }
    }
    Ok(pids)
}

/// Also ENOTDIR for a path through a file, at which no cgroup can be.
fn gone(error: &io::Error) -> bool {
    sys::cgroup::is_gone(error) || error.kind() == io::ErrorKind::NotADirectory
}

pub(super) fn all(hierarchies: &[Hierarchy], path: &str, limit: Duration) -> Result<(), Error> {
    let start = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        let left = match pids(hierarchies, path) {
            // Too many folders: the round below makes them fewer.
            Err(Error::Io { source, .. }) if sys::cgroup::is_too_many(&source) && start.elapsed() < limit => {
                BTreeSet::from([0])
            }
            left => left?,
        };
        if left.is_empty() {
            return Ok(());
        }
        if start.elapsed() > limit {
            let pids = left.into_iter().take(NAMED).collect();
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
        match sys::cgroup::kill_all(&borrowed, freezer, false, FREEZE_LIMIT) {
            Err(source) if !sys::cgroup::is_too_many(&source) => {
                return Err(Error::io("kill", PathBuf::from(path), source));
            }
            _ => {}
        }
        thread::sleep(pause);
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

pub(super) fn remove(hierarchies: &[Hierarchy], path: &str, limit: Duration) -> Result<(), Error> {
    let until = Instant::now() + limit;
    let mut failures = Failures::default();
    for hierarchy in hierarchies {
        failures.note(remove_one(hierarchy, path, until));
    }
    failures.into_result()
}

fn remove_one(hierarchy: &Hierarchy, path: &str, until: Instant) -> Result<(), Error> {
    let folder = hierarchy.folder(path);
    // A dying process leaves its cgroups a moment after it is waited for: EBUSY is tried again until then.
    let mut retry = || {
        let again = Instant::now() < until;
        if again {
            thread::sleep(Duration::from_millis(5));
        }
        again
    };
    if let Some(fd) = open(hierarchy, path)? {
        sys::cgroup::prune(fd.as_fd(), &mut retry)
            .map_err(|source| Error::io("remove cgroups below", &folder, source))?;
    }
    loop {
        match fs::remove_dir(&folder) {
            Ok(()) => return Ok(()),
            Err(source) if gone(&source) => return Ok(()),
            Err(source) if source.kind() == io::ErrorKind::ResourceBusy && retry() => {}
            Err(source) => return Err(Error::io("remove cgroup", folder, source)),
        }
    }
}

/// Removes a root of ours where it is empty; another pod may be using it, or making itself at home.
pub(super) fn remove_root(hierarchies: &[Hierarchy], root: &str) {
    for hierarchy in hierarchies {
        drop(fs::remove_dir(hierarchy.folder(root)));
    }
}
