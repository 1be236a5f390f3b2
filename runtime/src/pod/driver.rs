//! The task that owns one pod. It passes calls, shim events, results of jobs and timers to the pod's state
//! machine (`pod::life`) and performs the resulting actions. It decides nothing itself and never waits for
//! work.

mod event;
#[cfg(test)]
mod tests;

use super::command::{Command, Reply};
use super::context::random;
use super::exec::Ticket;
use super::life::{Action, Answer, Ask, Heard, Input, Job, Life, Moment, Timer, Waiter};
use super::recorder::{self, Recorder};
use super::registry::{Launched, Registry, Seat};
use super::supervisor::{JobEnd, StopHandle, Supervisor, Tools};
use crate::clock::now;
use crate::error::{Error, ErrorKind};
use crate::shims::{Client, Connection};
use model::{ContainerId, ContainerRecord, PodConfig, PodRecord};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinError, JoinSet};
use tokio::time::Instant;
use wire::Event;

/// Receives the reply to a call.
#[derive(Debug)]
enum Caller {
    Unit(Reply<()>),
    Create(Reply<ContainerId>),
    Exec(Reply<Ticket>),
}

/// The result of waiting for something other than a job.
#[derive(Debug)]
enum Waited {
    Due(Timer),
    Dialled(Box<Heard>, Option<Box<Connection>>),
}

/// The driver of one pod.
#[derive(Debug)]
struct Driver {
    supervisor: Arc<dyn Supervisor>,
    registry: Arc<Registry>,
    life: Life,
    /// The connection to the shim, if there is one.
    client: Option<Client>,
    events: Option<mpsc::Receiver<Event>>,
    /// The connection that came with the current input; it is used or dropped.
    offered: Option<Box<Connection>>,
    recorder: Arc<Recorder<PodRecord>>,
    recorders: BTreeMap<ContainerId, Arc<Recorder<ContainerRecord>>>,
    /// Running stops.
    stops: BTreeMap<ContainerId, StopHandle>,
    /// Jobs that must finish before the daemon exits.
    jobs: JoinSet<JobEnd>,
    /// Connection attempts and pauses; dropped when the daemon exits.
    waits: JoinSet<Waited>,
    /// The pause before a stop or removal is retried.
    retry: Option<AbortHandle>,
    callers: HashMap<Waiter, Caller>,
    next_caller: u64,
    /// Callers that want the pod's name wait for this.
    launched: watch::Sender<Launched>,
    began: Instant,
    closing: bool,
    finished: bool,
}

/// Starts the driver of a new pod, which begins with the launch.
pub(super) fn launch(
    supervisor: Arc<dyn Supervisor>,
    registry: Arc<Registry>,
    seat: Seat,
    config: PodConfig,
) {
    let began = Instant::now();
    let (life, actions) = Life::launch(seat.id.clone(), config, moment(began));
    let Seat { id: _, commands, launched, closing } = seat;
    tokio::spawn(async move {
        let mut driver = Driver::new(supervisor, registry, life, launched, began);
        driver.perform(actions);
        driver.run(commands, closing).await;
    });
}

/// Starts the driver of a pod with records, of this boot (`same_boot`) or an earlier one. When this returns,
/// the pod is listed. `leaving`: it is rolled back or removed.
pub(super) fn adopt(
    supervisor: Arc<dyn Supervisor>,
    registry: &Arc<Registry>,
    record: PodRecord,
    containers: Vec<ContainerRecord>,
    same_boot: bool,
    leaving: bool,
) {
    let seat = registry.restore(&record.id, &Arc::new(record.config.clone()), leaving);
    let began = Instant::now();
    let (life, actions) = Life::restore(record, containers, leaving, moment(began));
    // Dropped with the driver: a caller that waits for the name of a leaving pod then retries.
    let Seat { id, commands, launched, closing } = seat;
    let mut driver = Driver::new(supervisor, Arc::clone(registry), life, launched, began);
    driver.perform(actions);
    tokio::spawn(async move {
        // Before any call is processed; calls that arrive meanwhile wait for it, with a limit.
        let pid = driver.life.record().shim_pid;
        let (heard, connection) = match same_boot {
            true => driver.supervisor.dial(id, pid, super::life::GREETING).await,
            false => (Heard::of_another_boot(), None),
        };
        driver.offered = connection;
        driver.input(Input::Heard(Box::new(heard)));
        driver.run(commands, closing).await;
    });
}

fn moment(began: Instant) -> Moment {
    Moment { wall: now(), steady: began.elapsed() }
}

