//! What one test is given, with the short forms that most of them use.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use cri_api::v1 as api;

use crate::cri::Cri;
use crate::fixture::Fixture;
use crate::node::Node;
use crate::shapes::{self, ContainerExt as _};

/// One test's view.
#[derive(Debug, Clone)]
pub(crate) struct Context {
    /// Shared things.
    pub(crate) fixture: Arc<Fixture>,
    /// The node to test.
    pub(crate) node: Arc<Node>,
    /// Its client.
    pub(crate) cri: Cri,
    /// Last part of the test's name: names pods.
    pub(crate) name: String,
}

/// A pod with the configuration it was made from.
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

    /// Runs a pod as [`Self::pod_config`] gives it.
    pub(crate) async fn pod(&self) -> Result<Pod> {
        self.pod_of(self.pod_config()).await
    }

    /// Runs a pod of a configuration.
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

    /// Pulls what a container needs unless it is there.
    pub(crate) async fn need(&self, image: &str) -> Result<()> {
        if self.cri.image(image).await?.is_none() {
            self.cri.pull(image).await?;
        }
        Ok(())
    }

    /// Creates a container; its namespaces follow the pod's.
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

    /// Creates, starts and waits for the end of a container; its status.
    pub(crate) async fn run(&self, pod: &Pod, config: &api::ContainerConfig) -> Result<api::ContainerStatus> {
        let id = self.start(pod, config).await?;
        self.cri.wait_exit(&id, Duration::from_secs(30)).await
    }

    /// Runs a container to its end and gives what it wrote to standard output.
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

    /// Waits until a container's log has a text: what its program has done by then is known.
    pub(crate) async fn said(&self, id: &str, text: &str) -> Result<()> {
        let path = self.cri.container(id).await?.log_path;
        crate::wait::until(&format!("container {id} to say {text:?}"), Duration::from_secs(30), || async {
            Ok(crate::logfile::Log::read(&path)?.text(None).contains(text).then_some(()))
        })
        .await
    }

    /// A container's init as the host numbers it, from verbose status.
    pub(crate) async fn pid(&self, id: &str) -> Result<u32> {
        let info = self.cri.container_response(id).await?.info;
        let parsed: serde_json::Value = serde_json::from_str(info.get("info").context("no verbose info")?)?;
        Ok(u32::try_from(
            parsed.get("pid").and_then(serde_json::Value::as_u64).context("verbose info has no pid")?,
        )?)
    }

    /// An empty folder of the node's for volumes.
    pub(crate) fn volume(&self, name: &str) -> Result<PathBuf> {
        let dir = self.node.paths.dir.join("volumes").join(format!("{name}-{}", shapes::unique()));
        std::fs::create_dir_all(&dir)?;
        Ok(dir)
    }
}
