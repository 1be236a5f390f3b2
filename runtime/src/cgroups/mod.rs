//! Cgroups: leaves of containers and shims, limits, killing, removal. Blocking; callers use `spawn_blocking`.
//!
//! Version 1, alone or hybrid (a cgroup2 mount beside it, which nothing of ours joins: it has no `tasks`,
//! and joining by `cgroup.procs` waits for an RCU grace period). A v2-only host is refused by [`Cgroups::detect`].
//! Everything here is plain files; no D-Bus, no crate: libcontainer's own handling costs 15 ms a cold
//! create, and cgroups-rs brings a D-Bus client and a second nix.

mod detect;
mod error;
pub mod host_devices;
mod kill;
mod names;
mod v1;

pub use detect::Hierarchy;
pub use error::{Error, Failures};
pub use names::{DEFAULT_PARENT, SHIM_ROOT, leaf_path, pod_parent, shim_path};
pub use v1::{Leaf, Limits};

use model::PodId;
use std::path::PathBuf;
use std::time::Duration;
use wire::CgroupPlan;

/// Longest that [`Cgroups::kill_all`] tries before it reports who is left (D state, mostly).
const KILL_LIMIT: Duration = Duration::from_secs(10);
/// Longest that [`Cgroups::remove`] waits for a folder whose last process is still on its way out.
const REMOVE_LIMIT: Duration = Duration::from_secs(2);

/// The host's cgroup hierarchies.
#[derive(Debug, Clone)]
pub struct Cgroups {
    hierarchies: Vec<Hierarchy>,
}

impl Cgroups {
    /// Reads /proc/self/mountinfo. An error says what is missing for containers to be confined.
    pub fn detect() -> Result<Self, Error> {
        let path = "/proc/self/mountinfo";
        let text = std::fs::read_to_string(path).map_err(|source| Error::io("read", path, source))?;
        Ok(Self { hierarchies: detect::hierarchies(&text)? })
    }

    /// The v1 hierarchies, each a member of every leaf.
    pub fn hierarchies(&self) -> &[Hierarchy] {
        &self.hierarchies
    }

    /// Folder of a cgroup in the hierarchy of a controller, where there is one.
    pub fn folder(&self, controller: &str, path: &str) -> Option<PathBuf> {
        let hierarchy = self.hierarchies.iter().find(|hierarchy| hierarchy.has(controller))?;
        Some(hierarchy.folder(path))
    }

    /// Makes a leaf in every hierarchy, with parents where they are absent, and writes its limits and
    /// device rules. On an error nothing of the leaf is left. An existing leaf is an error: ids are ours
    /// alone.
    pub fn create_leaf(&self, path: &str, limits: &Limits) -> Result<Leaf, Error> {
        names::check(path)?;
        v1::create(&self.hierarchies, path, limits)
    }

    /// Opens an existing leaf, after a restart.
    pub fn open_leaf(&self, path: &str) -> Result<Leaf, Error> {
        names::check(path)?;
        v1::open(&self.hierarchies, path)
    }

    /// The plan that names a leaf's folders, without touching them.
    pub fn plan(&self, path: &str) -> CgroupPlan {
        v1::plan(&self.hierarchies, path)
    }

    /// Makes `/copepod/<pod>` for a shim, away from kubelet's tree, and gives the folders to join: the
    /// named hierarchies (so that the service manager leaves it alone), memory and pids. Existing ones
    /// are kept.
    pub fn create_shim(&self, pod: &PodId) -> Result<Vec<PathBuf>, Error> {
        let wanted =
            |hierarchy: &&Hierarchy| hierarchy.is_named() || hierarchy.has("memory") || hierarchy.has("pids");
        let path = shim_path(pod);
        let chosen: Vec<&Hierarchy> = self.hierarchies.iter().filter(wanted).collect();
        chosen.into_iter().map(|hierarchy| v1::ensure(hierarchy, &path)).collect()
    }

    /// Changes limits of a living leaf, in the order that the kernel accepts. All or nothing: on an error
    /// what was written before is put back.
    pub fn update(&self, path: &str, writes: &[spec::resources::Write]) -> Result<(), Error> {
        names::check(path)?;
        v1::update(&self.hierarchies, path, writes)
    }

    /// Kills all processes at and below a cgroup, and comes back when none is left; an absent cgroup has
    /// none. After ten seconds it gives up with the pids that stayed.
    pub fn kill_all(&self, path: &str) -> Result<(), Error> {
        names::check(path)?;
        kill::all(&self.hierarchies, path, KILL_LIMIT)
    }

    /// Whether a process is at or below a cgroup, in any hierarchy.
    pub fn populated(&self, path: &str) -> Result<bool, Error> {
        names::check(path)?;
        Ok(!kill::pids(&self.hierarchies, path)?.is_empty())
    }

    /// Processes at and below a cgroup, in any hierarchy, ascending.
    pub fn pids(&self, path: &str) -> Result<Vec<i32>, Error> {
        names::check(path)?;
        Ok(kill::pids(&self.hierarchies, path)?.into_iter().collect())
    }

    /// Removes a cgroup and what a container made below it, in every hierarchy; absent ones are fine.
    /// Processes in it are an error: [`Cgroups::kill_all`] comes first.
    pub fn remove(&self, path: &str) -> Result<(), Error> {
        names::check(path)?;
        kill::remove(&self.hierarchies, path, REMOVE_LIMIT)
    }

    /// Removes what a pod has beyond its leaves: its shim's cgroup and, where kubelet gave no parent, the
    /// one that was made in its place.
    pub fn remove_pod(&self, config: &model::PodConfig, pod: &PodId) -> Result<(), Error> {
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

    /// How often the kernel killed a process of this cgroup for lack of memory.
    pub fn oom_kills(&self, path: &str) -> Result<u64, Error> {
        names::check(path)?;
        v1::oom_kills(&self.hierarchies, path)
    }
}

#[cfg(test)]
mod tests;
