//! Calls about pods.

use super::super::convert::{self, Host, PodFilter};
use super::super::status::Failure;
use super::super::{Backend, chunks, details};
use crate::node::PodWithContainers;
use cri_api::v1 as cri;
use std::collections::HashMap;
use tonic::codegen::BoxStream;

/// RunPodSandbox.
pub(super) async fn run(
    backend: &Backend,
    host: Host,
    message: cri::RunPodSandboxRequest,
) -> Result<cri::RunPodSandboxResponse, Failure> {
    let config = convert::run_request(message, host)?;
    if config.security.namespaces.mapping().is_some() {
        backend.user_namespaces.check()?;
    }
    let id = backend.node.run_pod(config).await?;
    Ok(cri::RunPodSandboxResponse { pod_sandbox_id: id.to_string() })
}

/// StopPodSandbox.
pub(super) async fn stop(
    backend: &Backend,
    cri::StopPodSandboxRequest { pod_sandbox_id }: cri::StopPodSandboxRequest,
) -> Result<cri::StopPodSandboxResponse, Failure> {
    backend.node.stop_pod(&pod_sandbox_id).await?;
    Ok(cri::StopPodSandboxResponse {})
}

/// RemovePodSandbox.
pub(super) async fn remove(
    backend: &Backend,
    cri::RemovePodSandboxRequest { pod_sandbox_id }: cri::RemovePodSandboxRequest,
) -> Result<cri::RemovePodSandboxResponse, Failure> {
    backend.node.remove_pod(&pod_sandbox_id).await?;
    Ok(cri::RemovePodSandboxResponse {})
}

/// PodSandboxStatus.
pub(super) async fn status(
    backend: &Backend,
    cri::PodSandboxStatusRequest { pod_sandbox_id, verbose }: cri::PodSandboxStatusRequest,
) -> Result<cri::PodSandboxStatusResponse, Failure> {
    let PodWithContainers { pod, containers } = backend.node.pod_with_containers(&pod_sandbox_id)?;
    let containers = details::statuses(backend, &containers);
    Ok(cri::PodSandboxStatusResponse {
        status: Some(convert::pod_status(&pod.record)),
        info: if verbose { details::pod_info(&pod) } else { HashMap::new() },
        // With a time, kubelet 1.37 with the gate EventedPLEG takes the statuses from here and leaves its list of the
        // current sandbox's containers empty: it runs init containers again and again, and starts a second sidecar.
        // Without one it asks for each container instead.
        timestamp: 0,
        containers_statuses: containers.unwrap_or_default(),
    })
}

/// ListPodSandbox.
pub(super) async fn list(
    backend: &Backend,
    cri::ListPodSandboxRequest { filter }: cri::ListPodSandboxRequest,
) -> Result<cri::ListPodSandboxResponse, Failure> {
    let filter = PodFilter::new(filter)?;
    let pods = backend.node.pods();
    let items =
        pods.iter().filter(|pod| filter.matches(&pod.record)).map(|pod| convert::pod_item(&pod.record));
    Ok(cri::ListPodSandboxResponse { items: items.collect() })
}

/// StreamPodSandboxes.
pub(super) async fn stream(
    backend: &Backend,
    cri::StreamPodSandboxesRequest { filter }: cri::StreamPodSandboxesRequest,
) -> Result<BoxStream<cri::StreamPodSandboxesResponse>, Failure> {
    let filter = PodFilter::new(filter)?;
    let items = chunks::snapshot(backend.node.pods(), move |pod| {
        filter.matches(&pod.record).then(|| convert::pod_item(&pod.record))
    });
    Ok(chunks::list(items, |pod_sandboxes| cri::StreamPodSandboxesResponse { pod_sandboxes }))
}
