//! The operations on the pods and containers of this node, as `service` calls them.
//!
//! Lists and look-ups read published views and do not block. All other calls are sent to the pod's driver
//! (`pod::driver`). The work belongs to the driver: if a caller goes away, it continues. ExecSync, Exec and Attach get only a
//! ticket from the driver: the command of an ExecSync is killed when its caller goes away.

mod sessions;

use crate::error::{Error, ErrorKind};
use crate::operations;
use crate::pod::{Context, Registry};
use crate::{pod, restore};
use model::{ContainerConfig, ContainerId, PodConfig, PodId, PodResources, Text, Update};
use std::sync::Arc;
use std::time::Duration;
use streaming::remote::Streams;

pub(crate) use sessions::{Attach, Exec, PodNetwork};

pub(crate) use crate::pod::{
    ContainerView, Event, EventKind, Events, ExecOutput, NodeOptions, PodView, PodWithContainers,
};

/// The pods and containers of this machine. Clones share one node.
#[derive(Debug, Clone)]
pub(crate) struct Node(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    context: Arc<Context>,
    registry: Arc<Registry>,
}

impl Node {
    /// Reads all records, publishes them and starts a driver for each pod. The drivers connect to the shims by themselves, so
    /// that this waits for the disk only.
    ///
    /// # Errors
    /// The programs or the folders of records cannot be used. A bad record affects its object only.
    pub(crate) async fn open(options: NodeOptions) -> Result<Self, Error> {
        let registry = Arc::new(Registry::new());
        let context = Arc::new(Context::new(options).await?);
        restore::restore(&context, &registry).await?;
        Ok(Self(Arc::new(Inner { context, registry })))
    }

    /// All pods by creation time. Does not block.
    pub(crate) fn pods(&self) -> Arc<[Arc<PodView>]> {
        self.0.registry.published().pods()
    }

    /// The pod with this id or unique prefix. Does not block.
    ///
    /// # Errors
    /// NotFound; InvalidArgument if several ids have the prefix.
    pub(crate) fn pod(&self, id: &str) -> Result<Arc<PodView>, Error> {
        self.0.registry.published().pod(id)
    }

    /// The pod with this id or unique prefix, and its containers, all at one time. Does not block.
    ///
    /// # Errors
    /// As [`Self::pod`].
    pub(crate) fn pod_with_containers(&self, id: &str) -> Result<PodWithContainers, Error> {
        self.0.registry.published().pod_with_containers(id)
    }

    /// Subscribes to the events of all pods and containers, from now on.
    ///
    /// # Errors
    /// ResourceExhausted if there are too many subscribers; Unavailable if the daemon is stopping.
    pub(crate) fn subscribe(&self) -> Result<Events, Error> {
        self.0.registry.published().subscribe()
    }

    /// Ends all subscriptions, so that the server can stop.
    pub(crate) fn end_events(&self) {
        self.0.registry.published().end_events();
    }

    /// All containers by creation time. Does not block.
    pub(crate) fn containers(&self) -> Arc<[Arc<ContainerView>]> {
        self.0.registry.published().containers()
    }

    /// The container with this id or unique prefix. Does not block.
    ///
    /// # Errors
    /// NotFound; InvalidArgument if several ids have the prefix.
    pub(crate) fn container(&self, id: &str) -> Result<Arc<ContainerView>, Error> {
        self.0.registry.published().container(id)
    }

    /// Like [`Self::container`], for commands: fails if the container is not managed.
    fn managed(&self, id: &str) -> Result<Arc<ContainerView>, Error> {
        let view = self.container(id)?;
        let pod = self.pod(view.record.pod.as_str()).ok();
        operations::about_container(pod.as_ref().map(|pod| &*pod.record), &view.record);
        self.0.registry.managed(view.record.id.as_str())?;
        Ok(view)
    }

    /// Starts a pod, joins an equal request that is running, or returns the pod of an equal earlier request.
    ///
    /// # Errors
    /// AlreadyExists if the name belongs to another configuration, or to a pod that is not ready any more.
    pub(crate) async fn run_pod(&self, config: PodConfig) -> Result<PodId, Error> {
        pod::run(&self.0.context, &self.0.registry, config).await
    }

