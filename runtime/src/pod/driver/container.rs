//! What happens to a pod's containers: from their creation to their removal.

use super::{Container, Driver, LONGEST_GRACE, LONGEST_RETRY, Outcome, Stopping, answer};
use crate::error::{Error, ErrorKind};
use crate::lanes;
use crate::pod::containers::{self, StartError};
use crate::pod::stop::Stop;
use crate::pod::{admission, now, random};
use crate::registry::Reply;
use model::transition::{self, ContainerEvent};
use model::{ContainerConfig, ContainerId, ContainerPhase, ContainerRecord, Exit};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use wire::MAX_CONTAINERS;

impl Driver {
    pub(super) fn create(&mut self, config: ContainerConfig, reply: Reply<ContainerId>) {
        let same = self.containers.values_mut().find(|it| it.record.config.meta == config.meta);
        if let Some(container) = same {
            let id = container.record.id.clone();
            let meta = &config.meta;
            match container.record.phase {
                _ if container.record.config != config => {
                    let text = format!(
                        "container {} attempt {} exists with another configuration, as {id}",
                        meta.name, meta.attempt
                    );
                    answer(reply, Err(Error::new(ErrorKind::AlreadyExists, text)));
                }
                ContainerPhase::Creating => container.creating.push(reply),
                ContainerPhase::Created => answer(reply, Ok(id)),
                _ => {
                    let text = format!(
                        "container {} attempt {} was started already, as {id}",
                        meta.name, meta.attempt
                    );
                    answer(reply, Err(Error::new(ErrorKind::AlreadyExists, text)));
                }
            }
            return;
        }
        let admitted = (|| {
            self.quiet()?;
            admission::ready(&self.record)?;
            if self.containers.len() >= MAX_CONTAINERS {
                let text = format!(
                    "pod {} has {MAX_CONTAINERS} containers, its limit, dead ones included: remove some first",
                    self.record.id
                );
                return Err(Error::new(ErrorKind::ResourceExhausted, text));
            }
            let id = ContainerId::from_random(random()?);
            let record = containers::intent(id, &self.record, config)?;
            let find =
                |id: &str| self.containers.values().map(|it| &it.record).find(|it| it.id.as_str() == id);
            admission::target(&record, find)?;
            Ok((self.shim()?, record))
        })();
        match admitted {
            Err(error) => answer(reply, Err(error)),
            Ok((client, record)) => {
                let id = record.id.clone();
                let mut container = Container::new(&self.context, record.clone());
                container.creating.push(reply);
                self.containers.insert(id.clone(), container);
                let (context, pod) = (Arc::clone(&self.context), self.record.clone());
                self.jobs.spawn(async move {
                    Outcome::Created(id, containers::create(context, pod, client, record).await.map(Box::new))
                });
            }
        }
    }

