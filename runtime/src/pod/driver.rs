//! The task that owns one pod. It passes calls, shim events, results of jobs and expired timers to the pod's state
//! machine (`pod::life`), and performs the resulting actions in order. It decides nothing, and waits for no work,
//! except for the first attempt to connect to a restored pod's shim, and for the running jobs when the daemon stops.

mod callers;
mod event;
#[cfg(test)]
mod tests;

use super::command::Command;
use super::life::{Action, DialResult, Input, Job, Life, Moment, Timer};
use super::recorder::{self, Recorder};
use super::registry::{DriverChannels, Registry, RunReply};
use super::supervisor::{JobEnd, StopHandle, Supervisor, Tools};
use crate::clock::now;
use crate::operations::{self, Subject};
use crate::selinux::Reserved;
use crate::shims::{Client, Connection};
use callers::Callers;
use model::{ContainerId, ContainerRecord, PodConfig, PodRecord};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinError, JoinSet};
use tokio::time::Instant;
use tracing::field::Empty;
use tracing::{Instrument as _, Span};
use wire::Event;

/// What an attempt to connect to the shim is called for users; it is listed like a job.
const CONNECT: &str = "connect to the shim";

/// The end of a wait that is not a job.
#[derive(Debug)]
enum Waited {
    /// A timer has expired.
    Due(Timer),
    /// An attempt to connect to the shim has ended.
    Dialled(Box<DialResult>, Option<Box<Connection>>),
}

/// The driver of one pod.
#[derive(Debug)]
struct Driver {
    supervisor: Arc<dyn Supervisor>,
    registry: Arc<Registry>,
    life: Life,
    /// For all lines that are logged about the pod.
    span: Span,
    /// The connection to the shim, if there is one.
    client: Option<Client>,
    events: Option<mpsc::Receiver<Event>>,
    /// The connection that came with the current input. It is used by [`Action::Connect`], or dropped after the
    /// input.
    offered: Option<Box<Connection>>,
    /// Writes the pod's record.
    recorder: Arc<Recorder<PodRecord>>,
    /// Write its containers' records.
    recorders: BTreeMap<ContainerId, Arc<Recorder<ContainerRecord>>>,
    /// Stops of containers that are running.
    stops: BTreeMap<ContainerId, StopHandle>,
    /// Running jobs; the daemon waits for them before it exits.
    jobs: JoinSet<JobEnd>,
    /// Attempts to connect, and timers; dropped when the daemon exits.
    waits: JoinSet<Waited>,
    /// Running timers.
    timers: BTreeMap<Timer, AbortHandle>,
    callers: Callers,
    /// Callers of RunPodSandbox that wait for the pod's name.
    run_reply: watch::Sender<RunReply>,
    /// The zero of the state machine's monotonic time.
    began: Instant,
    /// The daemon is stopping: no job is started any more.
    closing: bool,
    /// The pod is removed.
    finished: bool,
}

/// What the node gives to a new pod.
#[derive(Debug, Default)]
pub(super) struct Granted {
    /// The path of its systemd scope; empty for none.
    pub(super) scope: String,
    /// Its SELinux labels. The driver keeps them reserved until the pod is removed.
    pub(super) selinux: Option<Reserved>,
}

/// Starts the driver of a new pod, which begins with the launch.
pub(super) fn launch(
    supervisor: Arc<dyn Supervisor>,
    registry: Arc<Registry>,
    channels: DriverChannels,
    config: PodConfig,
    granted: Granted,
) {
    let Granted { scope, selinux } = granted;
    let began = Instant::now();
    let now = moment(began).later_than(registry.published().newest_attempt(&config.meta));
    let labels = selinux.as_ref().map(|reserved| reserved.labels().clone());
    let record =
        PodRecord { scope, selinux: labels, ..PodRecord::new(channels.id.clone(), config, now.wall) };
    let (life, actions) = Life::launch(record, now);
    let DriverChannels { id: _, commands, run_reply, closing } = channels;
    let mut driver = Driver::new(supervisor, registry, life, run_reply, began);
    let span = driver.span.clone();
    let run = async move {
        driver.perform(actions);
        driver.run(commands, closing).await;
        drop(selinux);
    };
    tokio::spawn(run.instrument(span));
}

