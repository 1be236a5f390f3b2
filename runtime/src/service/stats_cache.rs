//! Stats of running containers and ready pods, for the stats calls.
//!
//! Containers and pods are attached when they are first asked for, and detached when they have ended, or when nobody has asked
//! for ten minutes: a node without such calls spends nothing on them. For containers ImageFsInfo and the calls for metrics
//! count too, as they ask for writable layers. The files of an attached container's cgroup stay open. Meanwhile [`sample`]
//! takes samples of CPU time, from which rates are computed, and attaches new containers and pods, so that these have a rate
//! when they are first asked for. Blocking: called on the lane for stats, and by metrics on theirs.

use crate::cgroups;
use crate::lanes;
use crate::node::{ContainerView, Node, PodView};
use crate::stats::{self, ContainerStats, PodStats, PodUsage, StatsReader, WritableLayer};
use image::Usage;
use model::{ContainerId, ContainerPhase, ContainerRecord, PodId, PodRecord};
use state::Layout;
use std::collections::HashSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::time::MissedTickBehavior;

/// How long a call waits for the first walk of new containers' writable layers, most of which have few files.
/// Values that arrive later are in the next reply.
const FIRST_WALK: Duration = Duration::from_millis(20);
/// Time limit of one round of walking in the background. Layers that were not reached come first in the next
/// round.
const ROUND: Duration = Duration::from_secs(2);
/// Time between two samples of CPU time, as in kubelet and cAdvisor.
const SAMPLING: Duration = Duration::from_secs(10);
/// How long samples are taken after the last call for stats.
const SAMPLED_AFTER: Duration = Duration::from_secs(600);

/// Reads stats; attaches and detaches containers and pods as they come and go.
#[derive(Debug)]
pub(crate) struct StatsCache {
    reader: StatsReader,
    layout: Layout,
    /// When stats of containers were last requested.
    containers_requested: Mutex<Option<Instant>>,
    /// When stats of pods were last requested. With kubelet's default settings they never are.
    pods_requested: Mutex<Option<Instant>>,
    walking: AtomicBool,
}

/// A pod whose stats are requested, with all its containers.
#[derive(Debug)]
pub(super) struct PodAndContainers {
    /// The pod.
    pub(super) pod: Arc<PodView>,
    /// Its containers, oldest first.
    pub(super) containers: Vec<Arc<ContainerView>>,
}

/// Stats of a pod and of its containers.
#[derive(Debug)]
pub(super) struct PodReading {
    /// All parts are absent if the pod is not ready.
    pub(super) pod: PodStats,
    /// In the order of [`PodAndContainers`]; `None` for containers that are not running.
    pub(super) containers: Vec<Option<ContainerStats>>,
}

fn note(requested: &Mutex<Option<Instant>>) {
    // A poisoned lock is used: a panic cannot leave a time half-written.
    *requested.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
}

fn was_requested(requested: &Mutex<Option<Instant>>) -> bool {
    let requested = *requested.lock().unwrap_or_else(PoisonError::into_inner);
    requested.is_some_and(|at| at.elapsed() < SAMPLED_AFTER)
}

fn is_running(container: &ContainerRecord) -> bool {
    container.phase == ContainerPhase::Running
}

/// Takes a sample of CPU time every ten seconds, as long as stats are requested. Runs until dropped.
pub(crate) async fn sample(stats: Arc<StatsCache>, node: Node) {
    let mut ticks = tokio::time::interval(SAMPLING);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if !stats.is_in_use() {
            continue;
        }
        let (stats, node) = (Arc::clone(&stats), node.clone());
        let sampled = lanes::stats().run(move || stats.sample(&node.pods(), &node.containers()));
        if let Err(error) = sampled.await {
            tracing::debug!(%error, "no samples of CPU time");
        }
    }
}

impl StatsCache {
    pub(crate) fn new(reader: StatsReader, layout: Layout) -> Self {
        Self {
            reader,
            layout,
            containers_requested: Mutex::default(),
            pods_requested: Mutex::default(),
            walking: AtomicBool::new(false),
        }
    }

    /// The stats of each of `wanted` in order; `None` for containers that are not running. `all` are all
    /// containers that exist: files of those that are not running, or not among them, are closed.
    pub(super) fn collect(
        self: &Arc<Self>,
        wanted: &[Arc<ContainerView>],
        all: &[Arc<ContainerView>],
    ) -> Vec<Option<ContainerStats>> {
        note(&self.containers_requested);
        self.keep_running(all);
        self.attach_and_walk(wanted.iter().map(|container| &*container.record), FIRST_WALK);
        wanted.iter().map(|container| self.read(&container.record)).collect()
    }

