//! RuntimeService. It decides nothing itself: see `convert` and [`crate::node`].

mod containers;
mod metrics;
mod node;
mod pods;
mod resources;
mod sessions;
mod stats;

use super::convert::Host;
use super::status::Failure;
use super::{Backend, MAY_COMPLETE, NOTHING_CONTINUES, WORK_CONTINUES, handle};
use cri_api::v1 as cri;
use cri_api::v1::runtime_service_server::RuntimeService;
use std::future::{Ready, ready};
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status};

/// Implements CRI's RuntimeService.
#[derive(Debug)]
pub(super) struct Runtime {
    backend: Backend,
    host: Host,
}

impl Runtime {
    /// `host` is detected once at start: what it can do does not change until the next
    /// boot.
    pub(super) fn new(backend: Backend, host: Host) -> Self {
        Self { backend, host }
    }
}

/// The answer to a call.
type Reply<T> = Result<Response<T>, Status>;
/// The answer to a call that streams.
type Streamed<T> = Reply<BoxStream<T>>;

/// Refuses a CRI call that is not implemented.
fn refuse<T>(call: &'static str, what: &'static str) -> Ready<Result<T, Failure>> {
    ready(Err(Failure::NotImplemented { call, what }))
}

#[tonic::async_trait]
impl RuntimeService for Runtime {
    // The node.

    async fn version(&self, request: Request<cri::VersionRequest>) -> Reply<cri::VersionResponse> {
        handle("Version", request, NOTHING_CONTINUES, node::version).await
    }

    async fn status(&self, request: Request<cri::StatusRequest>) -> Reply<cri::StatusResponse> {
        handle("Status", request, NOTHING_CONTINUES, |message| {
            node::status(&self.backend, self.host, message)
        })
        .await
    }

    async fn runtime_config(
        &self,
        request: Request<cri::RuntimeConfigRequest>,
    ) -> Reply<cri::RuntimeConfigResponse> {
        handle("RuntimeConfig", request, NOTHING_CONTINUES, |message| node::config(&self.backend, message))
            .await
    }

    async fn update_runtime_config(
        &self,
        request: Request<cri::UpdateRuntimeConfigRequest>,
    ) -> Reply<cri::UpdateRuntimeConfigResponse> {
        handle("UpdateRuntimeConfig", request, NOTHING_CONTINUES, node::update_config).await
    }

    // Pods.

    async fn run_pod_sandbox(
        &self,
        request: Request<cri::RunPodSandboxRequest>,
    ) -> Reply<cri::RunPodSandboxResponse> {
        handle("RunPodSandbox", request, WORK_CONTINUES, |message| {
            pods::run(&self.backend, self.host, message)
        })
        .await
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<cri::StopPodSandboxRequest>,
    ) -> Reply<cri::StopPodSandboxResponse> {
        handle("StopPodSandbox", request, WORK_CONTINUES, |message| pods::stop(&self.backend, message)).await
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<cri::RemovePodSandboxRequest>,
    ) -> Reply<cri::RemovePodSandboxResponse> {
        handle("RemovePodSandbox", request, WORK_CONTINUES, |message| pods::remove(&self.backend, message))
            .await
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<cri::PodSandboxStatusRequest>,
    ) -> Reply<cri::PodSandboxStatusResponse> {
        handle("PodSandboxStatus", request, NOTHING_CONTINUES, |message| pods::status(&self.backend, message))
            .await
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<cri::ListPodSandboxRequest>,
    ) -> Reply<cri::ListPodSandboxResponse> {
        handle("ListPodSandbox", request, NOTHING_CONTINUES, |message| pods::list(&self.backend, message))
            .await
    }

    type StreamPodSandboxesStream = BoxStream<cri::StreamPodSandboxesResponse>;
    async fn stream_pod_sandboxes(
        &self,
        request: Request<cri::StreamPodSandboxesRequest>,
    ) -> Streamed<cri::StreamPodSandboxesResponse> {
        handle("StreamPodSandboxes", request, NOTHING_CONTINUES, |message| {
            pods::stream(&self.backend, message)
        })
        .await
    }

    // Containers.

    async fn create_container(
        &self,
        request: Request<cri::CreateContainerRequest>,
    ) -> Reply<cri::CreateContainerResponse> {
        handle("CreateContainer", request, WORK_CONTINUES, |message| {
            containers::create(&self.backend, self.host, message)
        })
        .await
    }

