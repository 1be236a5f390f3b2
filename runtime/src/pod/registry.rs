//! Finds the drivers of pods by id and name. A RunPodSandbox call that equals a running one joins it.

use super::command::{Command, Reply};
use super::publish::Published;
use crate::error::{Error, ErrorKind};
use crate::kept::{KeptContainer, KeptPod};
use crate::operations;
use model::{PodConfig, PodId, PodMeta};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};

/// The reply to the callers of RunPodSandbox that wait for a pod's name; `None` until it can be given.
pub(crate) type RunReply = Option<Result<PodId, Error>>;

/// Maximum number of commands in a driver's queue. A driver takes commands without delay, except during its first attempt
/// to connect after a restart of the daemon (`driver::adopt`), so the queue is full only if very many calls arrive at once.
const MAX_COMMANDS: usize = 64;
/// Maximum number of pods of a node. kubelet's default limit is 110; some nodes have a few hundred.
const MAX_PODS: usize = 4096;
/// How long the daemon waits for drivers when it stops.
const CLOSE: Duration = Duration::from_secs(5);

/// The drivers of all pods, and what they publish.
#[derive(Debug)]
pub(crate) struct Registry {
    tables: Mutex<Tables>,
    published: Published,
    closing: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct Tables {
    pods: HashMap<PodId, Handle>,
    names: HashMap<PodMeta, PodId>,
    /// The errors for commands on pods and containers whose records cannot be used, by id.
    kept: HashMap<Box<str>, Error>,
}

#[derive(Debug)]
struct Handle {
    commands: mpsc::Sender<Command>,
    config: Arc<PodConfig>,
    run_reply: watch::Receiver<RunReply>,
}

/// The channels of a new driver.
#[derive(Debug)]
pub(crate) struct DriverChannels {
    /// The pod's id.
    pub(crate) id: PodId,
    /// Receives commands.
    pub(crate) commands: mpsc::Receiver<Command>,
    /// Replies to the callers that wait for the name.
    pub(crate) run_reply: watch::Sender<RunReply>,
    /// Becomes true when the daemon is stopping.
    pub(crate) closing: watch::Receiver<bool>,
}

/// The outcome of [`Registry::reserve`].
#[derive(Debug)]
pub(crate) enum Reservation {
    /// The name was free: start a driver with these channels, then wait for its reply.
    New(DriverChannels, watch::Receiver<RunReply>),
    /// An equal request has it, for the pod with this id: wait for the same reply.
    Join(PodId, watch::Receiver<RunReply>),
}

impl Registry {
    pub(crate) fn new() -> Self {
        Self { tables: Mutex::default(), published: Published::default(), closing: watch::Sender::new(false) }
    }

    /// The published views, for lists and look-ups.
    pub(crate) fn published(&self) -> &Published {
        &self.published
    }

    fn tables(&self) -> std::sync::MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reserves the pod's name for `id`, or joins the equal request that has it.
    ///
    /// # Errors
    /// AlreadyExists if the name belongs to another configuration, to a pod that is not ready any more, or to a pod that
    /// is not managed; ResourceExhausted if the node has too many pods.
    pub(crate) fn reserve(&self, id: PodId, config: &Arc<PodConfig>) -> Result<Reservation, Error> {
        let mut tables = self.tables();
        if let Some(owner) = tables.names.get(&config.meta) {
            let Some(handle) = tables.pods.get(owner) else {
                let kept = tables.kept.get(owner.as_str()).cloned();
                return Err(kept.map_or_else(
                    || Error::internal(format!("bug in copepod: pod {owner} has a name and no driver")),
                    |error| error.with_kind(ErrorKind::AlreadyExists),
                ));
            };
            let meta = &config.meta;
            let name = format!("{}/{} uid {} attempt {}", meta.namespace, meta.name, meta.uid, meta.attempt);
            if *handle.config != **config {
                let text = format!("pod {name} exists with another configuration, as {owner}");
                return Err(Error::new(ErrorKind::AlreadyExists, text));
            }
            if matches!(*handle.run_reply.borrow(), Some(Ok(_)))
                && !self.published.pod(owner.as_str()).is_ok_and(|pod| pod.is_ready())
            {
                let text = format!("pod {name} exists as {owner} and is not ready any more: remove it first");
                return Err(Error::new(ErrorKind::AlreadyExists, text));
            }
            return Ok(Reservation::Join(owner.clone(), handle.run_reply.clone()));
        }
        if tables.pods.len() >= MAX_PODS {
            let text = format!("this node has {MAX_PODS} pods, its limit");
            return Err(Error::new(ErrorKind::ResourceExhausted, text));
        }
        let (channels, reply) = self.register(&mut tables, id, config, None);
        Ok(Reservation::New(channels, reply))
    }

    /// Registers a driver for a pod that has a record. If the daemon removes the pod (`leaving`), callers that want its
    /// name wait until it is removed.
    pub(crate) fn restore(&self, id: &PodId, config: &Arc<PodConfig>, leaving: bool) -> DriverChannels {
        let reply = if leaving { None } else { Some(Ok(id.clone())) };
        self.register(&mut self.tables(), id.clone(), config, reply).0
    }

    fn register(
        &self,
        tables: &mut Tables,
        id: PodId,
        config: &Arc<PodConfig>,
        reply: RunReply,
    ) -> (DriverChannels, watch::Receiver<RunReply>) {
        let (sender, commands) = mpsc::channel(MAX_COMMANDS);
        let (run_reply, reply) = watch::channel(reply);
        let handle = Handle { commands: sender, config: Arc::clone(config), run_reply: reply.clone() };
        tables.names.insert(config.meta.clone(), id.clone());
        tables.pods.insert(id.clone(), handle);
        (DriverChannels { id, commands, run_reply, closing: self.closing.subscribe() }, reply)
    }

