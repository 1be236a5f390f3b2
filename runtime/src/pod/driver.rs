//! The task that owns one pod. It never waits for work: commands, shim events and outcomes of jobs come in
//! turn, each changes the state, publishes it, and maybe starts the next job.

use super::containers::{self, Recorder, StartError};
use super::launch::{self, Up};
use super::teardown::{self, Ended};
use super::{Command, Context, POD_RECORD, admission, exec, now, random};
use crate::node::{Error, ErrorKind};
use crate::registry::{Launched, Registry, Reply, Seat};
use crate::restore;
use crate::shims::{Client, Connection};
use model::transition::{self, ContainerEvent, PodEvent};
use model::{
    ContainerConfig, ContainerId, ContainerPhase, ContainerRecord, Exit, PodConfig, PodPhase, PodRecord,
};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use wire::{Event, ExitFacts};

/// Most containers of a pod, exited ones that kubelet has not removed included.
const MOST_CONTAINERS: usize = 512;
/// Longest grace of a stop: kubelet takes any i64 from the pod; a year is for ever.
const LONGEST_GRACE: Duration = Duration::from_secs(365 * 24 * 3600);

/// What a job has done.
#[derive(Debug)]
enum Outcome {
    Created(ContainerId, Result<Box<ContainerRecord>, Error>),
    Started(ContainerId, Result<i64, StartError>),
    /// The stop job ended; an exit is told by the shim.
    StopEnded(ContainerId, Result<(), Error>),
    /// The exit is durable (or cannot be made so, which the log tells).
    ExitRecorded(ContainerId),
    ContainerRemoved(ContainerId, Vec<Error>),
    /// Everything but the records is gone, or the errors say what is not.
    Ended(Ended),
    /// The records say so too.
    Stopped(Vec<Error>),
    Removed(Vec<Error>),
    /// The shim was dialled again.
    Dialled(Box<restore::Answer>),
    /// A dead shim's pod was killed.
    Buried(Ended),
    Nothing,
}

/// One container and who waits for it.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) record: ContainerRecord,
    recorder: Arc<Recorder<ContainerRecord>>,
    /// Never empty while the job that creates it is at work.
    creating: Vec<Reply<ContainerId>>,
    starting: Option<Vec<Reply<()>>>,
    /// A start is answered when its outcome can be seen: here, when the exit that it ended in is.
    started: Vec<(Reply<()>, Result<(), Error>)>,
    stopping: Option<Stopping>,
    removing: Vec<Reply<()>>,
    /// The removal job is at work.
    being_removed: bool,
    /// True once it has exited, for the stop job.
    exited: watch::Sender<bool>,
    /// The exit is recorded and published.
    settled: bool,
    /// The end of one that is still being created, with the time of its start: applied when it is created.
    early_exit: Option<(Exit, i64)>,
    /// A start ended without the shim's word on it: it may run, though it is shown as created.
    may_run: bool,
}

#[derive(Debug)]
struct Stopping {
    deadline: watch::Sender<Instant>,
    waiters: Vec<Reply<()>>,
}

impl Container {
    pub(crate) fn new(context: &Context, record: ContainerRecord) -> Self {
        Self::with(containers::recorder(context, &record), record)
    }

    fn with(recorder: Arc<Recorder<ContainerRecord>>, record: ContainerRecord) -> Self {
        let over = record.phase == ContainerPhase::Exited;
        Self {
            record,
            recorder,
            creating: Vec::new(),
            starting: None,
            started: Vec::new(),
            stopping: None,
            removing: Vec::new(),
            being_removed: false,
            exited: watch::Sender::new(over),
            settled: over,
            early_exit: None,
            may_run: false,
        }
    }

    /// Whether the end of a pod has to wait for it.
    fn keeps_pod(&self) -> bool {
        !self.creating.is_empty() || (self.record.phase == ContainerPhase::Exited && !self.settled)
    }

