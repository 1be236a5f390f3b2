//! The CRI client: gRPC over a unix socket, with a time limit on every call.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use cri_api::v1::image_service_client::ImageServiceClient;
use cri_api::v1::runtime_service_client::RuntimeServiceClient;
use cri_api::v1::{self as api, ContainerState};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use crate::expect::ensure;
use crate::{made, wait};

/// Time limit of a call unless a test sets another; kubelet's is 2 minutes.
const LIMIT: Duration = Duration::from_secs(60);
/// kubelet's receive limit.
const MAX_MESSAGE: usize = 16 << 20;

/// Result of a call: many tests check the gRPC status.
pub(crate) type Answer<T> = std::result::Result<T, Status>;

/// A client; cloning shares the connection.
#[derive(Debug, Clone)]
pub(crate) struct Cri {
    /// Runtime service, for calls without a shortcut.
    pub(crate) runtime: RuntimeServiceClient<Channel>,
    /// Image service, for calls without a shortcut.
    pub(crate) images: ImageServiceClient<Channel>,
}

/// Output of [`Cri::exec`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Output {
    /// Standard output as text.
    pub(crate) stdout: String,
    /// Standard error as text.
    pub(crate) stderr: String,
    /// Exit code.
    pub(crate) code: i32,
}

/// A request with a deadline, which is also sent to the server.
pub(crate) fn bounded<T>(message: T, limit: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(limit);
    request
}

/// A channel to the server on a unix socket, which is connected to when a call is made.
pub(crate) fn channel(socket: &Path) -> Result<Channel> {
    let socket = socket.to_owned();
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    Ok(Endpoint::try_from("http://localhost")?.connect_with_connector_lazy(connector))
}

/// Makes one call with the usual time limit.
macro_rules! call {
    ($client:expr, $method:ident, $message:expr) => {
        call!($client, $method, $message, LIMIT)
    };
    ($client:expr, $method:ident, $message:expr, $limit:expr) => {{
        let limit = wait::longer($limit);
        match tokio::time::timeout(
            limit + Duration::from_secs(5),
            $client.clone().$method(bounded($message, limit)),
        )
        .await
        {
            Ok(answer) => answer.map(tonic::Response::into_inner),
            Err(_) => Err(Status::deadline_exceeded(format!(
                "{}: the server ignored the deadline of {limit:?}",
                stringify!($method)
            ))),
        }
    }};
}