    /// Publishes a pod that has no driver because its record cannot be used; its name stays reserved.
    pub(crate) fn keep_pod(&self, kept: &KeptPod) {
        let KeptPod { record, refusal } = kept;
        self.published.put_pod(Arc::new(record.clone()), 0);
        let mut tables = self.tables();
        tables.kept.insert(record.id.as_str().into(), refusal.clone());
        if record.config.meta != PodMeta::default() {
            tables.names.entry(record.config.meta.clone()).or_insert_with(|| record.id.clone());
        }
    }

    /// Publishes a container whose record or whose pod's record cannot be used.
    pub(crate) fn keep_container(&self, kept: &KeptContainer) {
        let KeptContainer { record, refusal } = kept;
        self.published.put_container(Arc::new(record.clone()));
        self.tables().kept.insert(record.id.as_str().into(), refusal.clone());
    }

    /// Fails for a pod or container that is not managed because its record cannot be used.
    pub(crate) fn managed(&self, id: &str) -> Result<(), Error> {
        self.tables().kept.get(id).map_or(Ok(()), |refusal| Err(refusal.clone()))
    }

    /// Releases the name of a pod that was removed.
    pub(crate) fn release(&self, id: &PodId) {
        let mut tables = self.tables();
        if let Some(handle) = tables.pods.remove(id)
            && tables.names.get(&handle.config.meta) == Some(id)
        {
            tables.names.remove(&handle.config.meta);
        }
    }

    /// Sends a command to a pod's driver and waits for the reply. If the caller goes away, the work continues.
    ///
    /// # Errors
    /// NotFound if the pod has no driver; Aborted if the daemon is stopping; that of the reply.
    pub(crate) async fn call<T>(
        &self,
        pod: &PodId,
        command: impl FnOnce(Reply<T>) -> Command,
    ) -> Result<T, Error> {
        // A driver also ends with the daemon. Then the error is not NotFound: stops and removals take that for success.
        let gone = || match *self.closing.borrow() {
            true => stopping(pod),
            false => Error::new(ErrorKind::NotFound, format!("pod {pod} is gone")),
        };
        self.managed(pod.as_str())?;
        let commands = self.tables().pods.get(pod).map(|handle| handle.commands.clone()).ok_or_else(gone)?;
        let (reply, answer) = oneshot::channel();
        let _awaiting = operations::await_driver();
        commands.send(command(reply)).await.map_err(|_| gone())?;
        answer.await.unwrap_or_else(|_| Err(stopping(pod)))
    }

    /// For work that belongs to no driver: a daemon that stops waits until the returned receiver is dropped. Its value
    /// becomes true when the daemon is stopping.
    pub(crate) fn hold(&self) -> watch::Receiver<bool> {
        self.closing.subscribe()
    }

    /// Tells all drivers to stop, and waits for them with a limit.
    pub(crate) async fn close(&self) {
        self.closing.send_replace(true);
        // Every driver holds a receiver, so the channel closes when all have ended.
        if tokio::time::timeout(CLOSE, self.closing.closed()).await.is_err() {
            tracing::warn!(after = ?CLOSE, "work on some pods was interrupted; the next start of the daemon finishes or undoes it");
        }
    }
}

/// The error of a call that its pod's driver does not answer any more.
fn stopping(pod: &PodId) -> Error {
    let text = format!("pod {pod}: the daemon is stopping; try again when it has started again");
    Error::new(ErrorKind::Aborted, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(name: &str, hostname: &str) -> Arc<PodConfig> {
        let meta = PodMeta { name: name.into(), namespace: "n".into(), uid: "u".into(), attempt: 0 };
        Arc::new(PodConfig { meta, hostname: hostname.into(), ..PodConfig::default() })
    }

    #[tokio::test]
    async fn an_equal_request_joins_and_another_is_refused() {
        let registry = Registry::new();
        let id = PodId::from_random([1; 32]);
        let Ok(Reservation::New(channels, _)) = registry.reserve(id.clone(), &config("a", "h")) else {
            panic!("the name is free");
        };
        let other = PodId::from_random([2; 32]);
        let Ok(Reservation::Join(joined, mut reply)) = registry.reserve(other.clone(), &config("a", "h"))
        else {
            panic!("equal requests join");
        };
        assert_eq!(joined, id);
        let refused = registry.reserve(other.clone(), &config("a", "other")).unwrap_err();
        assert_eq!(refused.kind, ErrorKind::AlreadyExists);
        channels.run_reply.send_replace(Some(Ok(id.clone())));
        assert_eq!(*reply.wait_for(Option::is_some).await.unwrap(), Some(Ok(id.clone())));
        // Launched, but not published as ready: the pod has ended.
        let over = registry.reserve(other.clone(), &config("a", "h")).unwrap_err();
        assert_eq!(over.kind, ErrorKind::AlreadyExists);
        registry.release(&id);
        assert!(matches!(registry.reserve(other, &config("a", "h")), Ok(Reservation::New(..))));
    }

    #[tokio::test]
    async fn calls_to_an_ended_driver_return_not_found() {
        let registry = Registry::new();
        let id = PodId::from_random([1; 32]);
        let channels = registry.restore(&id, &config("a", ""), false);
        drop(channels);
        let error = registry.call(&id, Command::StopPod).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::NotFound);
        // A stop would take NotFound for success, and the pod goes on when the daemon ends.
        registry.close().await;
        let error = registry.call(&id, Command::StopPod).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Aborted);
    }
}
