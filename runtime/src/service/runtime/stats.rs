//! Statistics.

use super::super::convert::{self, ContainerFilter, PodFilter};
use super::super::stats_cache::PodAndContainers;
use super::super::status::Failure;
use super::super::{Backend, chunks};
use crate::lanes;
use crate::node::{ContainerView, PodView};
use cri_api::v1 as cri;
use model::PodId;
use std::collections::HashMap;
use std::sync::Arc;
use tonic::codegen::BoxStream;

/// ContainerStats.
pub(super) async fn container(
    backend: &Backend,
    cri::ContainerStatsRequest { container_id }: cri::ContainerStatsRequest,
) -> Result<cri::ContainerStatsResponse, Failure> {
    let container = backend.node.container(&container_id)?;
    Ok(cri::ContainerStatsResponse { stats: read(backend, vec![container]).await?.next() })
}

/// ListContainerStats.
pub(super) async fn containers(
    backend: &Backend,
    cri::ListContainerStatsRequest { filter }: cri::ListContainerStatsRequest,
) -> Result<cri::ListContainerStatsResponse, Failure> {
    Ok(cri::ListContainerStatsResponse { stats: read(backend, wanted(backend, filter)).await?.collect() })
}

/// StreamContainerStats.
pub(super) async fn stream_containers(
    backend: &Backend,
    cri::StreamContainerStatsRequest { filter }: cri::StreamContainerStatsRequest,
) -> Result<BoxStream<cri::StreamContainerStatsResponse>, Failure> {
    let stats = read(backend, wanted(backend, filter)).await?;
    Ok(chunks::list(stats, |container_stats| cri::StreamContainerStatsResponse { container_stats }))
}

/// The running containers that a filter selects.
fn wanted(backend: &Backend, filter: Option<cri::ContainerStatsFilter>) -> Vec<Arc<ContainerView>> {
    let filter = ContainerFilter::for_stats(filter);
    let containers = backend.node.containers();
    containers.iter().filter(|container| filter.matches(&container.record)).cloned().collect()
}

/// Parts of a list, which are made as they are taken.
type Items<T> = Box<dyn Iterator<Item = T> + Send>;

/// Stats of `wanted`, of which those that do not run any more have no values. They are read now and converted as they are
/// taken.
async fn read(
    backend: &Backend,
    wanted: Vec<Arc<ContainerView>>,
) -> Result<Items<cri::ContainerStats>, Failure> {
    let (stats, all) = (Arc::clone(&backend.stats), backend.node.containers());
    let store = backend.images.root();
    let read = lanes::stats().run(move || (stats.collect(&wanted, &all), wanted));
    let (read, wanted) = read.await.map_err(crate::error::Error::from)?;
    Ok(Box::new(
        wanted.into_iter().zip(read).map(move |(container, stats)| {
            convert::container_stats(&container.record, stats.as_ref(), &store)
        }),
    ))
}

/// PodSandboxStats. A pod that is not ready has no values, only the attributes of itself and of its containers.
pub(super) async fn pod(
    backend: &Backend,
    cri::PodSandboxStatsRequest { pod_sandbox_id }: cri::PodSandboxStatsRequest,
) -> Result<cri::PodSandboxStatsResponse, Failure> {
    let pod = backend.node.pod(&pod_sandbox_id)?;
    Ok(cri::PodSandboxStatsResponse { stats: read_pods(backend, vec![pod]).await?.next() })
}

/// ListPodSandboxStats. A pod whose values cannot be read is listed without them.
pub(super) async fn pods(
    backend: &Backend,
    cri::ListPodSandboxStatsRequest { filter }: cri::ListPodSandboxStatsRequest,
) -> Result<cri::ListPodSandboxStatsResponse, Failure> {
    let stats = read_pods(backend, wanted_pods(backend, filter)).await?;
    Ok(cri::ListPodSandboxStatsResponse { stats: stats.collect() })
}

/// StreamPodSandboxStats.
pub(super) async fn stream_pods(
    backend: &Backend,
    cri::StreamPodSandboxStatsRequest { filter }: cri::StreamPodSandboxStatsRequest,
) -> Result<BoxStream<cri::StreamPodSandboxStatsResponse>, Failure> {
    let stats = read_pods(backend, wanted_pods(backend, filter)).await?;
    Ok(chunks::list(stats, |pod_sandbox_stats| cri::StreamPodSandboxStatsResponse { pod_sandbox_stats }))
}

/// The ready pods that a filter selects.
fn wanted_pods(backend: &Backend, filter: Option<cri::PodSandboxStatsFilter>) -> Vec<Arc<PodView>> {
    let filter = PodFilter::for_stats(filter);
    backend.node.pods().iter().filter(|pod| filter.matches(&pod.record)).cloned().collect()
}

/// Stats of `wanted` and of their containers. They are read now and converted as they are taken.
async fn read_pods(
    backend: &Backend,
    wanted: Vec<Arc<PodView>>,
) -> Result<Items<cri::PodSandboxStats>, Failure> {
    let (stats, all) = (Arc::clone(&backend.stats), backend.node.pods());
    let mut of_pod: HashMap<PodId, Vec<Arc<ContainerView>>> = HashMap::new();
    for container in backend.node.containers().iter() {
        of_pod.entry(container.record.pod.clone()).or_default().push(Arc::clone(container));
    }
    let mut with_containers = |pod: Arc<PodView>| {
        let containers = of_pod.remove(&pod.record.id).unwrap_or_default();
        PodAndContainers { pod, containers }
    };
    let wanted: Vec<PodAndContainers> = wanted.into_iter().map(&mut with_containers).collect();
    let read = lanes::stats().run(move || (stats.collect_pods(&wanted, &all), wanted));
    let (read, wanted) = read.await.map_err(crate::error::Error::from)?;
    let store = backend.images.root();
    Ok(Box::new(wanted.into_iter().zip(read).map(move |(PodAndContainers { pod, containers }, reading)| {
        let containers = containers.iter().zip(&reading.containers);
        let containers = containers
            .map(|(container, stats)| convert::container_stats(&container.record, stats.as_ref(), &store));
        convert::pod_stats(&pod.record, reading.pod, containers.collect())
    })))
}
