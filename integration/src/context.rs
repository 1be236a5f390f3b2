//! The context of one test, with shortcuts that most tests use.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use cri_api::v1 as api;

use crate::cri::Cri;
use crate::expect::ensure;
use crate::fixture::Fixture;
use crate::node::Node;
use crate::shapes::{self, ContainerExt as _};

/// The context of one test.
#[derive(Debug, Clone)]
pub(crate) struct Context {
    /// The shared fixture.
    pub(crate) fixture: Arc<Fixture>,
    /// The node to test.
    pub(crate) node: Arc<Node>,
    /// A client of the node.
    pub(crate) cri: Cri,
    /// Last component of the test's name; pods are named after it.
    pub(crate) name: String,
}

/// A pod, with the configuration it was created from.
#[derive(Debug, Clone)]
pub(crate) struct Pod {
    /// Its id.
    pub(crate) id: String,
    /// As sent.
    pub(crate) config: api::PodSandboxConfig,
}

impl Context {
    /// A context for a test on a node.
    pub(crate) fn new(fixture: Arc<Fixture>, node: Arc<Node>, name: &str) -> Self {
        let name = name.rsplit("::").next().unwrap_or(name).replace('_', "-");
        Self { cri: node.cri.clone(), fixture, node, name }
    }

    /// A pod configuration on the host's network, named after the test.
    pub(crate) fn pod_config(&self) -> api::PodSandboxConfig {
        shapes::pod(&self.name, &self.node.paths.logs)
    }

    /// Runs a pod with [`Self::pod_config`].
    pub(crate) async fn pod(&self) -> Result<Pod> {
        self.pod_of(self.pod_config()).await
    }

