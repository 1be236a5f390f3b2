//! RuntimeService. It decides nothing itself: see `convert` and [`crate::node`].

use super::convert::{self, ContainerFilter, Host, PodFilter};
use super::status::Failure;
use super::{Backend, MAY_COMPLETE, NOTHING_CONTINUES, WORK_CONTINUES, details, handle, health, streams};
use crate::lanes;
use crate::node::{ContainerView, PodWithContainers};
use cri_api::v1 as cri;
use cri_api::v1::runtime_service_server::RuntimeService;
use std::collections::HashMap;
use std::sync::Arc;
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status};

/// Implements CRI's RuntimeService.
#[derive(Debug)]
pub(super) struct Runtime {
    backend: Backend,
    host: Host,
}

impl Runtime {
    /// `host` is detected once at start: which security modules are enforced does not change until the next
    /// boot.
    pub(super) fn new(backend: Backend, host: Host) -> Self {
        Self { backend, host }
    }

    /// The containers that a filter of stats selects.
    fn wanted(&self, filter: Option<cri::ContainerStatsFilter>) -> Vec<Arc<ContainerView>> {
        let filter = ContainerFilter::for_stats(filter);
        let containers = self.backend.node.containers();
        containers.iter().filter(|container| filter.matches(&container.record)).cloned().collect()
    }

    /// Stats of `wanted`, of which those that are not running have no values. They are read now and converted as they are
    /// taken.
    async fn stats(&self, wanted: Vec<Arc<ContainerView>>) -> Result<Items<cri::ContainerStats>, Failure> {
        let (stats, all) = (Arc::clone(&self.backend.stats), self.backend.node.containers());
        let store = self.backend.images.root();
        let read = lanes::stats().run(move || (stats.collect(&wanted, &all), wanted));
        let (read, wanted) = read.await.map_err(crate::error::Error::from)?;
        Ok(Box::new(wanted.into_iter().zip(read).map(move |(container, stats)| {
            convert::container_stats(&container.record, stats.as_ref(), &store)
        })))
    }
}

/// Parts of a list, which are made as they are taken.
type Items<T> = Box<dyn Iterator<Item = T> + Send>;

/// The answer to a call that streams.
type Streamed<T> = Result<Response<BoxStream<T>>, Status>;

/// What is missing in the calls for metrics. kubelet makes them only with this feature gate.
const NO_METRICS: &str =
    "CRI metrics; kubelet exports cAdvisor's if its feature gate PodAndContainerStatsFromCRI is off";

/// A CRI call that is not implemented.
macro_rules! not_implemented {
    ($request:ident, $call:literal, $what:expr) => {
        handle($call, $request.metadata(), NOTHING_CONTINUES, async {
            Err(Failure::NotImplemented { call: $call, what: $what })
        })
        .await
    };
}

#[tonic::async_trait]
impl RuntimeService for Runtime {
    async fn version(
        &self,
        request: Request<cri::VersionRequest>,
    ) -> Result<Response<cri::VersionResponse>, Status> {
        handle("Version", request.metadata(), NOTHING_CONTINUES, async { Ok(health::version()) }).await
    }

    async fn status(
        &self,
        request: Request<cri::StatusRequest>,
    ) -> Result<Response<cri::StatusResponse>, Status> {
        let cri::StatusRequest { verbose } = *request.get_ref();
        let Backend { cni, config, root, .. } = &self.backend;
        handle("Status", request.metadata(), NOTHING_CONTINUES, async {
            Ok(health::status(&cni.readiness(), root.problem().as_ref(), &config.borrow(), verbose))
        })
        .await
    }

    async fn runtime_config(
        &self,
        request: Request<cri::RuntimeConfigRequest>,
    ) -> Result<Response<cri::RuntimeConfigResponse>, Status> {
        handle("RuntimeConfig", request.metadata(), NOTHING_CONTINUES, async { Ok(health::runtime_config()) })
            .await
    }