/// Starts the driver of a pod that has records, of this boot (`same_boot`) or an earlier one. When this returns, the
/// pod is listed, unless the daemon removes it (`leaving`). `selinux` stays reserved until the pod is removed.
pub(super) fn adopt(
    supervisor: Arc<dyn Supervisor>,
    registry: &Arc<Registry>,
    record: PodRecord,
    containers: Vec<ContainerRecord>,
    same_boot: bool,
    leaving: bool,
    selinux: Option<Reserved>,
) {
    let channels = registry.restore(&record.id, &Arc::new(record.config.clone()), leaving);
    let began = Instant::now();
    let (life, actions) = Life::restore(record, containers, leaving, moment(began));
    // `run_reply` is dropped with the driver: a caller that waits for the name of a leaving pod then retries.
    let DriverChannels { id, commands, run_reply, closing } = channels;
    let mut driver = Driver::new(supervisor, Arc::clone(registry), life, run_reply, began);
    let span = driver.span.clone();
    span.in_scope(|| driver.perform(actions));
    let run = async move {
        // Before any call is handled. Calls that arrive meanwhile wait, at most for this time limit.
        let pid = driver.life.record().shim_pid;
        let (dialled, connection) = match same_boot {
            true => {
                let dial = driver.supervisor.dial(id, pid, super::life::GREETING);
                operations::job(CONNECT, driver.subject(), dial).await
            }
            false => (DialResult::of_another_boot(), None),
        };
        driver.offered = connection;
        driver.input(Input::Dialled(Box::new(dialled)));
        driver.run(commands, closing).await;
        drop(selinux);
    };
    tokio::spawn(run.instrument(span));
}

fn moment(began: Instant) -> Moment {
    Moment { wall: now(), monotonic: began.elapsed() }
}

impl Driver {
    fn new(
        supervisor: Arc<dyn Supervisor>,
        registry: Arc<Registry>,
        life: Life,
        run_reply: watch::Sender<RunReply>,
        began: Instant,
    ) -> Self {
        let recorder = recorder::of_pod(supervisor.layout(), Arc::new(life.record().clone()));
        let PodRecord { id, config, .. } = life.record();
        let span = tracing::error_span!(
            parent: None, "pod",
            namespace = config.meta.namespace, pod_name = config.meta.name, pod = %id,
        );
        Self {
            supervisor,
            registry,
            life,
            span,
            client: None,
            events: None,
            offered: None,
            recorder,
            recorders: BTreeMap::new(),
            stops: BTreeMap::new(),
            jobs: JoinSet::new(),
            waits: JoinSet::new(),
            timers: BTreeMap::new(),
            callers: Callers::default(),
            run_reply,
            began,
            closing: false,
            finished: false,
        }
    }

    /// The pod, as the list of what is under way names it.
    fn subject(&self) -> Subject {
        let PodRecord { id, config, .. } = self.life.record();
        Subject {
            pod_name: Some((config.meta.namespace.clone(), config.meta.name.clone())),
            pod: Some(id.clone()),
            ..Subject::default()
        }
    }

    /// Runs until the pod is removed or the daemon stops.
    async fn run(mut self, mut commands: mpsc::Receiver<Command>, mut closing: watch::Receiver<bool>) {
        while !self.finished {
            tokio::select! {
                command = commands.recv() => match command {
                    Some(command) => self.command(command),
                    None => return,
                },
                event = next_event(&mut self.events) => match event {
                    Some(event) => self.event(event),
                    None => self.input(Input::LinkLost),
                },
                Some(ended) = self.jobs.join_next() => self.joined(ended),
                Some(waited) = self.waits.join_next() => self.waited(waited),
                _ = closing.changed() => {
                    // Running jobs end and their callers get replies. No further job starts: the next start of the
                    // daemon continues.
                    self.closing = true;
                    while let Some(ended) = self.jobs.join_next().await {
                        self.joined(ended);
                    }
                    return;
                }
            }
        }
        // Calls that were sent before the pod was removed get replies too.
        commands.close();
        while let Some(command) = commands.recv().await {
            self.command(command);
        }
    }

    fn command(&mut self, command: Command) {
        if let Some((waiter, call)) = self.callers.add(command) {
            self.input(Input::Call(waiter, call));
        }
    }

    fn event(&mut self, event: Event) {
        if let Some(event) = event::of(self.life.record(), event) {
            self.input(Input::Shim(event));
        }
    }

    fn joined(&mut self, ended: Result<JobEnd, JoinError>) {
        match ended {
            Ok((None, _)) => {}
            Ok((Some(outcome), connection)) => {
                // Events that the shim sent earlier are processed first.
                while let Some(event) = self.events.as_mut().and_then(|events| events.try_recv().ok()) {
                    self.event(event);
                }
                self.offered = connection;
                self.input(Input::Done(outcome));
            }
            Err(error) => tracing::error!(%error, "a job panicked"),
        }
    }

    fn waited(&mut self, waited: Result<Waited, JoinError>) {
        match waited {
            Ok(Waited::Due(timer)) => {
                // It may have been started again since it expired.
                if self.timers.get(&timer).is_some_and(AbortHandle::is_finished) {
                    self.timers.remove(&timer);
                }
                self.input(Input::Due(timer));
            }
            Ok(Waited::Dialled(dialled, connection)) => {
                self.offered = connection;
                self.input(Input::Dialled(dialled));
            }
            // A timer that was started again: this is its earlier wait.
            Err(error) if error.is_cancelled() => {}
            Err(error) => {
                tracing::error!(%error, "a timer or an attempt to connect panicked");
            }
        }
    }