    /// Runs a pod with the given configuration.
    pub(crate) async fn pod_of(&self, config: api::PodSandboxConfig) -> Result<Pod> {
        let id = self.cri.run_pod(&config).await?;
        ensure!(
            id.len() == 64 && id.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)),
            "pod id `{id}` is not 64 hex digits"
        );
        Ok(Pod { id, config })
    }

    /// A busybox container's configuration running a shell line.
    pub(crate) fn shell(&self, name: &str, line: &str) -> api::ContainerConfig {
        shapes::container(name, &Fixture::image("busybox"), &["/bin/sh", "-c", line])
    }

    /// A busybox container that sleeps until it is killed.
    pub(crate) fn sleeper(&self, name: &str) -> api::ContainerConfig {
        shapes::container(name, &Fixture::image("busybox"), &["/bin/sleep", "100000"])
    }

    /// Pulls an image unless it is present.
    pub(crate) async fn need(&self, image: &str) -> Result<()> {
        if self.cri.image(image).await?.is_none() {
            self.cri.pull(image).await?;
        }
        Ok(())
    }

    /// Creates a container with the pod's namespaces.
    pub(crate) async fn create(&self, pod: &Pod, config: &api::ContainerConfig) -> Result<String> {
        let config = config.clone().like(&pod.config);
        self.create_as_is(pod, &config).await
    }

    /// Creates a container exactly as configured.
    pub(crate) async fn create_as_is(&self, pod: &Pod, config: &api::ContainerConfig) -> Result<String> {
        if let Some(image) = &config.image {
            self.need(&image.image).await?;
        }
        Ok(self.cri.create(&pod.id, config, &pod.config).await?)
    }

    /// Creates and starts a container.
    pub(crate) async fn start(&self, pod: &Pod, config: &api::ContainerConfig) -> Result<String> {
        let id = self.create(pod, config).await?;
        self.cri.start(&id).await?;
        Ok(id)
    }

    /// Creates and starts a container, waits for its exit, and returns its status.
    pub(crate) async fn run(&self, pod: &Pod, config: &api::ContainerConfig) -> Result<api::ContainerStatus> {
        let id = self.start(pod, config).await?;
        self.cri.wait_exit(&id, Duration::from_secs(30)).await
    }

    /// Runs a container to its end and returns its standard output.
    pub(crate) async fn output(&self, pod: &Pod, config: &api::ContainerConfig) -> Result<String> {
        let status = self.run(pod, config).await?;
        let log = crate::logfile::Log::read(&status.log_path)?;
        ensure!(
            status.exit_code == 0,
            "{:?} ended with {} ({}): {}",
            config.command,
            status.exit_code,
            status.message,
            log.text(None)
        );
        Ok(log.text(Some("stdout")))
    }

    /// Runs a pod and, in it, a container that sleeps; returns the container's id and the pid of its init.
    pub(crate) async fn sleeping(&self, config: api::PodSandboxConfig) -> Result<(Pod, String, u32)> {
        let pod = self.pod_of(config).await?;
        let id = self.start(&pod, &self.sleeper("main")).await?;
        let pid = self.pid(&id).await?;
        Ok((pod, id, pid))
    }

    /// Runs a container, which must end with code 0 and have written exactly this to standard output.
    pub(crate) async fn outputs(&self, pod: &Pod, config: &api::ContainerConfig, wanted: &str) -> Result<()> {
        let found = self.output(pod, config).await?;
        ensure!(found == wanted, "{:?} wrote {found:?} instead of {wanted:?}", config.command);
        Ok(())
    }

    /// Runs a shell line in a container by ExecSync; it must end with code 0 and print this, apart from white space at
    /// both ends.
    pub(crate) async fn prints(&self, id: &str, line: &str, wanted: &str) -> Result<()> {
        let found = self.cri.sh(id, line).await?;
        ensure!(found == wanted, "`{line}` printed {found:?} instead of {wanted:?} in container {id}");
        Ok(())
    }

    /// Runs one command in a container by ExecSync, which shows that the container and its shim work.
    pub(crate) async fn exec_works(&self, id: &str) -> Result<()> {
        self.prints(id, "echo in", "in").await
    }

    /// The container must be shown in this state.
    pub(crate) async fn is_shown(&self, id: &str, state: api::ContainerState) -> Result<()> {
        let found = self.cri.container(id).await?.state();
        ensure!(found == state, "container {id} is shown as {found:?} instead of {state:?}");
        Ok(())
    }

    /// The container must be shown as exited with this code.
    pub(crate) async fn exited_with(&self, id: &str, code: i32) -> Result<()> {
        let status = self.cri.container(id).await?;
        ensure!(
            status.state() == api::ContainerState::ContainerExited && status.exit_code == code,
            "container {id} is {:?} with code {} ({}: {}) instead of exited with {code}",
            status.state(),
            status.exit_code,
            status.reason,
            status.message
        );
        Ok(())
    }

    /// The pod must be shown in this state.
    pub(crate) async fn pod_is_shown(&self, id: &str, state: api::PodSandboxState) -> Result<()> {
        let status = self.cri.pod_status(id).await?.status.context("PodSandboxStatus without a status")?;
        ensure!(status.state() == state, "pod {id} is shown as {:?} instead of {state:?}", status.state());
        Ok(())
    }

    /// Waits until a container's log contains a text, which shows how far its program is.
    pub(crate) async fn said(&self, id: &str, text: &str) -> Result<()> {
        let path = self.cri.container(id).await?.log_path;
        crate::wait::until(&format!("container {id} to say {text:?}"), Duration::from_secs(30), || async {
            Ok(crate::logfile::Log::read(&path)?.text(None).contains(text).then_some(()))
        })
        .await
    }

    /// The pid of a container's init on the host, from verbose status.
    pub(crate) async fn pid(&self, id: &str) -> Result<u32> {
        let info = self.cri.container_response(id).await?.info;
        let parsed: serde_json::Value = serde_json::from_str(info.get("info").context("no verbose info")?)?;
        Ok(u32::try_from(
            parsed.get("pid").and_then(serde_json::Value::as_u64).context("verbose info has no pid")?,
        )?)
    }

    /// An empty folder on the node, for volumes.
    pub(crate) fn volume(&self, name: &str) -> Result<PathBuf> {
        let dir = self.node.paths.dir.join("volumes").join(format!("{name}-{}", shapes::unique()));
        std::fs::create_dir_all(&dir)?;
        Ok(dir)
    }
}
