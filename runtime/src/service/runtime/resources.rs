//! Calls that change resources of what exists.

use super::super::status::Failure;
use super::super::{Backend, convert};
use cri_api::v1 as cri;

/// UpdateContainerResources.
pub(super) async fn update_container(
    backend: &Backend,
    message: cri::UpdateContainerResourcesRequest,
) -> Result<cri::UpdateContainerResourcesResponse, Failure> {
    let (container, update) = convert::update_container(message)?;
    backend.node.update_container(&container, update).await?;
    Ok(cri::UpdateContainerResourcesResponse {})
}

/// UpdatePodSandboxResources. kubelet calls it before it changes the pod's cgroup itself.
pub(super) async fn update_pod(
    backend: &Backend,
    message: cri::UpdatePodSandboxResourcesRequest,
) -> Result<cri::UpdatePodSandboxResourcesResponse, Failure> {
    let (pod, resources) = convert::update_pod(message)?;
    backend.node.update_pod(&pod, resources).await?;
    Ok(cri::UpdatePodSandboxResourcesResponse {})
}
