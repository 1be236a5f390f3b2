//! Calls about containers.

use super::super::convert::{self, ContainerFilter, Host};
use super::super::status::Failure;
use super::super::{Backend, chunks, details};
use cri_api::v1 as cri;
use std::collections::HashMap;
use tonic::codegen::BoxStream;

/// CreateContainer.
pub(super) async fn create(
    backend: &Backend,
    host: Host,
    message: cri::CreateContainerRequest,
) -> Result<cri::CreateContainerResponse, Failure> {
    let (pod, config, privileged) = convert::container_config(message, host)?;
    let id = backend.node.create_container(&pod, config, privileged).await?;
    Ok(cri::CreateContainerResponse { container_id: id.to_string() })
}

/// StartContainer.
pub(super) async fn start(
    backend: &Backend,
    cri::StartContainerRequest { container_id }: cri::StartContainerRequest,
) -> Result<cri::StartContainerResponse, Failure> {
    backend.node.start_container(&container_id).await?;
    Ok(cri::StartContainerResponse {})
}

/// StopContainer.
pub(super) async fn stop(
    backend: &Backend,
    cri::StopContainerRequest { container_id, timeout }: cri::StopContainerRequest,
) -> Result<cri::StopContainerResponse, Failure> {
    // A negative grace period means none.
    backend.node.stop_container(&container_id, timeout.max(0)).await?;
    Ok(cri::StopContainerResponse {})
}

/// RemoveContainer.
pub(super) async fn remove(
    backend: &Backend,
    cri::RemoveContainerRequest { container_id }: cri::RemoveContainerRequest,
) -> Result<cri::RemoveContainerResponse, Failure> {
    backend.node.remove_container(&container_id).await?;
    Ok(cri::RemoveContainerResponse {})
}

/// ListContainers.
pub(super) async fn list(
    backend: &Backend,
    cri::ListContainersRequest { filter }: cri::ListContainersRequest,
) -> Result<cri::ListContainersResponse, Failure> {
    let filter = ContainerFilter::new(filter)?;
    let containers = backend.node.containers();
    let listed = containers.iter().map(|container| &container.record).filter(|record| filter.matches(record));
    Ok(cri::ListContainersResponse {
        containers: listed.map(|record| convert::container_item(record)).collect(),
    })
}

/// ContainerStatus.
pub(super) async fn status(
    backend: &Backend,
    cri::ContainerStatusRequest { container_id, verbose }: cri::ContainerStatusRequest,
) -> Result<cri::ContainerStatusResponse, Failure> {
    let container = backend.node.container(&container_id)?;
    Ok(cri::ContainerStatusResponse {
        status: Some(details::status(backend, &container.record)),
        info: if verbose { details::container_info(backend, &container) } else { HashMap::new() },
    })
}

/// ReopenContainerLog.
pub(super) async fn reopen_log(
    backend: &Backend,
    cri::ReopenContainerLogRequest { container_id }: cri::ReopenContainerLogRequest,
) -> Result<cri::ReopenContainerLogResponse, Failure> {
    backend.node.reopen_log(&container_id).await?;
    Ok(cri::ReopenContainerLogResponse {})
}

/// StreamContainers.
pub(super) async fn stream(
    backend: &Backend,
    cri::StreamContainersRequest { filter }: cri::StreamContainersRequest,
) -> Result<BoxStream<cri::StreamContainersResponse>, Failure> {
    let filter = ContainerFilter::new(filter)?;
    let items = chunks::snapshot(backend.node.containers(), move |container| {
        filter.matches(&container.record).then(|| convert::container_item(&container.record))
    });
    Ok(chunks::list(items, |containers| cri::StreamContainersResponse { containers }))
}

/// GetContainerEvents.
pub(super) async fn events(
    backend: &Backend,
    cri::GetEventsRequest {}: cri::GetEventsRequest,
) -> Result<BoxStream<cri::ContainerEventResponse>, Failure> {
    let (backend, events) = (backend.clone(), backend.node.subscribe()?);
    Ok(chunks::events(events, move |event| details::event(&backend, event)))
}