    /// Whether nothing of it runs that a stop would have to end.
    fn idle(&self) -> bool {
        self.record.phase == ContainerPhase::Created
            && self.starting.is_none()
            && self.removing.is_empty()
            && !self.may_run
    }

    /// Notes its end; true when that is new and to be recorded. The first word counts.
    fn end(&mut self, exit: Exit, started_at: i64) -> bool {
        match self.record.phase {
            ContainerPhase::Exited | ContainerPhase::Removing => return false,
            // The job that creates it still writes its record.
            ContainerPhase::Creating => {
                self.early_exit.get_or_insert((exit, started_at));
                return false;
            }
            ContainerPhase::Created | ContainerPhase::Running => {}
        }
        self.record.phase = ContainerPhase::Exited;
        self.record.exit = Some(exit);
        self.record.pid = 0;
        if started_at != 0 {
            self.record.started_at = started_at;
        }
        true
    }
}

/// The driver of one pod.
#[derive(Debug)]
pub(crate) struct Driver {
    context: Arc<Context>,
    registry: Arc<Registry>,
    pub(crate) record: PodRecord,
    recorder: Arc<Recorder<PodRecord>>,
    pub(crate) containers: BTreeMap<ContainerId, Container>,
    client: Option<Client>,
    events: Option<mpsc::Receiver<Event>>,
    jobs: JoinSet<Outcome>,
    stop_waiters: Vec<Reply<()>>,
    remove_waiters: Vec<Reply<()>>,
    /// A stop is at work; commands that change containers are refused meanwhile.
    ending: bool,
    removing: bool,
    finished: bool,
    /// The stop is done but for exits that are being recorded.
    stopped_with: Option<Vec<Error>>,
    /// Not shown: not committed, or going.
    pub(crate) hidden: bool,
    /// The removal was begun, or never asked for because nobody knows of it.
    pub(crate) remove_when_stopped: bool,
    /// How often in a row the shim was asked in vain.
    silence: u32,
    /// Those who want the name of a pod that is being rolled back wait for this.
    pub(crate) launched: Option<watch::Sender<Launched>>,
}

/// Starts the driver of a new pod: it launches first.
pub(crate) fn launch(context: Arc<Context>, registry: Arc<Registry>, seat: Seat, config: &PodConfig) {
    let record = PodRecord {
        id: seat.id.clone(),
        config: config.clone(),
        created_at: now(),
        phase: PodPhase::Launching,
        ips: Vec::new(),
        netns: String::new(),
        pause_pid: 0,
        shim_pid: 0,
        message: String::new(),
    };
    tokio::spawn(async move {
        let Seat { id, mut commands, launched, mut closing } = seat;
        let tell = |outcome: Launched| launched.send_replace(outcome);
        match launch::launch(Arc::clone(&context), record.clone()).await {
            Ok(Up { record, connection }) => {
                let mut driver = Driver::new(context, registry, record);
                driver.attach(connection);
                driver.publish();
                tell(Some(Ok(id)));
                driver.run(&mut commands, &mut closing).await;
            }
            Err(launch::Failed { error, left }) if left.is_empty() => {
                // Free before anybody is told, so that a retry begins anew.
                registry.release(&id);
                tell(Some(Err(error)));
            }
            Err(launch::Failed { error, left }) => {
                for left in &left {
                    tracing::error!(pod = %id, error = %left, "left by a launch that failed");
                }
                let mut driver = Driver::new(context, registry, record);
                driver.record.phase = PodPhase::Stopping;
                driver.record.message = format!("launch failed: {}", error.message);
                driver.publish();
                driver.persist_pod();
                tell(Some(Err(error)));
                driver.run(&mut commands, &mut closing).await;
            }
        }
    });
}