    async fn update_runtime_config(
        &self,
        request: Request<cri::UpdateRuntimeConfigRequest>,
    ) -> Result<Response<cri::UpdateRuntimeConfigResponse>, Status> {
        let (metadata, _, cri::UpdateRuntimeConfigRequest { runtime_config }) = request.into_parts();
        // The pod CIDR is configured in the CNI configuration, but kubelet expects this call to succeed.
        let cidr = runtime_config.and_then(|cri::RuntimeConfig { network_config }| network_config);
        handle("UpdateRuntimeConfig", &metadata, NOTHING_CONTINUES, async {
            if let Some(cri::NetworkConfig { pod_cidr }) = cidr {
                tracing::info!(
                    pod_cidr,
                    "kubelet sent a pod CIDR; it is ignored, as the CNI configuration assigns addresses"
                );
            }
            Ok(cri::UpdateRuntimeConfigResponse {})
        })
        .await
    }

    async fn run_pod_sandbox(
        &self,
        request: Request<cri::RunPodSandboxRequest>,
    ) -> Result<Response<cri::RunPodSandboxResponse>, Status> {
        let (metadata, _, message) = request.into_parts();
        handle("RunPodSandbox", &metadata, WORK_CONTINUES, async {
            let config = convert::run_request(message, self.host)?;
            let id = self.backend.node.run_pod(config).await?;
            Ok(cri::RunPodSandboxResponse { pod_sandbox_id: id.to_string() })
        })
        .await
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<cri::StopPodSandboxRequest>,
    ) -> Result<Response<cri::StopPodSandboxResponse>, Status> {
        let (metadata, _, cri::StopPodSandboxRequest { pod_sandbox_id }) = request.into_parts();
        handle("StopPodSandbox", &metadata, WORK_CONTINUES, async {
            self.backend.node.stop_pod(&pod_sandbox_id).await?;
            Ok(cri::StopPodSandboxResponse {})
        })
        .await
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<cri::RemovePodSandboxRequest>,
    ) -> Result<Response<cri::RemovePodSandboxResponse>, Status> {
        let (metadata, _, cri::RemovePodSandboxRequest { pod_sandbox_id }) = request.into_parts();
        handle("RemovePodSandbox", &metadata, WORK_CONTINUES, async {
            self.backend.node.remove_pod(&pod_sandbox_id).await?;
            Ok(cri::RemovePodSandboxResponse {})
        })
        .await
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<cri::PodSandboxStatusRequest>,
    ) -> Result<Response<cri::PodSandboxStatusResponse>, Status> {
        let (metadata, _, cri::PodSandboxStatusRequest { pod_sandbox_id, verbose }) = request.into_parts();
        handle("PodSandboxStatus", &metadata, NOTHING_CONTINUES, async {
            let PodWithContainers { pod, containers, at } =
                self.backend.node.pod_with_containers(&pod_sandbox_id)?;
            let containers = details::statuses(&self.backend, &containers);
            Ok(cri::PodSandboxStatusResponse {
                status: Some(convert::pod_status(&pod.record)),
                info: if verbose { details::pod_info(&pod) } else { HashMap::new() },
                // Without a time, kubelet asks for each container instead.
                timestamp: if containers.is_some() { at } else { 0 },
                containers_statuses: containers.unwrap_or_default(),
            })
        })
        .await
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<cri::ListPodSandboxRequest>,
    ) -> Result<Response<cri::ListPodSandboxResponse>, Status> {
        let (metadata, _, cri::ListPodSandboxRequest { filter }) = request.into_parts();
        handle("ListPodSandbox", &metadata, NOTHING_CONTINUES, async {
            let filter = PodFilter::new(filter)?;
            let pods = self.backend.node.pods();
            let items = pods
                .iter()
                .filter(|pod| filter.matches(&pod.record))
                .map(|pod| convert::pod_item(&pod.record));
            Ok(cri::ListPodSandboxResponse { items: items.collect() })
        })
        .await
    }

    async fn create_container(
        &self,
        request: Request<cri::CreateContainerRequest>,
    ) -> Result<Response<cri::CreateContainerResponse>, Status> {
        let (metadata, _, message) = request.into_parts();
        handle("CreateContainer", &metadata, WORK_CONTINUES, async {
            let (pod, config) = convert::container_config(message, self.host)?;
            let id = self.backend.node.create_container(&pod, config).await?;
            Ok(cri::CreateContainerResponse { container_id: id.to_string() })
        })
        .await
    }

    async fn start_container(
        &self,
        request: Request<cri::StartContainerRequest>,
    ) -> Result<Response<cri::StartContainerResponse>, Status> {
        let (metadata, _, cri::StartContainerRequest { container_id }) = request.into_parts();
        handle("StartContainer", &metadata, WORK_CONTINUES, async {
            self.backend.node.start_container(&container_id).await?;
            Ok(cri::StartContainerResponse {})
        })
        .await
    }

