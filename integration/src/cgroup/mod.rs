//! Lists, finds and destroys cgroups on hosts with v1, hybrid and v2. Tests read limits and usage by their meaning
//! ([`values`]), so that they need not know which it is.

mod values;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

pub(crate) use values::{
    Limit, Usage, cpus_and_nodes, has_pressure, inside, keyed, limit, limit_at, pressure, set, shares, usage,
    usage_at,
};

pub(crate) use crate::driver::{Driver, driver};
use crate::wait;

/// How long [`destroy`] waits in each hierarchy for killed processes to leave.
const RELEASE: Duration = Duration::from_secs(2);
/// The cgroup of the daemon's shims. It is never below kubepods, whose limits are for pods.
pub(crate) const SHIMS: &str = "/copepod";
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

/// The path of a container's cgroup in a pod whose `cgroup_parent` is `parent`: systemd has a scope for the pod between.
pub(crate) fn leaf(parent: &str, pod: &str, container: &str) -> String {
    match driver() {
        Driver::Cgroupfs => format!("{parent}/{container}"),
        Driver::Systemd => {
            format!("{parent}/copepod-{}.scope/{container}", pod.get(..16).unwrap_or(pod))
        }
    }
}

/// Whether v2 is all that the host has, and not one hierarchy beside those of v1.
pub(crate) fn is_v2() -> bool {
    Path::new(ROOT).join("cgroup.controllers").exists()
}

/// The root of the hierarchy that has a controller: v2 has one for all.
pub(crate) fn hierarchy(controller: &str) -> Option<PathBuf> {
    let all = hierarchies();
    if is_v2() {
        return all.into_iter().find(|root| root == Path::new(ROOT));
    }
    all.into_iter().find(|root| root.file_name().is_some_and(|name| name == controller))
}

/// Whether the host counts what a controller counts.
pub(crate) fn has_controller(controller: &str) -> bool {
    let of_v2 = fs::read_to_string(Path::new(ROOT).join("cgroup.controllers"));
    of_v2.map_or_else(
        |_| hierarchy(controller).is_some(),
        |names| names.split_whitespace().any(|name| name == controller),
    )
}

/// The folder of the cgroup at `path`, as in /proc/PID/cgroup, in the hierarchy of a controller.
pub(crate) fn folder(controller: &str, path: &str) -> Result<PathBuf> {
    let root = hierarchy(controller).with_context(|| format!("no hierarchy has {controller}"))?;
    Ok(root.join(path.trim_start_matches('/')))
}

/// A file of the cgroup whose last path element is `leaf`, in the hierarchy of a controller.
pub(crate) fn read(controller: &str, leaf: &str, file: &str) -> Result<String> {
    let dir = find(controller, leaf).with_context(|| format!("no {controller} cgroup called {leaf}"))?;
    Ok(fs::read_to_string(dir.join(file))
        .with_context(|| format!("{}/{file}", dir.display()))?
        .trim()
        .to_owned())
}

/// The path of the cgroup whose last path element is `leaf`, as in /proc/PID/cgroup.
pub(crate) fn place(leaf: &str) -> Option<String> {
    let (dir, root) = (find("memory", leaf)?, hierarchy("memory")?);
    Some(format!("/{}", dir.strip_prefix(root).ok()?.display()))
}

/// The folder of the cgroup whose last path element is `leaf`, in the hierarchy of a controller. Those of shims, which
/// are named like pods, are left out.
pub(crate) fn find(controller: &str, leaf: &str) -> Option<PathBuf> {
    let root = hierarchy(controller)?;
    let shims = root.join(SHIMS.trim_start_matches('/'));
    let mut todo = vec![root];
    while let Some(dir) = todo.pop() {
        // A cgroup that is removed meanwhile is not the one that is looked for.
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        for entry in entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())) {
            let path = entry.path();
            if path == shims {
                continue;
            }
            if entry.file_name().to_str() == Some(leaf) {
                return Some(path);
            }
            todo.push(path);
        }
    }
    None
}

/// The path of a process's cgroup in the hierarchy of a controller, from its /proc/PID/cgroup.
pub(crate) fn of_process(controller: &str, pid: u32) -> Result<String> {
    let text =
        fs::read_to_string(format!("/proc/{pid}/cgroup")).with_context(|| format!("cgroup of {pid}"))?;
    let path = path_in(&text, if is_v2() { "" } else { controller });
    path.map(str::to_owned).with_context(|| format!("no {controller} in {text}"))
}

/// The path in the line of a controller; the line of v2 names none.
fn path_in<'a>(text: &'a str, controller: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        controllers.split(',').any(|name| name == controller).then_some(path)
    })
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
        let end = Instant::now() + wait::longer(RELEASE);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_is_that_of_the_controllers_line() {
        let text = "7:cpu,cpuacct:/a/b\n3:name=systemd:/init.scope\n0::/c:d\n";
        let paths = ["cpu", "cpuacct", "", "acct"].map(|controller| path_in(text, controller));
        assert_eq!(paths, [Some("/a/b"), Some("/a/b"), Some("/c:d"), None]);
    }
}
