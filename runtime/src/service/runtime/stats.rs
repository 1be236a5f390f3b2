//! Statistics.

use super::super::convert::{self, ContainerFilter};
use super::super::status::Failure;
use super::super::{Backend, streams};
use crate::lanes;
use crate::node::ContainerView;
use cri_api::v1 as cri;
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
    Ok(streams::chunks(stats, |container_stats| cri::StreamContainerStatsResponse { container_stats }))
}

/// The containers that a filter selects.
fn wanted(backend: &Backend, filter: Option<cri::ContainerStatsFilter>) -> Vec<Arc<ContainerView>> {
    let filter = ContainerFilter::for_stats(filter);
    let containers = backend.node.containers();
    containers.iter().filter(|container| filter.matches(&container.record)).cloned().collect()
}

/// Parts of a list, which are made as they are taken.
type Items<T> = Box<dyn Iterator<Item = T> + Send>;

/// Stats of `wanted`, of which those that are not running have no values. They are read now and converted as they are
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