    /// Tears down a pod; its records stay. An unknown or stopped pod is not an error.
    ///
    /// # Errors
    /// What could not be stopped or released. The daemon retries it, and so does a repeated call.
    pub(crate) async fn stop_pod(&self, id: &str) -> Result<(), Error> {
        let Some(pod) = not_found_is_ok(self.pod(id))? else { return Ok(()) };
        operations::about_pod(&pod.record);
        self.0.registry.call(&pod.record.id, pod::Command::StopPod).await.or_else(removed_meanwhile_is_ok)
    }

    /// Stops a pod and removes it with all its containers. An unknown pod is not an error.
    ///
    /// # Errors
    /// What could not be stopped or removed. A repeated call continues.
    pub(crate) async fn remove_pod(&self, id: &str) -> Result<(), Error> {
        let Some(pod) = not_found_is_ok(self.pod(id))? else { return Ok(()) };
        operations::about_pod(&pod.record);
        self.0.registry.call(&pod.record.id, pod::Command::RemovePod).await.or_else(removed_meanwhile_is_ok)
    }

    /// Creates a container whose init waits for the start request; joins an equal request that is running.
    /// `privileged`: the request says that the pod may have privileged containers. When it was started it may have had none
    /// (an ephemeral container is added later).
    ///
    /// # Errors
    /// NotFound (pod, image), FailedPrecondition (pod not ready), and all errors of its configuration.
    pub(crate) async fn create_container(
        &self,
        pod: &str,
        config: ContainerConfig,
        privileged: bool,
    ) -> Result<ContainerId, Error> {
        let pod = self.pod(pod)?;
        operations::about_new_container(&pod.record, &config.meta.name);
        let privileged = privileged || pod.record.config.security.privileged;
        spec::security::privileged(&config.security, privileged).map_err(|error| {
            let (name, pod) = (&config.meta.name, &pod.record.config.meta);
            Error::from(error).context(format!("container {name} of pod {}/{}", pod.namespace, pod.name))
        })?;
        self.0.context.root.writable().await?;
        let config = Box::new(config);
        self.0.registry.call(&pod.record.id, |reply| pod::Command::Create { config, reply }).await
    }

    /// Starts a created container.
    ///
    /// # Errors
    /// FailedPrecondition unless it is created. Internal if execve fails: then it has exited with code 128.
    pub(crate) async fn start_container(&self, id: &str) -> Result<(), Error> {
        let view = self.managed(id)?;
        let id = view.record.id.clone();
        self.0.registry.call(&view.record.pod, |reply| pod::Command::Start { id, reply }).await
    }

    /// Sends the stop signal, waits `grace_s` seconds, and kills. A second call with a shorter grace period
    /// shortens the first. An unknown or exited container is not an error.
    ///
    /// # Errors
    /// Processes survive SIGKILL.
    pub(crate) async fn stop_container(&self, id: &str, grace_s: i64) -> Result<(), Error> {
        let Some(view) = not_found_is_ok(self.managed(id))? else { return Ok(()) };
        let id = view.record.id.clone();
        let grace = Duration::from_secs(u64::try_from(grace_s).unwrap_or(0));
        let stop = |reply| pod::Command::Stop { id, grace, reply };
        self.0.registry.call(&view.record.pod, stop).await.or_else(removed_meanwhile_is_ok)
    }

    /// Removes a container, and kills it first if it is running. An unknown one is not an error.
    ///
    /// # Errors
    /// What could not be killed or removed. A repeated call continues.
    pub(crate) async fn remove_container(&self, id: &str) -> Result<(), Error> {
        let Some(view) = not_found_is_ok(self.managed(id))? else { return Ok(()) };
        let id = view.record.id.clone();
        let remove = |reply| pod::Command::Remove { id, reply };
        self.0.registry.call(&view.record.pod, remove).await.or_else(removed_meanwhile_is_ok)
    }

    /// Reopens a running container's log after its file was renamed.
    ///
    /// # Errors
    /// FailedPrecondition unless it is running.
    pub(crate) async fn reopen_log(&self, id: &str) -> Result<(), Error> {
        let view = self.managed(id)?;
        let id = view.record.id.clone();
        self.0.registry.call(&view.record.pod, |reply| pod::Command::ReopenLog { id, reply }).await
    }

