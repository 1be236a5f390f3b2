//! Cgroups of containers and shims: creating, limiting, killing, removing. Blocking; callers use a lane.
//!
//! The host has version 1, alone or hybrid, or version 2 ([`Cgroups::detect`]). Hybrid means that cgroup2 is mounted too;
//! nothing of ours joins it, because it has no `tasks` file, and joining by `cgroup.procs` waits for an RCU grace period. A
//! host with version 2 has a single hierarchy. `spec` computes what is written, `v1` and `v2` make the folders. Outside
//! of this module the statistics depend on the version, and `spec::container` and the shim by `CgroupPlan::unified`.
//!
//! Everything here uses plain files and no crate: libcontainer's own handling adds 15 ms to a cold create, and cgroups-rs
//! brings a D-Bus client and a second nix. Only the driver systemd needs D-Bus: one call for the scope of each pod.

mod detect;
mod error;
mod files;
pub(crate) mod host_devices;
mod kill;
mod leaf;
mod levels;
mod names;
mod systemd;
mod update;
mod v1;
mod v2;

pub(crate) use detect::Hierarchy;
pub(crate) use error::{Error, Failures};
pub(crate) use leaf::{Leaf, Limits};
pub(crate) use names::{DEFAULT_PARENT, SHIM_ROOT, leaf_path, pod_cgroup, pod_parent, shim_path};

use crate::config::CgroupDriver;
use model::{PodConfig, PodId, PodRecord, Resources};
use spec::devices::DeviceRule;
use spec::resources::{Mode, Version};
use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use systemd::Unusable;

/// How long [`Cgroups::kill_all`] tries before it reports the remaining processes (usually in D state).
const KILL_LIMIT: Duration = Duration::from_secs(10);
/// How long [`Cgroups::remove`] waits for the last process of a cgroup to leave it.
const REMOVE_LIMIT: Duration = Duration::from_secs(2);

/// The controllers in whose hierarchies pause has a cgroup.
const PAUSE_CONTROLLERS: [&str; 5] = ["cpu", "cpuacct", "freezer", "memory", "pids"];

/// How a shim gets into its cgroup.
#[derive(Debug)]
pub(crate) struct ShimCgroup {
    /// The folder in which it is created.
    pub(crate) start_in: Option<OwnedFd>,
    /// Folders that it joins after its start.
    pub(crate) join: Vec<PathBuf>,
}

/// Who makes the parents of leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Driver {
    /// We do, as folders.
    Cgroupfs,
    /// systemd does: a scope for each pod.
    Systemd,
}

/// The host's cgroup hierarchies, and the driver of new pods.
#[derive(Debug, Clone)]
pub(crate) struct Cgroups {
    version: Version,
    hierarchies: Vec<Hierarchy>,
    driver: Driver,
}

impl Cgroups {
    /// Reads /proc/self/mountinfo. The error names what is missing to confine containers. The driver is cgroupfs.
    pub(crate) fn detect() -> Result<Self, Error> {
        let path = "/proc/self/mountinfo";
        let text = std::fs::read_to_string(path).map_err(|source| Error::io("read", path, source))?;
        let controllers = |folder: &Path| files::read(&folder.join("cgroup.controllers"));
        let (version, hierarchies) = detect::hierarchies(&text, controllers)?;
        Ok(Self { version, hierarchies, driver: Driver::Cgroupfs })
    }

    /// The same with the configured driver. Blocking, for a bounded time.
    ///
    /// # Errors
    /// [`Error::Driver`] if systemd is wanted and cannot be used, or is this host's and cannot be reached.
    pub(crate) fn driven_by(self, wanted: CgroupDriver) -> Result<Self, Error> {
        let usable = || match self.version {
            // No current system needs it: kubelet starts on v1 only if it is told to, and systemd 256 and later do not boot
            // there. The controllers that systemd does not know on v1 (cpuset, freezer, hugetlb) would have to be folders
            // of ours beside its scopes.
            Version::V1 => {
                let reason = "this host has cgroup v1, which copepod uses with the driver cgroupfs only";
                Err(Unusable::Absent(reason.to_owned()))
            }
            Version::V2 => systemd::find(),
        };
        let driver = match wanted {
            CgroupDriver::Cgroupfs => Driver::Cgroupfs,
            CgroupDriver::Systemd => match usable() {
                Ok(()) => Driver::Systemd,
                Err(Unusable::Absent(reason) | Unusable::Unreachable(reason)) => {
                    return Err(Error::Driver { reason });
                }
            },
            CgroupDriver::Auto => match usable() {
                Ok(()) => Driver::Systemd,
                // With the other driver, each pod of a kubelet that has asked before would be refused.
                Err(Unusable::Unreachable(reason)) => return Err(Error::Driver { reason }),
                Err(Unusable::Absent(reason)) => {
                    tracing::info!(reason, "the cgroup driver is cgroupfs");
                    Driver::Cgroupfs
                }
            },
        };
        Ok(Self { driver, ..self })
    }

    /// The driver of new pods.
    pub(crate) fn driver(&self) -> Driver {
        self.driver
    }

    /// The scope of a new pod, for its record; empty with the driver cgroupfs.
    ///
    /// # Errors
    /// InvalidArgument for a `cgroup_parent` that is not for this driver.
    pub(crate) fn scope(&self, config: &PodConfig, pod: &PodId) -> Result<String, Error> {
        names::scope(self.driver, config, pod)
    }

