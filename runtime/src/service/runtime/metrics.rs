//! Metrics.

use super::super::status::Failure;
use super::super::{Backend, chunks};
use cri_api::v1 as cri;
use tonic::codegen::BoxStream;

/// ListMetricDescriptors.
pub(super) async fn descriptors(
    backend: &Backend,
    cri::ListMetricDescriptorsRequest {}: cri::ListMetricDescriptorsRequest,
) -> Result<cri::ListMetricDescriptorsResponse, Failure> {
    Ok(cri::ListMetricDescriptorsResponse { descriptors: backend.metrics.descriptors() })
}

/// ListPodSandboxMetrics.
pub(super) async fn list(
    backend: &Backend,
    cri::ListPodSandboxMetricsRequest {}: cri::ListPodSandboxMetricsRequest,
) -> Result<cri::ListPodSandboxMetricsResponse, Failure> {
    let metrics = backend.metrics.read(backend.node.pods(), backend.node.containers()).await?;
    Ok(cri::ListPodSandboxMetricsResponse { pod_metrics: metrics.collect() })
}

/// StreamPodSandboxMetrics.
pub(super) async fn stream(
    backend: &Backend,
    cri::StreamPodSandboxMetricsRequest {}: cri::StreamPodSandboxMetricsRequest,
) -> Result<BoxStream<cri::StreamPodSandboxMetricsResponse>, Failure> {
    let metrics = backend.metrics.read(backend.node.pods(), backend.node.containers()).await?;
    Ok(chunks::list(metrics, |pod_sandbox_metrics| cri::StreamPodSandboxMetricsResponse {
        pod_sandbox_metrics,
    }))
}
