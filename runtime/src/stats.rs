//! Stats of containers and pods. The daemon reads the files of the kernel itself, without the shims. Blocking, but only
//! for reads of kernel files: writable layers are walked separately ([`StatsReader::refresh_stale`]).
//!
//! The files of a container's cgroup stay open while it is attached: opening a file takes twice as long as reading it. There
//! are six on cgroup v1 and seven on v2, three more where the kernel measures pressure. The kernel keeps 4 KiB for each open
//! file that was read, so those of a pod's cgroup, which few clients request, are opened for each read. CPU rates need samples
//! that are taken regularly ([`StatsReader::sample`], [`rate`]). Networks are read inside their namespaces ([`network`]).

use crate::cgroups::Cgroups;
use crate::clock::now;
use cgroup::{CgroupFiles, CpuFile, Failed};
use model::{ContainerId, PodId};
use rate::Samples;
use std::collections::HashMap;
use std::hash::Hash;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

mod cgroup;
pub(crate) mod metrics;
mod network;
mod parse;
mod rate;
mod reading;

#[cfg(test)]
pub(crate) use reading::Traffic;
pub(crate) use reading::{
    ContainerStats, Cpu, Interface, Io, Memory, Network, PodStats, PodUsage, Processes, Psi, PsiData, Swap,
    WritableLayer,
};

/// Age at which a writable layer is walked again: half of kubelet's ten seconds between two requests.
const USAGE_AGE: Duration = Duration::from_secs(5);
/// After a walk, a layer is not walked again for this many times the walk's duration, so that the walks of one layer use
/// at most a hundredth of one core.
const WALK_PAUSE: u32 = 100;
/// Time limit for the walk of one layer. If it is reached, the values are a lower bound.
const MAX_WALK: Duration = Duration::from_secs(30);
/// Maximum number of attached containers, and of attached pods: a guard against leaks, far above the size of any node.
const MAX_ATTACHED: usize = 16_384;

/// Why there are no stats.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The container or pod is not attached.
    #[error("{object} has no statistics: it is not running")]
    Unknown {
        /// `container` or `pod`, and its id.
        object: String,
    },
    /// A cgroup file could not be opened or read.
    #[error("statistics of {object}: {file}: {source}")]
    Read {
        /// `container` or `pod`, and its id.
        object: String,
        /// The file.
        file: PathBuf,
        /// The error.
        #[source]
        source: io::Error,
    },
    /// Too many containers or pods are attached.
    #[error("statistics of {MAX_ATTACHED} containers or pods are taken already, which is the limit")]
    Full,
}

impl Error {
    fn unknown(object: &impl Object) -> Self {
        Self::Unknown { object: object.name() }
    }

    fn read(object: &impl Object) -> impl FnOnce(Failed) -> Self {
        move |Failed { file, source }| Self::Read { object: object.name(), file, source }
    }
}

/// What has stats, for errors.
trait Object {
    fn name(&self) -> String;
}

impl Object for ContainerId {
    fn name(&self) -> String {
        format!("container {self}")
    }
}

impl Object for PodId {
    fn name(&self) -> String {
        format!("pod {self}")
    }
}

/// Reads stats.
#[derive(Debug)]
pub(crate) struct StatsReader {
    cgroups: Cgroups,
    has_pressure: bool,
    containers: Mutex<HashMap<ContainerId, Arc<Entry>>>,
    pods: Mutex<HashMap<PodId, Arc<PodCgroup>>>,
    /// Notified after each walk. The mutex holds no data: a condition variable needs one.
    walked: (Mutex<()>, Condvar),
}

/// An attached container.
#[derive(Debug)]
struct Entry {
    container: ContainerId,
    files: CgroupFiles,
    samples: Mutex<Samples>,
    upper: PathBuf,
    layer: Mutex<Layer>,
}

/// The cgroup of an attached pod.
#[derive(Debug)]
struct PodCgroup {
    pod: PodId,
    path: String,
    samples: Mutex<Samples>,
}