    /// Changes limits of a container that has not exited: all of them, or none.
    ///
    /// # Errors
    /// FailedPrecondition for a container that has exited, and for a limit below what is in use; InvalidArgument for other
    /// limits that the kernel or the host refuses.
    pub(crate) async fn update_container(&self, id: &str, update: Update) -> Result<(), Error> {
        let view = self.managed(id)?;
        let (id, update) = (view.record.id.clone(), Box::new(update));
        self.0.registry.call(&view.record.pod, |reply| pod::Command::Update { id, update, reply }).await
    }

    /// Stores new resources of a pod. Nothing is written to a cgroup: the pod's belongs to the client.
    ///
    /// # Errors
    /// FailedPrecondition unless the pod is ready.
    pub(crate) async fn update_pod(&self, id: &str, resources: PodResources) -> Result<(), Error> {
        let view = self.pod(id)?;
        self.0.registry.managed(view.record.id.as_str())?;
        let resources = Box::new(resources);
        self.0.registry.call(&view.record.id, |reply| pod::Command::UpdatePod { resources, reply }).await
    }

    /// Runs a command in a running container to its end, at most `timeout_s` seconds; 0 means no limit. It is killed when
    /// its time is over or the caller goes away.
    ///
    /// # Errors
    /// DeadlineExceeded; FailedPrecondition unless the container is running; Internal if execve fails.
    pub(crate) async fn exec_sync(
        &self,
        id: &str,
        cmd: Vec<Text>,
        timeout_s: i64,
    ) -> Result<ExecOutput, Error> {
        let ticket = self.ticket(id).await?;
        let limit = u64::try_from(timeout_s).ok().filter(|s| *s > 0).map(Duration::from_secs);
        pod::exec::sync(&self.0.context, ticket, cmd, limit).await
    }

    /// Permission to start processes in a container, or to attach to it.
    async fn ticket(&self, id: &str) -> Result<pod::exec::Ticket, Error> {
        let view = self.managed(id)?;
        let (id, pod) = (view.record.id.clone(), &view.record.pod);
        self.0.registry.call(pod, |reply| pod::Command::Exec { id, reply }).await
    }

    /// A command for a running container, which starts when its client has connected.
    ///
    /// # Errors
    /// FailedPrecondition unless the container is running.
    pub(crate) async fn exec(&self, id: &str, cmd: Vec<Text>, streams: Streams) -> Result<Exec, Error> {
        let record = self.ticket(id).await?.record;
        let (pod, container) = (record.pod.clone(), record.id.to_string());
        Ok(Exec { node: self.clone(), pod, container, cmd, streams })
    }

    /// The streams of a running container, for a client that connects later.
    ///
    /// # Errors
    /// FailedPrecondition unless the container is running.
    pub(crate) async fn attach(&self, id: &str, streams: Streams) -> Result<Attach, Error> {
        let record = self.ticket(id).await?.record;
        let (pod, container) = (record.pod.clone(), record.id.to_string());
        Ok(Attach { node: self.clone(), pod, container, streams })
    }

    /// The network of a pod that is ready, with or without containers.
    ///
    /// # Errors
    /// FailedPrecondition unless the pod is ready.
    pub(crate) fn network(&self, id: &str) -> Result<PodNetwork, Error> {
        let pod = self.ready_pod(id)?.record.id.clone();
        Ok(PodNetwork { node: self.clone(), pod })
    }

    fn ready_pod(&self, id: &str) -> Result<Arc<PodView>, Error> {
        let view = self.pod(id)?;
        if view.is_ready() { Ok(view) } else { Err(Error::state(format!("pod {id} is not ready"))) }
    }

    /// Lets the drivers finish their writes; pods keep running.
    pub(crate) async fn shutdown(&self) {
        self.0.registry.close().await;
    }
}

/// For calls on something that is gone: NotFound is not an error.
fn not_found_is_ok<T>(found: Result<T, Error>) -> Result<Option<T>, Error> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The same for what is removed while the call waits.
fn removed_meanwhile_is_ok(error: Error) -> Result<(), Error> {
    if error.kind == ErrorKind::NotFound { Ok(()) } else { Err(error) }
}
