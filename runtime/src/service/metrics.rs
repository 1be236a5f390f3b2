//! Metrics of pods and containers, which kubelet exports as `/metrics/cadvisor` if its feature gate
//! PodAndContainerStatsFromCRI is on. Everything is read when it is asked for, on a lane of its own, so that
//! a client for metrics delays no statistics.

mod families;
mod samples;
#[cfg(test)]
mod tests;

use super::StatsCache;
use crate::cgroups::{self, Cgroups};
use crate::error::Error;
use crate::lanes;
use crate::node::{ContainerView, PodView};
use crate::stats::metrics::{Budget, Filesystem, Group, Processes, Reader};
use crate::stats::{Network, StatsReader, WritableLayer};
use cri_api::v1 as cri;
use families::Needs;
use model::{ContainerPhase, ContainerRecord, PodId, PodRecord};
use state::Layout;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How long a call waits for the size of the layers' file system, which the kernel has in memory. If the disk hangs, the
/// reply does without it.
const FILESYSTEM_LIMIT: Duration = Duration::from_millis(200);
/// How long a call waits for the first walk of the writable layers of new containers: metrics are complete right after
/// a container's start, unless its layer has many files already.
const FIRST_WALK: Duration = Duration::from_millis(200);

/// Reads metrics.
#[derive(Debug)]
pub(crate) struct Metrics {
    reader: Reader,
    stats: Arc<StatsCache>,
    /// The folder that all writable layers are in.
    layers: PathBuf,
}

/// What was read of a pod.
#[derive(Debug)]
struct PodReading {
    record: Arc<PodRecord>,
    /// Path of its cgroup, as in kubelet's request or our default.
    cgroup: String,
    /// `None` if its cgroup is the root, whose values are those of the host, or cannot be read.
    group: Option<Group>,
    /// `None` with the host's network.
    network: Option<Network>,
    containers: Vec<ContainerReading>,
}

/// What was read of a container.
#[derive(Debug)]
struct ContainerReading {
    record: Arc<ContainerRecord>,
    /// `None` if it was ended by an OOM kill.
    running: Option<Running>,
}

/// What was read of a running container.
#[derive(Debug)]
struct Running {
    group: Group,
    /// `None` if they cannot be read.
    processes: Option<Processes>,
    layer: Option<WritableLayer>,
}

impl Metrics {
    pub(crate) fn new(cgroups: Cgroups, stats: Arc<StatsCache>, layout: &Layout) -> Self {
        Self { reader: Reader::new(cgroups), stats, layers: layout.containers_dir() }
    }

    /// The metrics of this host: only those that can have values.
    pub(super) fn descriptors(&self) -> Vec<cri::MetricDescriptor> {
        let has = |needs| match needs {
            Needs::Nothing => true,
            Needs::HugePages => self.reader.has_huge_pages(),
            Needs::PeakOfHugePages => self.reader.has_peaks_of_huge_pages(),
            Needs::Pressure => self.reader.has_pressure(),
        };
        families::ALL.iter().filter(|family| has(family.needs)).map(|family| family.descriptor()).collect()
    }

    /// The metrics of all pods that are ready. They are read now and converted as they are taken.
    ///
    /// # Errors
    /// The node has no thread for it.
    pub(super) async fn read(
        self: &Arc<Self>,
        pods: Arc<[Arc<PodView>]>,
        containers: Arc<[Arc<ContainerView>]>,
    ) -> Result<Box<dyn Iterator<Item = cri::PodSandboxMetrics> + Send>, Error> {
        let filesystem = self.filesystem().await;
        let this = Arc::clone(self);
        let read = lanes::metrics().run(move || this.collect(&pods, &containers)).await?;
        let now = u64::try_from(crate::clock::now()).unwrap_or(0) / 1_000_000_000;
        Ok(Box::new(read.into_iter().map(move |pod| samples::pod(&pod, filesystem.as_ref(), now))))
    }