    async fn start_container(
        &self,
        request: Request<cri::StartContainerRequest>,
    ) -> Reply<cri::StartContainerResponse> {
        handle("StartContainer", request, WORK_CONTINUES, |message| containers::start(&self.backend, message))
            .await
    }

    async fn stop_container(
        &self,
        request: Request<cri::StopContainerRequest>,
    ) -> Reply<cri::StopContainerResponse> {
        handle("StopContainer", request, WORK_CONTINUES, |message| containers::stop(&self.backend, message))
            .await
    }

    async fn remove_container(
        &self,
        request: Request<cri::RemoveContainerRequest>,
    ) -> Reply<cri::RemoveContainerResponse> {
        handle("RemoveContainer", request, WORK_CONTINUES, |message| {
            containers::remove(&self.backend, message)
        })
        .await
    }

    async fn list_containers(
        &self,
        request: Request<cri::ListContainersRequest>,
    ) -> Reply<cri::ListContainersResponse> {
        handle("ListContainers", request, NOTHING_CONTINUES, |message| {
            containers::list(&self.backend, message)
        })
        .await
    }

    async fn container_status(
        &self,
        request: Request<cri::ContainerStatusRequest>,
    ) -> Reply<cri::ContainerStatusResponse> {
        handle("ContainerStatus", request, NOTHING_CONTINUES, |message| {
            containers::status(&self.backend, message)
        })
        .await
    }

    async fn reopen_container_log(
        &self,
        request: Request<cri::ReopenContainerLogRequest>,
    ) -> Reply<cri::ReopenContainerLogResponse> {
        handle("ReopenContainerLog", request, MAY_COMPLETE, |message| {
            containers::reopen_log(&self.backend, message)
        })
        .await
    }

    type StreamContainersStream = BoxStream<cri::StreamContainersResponse>;
    async fn stream_containers(
        &self,
        request: Request<cri::StreamContainersRequest>,
    ) -> Streamed<cri::StreamContainersResponse> {
        handle("StreamContainers", request, NOTHING_CONTINUES, |message| {
            containers::stream(&self.backend, message)
        })
        .await
    }

    type GetContainerEventsStream = BoxStream<cri::ContainerEventResponse>;
    async fn get_container_events(
        &self,
        request: Request<cri::GetEventsRequest>,
    ) -> Streamed<cri::ContainerEventResponse> {
        handle("GetContainerEvents", request, NOTHING_CONTINUES, |message| {
            containers::events(&self.backend, message)
        })
        .await
    }

    // Commands and streams.

    async fn exec_sync(&self, request: Request<cri::ExecSyncRequest>) -> Reply<cri::ExecSyncResponse> {
        handle("ExecSync", request, "the command is killed", |message| {
            sessions::exec_sync(&self.backend, message)
        })
        .await
    }

    async fn exec(&self, request: Request<cri::ExecRequest>) -> Reply<cri::ExecResponse> {
        handle("Exec", request, NOTHING_CONTINUES, |message| sessions::exec(&self.backend, message)).await
    }

    async fn attach(&self, request: Request<cri::AttachRequest>) -> Reply<cri::AttachResponse> {
        handle("Attach", request, NOTHING_CONTINUES, |message| sessions::attach(&self.backend, message)).await
    }

    async fn port_forward(
        &self,
        request: Request<cri::PortForwardRequest>,
    ) -> Reply<cri::PortForwardResponse> {
        handle("PortForward", request, NOTHING_CONTINUES, |message| {
            sessions::port_forward(&self.backend, message)
        })
        .await
    }

    // Statistics.

    async fn container_stats(
        &self,
        request: Request<cri::ContainerStatsRequest>,
    ) -> Reply<cri::ContainerStatsResponse> {
        handle("ContainerStats", request, NOTHING_CONTINUES, |message| {
            stats::container(&self.backend, message)
        })
        .await
    }

    async fn list_container_stats(
        &self,
        request: Request<cri::ListContainerStatsRequest>,
    ) -> Reply<cri::ListContainerStatsResponse> {
        handle("ListContainerStats", request, NOTHING_CONTINUES, |message| {
            stats::containers(&self.backend, message)
        })
        .await
    }