    pub(super) fn created(&mut self, id: &ContainerId, created: Result<Box<ContainerRecord>, Error>) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let waiters = std::mem::take(&mut container.creating);
        let early_exit = container.early_exit.take();
        let outcome = match created {
            Ok(record) => {
                container.record = *record;
                container.recorder.set(container.record.clone());
                self.publish_container(id);
                if let Some((exit, started_at)) = early_exit {
                    self.exited(id, exit, started_at);
                }
                Ok(id.clone())
            }
            Err(error) => {
                let name = container.record.config.meta.name.clone();
                self.containers.remove(id);
                // What its shim had of it may have been lost with the connection, or come late.
                if matches!(error.kind, ErrorKind::Unavailable | ErrorKind::DeadlineExceeded) {
                    self.kill_orphan(id);
                }
                Err(self.overtaken(&format!("container {name} was not created"), error))
            }
        };
        for waiter in waiters {
            answer(waiter, outcome.clone());
        }
        self.maybe_stopped();
    }

    /// The reason why something failed that the end of its pod has overtaken: not what the killed processes
    /// had to say, but that end.
    fn overtaken(&self, what: &str, error: Error) -> Error {
        let own_fault = matches!(
            error.kind,
            ErrorKind::NotFound | ErrorKind::InvalidArgument | ErrorKind::ResourceExhausted
        );
        match self.quiet().and_then(|()| admission::ready(&self.record)) {
            Err(over) if !own_fault => {
                tracing::debug!(pod = %self.record.id, %error, "overtaken by the end of the pod");
                over.context(what)
            }
            _ => error,
        }
    }

    pub(super) fn start(&mut self, id: &ContainerId, reply: Reply<()>) {
        let admitted = (|| {
            self.quiet()?;
            admission::ready(&self.record)?;
            let container = self.find(id)?;
            if container.starting.is_none() {
                admission::start(&container.record)?;
            }
            if !container.removing.is_empty() {
                return Err(Error::state(format!("container {id} is being removed")));
            }
            self.shim()
        })();
        let client = match admitted {
            Ok(client) => client,
            Err(error) => return answer(reply, Err(error)),
        };
        let Some(container) = self.containers.get_mut(id) else { return };
        if let Some(waiting) = &mut container.starting {
            return waiting.push(reply);
        }
        container.starting = Some(vec![reply]);
        // What goes to disk says "may have run"; what is shown waits for the shim's word.
        let intent =
            ContainerRecord { phase: ContainerPhase::Running, started_at: now(), ..container.record.clone() };
        container.recorder.set(intent);
        let (context, recorder, id) =
            (Arc::clone(&self.context), Arc::clone(&container.recorder), id.clone());
        self.jobs.spawn(async move {
            let started = containers::start(context, client, id.clone(), recorder).await;
            Outcome::Started(id, started)
        });
    }

    pub(super) fn started(&mut self, id: &ContainerId, outcome: Result<i64, StartError>) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let waiters = container.starting.take().unwrap_or_default();
        // What a process that was killed in between had to say is not the reason.
        let stopped = container.stop_began;
        let aborted = |error: Error| match error.kind {
            ErrorKind::Internal if stopped => {
                Error::new(ErrorKind::Aborted, format!("stopped while it was started: {}", error.message))
            }
            _ => error,
        };
        let outcome = match outcome {
            Ok(started_at) => {
                container.record.started_at = started_at;
                container.may_run = false;
                if let Ok(phase) = transition::container(container.record.phase, ContainerEvent::Started) {
                    container.record.phase = phase;
                }
                container.recorder.set(container.record.clone());
                // One that has ended meanwhile is shown with its exit, once that is recorded.
                if container.record.phase == ContainerPhase::Running {
                    self.publish_container(id);
                }
                Ok(())
            }
            Err(StartError::Never(message)) => {
                let name = container.record.config.meta.name.clone();
                self.exited(id, containers::never_ran(message.clone()), 0);
                let error =
                    aborted(Error::internal(format!("container {name} cannot be started: {message}")));
                Err(self.overtaken(&format!("container {name} was not started"), error))
            }
            // The reply was lost, and what it would have said is known already.
            Err(StartError::Other(_)) if container.record.phase == ContainerPhase::Running => {
                self.publish_container(id);
                Ok(())
            }
            Err(StartError::Other(error)) => {
                container.may_run = true;
                container.recorder.set(container.record.clone());
                let error = aborted(error.context(format!("start container {id}")));
                Err(self.overtaken(&format!("container {id} was not started"), error))
            }
        };
        if let Some(container) = self.containers.get_mut(id)
            && container.record.phase == ContainerPhase::Exited
            && !container.settled
        {
            container.started.extend(waiters.into_iter().map(|waiter| (waiter, outcome.clone())));
            return;
        }
        for waiter in waiters {
            answer(waiter, outcome.clone());
        }
    }

    /// The shim's word that init has exec'd, whoever asked for that: the reply may have found no daemon, or come
    /// after its caller had given up.
    pub(super) fn running(&mut self, id: &ContainerId, started_at: i64) {
        let Some(container) = self.containers.get_mut(id) else { return };
        if container.record.phase != ContainerPhase::Created {
            return;
        }
        if let Ok(phase) = transition::container(container.record.phase, ContainerEvent::Started) {
            (container.record.phase, container.record.started_at) = (phase, started_at);
        }
        container.may_run = false;
        container.recorder.set(container.record.clone());
        // A start under way publishes once its record is durable.
        if container.starting.is_none() {
            tracing::info!(container = %id, "runs, by a start that nobody waits for any more");
            self.publish_container(id);
        }
    }

    pub(super) fn stop(&mut self, id: &ContainerId, grace: Duration, reply: Option<Reply<()>>) {
        let (context, client, shim_pid) =
            (Arc::clone(&self.context), self.link.client(), self.record.shim_pid);
        let Some(container) = self.containers.get_mut(id) else {
            return reply.into_iter().for_each(|reply| answer(reply, Ok(())));
        };
        if container.settled || container.idle() {
            return reply.into_iter().for_each(|reply| answer(reply, Ok(())));
        }
        let deadline = Instant::now() + grace.min(LONGEST_GRACE);
        if let Some(stopping) = &mut container.stopping {
            stopping.waiters.extend(reply);
            stopping.deadline.send_if_modified(|have| {
                let sooner = deadline < *have;
                if sooner {
                    *have = deadline;
                }
                sooner
            });
            return;
        }
        let (sender, receiver) = watch::channel(deadline);
        container.stopping = Some(Stopping { deadline: sender, waiters: reply.into_iter().collect() });
        container.stop_began = true;
        let (record, exited, id) = (container.record.clone(), container.exited.subscribe(), id.clone());
        self.jobs.spawn(async move {
            let stop = Stop { client, shim_pid, record, deadline: receiver, exited };
            Outcome::StopEnded(id, stop.run(&context).await)
        });
    }

    pub(super) fn stop_ended(&mut self, id: &ContainerId, outcome: Result<Option<Exit>, Error>) {
        let error = match outcome {
            // The shim's word answers the callers, when it is recorded.
            Ok(None) => return,
            Ok(Some(exit)) => {
                tracing::warn!(container = %id, code = exit.code, "ended, as seen without its shim");
                return self.exited(id, exit, 0);
            }
            Err(error) => error,
        };
        let Some(container) = self.containers.get_mut(id) else { return };
        let waiters = container.stopping.take().map(|stopping| stopping.waiters).unwrap_or_default();
        let removers = std::mem::take(&mut container.removing);
        for waiter in waiters.into_iter().chain(removers) {
            answer(waiter, Err(error.clone()));
        }
    }

    pub(super) fn remove(&mut self, id: &ContainerId, reply: Reply<()>) {
        let Some(container) = self.containers.get_mut(id) else { return answer(reply, Ok(())) };
        container.removing.push(reply);
        if container.settled {
            self.begin_remove(id);
        } else {
            self.stop(id, Duration::ZERO, None);
        }
    }

    pub(crate) fn begin_remove(&mut self, id: &ContainerId) {
        let Some(container) = self.containers.get_mut(id) else { return };
        // The removal of its pod takes it along, and answers.
        if container.being_removed || self.removing {
            return;
        }
        container.being_removed = true;
        let record = ContainerRecord { phase: ContainerPhase::Removing, ..container.record.clone() };
        container.recorder.set(record.clone());
        let (context, client, recorder) =
            (Arc::clone(&self.context), self.link.client(), Arc::clone(&container.recorder));
        self.jobs.spawn(async move {
            // So that a crash in the middle goes on removing. A disk that is full must not prevent what makes it
            // empty: without the record, whoever asked asks again after a crash.
            if let Err(error) = recorder.persist(&context, false).await {
                tracing::debug!(container = %record.id, %error, "removed without a record of it");
            }
            let errors = containers::remove(&context, client.as_ref(), &record).await;
            Outcome::ContainerRemoved(record.id, errors)
        });
    }

    pub(super) fn container_removed(&mut self, id: &ContainerId, errors: Vec<Error>) {
        let outcome = Error::gathered(errors);
        let Some(container) = self.containers.get_mut(id) else { return };
        let waiters = std::mem::take(&mut container.removing);
        container.being_removed = false;
        if outcome.is_ok() {
            self.containers.remove(id);
            self.registry.published().take_container(id);
        }
        let outcome = outcome.map_err(|error| error.context(format!("remove container {id}")));
        if let Err(error) = &outcome
            && waiters.is_empty()
        {
            tracing::error!(container = %id, %error, again = ?LONGEST_RETRY, "not removed; it is tried again");
            let id = id.clone();
            self.waits.spawn(async move {
                tokio::time::sleep(LONGEST_RETRY).await;
                Outcome::RemoveAgain(id)
            });
        }
        for waiter in waiters {
            answer(waiter, outcome.clone());
        }
        self.maybe_remove_pod();
    }

    /// A removal that nobody waited for has failed a while ago.
    pub(super) fn remove_again(&mut self, id: &ContainerId) {
        if !self.ending {
            self.begin_remove(id);
        }
    }

    pub(super) fn reopen_log(&mut self, id: &ContainerId, reply: Reply<()>) {
        let admitted = self.find(id).and_then(|container| {
            admission::running(&container.record)?;
            self.shim()
        });
        match admitted {
            Err(error) => answer(reply, Err(error)),
            Ok(client) => {
                let container = id.clone();
                self.jobs.spawn(async move {
                    let limit = Duration::from_secs(20);
                    let request = wire::Request::ReopenLog { container };
                    let done = client.done("the log's reopening", request, limit).await;
                    answer(reply, done.map_err(Error::from));
                    Outcome::Nothing
                });
            }
        }
    }

    /// Notes an exit and records it; shown when durable. A second word on it changes nothing.
    pub(crate) fn exited(&mut self, id: &ContainerId, exit: Exit, started_at: i64) {
        let Some(container) = self.containers.get_mut(id) else {
            tracing::debug!(container = %id, "exit of a container that is not known");
            return;
        };
        if !container.end(exit, started_at) {
            return;
        }
        container.recorder.set(container.record.clone());
        let (context, recorder, id) =
            (Arc::clone(&self.context), Arc::clone(&container.recorder), id.clone());
        self.jobs.spawn(async move {
            let recorded = recorder.persist(&context, true).await;
            if let Err(error) = &recorded {
                tracing::error!(container = %id, %error, "exit not recorded: it is forgotten if the node ends now");
            }
            Outcome::ExitRecorded(id, recorded.is_ok())
        });
    }

    /// The exit may be seen: tells everybody.
    pub(super) fn exit_recorded(&mut self, id: &ContainerId, durable: bool) {
        let Some(container) = self.containers.get_mut(id) else { return };
        container.settled = true;
        container.unrecorded = !durable;
        container.exited.send_replace(true);
        let waiters = container.stopping.take().map(|stopping| stopping.waiters).unwrap_or_default();
        let started = std::mem::take(&mut container.started);
        let wanted = !container.removing.is_empty();
        let (cgroups, leaf) = (self.context.cgroups.clone(), container.record.cgroup.clone());
        self.publish_container(id);
        for waiter in waiters {
            answer(waiter, Ok(()));
        }
        for (waiter, outcome) in started {
            answer(waiter, outcome);
        }
        self.maybe_stopped();
        if wanted {
            self.begin_remove(id);
        } else if !self.ending {
            let pod = self.record.id.clone();
            // Nobody reads it any more, and kubelet wants the pod's folder back.
            self.jobs.spawn(async move {
                let work = move || Ok(cgroups.remove(&leaf)?);
                let removed = lanes::run(lanes::kill(), pod.as_str(), "remove the cgroup", work).await;
                if let Err(error) = removed {
                    tracing::debug!(%error, "cgroup of an exited container stays until it is removed");
                }
                Outcome::Nothing
            });
        }
    }

    /// A container that the shim still has goes on.
    pub(crate) fn resume(&mut self, id: &ContainerId, phase: ContainerPhase, pid: u32, started_at: i64) {
        let Some(container) = self.containers.get_mut(id) else { return };
        (container.record.phase, container.record.pid) = (phase, pid);
        // A shim of a later version may not say when.
        if started_at != 0 || phase == ContainerPhase::Created {
            container.record.started_at = started_at;
        }
        container.recorder.set(container.record.clone());
        self.publish_container(id);
    }

    /// A container that was never committed is undone; nobody knows of it.
    pub(crate) fn roll_back(&mut self, id: &ContainerId) {
        let Some(container) = self.containers.remove(id) else { return };
        let (context, client) = (Arc::clone(&self.context), self.link.client());
        self.jobs.spawn(async move {
            for error in containers::unmake(&context, client.as_ref(), &container.record).await {
                tracing::error!(container = %container.record.id, %error, "left by a create that was cut off");
            }
            Outcome::Nothing
        });
    }

    /// The shim has a container that should not live: killed, and forgotten once it is over.
    pub(super) fn kill_orphan(&mut self, id: &ContainerId) {
        let Some(client) = self.link.client() else { return };
        let container = id.clone();
        self.jobs.spawn(async move {
            if let Err(error) = containers::kill_and_forget(&client, &container).await {
                tracing::warn!(%container, %error, "container that should not live is still held by the shim");
            }
            Outcome::Nothing
        });
    }
}