    /// The stats of each of `wanted` in order. `pods` are all pods that exist.
    pub(super) fn collect_pods(
        self: &Arc<Self>,
        wanted: &[PodAndContainers],
        pods: &[Arc<PodView>],
    ) -> Vec<PodReading> {
        note(&self.containers_requested);
        note(&self.pods_requested);
        self.keep_ready(pods);
        let containers = wanted.iter().flat_map(|it| &it.containers);
        self.attach_and_walk(containers.map(|container| &*container.record), FIRST_WALK);
        let with_network: Vec<&PodRecord> =
            wanted.iter().map(|it| &*it.pod.record).filter(|pod| has_own_network(pod)).collect();
        let pins: Vec<&Path> = with_network.iter().map(|pod| Path::new(&pod.netns)).collect();
        let mut networks = StatsReader::networks(&pins).into_iter();
        let one = |PodAndContainers { pod, containers }: &PodAndContainers| {
            let network = if has_own_network(&pod.record) { networks.next().flatten() } else { None };
            let containers: Vec<_> = containers.iter().map(|container| &*container.record).collect();
            PodReading {
                pod: if pod.is_ready() {
                    let running = containers.iter().filter(|container| is_running(container));
                    let processes = self.reader.processes(running.map(|container| container.cgroup.as_str()));
                    PodStats { usage: self.read_pod(&pod.record), network, processes }
                } else {
                    PodStats::default()
                },
                containers: containers.into_iter().map(|container| self.read(container)).collect(),
            }
        };
        wanted.iter().map(one).collect()
    }

    /// Disk usage of the writable layers of the running containers in `all`, by the latest walk of each.
    pub(super) fn writable_layers(self: &Arc<Self>, all: &[Arc<ContainerView>]) -> Usage {
        note(&self.containers_requested);
        self.attach_and_walk(all.iter().map(|container| &*container.record), FIRST_WALK);
        let layers = all.iter().filter_map(|container| self.reader.writable_layer(&container.record.id));
        layers.fold(Usage::default(), |sum, layer| Usage {
            bytes: sum.bytes + layer.used_bytes,
            inodes: sum.inodes + layer.inodes_used,
        })
    }

    /// The writable layer of each of `wanted` in order, by its latest walk. Waits for the first walk of new ones, at most
    /// for `limit`. `all` as for [`StatsCache::collect`].
    pub(super) fn layers(
        self: &Arc<Self>,
        wanted: &[Arc<ContainerView>],
        all: &[Arc<ContainerView>],
        limit: Duration,
    ) -> Vec<Option<WritableLayer>> {
        note(&self.containers_requested);
        self.keep_running(all);
        self.attach_and_walk(wanted.iter().map(|container| &*container.record), limit);
        wanted.iter().map(|container| self.reader.writable_layer(&container.record.id)).collect()
    }

    /// Whether anything is attached, or will be.
    fn is_in_use(&self) -> bool {
        was_requested(&self.containers_requested)
            || was_requested(&self.pods_requested)
            || self.reader.has_attached()
    }

    /// Takes samples of all running containers and ready pods; detaches all others, and all if stats are not requested any
    /// more.
    fn sample(self: &Arc<Self>, pods: &[Arc<PodView>], containers: &[Arc<ContainerView>]) {
        if was_requested(&self.pods_requested) {
            self.keep_ready(pods);
            for pod in pods {
                self.attach_pod(&pod.record);
            }
        } else {
            self.reader.retain_pods(|_| false);
        }
        if was_requested(&self.containers_requested) {
            self.keep_running(containers);
            let mut new = 0;
            for container in containers {
                new += usize::from(self.attach(&container.record));
            }
            if new > 0 {
                self.walk();
            }
        } else {
            self.reader.retain(|_| false);
        }
        self.reader.sample();
    }