    fn input(&mut self, input: Input) {
        let actions = self.life.handle(moment(self.began), input);
        self.perform(actions);
        self.offered = None;
    }

    fn perform(&mut self, actions: Vec<Action>) {
        for action in actions {
            self.perform_one(action);
        }
    }

    fn perform_one(&mut self, action: Action) {
        let published = self.registry.published();
        match action {
            Action::Answer(waiter, answer) => self.callers.answer(waiter, answer, self.client.as_ref()),
            Action::ReplyToRun(outcome) => drop(self.run_reply.send_replace(Some(outcome))),
            Action::ReleaseName => self.registry.release(&self.life.record().id),
            Action::PublishPod(record, silent_since) => published.put_pod(record, silent_since),
            Action::PublishContainer(record) => published.put_container(record),
            Action::UnpublishPod => published.remove_pod(&self.life.record().id),
            Action::UnpublishContainer(id) => {
                published.remove_container(&id);
                self.recorders.remove(&id);
                self.stops.remove(&id);
            }
            Action::SetPodRecord(record) => self.recorder.set(record),
            Action::SetContainerRecord(record) => self.set_container_record(record),
            Action::Connect => {
                if let Some(connection) = self.offered.take() {
                    self.client = Some(connection.client);
                    self.events = Some(connection.events);
                }
            }
            Action::Disconnect => (self.client, self.events) = (None, None),
            Action::Dial { pause, limit } => self.dial(pause, limit),
            Action::ShortenGrace(id, deadline) => {
                if let Some(stop) = self.stops.get(&id) {
                    stop.deadline.send_replace(self.began + deadline);
                }
            }
            Action::FinishStop(id) => {
                if let Some(stop) = self.stops.remove(&id) {
                    stop.exited.send_replace(true);
                }
            }
            Action::Begin(job) => self.begin(job),
            Action::StartTimer(timer, pause) => self.start_timer(timer, pause),
            Action::ReportBug(error) => {
                tracing::error!(error = %error.text(), "the tables of model::transition refuse what the state machine does");
            }
            Action::Finish => self.finished = true,
        }
    }

    /// Connects to the shim after a pause.
    fn dial(&mut self, pause: Duration, limit: Duration) {
        let supervisor = Arc::clone(&self.supervisor);
        let (pod, pid) = (self.life.record().id.clone(), self.life.record().shim_pid);
        let subject = self.subject();
        let dial = async move {
            tokio::time::sleep(pause).await;
            let dial = supervisor.dial(pod, pid, limit);
            let (dialled, connection) = operations::job(CONNECT, subject, dial).await;
            Waited::Dialled(Box::new(dialled), connection)
        };
        self.waits.spawn(dial.instrument(self.span.clone()));
    }

    /// Starts a job, unless the daemon is stopping: then no new job is started.
    fn begin(&mut self, job: Job) {
        if self.closing {
            return;
        }
        let stop = match &job {
            Job::Stop { record, deadline, .. } => {
                let handle = StopHandle::new(self.began + *deadline);
                let watch = handle.watch();
                self.stops.insert(record.id.clone(), handle);
                Some(watch)
            }
            _ => None,
        };
        let tools = Tools {
            pod: self.life.record().id.clone(),
            client: self.client.clone(),
            recorder: Arc::clone(&self.recorder),
            container: job.container().and_then(|id| self.recorders.get(id)).cloned(),
            stop,
        };
        let (what, mut subject) = (job.what(), self.subject());
        if let Some((id, name)) = job.about() {
            subject.container = Some(id.clone());
            subject.container_name = name.map(str::to_owned);
        }
        let span = tracing::error_span!(parent: &self.span, "job", job = what, container_name = Empty, container = Empty);
        if subject.of_container() {
            let container = Subject { pod: None, pod_name: None, ..subject.clone() };
            container.record(&span);
        }
        let work = self.supervisor.work(job, tools);
        self.jobs.spawn(operations::job(what, subject, work).instrument(span));
    }

    fn set_container_record(&mut self, record: Arc<ContainerRecord>) {
        let layout = self.supervisor.layout();
        let recorder = self.recorders.entry(record.id.clone());
        recorder.or_insert_with(|| recorder::of_container(layout, Arc::clone(&record))).set(record);
    }

    fn start_timer(&mut self, timer: Timer, pause: Duration) {
        let due = timer.clone();
        let wait = self.waits.spawn(async move {
            tokio::time::sleep(pause).await;
            Waited::Due(due)
        });
        if let Some(earlier) = self.timers.insert(timer, wait) {
            earlier.abort();
        }
    }
}

/// The shim's next event; `None` when the connection has ended. Never resolves without a connection.
async fn next_event(events: &mut Option<mpsc::Receiver<Event>>) -> Option<Event> {
    match events {
        Some(events) => events.recv().await,
        None => std::future::pending().await,
    }
}