impl Driver {
    pub(crate) fn new(context: Arc<Context>, registry: Arc<Registry>, record: PodRecord) -> Self {
        let recorder = Recorder::new(context.layout.pod_record(&record.id), POD_RECORD, record.clone());
        Self {
            context,
            registry,
            record,
            recorder,
            containers: BTreeMap::new(),
            client: None,
            events: None,
            jobs: JoinSet::new(),
            stop_waiters: Vec::new(),
            remove_waiters: Vec::new(),
            ending: false,
            removing: false,
            finished: false,
            stopped_with: None,
            hidden: false,
            remove_when_stopped: false,
            silence: 0,
            launched: None,
        }
    }

    pub(crate) fn attach(&mut self, connection: Connection) {
        self.record.shim_pid = connection.client.pid();
        self.silence = 0;
        self.client = Some(connection.client);
        self.events = Some(connection.events);
    }

    /// Until the pod is removed or the daemon stops.
    pub(crate) async fn run(
        mut self,
        commands: &mut mpsc::Receiver<Command>,
        closing: &mut watch::Receiver<bool>,
    ) {
        while !self.finished {
            let event = async {
                match &mut self.events {
                    Some(events) => events.recv().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                command = commands.recv() => match command {
                    Some(command) => self.command(command),
                    None => break,
                },
                event = event => match event {
                    Some(event) => self.event(event),
                    None => self.link_lost(),
                },
                Some(outcome) = self.jobs.join_next() => match outcome {
                    Ok(outcome) => self.outcome(outcome),
                    Err(error) => tracing::error!(pod = %self.record.id, %error, "a job ended badly"),
                },
                _ = closing.changed() => {
                    // Records in flight are written; what waits for processes is left to the next start.
                    while self.jobs.join_next().await.is_some() {}
                    break;
                }
            }
        }
    }

    pub(crate) fn publish(&self) {
        if self.hidden {
            return;
        }
        self.registry.published().put_pod(&self.record);
    }

    /// Shows a container, once it may be seen.
    pub(crate) fn publish_container(&self, id: &ContainerId) {
        if let Some(container) = self.containers.get(id)
            && !self.hidden
            && !matches!(container.record.phase, ContainerPhase::Creating | ContainerPhase::Removing)
        {
            self.registry.published().put_container(&container.record);
        }
    }

    /// Writes the pod's record in the background: an operator's fact, needed by the next start at best.
    fn persist_pod(&mut self) {
        self.recorder.set(self.record.clone());
        let (context, recorder) = (Arc::clone(&self.context), Arc::clone(&self.recorder));
        self.jobs.spawn(async move {
            if let Err(error) = recorder.persist(&context, false).await {
                tracing::error!(%error, "pod record not written");
            }
            Outcome::Nothing
        });
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::StopPod(reply) => {
                self.stop_waiters.push(reply);
                self.begin_stop();
            }
            Command::RemovePod(reply) => {
                self.remove_waiters.push(reply);
                self.begin_stop();
            }
            Command::Create { config, reply } => self.create(*config, reply),
            Command::Start { id, reply } => self.start(&id, reply),
            Command::Stop { id, grace, reply } => self.stop(&id, grace, Some(reply)),
            Command::Remove { id, reply } => self.remove(&id, reply),
            Command::ReopenLog { id, reply } => self.reopen_log(&id, reply),
            Command::Exec { id, reply } => {
                let found = self.find(&id).and_then(|container| {
                    admission::running(&container.record)?;
                    Ok(exec::Ticket { client: self.shim()?, record: container.record.clone() })
                });
                answer(reply, found);
            }
        }
    }

