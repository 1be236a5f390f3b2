//! The node: the daemon's one answer to "which pods are there, and do this to one of them".
//!
//! Lists and look-ups copy a published snapshot and never wait. Everything else is sent to the pod's driver
//! (`pod::driver`), which does the work on its own account: a caller that goes away stops waiting, nothing more.

use crate::error::{Error, ErrorKind};
use crate::pod::{Context, Registry};
use crate::{pod, restore};
use model::{ContainerConfig, ContainerId, PodConfig, PodId, Text};
use std::sync::Arc;
use std::time::Duration;

pub use crate::pod::{ContainerView, ExecOutput, NodeOptions, PodView};

/// Pods and containers of this machine. Clones share one node.
#[derive(Debug, Clone)]
pub struct Node(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    context: Arc<Context>,
    registry: Arc<Registry>,
}

impl Node {
    /// Reads all records, publishes what they say and starts a driver for each pod; shims are dialled
    /// afterwards, so that this waits for the disk alone.
    ///
    /// # Errors
    /// What keeps the whole node from working: binaries, folders. A bad record costs its object only.
    pub async fn open(options: NodeOptions) -> Result<Self, Error> {
        let registry = Arc::new(Registry::new());
        let context = Arc::new(Context::new(options).await?);
        restore::restore(&context, &registry).await?;
        Ok(Self(Arc::new(Inner { context, registry })))
    }

    /// All pods, by creation. Never waits.
    pub fn pods(&self) -> Arc<[Arc<PodView>]> {
        self.0.registry.published().pods()
    }

    /// The pod of an id or a unique prefix of one. Never waits.
    ///
    /// # Errors
    /// NotFound; InvalidArgument when the prefix is that of several.
    pub fn pod(&self, id: &str) -> Result<Arc<PodView>, Error> {
        self.0.registry.published().pod(id)
    }

    /// All containers, by creation. Never waits.
    pub fn containers(&self) -> Arc<[Arc<ContainerView>]> {
        self.0.registry.published().containers()
    }

    /// The container of an id or a unique prefix of one. Never waits.
    ///
    /// # Errors
    /// NotFound; InvalidArgument when the prefix is that of several.
    pub fn container(&self, id: &str) -> Result<Arc<ContainerView>, Error> {
        self.0.registry.published().container(id)
    }

    /// As [`Self::container`], for commands: one that is left as it is refuses them.
    fn managed(&self, id: &str) -> Result<Arc<ContainerView>, Error> {
        let view = self.container(id)?;
        self.0.registry.managed(view.record.id.as_str())?;
        Ok(view)
    }

    /// Brings a pod up, or joins an equal request under way, or finds that an equal one has been served.
    ///
    /// # Errors
    /// AlreadyExists when the name belongs to another configuration or a pod that is not ready any more.
    pub async fn run_pod(&self, config: PodConfig) -> Result<PodId, Error> {
        pod::run(&self.0.context, &self.0.registry, config).await
    }

    /// Ends everything of a pod but its records. Unknown and stopped ones are fine.
    ///
    /// # Errors
    /// What could not be ended or given back; calling again goes on.
    pub async fn stop_pod(&self, id: &str) -> Result<(), Error> {
        let Some(pod) = gone_is_fine(self.pod(id))? else { return Ok(()) };
        self.0.registry.call(&pod.record.id, pod::Command::StopPod).await.or_else(vanished_is_fine)
    }

    /// Stops a pod and removes it with all its containers. Unknown ones are fine.
    ///
    /// # Errors
    /// What could not be ended or removed; calling again goes on.
    pub async fn remove_pod(&self, id: &str) -> Result<(), Error> {
        let Some(pod) = gone_is_fine(self.pod(id))? else { return Ok(()) };
        self.0.registry.call(&pod.record.id, pod::Command::RemovePod).await.or_else(vanished_is_fine)
    }

    /// Makes a container, its init waiting for start; joins an equal request under way.
    ///
    /// # Errors
    /// NotFound (pod, image), FailedPrecondition (pod not ready), and all that its configuration can be wrong in.
    pub async fn create_container(&self, pod: &str, config: ContainerConfig) -> Result<ContainerId, Error> {
        let pod = self.pod(pod)?;
        self.0.context.root.writable().await?;
        let config = Box::new(config);
        self.0.registry.call(&pod.record.id, |reply| pod::Command::Create { config, reply }).await
    }

    /// Starts a created container.
    ///
    /// # Errors
    /// FailedPrecondition unless it is created; when it cannot be executed it is exited with code 128.
    pub async fn start_container(&self, id: &str) -> Result<(), Error> {
        let view = self.managed(id)?;
        let id = view.record.id.clone();
        self.0.registry.call(&view.record.pod, |reply| pod::Command::Start { id, reply }).await
    }

    /// Sends the stop signal, waits `grace_s` seconds, kills. A second call with less patience shortens the
    /// first. Unknown and exited ones are fine.
    ///
    /// # Errors
    /// When processes survive SIGKILL.
    pub async fn stop_container(&self, id: &str, grace_s: i64) -> Result<(), Error> {
        let Some(view) = gone_is_fine(self.managed(id))? else { return Ok(()) };
        let id = view.record.id.clone();
        let grace = Duration::from_secs(u64::try_from(grace_s).unwrap_or(0));
        let stop = |reply| pod::Command::Stop { id, grace, reply };
        self.0.registry.call(&view.record.pod, stop).await.or_else(vanished_is_fine)
    }

    /// Removes a container, by force when it runs. Unknown ones are fine.
    ///
    /// # Errors
    /// What could not be killed or removed; calling again goes on.
    pub async fn remove_container(&self, id: &str) -> Result<(), Error> {
        let Some(view) = gone_is_fine(self.managed(id))? else { return Ok(()) };
        let id = view.record.id.clone();
        let remove = |reply| pod::Command::Remove { id, reply };
        self.0.registry.call(&view.record.pod, remove).await.or_else(vanished_is_fine)
    }

    /// Opens a running container's log anew, after its file was moved away.
    ///
    /// # Errors
    /// FailedPrecondition unless it runs.
    pub async fn reopen_log(&self, id: &str) -> Result<(), Error> {
        let view = self.managed(id)?;
        let id = view.record.id.clone();
        self.0.registry.call(&view.record.pod, |reply| pod::Command::ReopenLog { id, reply }).await
    }

    /// Runs a command in a running container to its end; 0 seconds is no limit. The command is killed when
    /// the time is over or the caller goes away.
    ///
    /// # Errors
    /// DeadlineExceeded; FailedPrecondition unless the container runs; Internal when it cannot be executed.
    pub async fn exec_sync(&self, id: &str, cmd: Vec<Text>, timeout_s: i64) -> Result<ExecOutput, Error> {
        let view = self.managed(id)?;
        let (id, pod) = (view.record.id.clone(), &view.record.pod);
        let ticket = self.0.registry.call(pod, |reply| pod::Command::Exec { id, reply }).await?;
        let limit = u64::try_from(timeout_s).ok().filter(|s| *s > 0).map(Duration::from_secs);
        pod::exec::sync(&self.0.context, ticket, cmd, limit).await
    }

    /// Lets the drivers end what they are writing; pods keep running.
    pub async fn shutdown(&self) {
        self.0.registry.close().await;
    }
}

/// NotFound is an answer, not an error, for calls that make things go away.
fn gone_is_fine<T>(found: Result<T, Error>) -> Result<Option<T>, Error> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn vanished_is_fine(error: Error) -> Result<(), Error> {
    if error.kind == ErrorKind::NotFound { Ok(()) } else { Err(error) }
}