impl Driver {
    fn new(
        supervisor: Arc<dyn Supervisor>,
        registry: Arc<Registry>,
        life: Life,
        launched: watch::Sender<Launched>,
        began: Instant,
    ) -> Self {
        let recorder = recorder::of_pod(supervisor.layout(), Arc::new(life.record().clone()));
        Self {
            supervisor,
            registry,
            life,
            client: None,
            events: None,
            offered: None,
            recorder,
            recorders: BTreeMap::new(),
            stops: BTreeMap::new(),
            jobs: JoinSet::new(),
            waits: JoinSet::new(),
            retry: None,
            callers: HashMap::new(),
            next_caller: 0,
            launched,
            began,
            closing: false,
            finished: false,
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
                    // Records are still written, and their waiters get replies; work that waits for processes
                    // is left to the next start.
                    self.closing = true;
                    while let Some(ended) = self.jobs.join_next().await {
                        self.joined(ended);
                    }
                    return;
                }
            }
        }
        // Late calls find that the pod is gone.
        commands.close();
        while let Some(command) = commands.recv().await {
            self.command(command);
        }
    }

    fn command(&mut self, command: Command) {
        let (ask, caller) = match command {
            Command::StopPod(reply) => (Ask::StopPod, Caller::Unit(reply)),
            Command::RemovePod(reply) => (Ask::RemovePod, Caller::Unit(reply)),
            Command::Create { config, reply } => match random() {
                Ok(bytes) => {
                    let id = ContainerId::from_random(bytes);
                    (Ask::Create { id, config }, Caller::Create(reply))
                }
                Err(error) => return drop(reply.send(Err(error))),
            },
            Command::Start { id, reply } => (Ask::Start(id), Caller::Unit(reply)),
            Command::Stop { id, grace, reply } => (Ask::Stop(id, grace), Caller::Unit(reply)),
            Command::Remove { id, reply } => (Ask::Remove(id), Caller::Unit(reply)),
            Command::ReopenLog { id, reply } => (Ask::ReopenLog(id), Caller::Unit(reply)),
            Command::Exec { id, reply } => (Ask::Exec(id), Caller::Exec(reply)),
        };
        let waiter = Waiter(self.next_caller);
        self.next_caller += 1;
        self.callers.insert(waiter, caller);
        self.input(Input::Ask(waiter, ask));
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
            Err(error) => tracing::error!(pod = %self.life.record().id, %error, "a job panicked"),
        }
    }

    fn waited(&mut self, waited: Result<Waited, JoinError>) {
        match waited {
            Ok(Waited::Due(timer)) => self.input(Input::Due(timer)),
            Ok(Waited::Dialled(heard, connection)) => {
                self.offered = connection;
                self.input(Input::Heard(heard));
            }
            // The pause was replaced by another one.
            Err(error) if error.is_cancelled() => {}
            Err(error) => tracing::error!(pod = %self.life.record().id, %error, "a wait panicked"),
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

    #[expect(clippy::too_many_lines, reason = "one match over all actions")]
    fn perform_one(&mut self, action: Action) {
        let published = self.registry.published();
        match action {
            Action::Answer(waiter, answer) => self.answer(waiter, answer),
            Action::TellName(outcome) => drop(self.launched.send_replace(Some(outcome))),
            Action::ReleaseName => self.registry.release(&self.life.record().id),
            Action::ShowPod(record, silent_since) => published.put_pod(record, silent_since),
            Action::ShowContainer(record) => published.put_container(record),
            Action::HidePod => published.remove_pod(&self.life.record().id),
            Action::HideContainer(id) => {
                published.remove_container(&id);
                self.recorders.remove(&id);
                self.stops.remove(&id);
            }
            Action::NotePod(record) => self.recorder.set(record),
            Action::NoteContainer(record) => self.note(record),
            Action::Connect => {
                if let Some(connection) = self.offered.take() {
                    self.client = Some(connection.client);
                    self.events = Some(connection.events);
                }
            }
            Action::HangUp => (self.client, self.events) = (None, None),
            Action::Dial { pause, limit } => {
                let supervisor = Arc::clone(&self.supervisor);
                let (pod, pid) = (self.life.record().id.clone(), self.life.record().shim_pid);
                self.waits.spawn(async move {
                    tokio::time::sleep(pause).await;
                    let (heard, connection) = supervisor.dial(pod, pid, limit).await;
                    Waited::Dialled(Box::new(heard), connection)
                });
            }
            Action::Hasten(id, deadline) => {
                if let Some(stop) = self.stops.get(&id) {
                    stop.deadline.send_replace(self.began + deadline);
                }
            }
            Action::ExitSettled(id) => {
                if let Some(stop) = self.stops.remove(&id) {
                    stop.exited.send_replace(true);
                }
            }
            Action::Begin(job) => self.begin(job),
            Action::Wake(timer, pause) => {
                let due = timer.clone();
                let wait = self.waits.spawn(async move {
                    tokio::time::sleep(pause).await;
                    Waited::Due(due)
                });
                if timer == Timer::Pod
                    && let Some(earlier) = self.retry.replace(wait)
                {
                    earlier.abort();
                }
            }
            Action::Finish => self.finished = true,
        }
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
        let work = self.supervisor.work(job, tools);
        self.jobs.spawn(work);
    }

    fn note(&mut self, record: Arc<ContainerRecord>) {
        let layout = self.supervisor.layout();
        let recorder = self.recorders.entry(record.id.clone());
        recorder.or_insert_with(|| recorder::of_container(layout, Arc::clone(&record))).set(record);
    }

    /// A caller that has gone needs no reply.
    fn answer(&mut self, waiter: Waiter, answer: Result<Answer, Error>) {
        let odd = |answer| Error::internal(format!("the pod's driver answered {answer:?}"));
        match (self.callers.remove(&waiter), answer) {
            (None, answer) => tracing::error!(?waiter, ?answer, "a call was replied to twice"),
            (Some(Caller::Unit(reply)), answer) => {
                drop(reply.send(answer.and_then(|answer| match answer {
                    Answer::Done => Ok(()),
                    answer => Err(odd(answer)),
                })));
            }
            (Some(Caller::Create(reply)), answer) => {
                drop(reply.send(answer.and_then(|answer| match answer {
                    Answer::Created(id) => Ok(id),
                    answer => Err(odd(answer)),
                })));
            }
            (Some(Caller::Exec(reply)), answer) => {
                let client = self.client.clone();
                drop(reply.send(answer.and_then(|answer| match (answer, client) {
                    (Answer::MayExec(record), Some(client)) => Ok(Ticket { client, record }),
                    (Answer::MayExec(_), None) => {
                        Err(Error::new(ErrorKind::Unavailable, "the connection to the shim was lost"))
                    }
                    (answer, _) => Err(odd(answer)),
                })));
            }
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