    async fn stop_container(
        &self,
        request: Request<cri::StopContainerRequest>,
    ) -> Result<Response<cri::StopContainerResponse>, Status> {
        let (metadata, _, cri::StopContainerRequest { container_id, timeout }) = request.into_parts();
        handle("StopContainer", &metadata, WORK_CONTINUES, async {
            // A negative grace period means none.
            self.backend.node.stop_container(&container_id, timeout.max(0)).await?;
            Ok(cri::StopContainerResponse {})
        })
        .await
    }

    async fn remove_container(
        &self,
        request: Request<cri::RemoveContainerRequest>,
    ) -> Result<Response<cri::RemoveContainerResponse>, Status> {
        let (metadata, _, cri::RemoveContainerRequest { container_id }) = request.into_parts();
        handle("RemoveContainer", &metadata, WORK_CONTINUES, async {
            self.backend.node.remove_container(&container_id).await?;
            Ok(cri::RemoveContainerResponse {})
        })
        .await
    }

    async fn list_containers(
        &self,
        request: Request<cri::ListContainersRequest>,
    ) -> Result<Response<cri::ListContainersResponse>, Status> {
        let (metadata, _, cri::ListContainersRequest { filter }) = request.into_parts();
        handle("ListContainers", &metadata, NOTHING_CONTINUES, async {
            let filter = ContainerFilter::new(filter)?;
            let containers = self.backend.node.containers();
            let listed =
                containers.iter().map(|container| &container.record).filter(|record| filter.matches(record));
            Ok(cri::ListContainersResponse {
                containers: listed.map(|record| convert::container_item(record)).collect(),
            })
        })
        .await
    }

    async fn container_status(
        &self,
        request: Request<cri::ContainerStatusRequest>,
    ) -> Result<Response<cri::ContainerStatusResponse>, Status> {
        let (metadata, _, cri::ContainerStatusRequest { container_id, verbose }) = request.into_parts();
        handle("ContainerStatus", &metadata, NOTHING_CONTINUES, async {
            let container = self.backend.node.container(&container_id)?;
            Ok(cri::ContainerStatusResponse {
                status: Some(details::status(&self.backend, &container.record)),
                info: if verbose { details::container_info(&container) } else { HashMap::new() },
            })
        })
        .await
    }

    async fn reopen_container_log(
        &self,
        request: Request<cri::ReopenContainerLogRequest>,
    ) -> Result<Response<cri::ReopenContainerLogResponse>, Status> {
        let (metadata, _, cri::ReopenContainerLogRequest { container_id }) = request.into_parts();
        handle("ReopenContainerLog", &metadata, MAY_COMPLETE, async {
            self.backend.node.reopen_log(&container_id).await?;
            Ok(cri::ReopenContainerLogResponse {})
        })
        .await
    }

    async fn exec_sync(
        &self,
        request: Request<cri::ExecSyncRequest>,
    ) -> Result<Response<cri::ExecSyncResponse>, Status> {
        let (metadata, _, message) = request.into_parts();
        handle("ExecSync", &metadata, "the command is killed", async {
            let (container, cmd, timeout) = convert::exec_sync(message)?;
            let output = self.backend.node.exec_sync(&container, cmd, timeout).await?;
            Ok(cri::ExecSyncResponse {
                stdout: output.stdout,
                stderr: output.stderr,
                exit_code: output.exit_code,
            })
        })
        .await
    }

    async fn container_stats(
        &self,
        request: Request<cri::ContainerStatsRequest>,
    ) -> Result<Response<cri::ContainerStatsResponse>, Status> {
        let (metadata, _, cri::ContainerStatsRequest { container_id }) = request.into_parts();
        handle("ContainerStats", &metadata, NOTHING_CONTINUES, async {
            let container = self.backend.node.container(&container_id)?;
            Ok(cri::ContainerStatsResponse { stats: self.stats(vec![container]).await?.next() })
        })
        .await
    }

