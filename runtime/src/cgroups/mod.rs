//! Cgroups of containers and shims: creating, limiting, killing, removing. Blocking; callers use a lane.
//!
//! Version 1, alone or hybrid. (Hybrid means that cgroup2 is mounted too. Nothing of ours joins it: it has no
//! `tasks` file, and joining by `cgroup.procs` waits for an RCU grace period.) A host with cgroup v2 only is
//! refused by [`Cgroups::detect`]. Everything here uses plain files, no D-Bus and no crate: libcontainer's
//! own handling adds 15 ms to a cold create, and cgroups-rs brings a D-Bus client and a second nix.

mod detect;
mod error;
pub(crate) mod host_devices;
mod kill;
mod names;
mod update;
mod v1;

pub(crate) use detect::Hierarchy;
pub(crate) use error::{Error, Failures};
pub(crate) use names::{DEFAULT_PARENT, SHIM_ROOT, leaf_path, pod_parent, shim_path};
pub(crate) use v1::{Leaf, Limits};

use model::PodId;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How long [`Cgroups::kill_all`] tries before it reports the remaining processes (usually in D state).
const KILL_LIMIT: Duration = Duration::from_secs(10);
/// How long [`Cgroups::remove`] waits for the last process of a cgroup to leave it.
const REMOVE_LIMIT: Duration = Duration::from_secs(2);

/// The controllers in whose hierarchies pause has a cgroup.
const PAUSE_CONTROLLERS: [&str; 5] = ["cpu", "cpuacct", "freezer", "memory", "pids"];

/// The host's cgroup hierarchies.
#[derive(Debug, Clone)]
pub(crate) struct Cgroups {
    hierarchies: Vec<Hierarchy>,
}

impl Cgroups {
    /// Reads /proc/self/mountinfo. The error names what is missing to confine containers.
    pub(crate) fn detect() -> Result<Self, Error> {
        let path = "/proc/self/mountinfo";
        let text = std::fs::read_to_string(path).map_err(|source| Error::io("read", path, source))?;
        Ok(Self { hierarchies: detect::hierarchies(&text)? })
    }

    /// Folder of a cgroup in the hierarchy of a controller, if that is mounted.
    pub(crate) fn folder(&self, controller: &str, path: &str) -> Option<PathBuf> {
        let hierarchy = self.hierarchies.iter().find(|hierarchy| hierarchy.has(controller))?;
        Some(hierarchy.folder(path))
    }

    /// Creates a leaf cgroup in every hierarchy, with missing parents, and writes its limits and device
    /// rules. On an error nothing of the leaf is left. An existing leaf is an error, because ids are unique.
    pub(crate) fn create_leaf(&self, path: &str, limits: &Limits) -> Result<Leaf, Error> {
        names::check(path)?;
        v1::create(&self.hierarchies, path, limits)
    }

    /// Like [`Cgroups::create_leaf`] for a pod's pause process, but only in the named hierarchies and in those that
    /// limit, kill or account for it. In the others it stays where its shim is: they have nothing to limit in a
    /// process that sleeps, and each folder takes time and several KiB of the kernel's memory.
    pub(crate) fn create_pause_leaf(&self, path: &str, limits: &Limits) -> Result<Leaf, Error> {
        names::check(path)?;
        let wanted = |hierarchy: &&Hierarchy| {
            hierarchy.is_named() || PAUSE_CONTROLLERS.iter().any(|controller| hierarchy.has(controller))
        };
        let chosen: Vec<Hierarchy> = self.hierarchies.iter().filter(wanted).cloned().collect();
        v1::create(&chosen, path, limits)
    }

    /// Creates `/copepod/<pod>` for a shim, outside kubelet's tree, and returns the folders to join: the
    /// named hierarchies (so that the service manager does not touch it), memory and pids. Existing ones are
    /// kept.
    pub(crate) fn create_shim(&self, pod: &PodId) -> Result<Vec<PathBuf>, Error> {
        let wanted =
            |hierarchy: &&Hierarchy| hierarchy.is_named() || hierarchy.has("memory") || hierarchy.has("pids");
        let path = shim_path(pod);
        let chosen: Vec<&Hierarchy> = self.hierarchies.iter().filter(wanted).collect();
        chosen.into_iter().map(|hierarchy| v1::ensure(hierarchy, &path)).collect()
    }

    /// Kills all processes at and below a cgroup and returns when none is left; a missing cgroup has none.
    /// After ten seconds it fails with the remaining pids.
    pub(crate) fn kill_all(&self, path: &str) -> Result<(), Error> {
        names::check(path)?;
        kill::all(&self.hierarchies, path, KILL_LIMIT)
    }

    /// Removes a cgroup and everything below it in every hierarchy; a missing one is not an error. Processes
    /// in it are an error: call [`Cgroups::kill_all`] first.
    pub(crate) fn remove(&self, path: &str) -> Result<(), Error> {
        self.remove_until(path, Instant::now() + REMOVE_LIMIT)
    }

    /// Like [`Cgroups::remove`] for several cgroups. All are tried, and they share one time limit: after two
    /// seconds every process that was killed has left its cgroup, or hangs in the kernel.
    pub(crate) fn remove_all(&self, paths: impl IntoIterator<Item = String>) -> Vec<Error> {
        let until = Instant::now() + REMOVE_LIMIT;
        paths.into_iter().filter_map(|path| self.remove_until(&path, until).err()).collect()
    }

    fn remove_until(&self, path: &str, until: Instant) -> Result<(), Error> {
        names::check(path)?;
        kill::remove(&self.hierarchies, path, until)
    }

    /// Removes a pod's cgroups other than leaves: its shim's, and the default parent if kubelet named none.
    pub(crate) fn remove_pod(&self, config: &model::PodConfig, pod: &PodId) -> Result<(), Error> {
        let mut failures = Failures::default();
        failures.note(self.remove(&shim_path(pod)));
        if config.cgroup_parent.is_empty() {
            failures.note(self.remove(&names::default_parent(pod)));
        }
        for root in [SHIM_ROOT, DEFAULT_PARENT] {
            kill::remove_root(&self.hierarchies, root);
        }
        failures.into_result()
    }

    /// Number of processes (not threads) in this cgroup and below it; 0 if it is gone. Counted in the hierarchy of the
    /// freezer, in which neither systemd nor container engines inside a container create cgroups for their own use.
    pub(crate) fn processes(&self, path: &str) -> Result<u64, Error> {
        names::check(path)?;
        match self.hierarchies.iter().find(|hierarchy| hierarchy.has("freezer")) {
            Some(hierarchy) => kill::count(hierarchy, path),
            None => Ok(0),
        }
    }

    /// Number of processes of this cgroup that the kernel killed because of the memory limit.
    pub(crate) fn oom_kills(&self, path: &str) -> Result<u64, Error> {
        names::check(path)?;
        v1::oom_kills(&self.hierarchies, path)
    }
}

#[cfg(test)]
mod tests;