    /// Opens the files of running containers that have no open ones yet, and starts a walk. Waits for the first
    /// walk of these, at most for `limit`.
    fn attach_and_walk<'a>(
        self: &Arc<Self>,
        wanted: impl Iterator<Item = &'a ContainerRecord>,
        limit: Duration,
    ) {
        let attached = wanted.filter(|container| self.attach(container));
        let new: Vec<ContainerId> = attached.map(|container| container.id.clone()).collect();
        self.walk();
        if !new.is_empty() {
            self.reader.wait_for_walks(&new, limit);
        }
    }

    /// Starts one round of walking outdated layers on its own thread, because a walk may take half a minute.
    /// Does nothing while a round is running, or if no layer is outdated: starting a thread takes a tenth of the
    /// time of a call.
    fn walk(self: &Arc<Self>) {
        if !self.reader.is_stale() || self.walking.swap(true, Ordering::AcqRel) {
            return;
        }
        let stats = Arc::clone(self);
        let spawned = std::thread::Builder::new().name("disk-usage".to_owned()).spawn(move || {
            stats.reader.refresh_stale(ROUND);
            stats.walking.store(false, Ordering::Release);
        });
        if let Err(error) = spawned {
            tracing::warn!(%error, "cannot start a thread to walk writable layers: their disk usage is outdated");
            self.walking.store(false, Ordering::Release);
        }
    }

    /// Opens the files of a running container; true if they were not open before.
    fn attach(&self, container: &ContainerRecord) -> bool {
        is_running(container) && !self.reader.is_attached(&container.id) && self.attach_again(container)
    }

    /// Opens the files of a container, also if others are open; false if they cannot be opened.
    fn attach_again(&self, container: &ContainerRecord) -> bool {
        let upper = self.layout.container_rw(&container.id).join("upper");
        let attached = self.reader.attach(&container.id, &container.cgroup, upper);
        // The container has just ended and its cgroup is gone, or too many are attached.
        attached.inspect_err(|error| tracing::debug!(%error, "no stats of this container")).is_ok()
    }

    /// Reads a container's files. If they were closed meanwhile, or their cgroup was removed, they are opened again: a call
    /// whose list of containers is from before this one's start closes them.
    fn read(&self, container: &ContainerRecord) -> Option<ContainerStats> {
        if !is_running(container) {
            return None;
        }
        let read = self.reader.read(&container.id).or_else(|error| {
            if self.attach_again(container) { self.reader.read(&container.id) } else { Err(error) }
        });
        // The cgroup was removed while its files were open.
        read.inspect_err(|error| tracing::debug!(%error, "no stats of this container")).ok()
    }

    /// Attaches a ready pod, if it is not attached yet. The root cgroup, which a client other than kubelet may give to its
    /// pods, has the values of the host: it is not attached.
    fn attach_pod(&self, pod: &PodRecord) {
        if !is_ready(pod) || self.reader.is_pod_attached(&pod.id) {
            return;
        }
        let Ok(cgroup) = cgroups::pod_cgroup(pod) else { return };
        if cgroup.is_empty() {
            return;
        }
        if let Err(error) = self.reader.attach_pod(&pod.id, &cgroup) {
            tracing::debug!(%error, "no stats of this pod");
        }
    }

    /// Reads the files of a ready pod's cgroup. If the pod was detached meanwhile, it is attached again: a call whose list
    /// of pods is from before this one's start detaches it.
    fn read_pod(&self, pod: &PodRecord) -> Option<PodUsage> {
        self.attach_pod(pod);
        let read = match self.reader.read_pod(&pod.id) {
            Err(stats::Error::Unknown { .. }) => {
                self.attach_pod(pod);
                self.reader.read_pod(&pod.id)
            }
            read => read,
        };
        read.inspect_err(|error| tracing::debug!(%error, "no stats of this pod")).ok()
    }

    /// Closes the files of containers that are not running, or not among `all`.
    fn keep_running(&self, all: &[Arc<ContainerView>]) {
        let running = all.iter().map(|container| &container.record).filter(|container| is_running(container));
        let running: HashSet<&ContainerId> = running.map(|container| &container.id).collect();
        self.reader.retain(|id| running.contains(id));
    }

    /// Detaches pods that are not ready, or not among `all`.
    fn keep_ready(&self, all: &[Arc<PodView>]) {
        let ready: HashSet<&PodId> =
            all.iter().filter(|pod| pod.is_ready()).map(|pod| &pod.record.id).collect();
        self.reader.retain_pods(|id| ready.contains(id));
    }
}

fn is_ready(pod: &PodRecord) -> bool {
    pod.phase == model::PodPhase::Ready
}

/// Whether a ready pod has a network namespace of its own. The counters of the host's network are not the pod's.
fn has_own_network(pod: &PodRecord) -> bool {
    is_ready(pod) && !pod.netns.is_empty()
}

#[cfg(test)]
mod tests;