    async fn list_container_stats(
        &self,
        request: Request<cri::ListContainerStatsRequest>,
    ) -> Result<Response<cri::ListContainerStatsResponse>, Status> {
        let (metadata, _, cri::ListContainerStatsRequest { filter }) = request.into_parts();
        handle("ListContainerStats", &metadata, NOTHING_CONTINUES, async {
            Ok(cri::ListContainerStatsResponse { stats: self.stats(self.wanted(filter)).await?.collect() })
        })
        .await
    }

    type StreamPodSandboxesStream = BoxStream<cri::StreamPodSandboxesResponse>;
    async fn stream_pod_sandboxes(
        &self,
        request: Request<cri::StreamPodSandboxesRequest>,
    ) -> Streamed<cri::StreamPodSandboxesResponse> {
        let (metadata, _, cri::StreamPodSandboxesRequest { filter }) = request.into_parts();
        handle("StreamPodSandboxes", &metadata, NOTHING_CONTINUES, async {
            let filter = PodFilter::new(filter)?;
            let items = streams::snapshot(self.backend.node.pods(), move |pod| {
                filter.matches(&pod.record).then(|| convert::pod_item(&pod.record))
            });
            Ok(streams::chunks(items, |pod_sandboxes| cri::StreamPodSandboxesResponse { pod_sandboxes }))
        })
        .await
    }

    type StreamContainersStream = BoxStream<cri::StreamContainersResponse>;
    async fn stream_containers(
        &self,
        request: Request<cri::StreamContainersRequest>,
    ) -> Streamed<cri::StreamContainersResponse> {
        let (metadata, _, cri::StreamContainersRequest { filter }) = request.into_parts();
        handle("StreamContainers", &metadata, NOTHING_CONTINUES, async {
            let filter = ContainerFilter::new(filter)?;
            let items = streams::snapshot(self.backend.node.containers(), move |container| {
                filter.matches(&container.record).then(|| convert::container_item(&container.record))
            });
            Ok(streams::chunks(items, |containers| cri::StreamContainersResponse { containers }))
        })
        .await
    }

    type StreamContainerStatsStream = BoxStream<cri::StreamContainerStatsResponse>;
    async fn stream_container_stats(
        &self,
        request: Request<cri::StreamContainerStatsRequest>,
    ) -> Streamed<cri::StreamContainerStatsResponse> {
        let (metadata, _, cri::StreamContainerStatsRequest { filter }) = request.into_parts();
        handle("StreamContainerStats", &metadata, NOTHING_CONTINUES, async {
            let stats = self.stats(self.wanted(filter)).await?;
            Ok(streams::chunks(stats, |container_stats| cri::StreamContainerStatsResponse {
                container_stats,
            }))
        })
        .await
    }

    type GetContainerEventsStream = BoxStream<cri::ContainerEventResponse>;
    async fn get_container_events(
        &self,
        request: Request<cri::GetEventsRequest>,
    ) -> Streamed<cri::ContainerEventResponse> {
        let (metadata, _, cri::GetEventsRequest {}) = request.into_parts();
        handle("GetContainerEvents", &metadata, NOTHING_CONTINUES, async {
            let (backend, events) = (self.backend.clone(), self.backend.node.subscribe()?);
            Ok(streams::events(events, move |event| details::event(&backend, event)))
        })
        .await
    }

    // The calls below are not implemented yet. What kubelet 1.37 does without them:
    // - PodSandboxStats, ListPodSandboxStats: it uses cAdvisor's stats of pods.
    // - UpdatePodSandboxResources: it resizes the containers without this call.
    // - UpdateContainerResources: in-place resizes and the CPU manager's cpusets fail.
    // - Exec, Attach, PortForward: `kubectl exec`, `attach` and `port-forward` fail. Checkpoints fail too.
    // - List*Metric*: it calls them only with its feature gate PodAndContainerStatsFromCRI; /metrics/cadvisor then has
    //   none of containers.

    async fn update_container_resources(
        &self,
        request: Request<cri::UpdateContainerResourcesRequest>,
    ) -> Result<Response<cri::UpdateContainerResourcesResponse>, Status> {
        not_implemented!(request, "UpdateContainerResources", "changing limits of a container that exists")
    }

    async fn exec(&self, request: Request<cri::ExecRequest>) -> Result<Response<cri::ExecResponse>, Status> {
        let (metadata, _, message) = request.into_parts();
        handle("Exec", &metadata, NOTHING_CONTINUES, async {
            let (container, cmd, streams) = convert::exec(message)?;
            let command = self.backend.node.exec(&container, cmd, streams).await?;
            Ok(cri::ExecResponse { url: self.backend.urls.exec(streams, Box::new(command))? })
        })
        .await
    }