    /// The size of the file system of the writable layers; `None` if its disk hangs.
    async fn filesystem(&self) -> Option<Filesystem> {
        let layers = self.layers.clone();
        let read = lanes::run(lanes::records(), "metrics", "read the size of a file system", move || {
            Ok(Filesystem::of(&layers))
        });
        let problem = match tokio::time::timeout(FILESYSTEM_LIMIT, read).await {
            Ok(Ok(Ok(filesystem))) => return Some(filesystem),
            Ok(Ok(Err(error))) => error.to_string(),
            Ok(Err(error)) => error.text(),
            Err(_) => "its disk hangs".to_owned(),
        };
        tracing::debug!(folder = %self.layers.display(), problem, "no metrics of the layers' file system");
        None
    }

    fn collect(&self, pods: &[Arc<PodView>], containers: &[Arc<ContainerView>]) -> Vec<PodReading> {
        let running: Vec<Arc<ContainerView>> = containers
            .iter()
            .filter(|container| container.record.phase == ContainerPhase::Running)
            .cloned()
            .collect();
        let layers = self.stats.layers(&running, containers, FIRST_WALK);
        let mut budget = Budget::default();
        let mut of_pods: HashMap<&PodId, Vec<ContainerReading>> = HashMap::new();
        let killed = containers.iter().filter(|container| was_oom_killed(&container.record));
        let killed = killed.map(|container| (container, None));
        let running = running.iter().zip(layers).filter_map(|(container, layer)| {
            Some((container, Some(self.running(&container.record, layer, &mut budget)?)))
        });
        for (container, running) in running.chain(killed) {
            let record = Arc::clone(&container.record);
            of_pods.entry(&container.record.pod).or_default().push(ContainerReading { record, running });
        }
        let ready = pods.iter().filter(|pod| pod.is_ready()).map(|pod| &pod.record);
        let ready: Vec<&Arc<PodRecord>> = ready.collect();
        let mut networks = networks(&ready);
        let one = |pod: &Arc<PodRecord>| {
            let containers = of_pods.remove(&pod.id).unwrap_or_default();
            self.pod(pod, networks.remove(&pod.id), containers)
        };
        ready.into_iter().map(one).collect()
    }

    /// `None` as the network: it has none of its own, or it cannot be read.
    fn pod(
        &self,
        record: &Arc<PodRecord>,
        network: Option<Network>,
        containers: Vec<ContainerReading>,
    ) -> PodReading {
        // The path was valid when the pod was started.
        let cgroup = cgroups::pod_cgroup(record).unwrap_or_default();
        let group = if cgroup.is_empty() { None } else { self.group(&cgroup) };
        PodReading { record: Arc::clone(record), cgroup, group, network, containers }
    }

    /// `None` if the container has just ended.
    fn running(
        &self,
        container: &ContainerRecord,
        layer: Option<WritableLayer>,
        budget: &mut Budget,
    ) -> Option<Running> {
        let processes = self.reader.processes(&container.cgroup, container.pid, budget);
        let processes = processes.inspect_err(
            |error| tracing::debug!(container = %container.id, %error, "no metrics of processes"),
        );
        Some(Running { processes: processes.ok(), layer, group: self.group(&container.cgroup)? })
    }

    fn group(&self, cgroup: &str) -> Option<Group> {
        let read = self.reader.group(cgroup);
        read.inspect_err(|error| tracing::debug!(cgroup, %error, "no metrics of this cgroup")).ok()
    }
}

/// The networks of pods that have one of their own and can be read.
fn networks<'p>(pods: &[&'p Arc<PodRecord>]) -> HashMap<&'p PodId, Network> {
    let own: Vec<&'p Arc<PodRecord>> = pods.iter().copied().filter(|pod| !pod.netns.is_empty()).collect();
    let pins: Vec<&Path> = own.iter().map(|pod| Path::new(&pod.netns)).collect();
    let read = own.iter().zip(StatsReader::networks(&pins));
    read.filter_map(|(pod, network)| Some((&pod.id, network?))).collect()
}

fn was_oom_killed(container: &ContainerRecord) -> bool {
    container.phase == ContainerPhase::Exited && container.exit.as_ref().is_some_and(|exit| exit.oom_killed)
}