    fn find(&self, id: &ContainerId) -> Result<&Container, Error> {
        self.containers
            .get(id)
            .filter(|container| container.record.phase != ContainerPhase::Creating)
            .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("no container {id}")))
    }

    fn shim(&self) -> Result<Client, Error> {
        self.client.clone().ok_or_else(|| {
            Error::new(ErrorKind::Unavailable, format!("pod {}: its shim does not answer", self.record.id))
        })
    }

    /// Not while the pod is being stopped or removed.
    fn quiet(&self) -> Result<(), Error> {
        if self.ending || self.removing {
            return Err(Error::state(format!("pod {} is being stopped", self.record.id)));
        }
        Ok(())
    }

    fn create(&mut self, config: ContainerConfig, reply: Reply<ContainerId>) {
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
            if self.containers.len() >= MOST_CONTAINERS {
                let text = format!("pod {} has {MOST_CONTAINERS} containers, its limit", self.record.id);
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

    fn start(&mut self, id: &ContainerId, reply: Reply<()>) {
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

    fn started(&mut self, id: &ContainerId, outcome: Result<i64, StartError>) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let waiters = container.starting.take().unwrap_or_default();
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
                Err(Error::internal(format!("container {name} cannot be started: {message}")))
            }
            Err(StartError::Other(error)) => {
                container.may_run = true;
                container.recorder.set(container.record.clone());
                Err(error.context(format!("start container {id}")))
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

    fn stop(&mut self, id: &ContainerId, grace: Duration, reply: Option<Reply<()>>) {
        let client = self.client.clone();
        let context = Arc::clone(&self.context);
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
        let (record, exited, id) = (container.record.clone(), container.exited.subscribe(), id.clone());
        self.jobs.spawn(async move {
            Outcome::StopEnded(id, containers::stop(context, client, record, receiver, exited).await)
        });
    }

    fn remove(&mut self, id: &ContainerId, reply: Reply<()>) {
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
        if container.being_removed {
            return;
        }
        container.being_removed = true;
        let record = ContainerRecord { phase: ContainerPhase::Removing, ..container.record.clone() };
        container.recorder.set(record.clone());
        let (context, client, recorder) =
            (Arc::clone(&self.context), self.client.clone(), Arc::clone(&container.recorder));
        self.jobs.spawn(async move {
            // So that a crash in the middle goes on removing.
            if let Err(error) = recorder.persist(&context, false).await {
                return Outcome::ContainerRemoved(record.id, vec![error]);
            }
            let errors = containers::remove(&context, client.as_ref(), &record).await;
            Outcome::ContainerRemoved(record.id, errors)
        });
    }

    fn container_removed(&mut self, id: &ContainerId, errors: Vec<Error>) {
        let outcome = Error::gathered(errors);
        let Some(container) = self.containers.get_mut(id) else { return };
        let waiters = std::mem::take(&mut container.removing);
        container.being_removed = false;
        if outcome.is_ok() {
            self.containers.remove(id);
            self.registry.published().take_container(id);
        }
        for waiter in waiters {
            answer(waiter, outcome.clone().map_err(|error| error.context(format!("remove container {id}"))));
        }
    }

    fn reopen_log(&mut self, id: &ContainerId, reply: Reply<()>) {
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

    fn event(&mut self, event: Event) {
        match event {
            Event::Exited { container, facts } => {
                self.exited(&container, containers::exit_of(&facts), facts.started_at);
            }
            Event::PauseExited { code } => {
                self.not_ready(&format!("pause ended with code {code}"));
            }
            Event::Warning { container, message } => {
                tracing::warn!(pod = %self.record.id, container = container.map(|id| id.to_string()), message, "shim");
            }
            Event::ExecExited { .. } | Event::Unknown => {}
        }
    }

    /// The pod is over, though nobody has stopped it yet.
    pub(crate) fn not_ready(&mut self, why: &str) {
        if self.record.phase == PodPhase::Ready {
            tracing::warn!(pod = %self.record.id, why, "pod is not ready any more");
        }
        self.show_ending(why);
    }

    /// Shows and records that the pod is ending, however that came.
    fn show_ending(&mut self, why: &str) {
        if let Ok(phase) = transition::pod(self.record.phase, PodEvent::Ending) {
            self.record.phase = phase;
            self.record.message = why.to_owned();
            self.publish();
            self.persist_pod();
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
            if let Err(error) = recorder.persist(&context, true).await {
                tracing::error!(container = %id, %error, "exit not recorded: it is forgotten if the daemon ends now");
            }
            Outcome::ExitRecorded(id)
        });
    }

    /// The exit may be seen: tells everybody.
    fn exit_recorded(&mut self, id: &ContainerId) {
        let Some(container) = self.containers.get_mut(id) else { return };
        container.settled = true;
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
            // Nobody reads it any more, and kubelet wants the pod's folder back.
            self.jobs.spawn(async move {
                let removed = super::blocking("remove the cgroup", move || Ok(cgroups.remove(&leaf)?)).await;
                if let Err(error) = removed {
                    tracing::debug!(%error, "cgroup of an exited container stays until it is removed");
                }
                Outcome::Nothing
            });
        }
    }

    fn stop_ended(&mut self, id: &ContainerId, outcome: Result<(), Error>) {
        let Err(error) = outcome else { return };
        let Some(container) = self.containers.get_mut(id) else { return };
        let waiters = container.stopping.take().map(|stopping| stopping.waiters).unwrap_or_default();
        let removers = std::mem::take(&mut container.removing);
        for waiter in waiters.into_iter().chain(removers) {
            answer(waiter, Err(error.clone()));
        }
    }

    fn outcome(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Created(id, created) => self.created(&id, created),
            Outcome::Started(id, started) => self.started(&id, started),
            Outcome::StopEnded(id, outcome) => self.stop_ended(&id, outcome),
            Outcome::ExitRecorded(id) => self.exit_recorded(&id),
            Outcome::ContainerRemoved(id, errors) => self.container_removed(&id, errors),
            Outcome::Ended(ended) => self.ended(ended),
            Outcome::Stopped(errors) => {
                self.stopped_with = Some(errors);
                self.maybe_stopped();
            }
            Outcome::Removed(errors) => self.removed(errors),
            Outcome::Dialled(answer) => self.dialled(*answer),
            Outcome::Buried(ended) => self.buried(ended),
            Outcome::Nothing => {}
        }
    }

    fn created(&mut self, id: &ContainerId, created: Result<Box<ContainerRecord>, Error>) {
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
                self.containers.remove(id);
                Err(error)
            }
        };
        for waiter in waiters {
            answer(waiter, outcome.clone());
        }
        self.maybe_stopped();
    }

    /// Stops the pod, unless that is done or under way; then goes on to its removal, if asked for.
    pub(crate) fn begin_stop(&mut self) {
        if self.ending || self.removing {
            return;
        }
        match self.record.phase {
            PodPhase::Stopped | PodPhase::Removing => return self.stopped(Vec::new()),
            PodPhase::Stopping => {}
            PodPhase::Launching | PodPhase::Ready => self.show_ending("it was stopped"),
        }
        self.ending = true;
        let (context, record, client) = (Arc::clone(&self.context), self.record.clone(), self.client.clone());
        let leaves = self.leaves();
        self.jobs
            .spawn(async move { Outcome::Ended(teardown::end(&context, &record, client, leaves).await) });
    }

    fn leaves(&self) -> Vec<String> {
        let leaves = self.containers.values().map(|container| container.record.cgroup.clone());
        leaves.filter(|leaf| !leaf.is_empty()).collect()
    }

    /// What the shim has said, first the events that came before the end, then what it left in files.
    fn settle_exits(&mut self, exits: &BTreeMap<ContainerId, ExitFacts>, lost: &str) {
        while let Some(event) = self.events.as_mut().and_then(|events| events.try_recv().ok()) {
            self.event(event);
        }
        let live: Vec<ContainerId> = self
            .containers
            .values()
            .filter(|it| !matches!(it.record.phase, ContainerPhase::Exited | ContainerPhase::Removing))
            .map(|it| it.record.id.clone())
            .collect();
        for id in live {
            match exits.get(&id) {
                Some(facts) => self.exited(&id, containers::exit_of(facts), facts.started_at),
                None => self.exited(&id, model::reconcile::lost(lost, now()), 0),
            }
        }
    }

    fn ended(&mut self, ended: Ended) {
        self.settle_exits(&ended.exits, "its end was not seen: the pod was stopped");
        if !ended.errors.is_empty() {
            self.stopped_with = Some(ended.errors);
            return self.maybe_stopped();
        }
        self.client = None;
        self.events = None;
        self.record.phase = PodPhase::Stopped;
        (self.record.pause_pid, self.record.shim_pid) = (0, 0);
        self.recorder.set(self.record.clone());
        // All records, then the answer.
        let (context, pod) = (Arc::clone(&self.context), Arc::clone(&self.recorder));
        self.jobs.spawn(async move {
            Outcome::Stopped(pod.persist(&context, true).await.err().into_iter().collect())
        });
    }

    /// The stop is answered when all exits can be seen, and no job makes what a removal would not know of.
    /// Without the shim a create ends soon.
    fn maybe_stopped(&mut self) {
        if !self.containers.values().any(Container::keeps_pod)
            && let Some(errors) = self.stopped_with.take()
        {
            self.stopped(errors);
        }
    }

    fn stopped(&mut self, errors: Vec<Error>) {
        self.ending = false;
        let outcome =
            Error::gathered(errors).map_err(|error| error.context(format!("stop pod {}", self.record.id)));
        if let Err(error) = &outcome {
            self.record.message = error.message.clone();
            if self.stop_waiters.is_empty() && self.remove_waiters.is_empty() {
                tracing::error!(pod = %self.record.id, %error, "not stopped; a StopPodSandbox tries again");
            }
            // Somebody must be able to ask for it again, and nobody waits for its name any more.
            self.hidden = false;
            if let Some(launched) = &self.launched {
                launched.send_replace(Some(Err(error.clone())));
            }
        }
        self.publish();
        for waiter in std::mem::take(&mut self.stop_waiters) {
            answer(waiter, outcome.clone());
        }
        match outcome {
            Err(error) => {
                for waiter in std::mem::take(&mut self.remove_waiters) {
                    answer(waiter, Err(error.clone()));
                }
            }
            Ok(()) if !self.remove_waiters.is_empty() || self.remove_when_stopped => {
                self.begin_pod_removal();
            }
            Ok(()) => {}
        }
    }

    fn begin_pod_removal(&mut self) {
        if self.removing {
            return;
        }
        self.removing = true;
        self.record.phase = PodPhase::Removing;
        self.recorder.set(self.record.clone());
        let (context, recorder, record) =
            (Arc::clone(&self.context), Arc::clone(&self.recorder), self.record.clone());
        let containers: Vec<ContainerRecord> = self.containers.values().map(|it| it.record.clone()).collect();
        self.jobs.spawn(async move {
            let mut errors: Vec<Error> = recorder.persist(&context, false).await.err().into_iter().collect();
            for container in containers {
                errors.extend(containers::remove(&context, None, &container).await);
            }
            // A create that was at work when the pod was stopped may have made them again.
            errors.extend(teardown::remove_cgroups(&context, &record, Vec::new()).await);
            if errors.is_empty() {
                let dir = context.layout.pod_dir(&record.id);
                let removed =
                    super::blocking("remove the pod", move || Ok(state::file::remove_dir(&dir)?)).await;
                errors.extend(removed.err());
            }
            Outcome::Removed(errors)
        });
    }

    fn removed(&mut self, errors: Vec<Error>) {
        self.removing = false;
        let outcome =
            Error::gathered(errors).map_err(|error| error.context(format!("remove pod {}", self.record.id)));
        if outcome.is_ok() {
            for id in self.containers.keys() {
                self.registry.published().take_container(id);
            }
            self.registry.published().take_pod(&self.record.id);
            self.registry.release(&self.record.id);
            self.finished = true;
        } else {
            self.record.phase = PodPhase::Stopped;
            self.publish();
        }
        for container in std::mem::take(&mut self.containers).into_values() {
            if outcome.is_err() {
                self.containers.insert(container.record.id.clone(), container);
            } else {
                container.removing.into_iter().for_each(|reply| answer(reply, Ok(())));
            }
        }
        for waiter in self.remove_waiters.drain(..).chain(self.stop_waiters.drain(..)) {
            answer(waiter, outcome.clone());
        }
    }

    /// A container that the shim still has goes on.
    pub(crate) fn resume(&mut self, id: &ContainerId, phase: ContainerPhase, pid: u32, started_at: i64) {
        let Some(container) = self.containers.get_mut(id) else { return };
        (container.record.phase, container.record.pid) = (phase, pid);
        container.record.started_at = started_at;
        container.recorder.set(container.record.clone());
        self.publish_container(id);
    }

    /// A container that was never committed is undone; nobody knows of it.
    pub(crate) fn roll_back(&mut self, id: &ContainerId) {
        let Some(container) = self.containers.remove(id) else { return };
        let (context, client) = (Arc::clone(&self.context), self.client.clone());
        self.jobs.spawn(async move {
            for error in containers::unmake(&context, client.as_ref(), &container.record).await {
                tracing::error!(container = %container.record.id, %error, "left by a create that was cut off");
            }
            Outcome::Nothing
        });
    }

    /// The shim has a container that should not live.
    pub(crate) fn kill_orphan(&mut self, id: &ContainerId) {
        let Some(client) = self.client.clone() else { return };
        let container = id.clone();
        self.jobs.spawn(async move {
            let limit = Duration::from_secs(10);
            let kill = wire::Request::Kill { container: container.clone(), signal: 9, all: true };
            if let Err(error) = client.done("the kill", kill, limit).await {
                tracing::warn!(%container, %error, "container without a record not killed");
            }
            Outcome::Nothing
        });
    }

    /// Asks a silent shim again; commands that need it are refused meanwhile.
    pub(crate) fn ask_later(&mut self) {
        self.silence += 1;
        let (context, pod, silence) = (Arc::clone(&self.context), self.record.id.clone(), self.silence);
        self.jobs.spawn(async move {
            Outcome::Dialled(Box::new(restore::ask_later(context, pod, silence).await))
        });
    }

    /// The connection ended. Wanted, when the pod is being stopped; else the shim is dialled again, or dead.
    fn link_lost(&mut self) {
        self.events = None;
        if self.ending || self.record.phase == PodPhase::Stopped {
            return;
        }
        let Some(client) = self.client.take() else { return };
        let (context, pod) = (Arc::clone(&self.context), self.record.id.clone());
        self.jobs.spawn(async move {
            Outcome::Dialled(Box::new(restore::dial_again(&context, &pod, client).await))
        });
    }

    /// What the shim says after the connection was lost, or after the daemon's restart.
    pub(crate) fn dialled(&mut self, answer: restore::Answer) {
        // A stop that came meanwhile needs no shim.
        if self.ending || self.removing {
            return;
        }
        restore::apply(self, answer);
    }

    /// The shim is dead: kills what it left.
    pub(crate) fn bury(&mut self) {
        self.client = None;
        self.events = None;
        self.ending = true;
        let (context, record, leaves) = (Arc::clone(&self.context), self.record.clone(), self.leaves());
        self.jobs
            .spawn(async move { Outcome::Buried(teardown::kill(&context, &record, None, leaves).await) });
    }

    /// Nothing of it lives any more: says so, then gives back what it had.
    fn buried(&mut self, ended: Ended) {
        self.ending = false;
        for error in &ended.errors {
            tracing::error!(pod = %self.record.id, %error, "left by a dead shim");
        }
        self.settle_exits(&ended.exits, "its end was not seen: its shim is gone");
        self.begin_stop();
    }
}

/// A caller that is gone needs no answer.
fn answer<T>(reply: Reply<T>, outcome: Result<T, Error>) {
    drop(reply.send(outcome));
}

#[cfg(test)]
mod tests;