    async fn attach(
        &self,
        request: Request<cri::AttachRequest>,
    ) -> Result<Response<cri::AttachResponse>, Status> {
        let (metadata, _, message) = request.into_parts();
        handle("Attach", &metadata, NOTHING_CONTINUES, async {
            let (container, streams) = convert::attach(message)?;
            let command = self.backend.node.attach(&container, streams).await?;
            Ok(cri::AttachResponse { url: self.backend.urls.attach(streams, Box::new(command))? })
        })
        .await
    }

    async fn port_forward(
        &self,
        request: Request<cri::PortForwardRequest>,
    ) -> Result<Response<cri::PortForwardResponse>, Status> {
        let (metadata, _, message) = request.into_parts();
        handle("PortForward", &metadata, NOTHING_CONTINUES, async {
            let (pod, ports) = convert::port_forward(message)?;
            let network = self.backend.node.network(&pod)?;
            Ok(cri::PortForwardResponse { url: self.backend.urls.forward(ports, Arc::new(network))? })
        })
        .await
    }

    async fn pod_sandbox_stats(
        &self,
        request: Request<cri::PodSandboxStatsRequest>,
    ) -> Result<Response<cri::PodSandboxStatsResponse>, Status> {
        not_implemented!(request, "PodSandboxStats", "stats of pods; use ContainerStats")
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: Request<cri::ListPodSandboxStatsRequest>,
    ) -> Result<Response<cri::ListPodSandboxStatsResponse>, Status> {
        not_implemented!(request, "ListPodSandboxStats", "stats of pods; use ListContainerStats")
    }

    type StreamPodSandboxStatsStream = BoxStream<cri::StreamPodSandboxStatsResponse>;
    async fn stream_pod_sandbox_stats(
        &self,
        request: Request<cri::StreamPodSandboxStatsRequest>,
    ) -> Streamed<cri::StreamPodSandboxStatsResponse> {
        not_implemented!(request, "StreamPodSandboxStats", "stats of pods; use ListContainerStats")
    }

    async fn checkpoint_container(
        &self,
        request: Request<cri::CheckpointContainerRequest>,
    ) -> Result<Response<cri::CheckpointContainerResponse>, Status> {
        not_implemented!(request, "CheckpointContainer", "checkpoints")
    }

    async fn checkpoint_pod(
        &self,
        request: Request<cri::CheckpointPodRequest>,
    ) -> Result<Response<cri::CheckpointPodResponse>, Status> {
        not_implemented!(request, "CheckpointPod", "checkpoints")
    }

    async fn restore_pod(
        &self,
        request: Request<cri::RestorePodRequest>,
    ) -> Result<Response<cri::RestorePodResponse>, Status> {
        not_implemented!(request, "RestorePod", "checkpoints")
    }

    async fn list_metric_descriptors(
        &self,
        request: Request<cri::ListMetricDescriptorsRequest>,
    ) -> Result<Response<cri::ListMetricDescriptorsResponse>, Status> {
        not_implemented!(request, "ListMetricDescriptors", NO_METRICS)
    }

    async fn list_pod_sandbox_metrics(
        &self,
        request: Request<cri::ListPodSandboxMetricsRequest>,
    ) -> Result<Response<cri::ListPodSandboxMetricsResponse>, Status> {
        not_implemented!(request, "ListPodSandboxMetrics", NO_METRICS)
    }

    type StreamPodSandboxMetricsStream = BoxStream<cri::StreamPodSandboxMetricsResponse>;
    async fn stream_pod_sandbox_metrics(
        &self,
        request: Request<cri::StreamPodSandboxMetricsRequest>,
    ) -> Streamed<cri::StreamPodSandboxMetricsResponse> {
        not_implemented!(request, "StreamPodSandboxMetrics", NO_METRICS)
    }

    async fn update_pod_sandbox_resources(
        &self,
        request: Request<cri::UpdatePodSandboxResourcesRequest>,
    ) -> Result<Response<cri::UpdatePodSandboxResourcesResponse>, Status> {
        not_implemented!(request, "UpdatePodSandboxResources", "changing limits of a pod that exists")
    }
}