    type StreamContainerStatsStream = BoxStream<cri::StreamContainerStatsResponse>;
    async fn stream_container_stats(
        &self,
        request: Request<cri::StreamContainerStatsRequest>,
    ) -> Streamed<cri::StreamContainerStatsResponse> {
        handle("StreamContainerStats", request, NOTHING_CONTINUES, |message| {
            stats::stream_containers(&self.backend, message)
        })
        .await
    }

    async fn pod_sandbox_stats(
        &self,
        request: Request<cri::PodSandboxStatsRequest>,
    ) -> Reply<cri::PodSandboxStatsResponse> {
        handle("PodSandboxStats", request, NOTHING_CONTINUES, |message| stats::pod(&self.backend, message))
            .await
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: Request<cri::ListPodSandboxStatsRequest>,
    ) -> Reply<cri::ListPodSandboxStatsResponse> {
        handle("ListPodSandboxStats", request, NOTHING_CONTINUES, |message| {
            stats::pods(&self.backend, message)
        })
        .await
    }

    type StreamPodSandboxStatsStream = BoxStream<cri::StreamPodSandboxStatsResponse>;
    async fn stream_pod_sandbox_stats(
        &self,
        request: Request<cri::StreamPodSandboxStatsRequest>,
    ) -> Streamed<cri::StreamPodSandboxStatsResponse> {
        handle("StreamPodSandboxStats", request, NOTHING_CONTINUES, |message| {
            stats::stream_pods(&self.backend, message)
        })
        .await
    }

    // Metrics.

    async fn list_metric_descriptors(
        &self,
        request: Request<cri::ListMetricDescriptorsRequest>,
    ) -> Reply<cri::ListMetricDescriptorsResponse> {
        handle("ListMetricDescriptors", request, NOTHING_CONTINUES, |message| {
            metrics::descriptors(&self.backend, message)
        })
        .await
    }

    async fn list_pod_sandbox_metrics(
        &self,
        request: Request<cri::ListPodSandboxMetricsRequest>,
    ) -> Reply<cri::ListPodSandboxMetricsResponse> {
        handle("ListPodSandboxMetrics", request, NOTHING_CONTINUES, |message| {
            metrics::list(&self.backend, message)
        })
        .await
    }

    type StreamPodSandboxMetricsStream = BoxStream<cri::StreamPodSandboxMetricsResponse>;
    async fn stream_pod_sandbox_metrics(
        &self,
        request: Request<cri::StreamPodSandboxMetricsRequest>,
    ) -> Streamed<cri::StreamPodSandboxMetricsResponse> {
        handle("StreamPodSandboxMetrics", request, NOTHING_CONTINUES, |message| {
            metrics::stream(&self.backend, message)
        })
        .await
    }

    // Resources of what exists.

    async fn update_container_resources(
        &self,
        request: Request<cri::UpdateContainerResourcesRequest>,
    ) -> Reply<cri::UpdateContainerResourcesResponse> {
        handle("UpdateContainerResources", request, MAY_COMPLETE, |message| {
            resources::update_container(&self.backend, message)
        })
        .await
    }

    async fn update_pod_sandbox_resources(
        &self,
        request: Request<cri::UpdatePodSandboxResourcesRequest>,
    ) -> Reply<cri::UpdatePodSandboxResourcesResponse> {
        handle("UpdatePodSandboxResources", request, MAY_COMPLETE, |message| {
            resources::update_pod(&self.backend, message)
        })
        .await
    }

    // Checkpoints.

    async fn checkpoint_container(
        &self,
        request: Request<cri::CheckpointContainerRequest>,
    ) -> Reply<cri::CheckpointContainerResponse> {
        handle("CheckpointContainer", request, NOTHING_CONTINUES, |_| {
            refuse("CheckpointContainer", "checkpoints")
        })
        .await
    }

    async fn checkpoint_pod(
        &self,
        request: Request<cri::CheckpointPodRequest>,
    ) -> Reply<cri::CheckpointPodResponse> {
        handle("CheckpointPod", request, NOTHING_CONTINUES, |_| refuse("CheckpointPod", "checkpoints")).await
    }

    async fn restore_pod(&self, request: Request<cri::RestorePodRequest>) -> Reply<cri::RestorePodResponse> {
        handle("RestorePod", request, NOTHING_CONTINUES, |_| refuse("RestorePod", "checkpoints")).await
    }
}