impl Cri {
    /// Connects on first use, and again after the daemon was restarted.
    pub(crate) fn connect(socket: &Path) -> Result<Self> {
        let channel = channel(socket)?;
        Ok(Self {
            runtime: RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE),
            images: ImageServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE),
        })
    }

    /// Version.
    pub(crate) async fn version(&self) -> Answer<api::VersionResponse> {
        call!(self.runtime, version, api::VersionRequest { version: String::new() }, Duration::from_secs(5))
    }

    /// Status.
    pub(crate) async fn status(&self, verbose: bool) -> Answer<api::StatusResponse> {
        call!(self.runtime, status, api::StatusRequest { verbose }, Duration::from_secs(5))
    }

    /// A condition in Status, such as `RuntimeReady`.
    pub(crate) async fn condition(&self, kind: &str) -> Result<api::RuntimeCondition> {
        let status = self.status(false).await?.status.context("Status has no status")?;
        let found = status.conditions.into_iter().find(|c| c.r#type == kind);
        found.with_context(|| format!("Status has no condition {kind}"))
    }

    /// RunPodSandbox; the id.
    pub(crate) async fn run_pod(&self, config: &api::PodSandboxConfig) -> Answer<String> {
        let request =
            api::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() };
        call!(self.runtime, run_pod_sandbox, request).map(|r| r.pod_sandbox_id).inspect(|id| made::add(id))
    }

    /// StopPodSandbox.
    pub(crate) async fn stop_pod(&self, id: &str) -> Answer<()> {
        call!(self.runtime, stop_pod_sandbox, api::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() })
            .map(drop)
    }

    /// RemovePodSandbox.
    pub(crate) async fn remove_pod(&self, id: &str) -> Answer<()> {
        call!(
            self.runtime,
            remove_pod_sandbox,
            api::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() }
        )
        .map(drop)
    }

    /// StopPodSandbox, then RemovePodSandbox.
    pub(crate) async fn drop_pod(&self, id: &str) -> Answer<()> {
        self.stop_pod(id).await?;
        self.remove_pod(id).await
    }

    /// PodSandboxStatus, verbose.
    pub(crate) async fn pod_status(&self, id: &str) -> Answer<api::PodSandboxStatusResponse> {
        call!(
            self.runtime,
            pod_sandbox_status,
            api::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: true }
        )
    }

    /// ListPodSandbox.
    pub(crate) async fn pods(&self, filter: Option<api::PodSandboxFilter>) -> Answer<Vec<api::PodSandbox>> {
        call!(self.runtime, list_pod_sandbox, api::ListPodSandboxRequest { filter }).map(|r| r.items)
    }

    /// CreateContainer; the id.
    pub(crate) async fn create(
        &self,
        pod: &str,
        config: &api::ContainerConfig,
        sandbox: &api::PodSandboxConfig,
    ) -> Answer<String> {
        let request = api::CreateContainerRequest {
            pod_sandbox_id: pod.to_owned(),
            config: Some(config.clone()),
            sandbox_config: Some(sandbox.clone()),
        };
        call!(self.runtime, create_container, request).map(|r| r.container_id).inspect(|id| made::add(id))
    }

    /// StartContainer.
    pub(crate) async fn start(&self, id: &str) -> Answer<()> {
        call!(self.runtime, start_container, api::StartContainerRequest { container_id: id.to_owned() })
            .map(drop)
    }

    /// StopContainer with a grace period in seconds.
    pub(crate) async fn stop(&self, id: &str, grace: i64) -> Answer<()> {
        let limit = LIMIT + Duration::from_secs(u64::try_from(grace).unwrap_or(0));
        call!(
            self.runtime,
            stop_container,
            api::StopContainerRequest { container_id: id.to_owned(), timeout: grace },
            limit
        )
        .map(drop)
    }

    /// RemoveContainer.
    pub(crate) async fn remove(&self, id: &str) -> Answer<()> {
        call!(self.runtime, remove_container, api::RemoveContainerRequest { container_id: id.to_owned() })
            .map(drop)
    }

    /// ContainerStatus, verbose; the whole response.
    pub(crate) async fn container_response(&self, id: &str) -> Answer<api::ContainerStatusResponse> {
        call!(
            self.runtime,
            container_status,
            api::ContainerStatusRequest { container_id: id.to_owned(), verbose: true }
        )
    }

    /// The status in ContainerStatus.
    pub(crate) async fn container(&self, id: &str) -> Result<api::ContainerStatus> {
        self.container_response(id).await?.status.context("ContainerStatus without a status")
    }

    /// ListContainers.
    pub(crate) async fn containers(
        &self,
        filter: Option<api::ContainerFilter>,
    ) -> Answer<Vec<api::Container>> {
        call!(self.runtime, list_containers, api::ListContainersRequest { filter }).map(|r| r.containers)
    }

    /// ExecSync.
    pub(crate) async fn exec_sync(
        &self,
        id: &str,
        cmd: &[&str],
        timeout: i64,
    ) -> Answer<api::ExecSyncResponse> {
        let request = api::ExecSyncRequest {
            container_id: id.to_owned(),
            cmd: cmd.iter().map(|s| (*s).to_owned()).collect(),
            timeout,
        };
        call!(self.runtime, exec_sync, request)
    }

    /// ExecSync with a time-out of 30 s on a real machine, and output as text; fails if the call fails, not if the command does.
    pub(crate) async fn exec(&self, id: &str, cmd: &[&str]) -> Result<Output> {
        let limit = i64::try_from(crate::wait::longer(crate::wait::secs(30)).as_secs())?;
        let r = self.exec_sync(id, cmd, limit).await.with_context(|| format!("exec {cmd:?}"))?;
        Ok(Output {
            stdout: String::from_utf8_lossy(&r.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&r.stderr).into_owned(),
            code: r.exit_code,
        })
    }

    /// Runs a shell command that must succeed; returns its standard output, trimmed.
    pub(crate) async fn sh(&self, id: &str, line: &str) -> Result<String> {
        let out = self.exec(id, &["/bin/sh", "-c", line]).await?;
        ensure!(out.code == 0, "`{line}` ended with {}: {}{}", out.code, out.stdout, out.stderr);
        Ok(out.stdout.trim().to_owned())
    }

    /// UpdateContainerResources without annotations.
    pub(crate) async fn update(&self, id: &str, linux: api::LinuxContainerResources) -> Answer<()> {
        let container_id = id.to_owned();
        let linux = Some(linux);
        self.update_with(api::UpdateContainerResourcesRequest { container_id, linux, ..Default::default() })
            .await
    }

    /// UpdateContainerResources.
    pub(crate) async fn update_with(&self, request: api::UpdateContainerResourcesRequest) -> Answer<()> {
        call!(self.runtime, update_container_resources, request).map(drop)
    }

    /// UpdatePodSandboxResources.
    pub(crate) async fn update_pod(
        &self,
        id: &str,
        overhead: Option<api::LinuxContainerResources>,
        resources: Option<api::LinuxContainerResources>,
    ) -> Answer<()> {
        let pod_sandbox_id = id.to_owned();
        let request = api::UpdatePodSandboxResourcesRequest { pod_sandbox_id, overhead, resources };
        call!(self.runtime, update_pod_sandbox_resources, request).map(drop)
    }

    /// ReopenContainerLog.
    pub(crate) async fn reopen_log(&self, id: &str) -> Answer<()> {
        call!(
            self.runtime,
            reopen_container_log,
            api::ReopenContainerLogRequest { container_id: id.to_owned() }
        )
        .map(drop)
    }

    /// ContainerStats.
    pub(crate) async fn stats(&self, id: &str) -> Answer<Option<api::ContainerStats>> {
        call!(self.runtime, container_stats, api::ContainerStatsRequest { container_id: id.to_owned() })
            .map(|r| r.stats)
    }

    /// ListContainerStats.
    pub(crate) async fn list_stats(
        &self,
        filter: Option<api::ContainerStatsFilter>,
    ) -> Answer<Vec<api::ContainerStats>> {
        call!(self.runtime, list_container_stats, api::ListContainerStatsRequest { filter }).map(|r| r.stats)
    }

    /// PodSandboxStats.
    pub(crate) async fn pod_stats(&self, id: &str) -> Answer<Option<api::PodSandboxStats>> {
        call!(self.runtime, pod_sandbox_stats, api::PodSandboxStatsRequest { pod_sandbox_id: id.to_owned() })
            .map(|r| r.stats)
    }

    /// ListPodSandboxStats.
    pub(crate) async fn list_pod_stats(
        &self,
        filter: Option<api::PodSandboxStatsFilter>,
    ) -> Answer<Vec<api::PodSandboxStats>> {
        call!(self.runtime, list_pod_sandbox_stats, api::ListPodSandboxStatsRequest { filter })
            .map(|r| r.stats)
    }

    /// PullImage; the image's id.
    pub(crate) async fn pull(&self, image: &str) -> Answer<String> {
        let spec = api::ImageSpec { image: image.to_owned(), ..Default::default() };
        let request = api::PullImageRequest { image: Some(spec), auth: None, sandbox_config: None };
        call!(self.images, pull_image, request).map(|r| r.image_ref)
    }

    /// ImageStatus, verbose; `None` for an unknown image.
    pub(crate) async fn image(&self, image: &str) -> Answer<Option<api::Image>> {
        let spec = api::ImageSpec { image: image.to_owned(), ..Default::default() };
        call!(self.images, image_status, api::ImageStatusRequest { image: Some(spec), verbose: true })
            .map(|r| r.image)
    }

    /// ListImages.
    pub(crate) async fn images(&self) -> Answer<Vec<api::Image>> {
        call!(self.images, list_images, api::ListImagesRequest { filter: None }).map(|r| r.images)
    }

    /// RemoveImage.
    pub(crate) async fn remove_image(&self, image: &str) -> Answer<()> {
        let spec = api::ImageSpec { image: image.to_owned(), ..Default::default() };
        call!(self.images, remove_image, api::RemoveImageRequest { image: Some(spec) }).map(drop)
    }

    /// ImageFsInfo.
    pub(crate) async fn image_fs(&self) -> Answer<api::ImageFsInfoResponse> {
        call!(self.images, image_fs_info, api::ImageFsInfoRequest {})
    }

    /// Waits until a container has exited; returns its status.
    pub(crate) async fn wait_exit(&self, id: &str, limit: Duration) -> Result<api::ContainerStatus> {
        wait::until(&format!("container {id} to exit"), limit, || async {
            let status = self.container(id).await?;
            Ok((status.state() == ContainerState::ContainerExited).then_some(status))
        })
        .await
    }
}