/// The last walk of a writable layer.
#[derive(Debug, Default)]
struct Layer {
    /// When the last walk ended.
    walked: Option<Instant>,
    /// How long it took.
    took: Duration,
    value: Option<WritableLayer>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A poisoned lock is fine: no panic can leave these values half-changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Adds an entry, unless there are too many.
fn insert<K: Eq + Hash, V>(entries: &Mutex<HashMap<K, Arc<V>>>, key: K, value: V) -> Result<(), Error> {
    let mut entries = lock(entries);
    if entries.len() >= MAX_ATTACHED && !entries.contains_key(&key) {
        return Err(Error::Full);
    }
    entries.insert(key, Arc::new(value));
    Ok(())
}

/// The entries as they are now, so that no lock is held while files are read.
fn all<K, V>(entries: &Mutex<HashMap<K, Arc<V>>>) -> Vec<Arc<V>> {
    lock(entries).values().cloned().collect()
}

impl StatsReader {
    /// Creates a reader for these hierarchies.
    pub(crate) fn new(cgroups: Cgroups) -> Self {
        let has_pressure = cgroup::measures_pressure(&cgroups);
        Self {
            cgroups,
            has_pressure,
            containers: Mutex::default(),
            pods: Mutex::default(),
            walked: Default::default(),
        }
    }

    /// Opens the files of a container's cgroup; `upper` is its writable folder. A repeated call replaces the
    /// open files.
    pub(crate) fn attach(&self, container: &ContainerId, cgroup: &str, upper: PathBuf) -> Result<(), Error> {
        let files =
            CgroupFiles::open(&self.cgroups, cgroup, self.has_pressure).map_err(Error::read(container))?;
        let (samples, layer) = (Mutex::default(), Mutex::default());
        let entry = Entry { container: container.clone(), files, samples, upper, layer };
        insert(&self.containers, container.clone(), entry)
    }

    /// Begins to take samples of a pod's cgroup. After a repeated call they begin anew.
    pub(crate) fn attach_pod(&self, pod: &PodId, cgroup: &str) -> Result<(), Error> {
        let entry = PodCgroup { pod: pod.clone(), path: cgroup.to_owned(), samples: Mutex::default() };
        insert(&self.pods, pod.clone(), entry)
    }

    /// Whether a container's files are open.
    pub(crate) fn is_attached(&self, container: &ContainerId) -> bool {
        lock(&self.containers).contains_key(container)
    }

    /// Whether samples of a pod's cgroup are taken.
    pub(crate) fn is_pod_attached(&self, pod: &PodId) -> bool {
        lock(&self.pods).contains_key(pod)
    }

    /// Whether anything is attached.
    pub(crate) fn has_attached(&self) -> bool {
        !lock(&self.containers).is_empty() || !lock(&self.pods).is_empty()
    }

    /// Closes the files of all containers but those to keep.
    pub(crate) fn retain(&self, keep: impl Fn(&ContainerId) -> bool) {
        lock(&self.containers).retain(|id, _| keep(id));
    }

    /// Detaches all pods but those to keep.
    pub(crate) fn retain_pods(&self, keep: impl Fn(&PodId) -> bool) {
        lock(&self.pods).retain(|id, _| keep(id));
    }

    /// Takes a sample of the CPU time of every attached container and pod. One whose cgroup is gone has none.
    pub(crate) fn sample(&self) {
        for entry in all(&self.containers) {
            report(&entry.container, entry.files.cpu().sample(&entry.samples));
        }
        for entry in all(&self.pods) {
            let file = CpuFile::open(&self.cgroups, &entry.path);
            report(&entry.pod, file.and_then(|file| file.sample(&entry.samples)));
        }
    }

    /// Current stats. The writable layer's are those of its last walk (see [`StatsReader::refresh_stale`]).
    pub(crate) fn read(&self, container: &ContainerId) -> Result<ContainerStats, Error> {
        let entry = lock(&self.containers).get(container).cloned();
        let entry = entry.ok_or_else(|| Error::unknown(container))?;
        let PodUsage { cpu, memory, swap, io, pids } =
            entry.files.read(&entry.samples).map_err(Error::read(container))?;
        let writable_layer = lock(&entry.layer).value;
        Ok(ContainerStats { cpu, memory, swap, io, writable_layer, pids })
    }

    /// Current values of a pod's cgroup.
    pub(crate) fn read_pod(&self, pod: &PodId) -> Result<PodUsage, Error> {
        let entry = lock(&self.pods).get(pod).cloned();
        let entry = entry.ok_or_else(|| Error::unknown(pod))?;
        CgroupFiles::open(&self.cgroups, &entry.path, self.has_pressure)
            .and_then(|files| files.read(&entry.samples))
            .map_err(Error::read(pod))
    }

