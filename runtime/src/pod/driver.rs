//! The task that owns one pod. It never waits for work: commands, shim events and outcomes of jobs come in
//! turn, each changes the state, publishes it, and maybe starts the next job.

mod container;
mod end;
pub(crate) mod link;
mod reconcile;

use super::containers::{self, Recorder, StartError};
use super::launch::{self, Up};
use super::teardown::Ended;
use super::{Command, Context, POD_RECORD, admission, exec, now};
use crate::error::{Error, ErrorKind};
use crate::registry::{Launched, Registry, Reply, Seat};
use link::{Answer, Link};
use model::{ContainerId, ContainerPhase, ContainerRecord, Exit, PodConfig, PodPhase, PodRecord};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinError, JoinSet};
use tokio::time::Instant;
use wire::Event;

/// Longest grace of a stop: kubelet takes any i64 from the pod; a year is for ever.
const LONGEST_GRACE: Duration = Duration::from_secs(365 * 24 * 3600);
/// Pauses before a stop or a removal that failed is tried again without being asked for.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(60);

/// What a job has done.
#[derive(Debug)]
enum Outcome {
    Created(ContainerId, Result<Box<ContainerRecord>, Error>),
    Started(ContainerId, Result<i64, StartError>),
    /// The stop job ended; the exit is told by the shim, or seen by the job where the shim is silent.
    StopEnded(ContainerId, Result<Option<Exit>, Error>),
    /// The exit is durable; or false: it cannot be made so, which the log tells.
    ExitRecorded(ContainerId, bool),
    ContainerRemoved(ContainerId, Vec<Error>),
    /// Everything but the records is gone, or the errors say what is not.
    Ended(Ended),
    /// The record says so too, or the log says why not.
    Stopped,
    /// The shim's folder is gone.
    ShimForgotten(Vec<Error>),
    Removed(Vec<Error>),
    /// The shim was dialled again.
    Dialled(Box<Answer>),
    /// A dead shim's pod was killed.
    Buried(Ended),
    /// It is time to try a stop or a removal again that failed.
    StopAgain,
    /// The same for the removal of one container.
    RemoveAgain(ContainerId),
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
    /// A stop or a removal has set out to end it.
    stop_began: bool,
    removing: Vec<Reply<()>>,
    /// The removal job is at work.
    being_removed: bool,
    /// True once it has exited, for the stop job.
    exited: watch::Sender<bool>,
    /// The exit is recorded and published.
    settled: bool,
    /// The exit is nowhere but in the shim's folder: the record could not be written.
    unrecorded: bool,
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
            stop_began: false,
            removing: Vec::new(),
            being_removed: false,
            exited: watch::Sender::new(over),
            settled: over,
            unrecorded: false,
            early_exit: None,
            may_run: false,
        }
    }

    /// Whether the job that creates it is at work.
    fn is_being_created(&self) -> bool {
        !self.creating.is_empty()
    }

    /// Whether the end of a pod has to wait for it.
    fn keeps_pod(&self) -> bool {
        self.is_being_created() || (self.record.phase == ContainerPhase::Exited && !self.settled)
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
            ContainerPhase::Exited | ContainerPhase::Removing | ContainerPhase::Unknown => return false,
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
    pub(crate) registry: Arc<Registry>,
    pub(crate) record: PodRecord,
    recorder: Arc<Recorder<PodRecord>>,
    pub(crate) containers: BTreeMap<ContainerId, Container>,
    pub(crate) link: Link,
    /// Work that is finished before the daemon ends.
    jobs: JoinSet<Outcome>,
    /// Dialling and pauses: dropped when the daemon ends.
    waits: JoinSet<Outcome>,
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
    /// Stops and removals that failed in a row, and the pause before the next.
    failures: u32,
    retry: Option<AbortHandle>,
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
                driver.try_again();
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
            link: Link::None,
            jobs: JoinSet::new(),
            waits: JoinSet::new(),
            stop_waiters: Vec::new(),
            remove_waiters: Vec::new(),
            ending: false,
            removing: false,
            finished: false,
            stopped_with: None,
            hidden: false,
            remove_when_stopped: false,
            failures: 0,
            retry: None,
            launched: None,
        }
    }

    /// Until the pod is removed or the daemon stops.
    pub(crate) async fn run(
        mut self,
        commands: &mut mpsc::Receiver<Command>,
        closing: &mut watch::Receiver<bool>,
    ) {
        while !self.finished {
            tokio::select! {
                command = commands.recv() => match command {
                    Some(command) => self.command(command),
                    None => break,
                },
                event = self.link.event() => match event {
                    Some(event) => self.event(event),
                    None => self.link_lost(),
                },
                Some(outcome) = self.jobs.join_next() => self.joined(outcome),
                Some(outcome) = self.waits.join_next() => self.joined(outcome),
                _ = closing.changed() => {
                    // Records in flight are written; what waits for processes is left to the next start.
                    while self.jobs.join_next().await.is_some() {}
                    break;
                }
            }
        }
    }

    fn joined(&mut self, outcome: Result<Outcome, JoinError>) {
        match outcome {
            Ok(outcome) => self.outcome(outcome),
            // A pause that another took the place of.
            Err(error) if error.is_cancelled() => {}
            Err(error) => tracing::error!(pod = %self.record.id, %error, "a job ended badly"),
        }
    }

    /// Shows the pod as it is now, once it may be seen.
    pub(crate) fn publish(&self) {
        if self.hidden {
            return;
        }
        self.registry.published().put_pod(&self.record, self.link.silent_since());
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

    /// Not while the pod is being stopped or removed.
    fn quiet(&self) -> Result<(), Error> {
        if self.ending || self.removing {
            return Err(Error::state(format!("pod {} is being stopped", self.record.id)));
        }
        Ok(())
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
            Event::Started { container, started_at } => self.running(&container, started_at),
            Event::ExecExited { .. } | Event::Unknown => {}
        }
    }

    fn outcome(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Created(id, created) => self.created(&id, created),
            Outcome::Started(id, started) => self.started(&id, started),
            Outcome::StopEnded(id, outcome) => self.stop_ended(&id, outcome),
            Outcome::ExitRecorded(id, durable) => self.exit_recorded(&id, durable),
            Outcome::ContainerRemoved(id, errors) => self.container_removed(&id, errors),
            Outcome::Ended(ended) => self.ended(ended),
            Outcome::Stopped => {
                self.stopped_with = Some(Vec::new());
                self.maybe_stopped();
            }
            Outcome::ShimForgotten(errors) => self.stopped(errors),
            Outcome::Removed(errors) => self.removed(errors),
            Outcome::Dialled(answer) => self.dialled(*answer),
            Outcome::Buried(ended) => self.buried(ended),
            Outcome::StopAgain => self.stop_again(),
            Outcome::RemoveAgain(id) => self.remove_again(&id),
            Outcome::Nothing => {}
        }
    }
}

/// The pause after `times` attempts in vain: `first`, doubled each time up to `longest`.
pub(super) fn later(first: Duration, times: u32, longest: Duration) -> Duration {
    first.saturating_mul(2_u32.saturating_pow(times.min(16))).min(longest)
}

/// A caller that is gone needs no answer.
fn answer<T>(reply: Reply<T>, outcome: Result<T, Error>) {
    drop(reply.send(outcome));
}

#[cfg(test)]
mod tests;