    /// Makes the scope of a pod, with a child of this process in it, which must stay until another process is in a leaf.
    /// Waits for systemd, 30 s at most. After an error the scope ends with the process.
    ///
    /// # Errors
    /// [`Error::Systemd`] if it does not answer, [`Error::Unit`] if it refuses.
    pub(crate) fn create_scope(&self, pod: &PodRecord, pid: u32) -> Result<(), Error> {
        names::check(&pod.scope)?;
        let Some(hierarchy) = self.hierarchies.first().filter(|_| self.version == Version::V2) else {
            return Err(Error::Driver { reason: "this host has cgroup v1".to_owned() });
        };
        let meta = &pod.config.meta;
        systemd::create(hierarchy, &pod.scope, &format!("{}/{}", meta.namespace, meta.name), pid)
    }

    /// Removes the cgroup of the process that a scope began with, which has ended.
    pub(crate) fn remove_starting(&self, pod: &PodRecord) -> Result<(), Error> {
        self.remove(&format!("{}/{}", pod.scope, names::STARTING))
    }

    /// The version, which decides which files the statistics read.
    pub(crate) fn version(&self) -> Version {
        self.version
    }

    /// Folder of a cgroup in the hierarchy of a controller, if that is mounted.
    pub(crate) fn folder(&self, controller: &str, path: &str) -> Option<PathBuf> {
        let hierarchy = self.hierarchies.iter().find(|hierarchy| hierarchy.has(controller))?;
        Some(hierarchy.folder(path))
    }

    /// The limits of a new container's leaf at `path`.
    ///
    /// # Errors
    /// [`Error::Limit`] for `unified` on v1: it names files of v2.
    pub(crate) fn limits(
        &self,
        path: &str,
        resources: &Resources,
        devices: Vec<DeviceRule>,
    ) -> Result<Limits, Error> {
        update::check_unified(self.version, path, "config.linux.resources", resources)?;
        let none = Resources::default();
        Ok(Limits { writes: spec::resources::writes(self.version, &none, resources, Mode::Create), devices })
    }

    /// Creates a leaf cgroup in every hierarchy, with missing parents, and writes its limits and device
    /// rules. On an error nothing of the leaf is left. An existing leaf is an error, because ids are unique.
    pub(crate) fn create_leaf(&self, path: &str, limits: &Limits) -> Result<Leaf, Error> {
        names::check(path)?;
        leaf::create(self.version, &self.hierarchies, path, limits)
    }

    /// Like [`Cgroups::create_leaf`] for a pod's pause process, but only in the named hierarchies and in those that
    /// limit, kill or account for it. In the others it stays where its shim is: they have nothing to limit in a
    /// process that sleeps, and each folder takes time and several KiB of the kernel's memory.
    pub(crate) fn create_pause_leaf(&self, path: &str) -> Result<Leaf, Error> {
        names::check(path)?;
        let limits = Limits { writes: spec::pause_limits(self.version), ..Limits::default() };
        let wanted = |hierarchy: &&Hierarchy| {
            hierarchy.is_named() || PAUSE_CONTROLLERS.iter().any(|controller| hierarchy.has(controller))
        };
        let chosen: Vec<Hierarchy> = self.hierarchies.iter().filter(wanted).cloned().collect();
        leaf::create(self.version, &chosen, path, &limits)
    }

    /// Creates `/copepod/<pod>` for a shim, outside kubelet's tree. On v1 in the named hierarchies (so that the service
    /// manager does not touch it), memory and pids. Existing ones are kept.
    pub(crate) fn create_shim(&self, pod: &PodId) -> Result<ShimCgroup, Error> {
        let wanted =
            |hierarchy: &&Hierarchy| hierarchy.is_named() || hierarchy.has("memory") || hierarchy.has("pids");
        let path = shim_path(pod);
        let chosen = self.hierarchies.iter().filter(wanted);
        match self.version {
            Version::V1 => {
                let join = chosen.map(|hierarchy| v1::ensure(hierarchy, &path)).collect::<Result<_, _>>()?;
                Ok(ShimCgroup { start_in: None, join })
            }
            Version::V2 => {
                let open = |hierarchy| {
                    let folder = v2::ensure(hierarchy, &path)?;
                    File::open(&folder).map(OwnedFd::from).map_err(|source| Error::io("open", folder, source))
                };
                Ok(ShimCgroup { start_in: chosen.map(open).next().transpose()?, join: Vec::new() })
            }
        }
    }

    /// Kills all processes at and below a cgroup and returns when none is left; a missing cgroup has none.
    /// After ten seconds it fails with the remaining pids.
    pub(crate) fn kill_all(&self, path: &str) -> Result<(), Error> {
        names::check(path)?;
        kill::all(self.version, &self.hierarchies, path, KILL_LIMIT)
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

    /// Removes a pod's cgroups other than leaves: its shim's; what is in its scope, after killing every process there; and the
    /// default parent if kubelet named none. systemd removes the scope itself.
    pub(crate) fn remove_pod(&self, pod: &PodRecord) -> Result<(), Error> {
        let mut failures = Failures::default();
        failures.note(self.remove(&shim_path(&pod.id)));
        if !pod.scope.is_empty() {
            failures.note(self.kill_all(&pod.scope));
            failures.note(kill::remove_below(&self.hierarchies, &pod.scope, Instant::now() + REMOVE_LIMIT));
        } else if pod.config.cgroup_parent.is_empty() {
            failures.note(self.remove(&names::default_parent(&pod.id)));
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
        let Some(folder) = self.folder("memory", path) else { return Ok(0) };
        let file = match self.version {
            Version::V1 => "memory.oom_control",
            Version::V2 => "memory.events",
        };
        File::open(&folder)
            .and_then(|dir| sys::cgroup::flat_key(dir.as_fd(), file, "oom_kill"))
            .map_err(|source| Error::io("read", folder.join(file), source))
    }
}

#[cfg(test)]
mod tests;