    /// The networks of the namespaces pinned at `pins`, in order; `None` for one that cannot be read, or that has only
    /// `lo`. Starts a thread.
    pub(crate) fn networks(pins: &[&Path]) -> Vec<Option<Network>> {
        let read = network::read(pins).unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot read the network statistics of pods");
            Vec::new()
        });
        let mut networks: Vec<Option<Network>> = read
            .into_iter()
            .zip(pins)
            .map(|(network, pin)| {
                network.unwrap_or_else(|error| {
                    // The pod is being stopped.
                    tracing::debug!(netns = %pin.display(), %error, "no network statistics of this namespace");
                    None
                })
            })
            .collect();
        networks.resize(pins.len(), None);
        networks
    }

    /// Counts the processes in these cgroups of containers, and below them; `None` if one of them cannot be counted.
    pub(crate) fn processes<'a>(&self, cgroups: impl Iterator<Item = &'a str>) -> Option<Processes> {
        let timestamp = now();
        let mut count = 0;
        for cgroup in cgroups {
            match self.cgroups.processes(cgroup) {
                Ok(processes) => count += processes,
                Err(error) => {
                    tracing::debug!(cgroup, %error, "cannot count processes");
                    return None;
                }
            }
        }
        Some(Processes { timestamp, count })
    }

    /// The latest disk usage of a writable layer; also for an attached container that is not running.
    pub(crate) fn writable_layer(&self, container: &ContainerId) -> Option<WritableLayer> {
        let entry = lock(&self.containers).get(container).cloned();
        entry.and_then(|entry| lock(&entry.layer).value)
    }

    /// Waits until the writable layers of `containers` were each walked once, at most for `limit`.
    pub(crate) fn wait_for_walks(&self, containers: &[ContainerId], limit: Duration) {
        let end = Instant::now() + limit;
        let mut guard = lock(&self.walked.0);
        loop {
            let missing = |id: &ContainerId| {
                let entry = lock(&self.containers).get(id).cloned();
                entry.is_some_and(|entry| lock(&entry.layer).walked.is_none())
            };
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || !containers.iter().any(missing) {
                return;
            }
            guard = self.walked.1.wait_timeout(guard, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Whether a writable layer is outdated ([`StatsReader::refresh_stale`]).
    pub(crate) fn is_stale(&self) -> bool {
        let at = Instant::now();
        lock(&self.containers).values().any(|entry| lock(&entry.layer).is_stale(at))
    }

    /// Walks the outdated writable layers, oldest first, until `limit` has passed and the current walk has ended. A layer
    /// is outdated five seconds after its last walk, or later if that walk was long: after a hundred times its duration.
    /// Returns true if none is left. Slow: call it in the background, one call at a time.
    pub(crate) fn refresh_stale(&self, limit: Duration) -> bool {
        let start = Instant::now();
        let mut stale: Vec<(Option<Instant>, Arc<Entry>)> = lock(&self.containers)
            .values()
            .filter_map(|entry| {
                let layer = lock(&entry.layer);
                layer.is_stale(start).then(|| (layer.walked, Arc::clone(entry)))
            })
            .collect();
        stale.sort_by_key(|(walked, _)| *walked);
        for (_, entry) in stale {
            if start.elapsed() >= limit {
                return false;
            }
            entry.walk();
            // A waiter holds this while it checks, so it is either waiting now or will see the walk.
            drop(lock(&self.walked.0));
            self.walked.1.notify_all();
        }
        true
    }
}

impl Entry {
    fn walk(&self) {
        let (timestamp, start) = (now(), Instant::now());
        let walked = sys::tree::usage_path(&self.upper, start + MAX_WALK);
        let mut layer = lock(&self.layer);
        layer.walked = Some(Instant::now());
        layer.took = start.elapsed();
        // A layer that could not be walked keeps its old values.
        match walked {
            Ok(usage) => {
                let (used_bytes, inodes_used) = (usage.bytes, usage.inodes);
                layer.value = Some(WritableLayer { timestamp, used_bytes, inodes_used });
            }
            Err(error) => {
                tracing::debug!(container = %self.container, %error, "cannot walk a writable layer")
            }
        }
    }
}

impl Layer {
    fn is_stale(&self, at: Instant) -> bool {
        let age = USAGE_AGE.max(self.took.saturating_mul(WALK_PAUSE));
        self.walked.is_none_or(|walked| at.saturating_duration_since(walked) >= age)
    }
}

/// Logs why there is no sample: the cgroup was removed.
fn report(object: &impl Object, sampled: Result<(), Failed>) {
    if let Err(failed) = sampled {
        tracing::debug!(error = %Error::read(object)(failed), "no CPU sample");
    }
}

#[cfg(test)]
mod tests;
