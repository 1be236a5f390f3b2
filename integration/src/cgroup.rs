//! Lists and destroys cgroups of all hierarchies. Finds one, and reads its files, by a controller that is mounted below
//! its own name, as on v1 and hybrid hosts.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

/// How long [`destroy`] waits in each hierarchy for killed processes to leave.
const RELEASE: Duration = Duration::from_secs(2);
/// The mount point of the hierarchies.
const ROOT: &str = "/sys/fs/cgroup";

/// The roots of all hierarchies: one per controller on v1 and hybrid hosts, the only one on v2.
pub(crate) fn hierarchies() -> Vec<PathBuf> {
    let Ok(mounts) = fs::read_to_string("/proc/self/mounts") else { return Vec::new() };
    let found: BTreeSet<PathBuf> = mounts
        .lines()
        .filter_map(|l| {
            let mut words = l.split(' ');
            let (_, place, kind) = (words.next()?, words.next()?, words.next()?);
            (kind.starts_with("cgroup") && place.starts_with(ROOT)).then(|| PathBuf::from(place))
        })
        .collect();
    found.into_iter().collect()
}

/// The paths of all cgroups that pass `keep`, as `controller:/path`.
pub(crate) fn all(keep: impl Fn(&str) -> bool) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for root in hierarchies() {
        let name = root.file_name().and_then(|n| n.to_str()).unwrap_or("cgroup").to_owned();
        let mut todo = vec![root.clone()];
        while let Some(dir) = todo.pop() {
            let Ok(entries) = fs::read_dir(&dir) else { continue };
            for entry in entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())) {
                let path = entry.path();
                let below = format!("/{}", path.strip_prefix(&root).unwrap_or(&path).display());
                if keep(&below) {
                    found.insert(format!("{name}:{below}"));
                }
                todo.push(path);
            }
        }
    }
    found
}

/// A controller's file in the cgroup whose last path element is `leaf`.
pub(crate) fn read(controller: &str, leaf: &str, file: &str) -> Result<String> {
    let dir = find(controller, leaf).with_context(|| format!("no {controller} cgroup called {leaf}"))?;
    Ok(fs::read_to_string(dir.join(file))
        .with_context(|| format!("{}/{file}", dir.display()))?
        .trim()
        .to_owned())
}

/// The folder of the cgroup whose last path element is `leaf`.
pub(crate) fn find(controller: &str, leaf: &str) -> Option<PathBuf> {
    let root = hierarchies().into_iter().find(|h| h.file_name().is_some_and(|n| n == controller))?;
    let mut todo = vec![root];
    while let Some(dir) = todo.pop() {
        // A cgroup that is removed meanwhile is not the one that is looked for.
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        for entry in entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())) {
            if entry.file_name().to_str() == Some(leaf) {
                return Some(entry.path());
            }
            todo.push(entry.path());
        }
    }
    None
}

/// Processes of a cgroup and all below it, as pids in the tests' PID namespace.
pub(crate) fn members(dir: &Path) -> BTreeSet<u32> {
    let mut found = BTreeSet::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(dir) = todo.pop() {
        let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
        found.extend(text.lines().filter_map(|l| l.parse::<u32>().ok()).filter(|p| *p != 0));
        if let Ok(entries) = fs::read_dir(&dir) {
            todo.extend(
                entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()),
            );
        }
    }
    found
}

/// Kills the processes in `/path` of every hierarchy and removes it; cleans up after a failed test.
pub(crate) fn destroy(path: &str) {
    for root in hierarchies() {
        let top = root.join(path.trim_start_matches('/'));
        if top == root || !top.is_dir() {
            continue;
        }
        for pid in members(&top) {
            drop(crate::proc::signal(pid, nix::sys::signal::Signal::SIGKILL));
        }
        // A cgroup can be removed once the kernel has released its last process.
        let end = Instant::now() + RELEASE;
        loop {
            remove_tree(&top);
            if !top.exists() || Instant::now() > end {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn remove_tree(dir: &Path) {
    if let Ok(entries) = fs::read_dir(dir) {
        for entry in entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())) {
            remove_tree(&entry.path());
        }
    }
    drop(fs::remove_dir(dir));
}
