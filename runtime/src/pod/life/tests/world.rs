//! A node of one pod in memory: disk, shim, processes, lists, callers. It performs what the machine decides as the
//! driver would, with the luck that a test gives it, and checks every step against what must always hold.

use super::super::{
    Action, Answer, Ask, Ended, Ending, Heard, Input, Job, LaunchFailed, Life, Moment, Outcome, ShimEvent,
    StartError, Timer, Waiter,
};
use crate::error::{Error, ErrorKind};
use model::reconcile::{Held, Shim};
use model::{
    ContainerConfig, ContainerId, ContainerMeta, ContainerPhase, ContainerRecord, Exit, PodConfig, PodId,
    PodMeta, PodPhase, PodRecord,
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// What must never be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A call is never answered, or the answer went to nobody.
    LostWaiter,
    /// A call is answered a second time.
    AnsweredTwice,
    /// An answer says what is not so.
    Untrue,
    /// An exit is told again, and otherwise.
    DoubleExit,
    /// The exit of a process that lives is told.
    FalseExit,
    /// What is not committed, or half gone, is listed; or what is committed is not.
    HalfMade,
    /// Something but a stop or a removal kills a pod whose shim lives.
    EarlyKill,
    /// The name is taken, and nobody has it; or free, and somebody has it.
    StuckName,
    /// Something is left, or an exit is lost with the shim's folder.
    Leak,
}

/// What was found, for people.
#[derive(Debug, Clone)]
pub(super) struct Violation {
    pub(super) kind: Kind,
    pub(super) text: String,
}

/// Mistakes that are planted in what the machine decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sabotage {
    /// Every fifth answer is dropped.
    LostWaiter,
    /// An exit is told again with another code.
    DoubleExit,
    /// The name is not given back.
    StuckName,
    /// A silent shim is taken for a dead one.
    EarlyKill,
    /// A container is listed when its create begins.
    HalfMade,
}

/// How a job goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Luck {
    /// As it should.
    Good,
    /// Nothing of it is done.
    Fails,
    /// It is done, but not heard of; or done by half.
    Lost,
}

/// What the kernel has of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Process {
    Waiting,
    Running(i64),
    Over(Ending),
}

impl Process {
    fn lives(&self) -> bool {
        !matches!(self, Self::Over(_))
    }
}

/// What comes over the connection, in order.
#[derive(Debug, Clone)]
enum Said {
    Event(ShimEvent),
    Lost,
}

#[derive(Debug, Clone)]
struct Begun {
    job: Job,
    /// The connection it began with, if there was one.
    connection: Option<u32>,
    /// A stop has done its part, and waits for the exit to be settled.
    killed: bool,
}

/// The node.
#[derive(Debug, Default)]
pub(super) struct World {
    pub(super) life: Option<Life>,
    sabotage: Option<Sabotage>,
    clock: u32,
    pods: u8,
    made: u8,
    callers: u64,
    // Lists and callers.
    waiting: BTreeMap<Waiter, Ask>,
    answered: BTreeSet<Waiter>,
    pub(super) answers: Vec<(Waiter, Result<Answer, Error>)>,
    name: bool,
    pub(super) shown_pod: Option<Arc<PodRecord>>,
    pub(super) shown: BTreeMap<ContainerId, Arc<ContainerRecord>>,
    told: BTreeMap<ContainerId, Exit>,
    /// Ids that a caller can know.
    pub(super) known: Vec<ContainerId>,
    stop_asked: bool,
    asked: BTreeSet<ContainerId>,
    // Disk.
    pub(super) disk_pod: Option<PodRecord>,
    pub(super) disk: BTreeMap<ContainerId, ContainerRecord>,
    newest_pod: Option<Arc<PodRecord>>,
    newest: BTreeMap<ContainerId, Arc<ContainerRecord>>,
    other_boot: bool,
    // Shim and kernel.
    shim: bool,
    pause: bool,
    mute: bool,
    connection: Option<u32>,
    connections: u32,
    holds: BTreeMap<ContainerId, Process>,
    files: BTreeMap<ContainerId, Ending>,
    said: VecDeque<Said>,
    // Work.
    jobs: Vec<Begun>,
    settled: BTreeSet<ContainerId>,
    pub(super) dials: usize,
    pub(super) timers: Vec<Timer>,
    /// What was done, for a failing sequence.
    pub(super) log: Vec<String>,
}

type Checked = Result<(), Violation>;

fn violation(kind: Kind, text: impl Into<String>) -> Checked {
    Err(Violation { kind, text: text.into() })
}

fn broken(what: &str) -> Error {
    Error::new(ErrorKind::Internal, what)
}

fn lost() -> Error {
    Error::new(ErrorKind::Unavailable, "the connection to the shim was lost")
}

pub(super) fn pod_config() -> PodConfig {
    let meta = PodMeta { name: "pod".into(), namespace: "ns".into(), uid: "u".into(), attempt: 0 };
    PodConfig { meta, ..PodConfig::default() }
}

/// One of a few containers; `other` has the name of an equal one and another content.
pub(super) fn container_config(name: u8, other: bool) -> ContainerConfig {
    let meta = ContainerMeta { name: format!("c{}", name % 3), attempt: u32::from(name / 3 % 2) };
    ContainerConfig {
        meta,
        working_dir: if other { "/other".into() } else { String::new() },
        ..ContainerConfig::default()
    }
}

impl World {
    pub(super) fn new(sabotage: Option<Sabotage>) -> Self {
        Self { sabotage, ..Self::default() }
    }

    pub(super) fn now(&mut self) -> Moment {
        self.clock += 1;
        Moment { wall: i64::from(self.clock) * 1000, steady: Duration::from_millis(self.clock.into()) }
    }

    /// RunPodSandbox, where the name is free.
    pub(super) fn run_pod(&mut self) -> Checked {
        if self.life.is_some() {
            return Ok(());
        }
        if self.name || self.disk_pod.is_some() {
            return violation(Kind::StuckName, "the pod is gone and its name is not free");
        }
        self.pods += 1;
        let id = PodId::from_random([self.pods; 32]);
        let now = self.now();
        let (life, actions) = Life::launch(id, pod_config(), now);
        self.life = Some(life);
        self.name = true;
        (self.stop_asked, self.other_boot) = (false, false);
        self.asked.clear();
        self.known.clear();
        self.told.clear();
        self.perform(actions)
    }

    pub(super) fn input(&mut self, input: Input) -> Checked {
        let now = self.now();
        let Some(life) = &mut self.life else { return Ok(()) };
        self.log.push(format!("{input:?}"));
        let actions = life.handle(now, input);
        self.perform(actions)
    }

    /// A call of CRI; the waiter that it is answered to.
    pub(super) fn ask(&mut self, ask: Ask) -> Result<Waiter, Violation> {
        let waiter = Waiter(self.callers);
        self.callers += 1;
        match &ask {
            Ask::StopPod | Ask::RemovePod => self.stop_asked = true,
            Ask::Stop(id, _) | Ask::Remove(id) => {
                self.asked.insert(id.clone());
            }
            Ask::Create { .. } | Ask::Start(_) | Ask::ReopenLog(_) | Ask::Exec(_) => {}
        }
        if self.life.is_some() {
            self.waiting.insert(waiter, ask.clone());
            self.input(Input::Ask(waiter, ask))?;
        }
        Ok(waiter)
    }

    /// CreateContainer.
    pub(super) fn create(&mut self, name: u8, other: bool) -> Result<Waiter, Violation> {
        self.made = self.made.wrapping_add(1);
        let id = ContainerId::from_random([self.made; 32]);
        self.ask(Ask::Create { id, config: Box::new(container_config(name, other)) })
    }

    fn perform(&mut self, actions: Vec<Action>) -> Checked {
        for action in actions {
            self.perform_one(action)?;
        }
        Ok(())
    }

    fn perform_one(&mut self, action: Action) -> Checked {
        match action {
            Action::Answer(waiter, answer) => self.answer(waiter, answer),
            Action::TellName(_) => Ok(()),
            Action::ReleaseName => {
                if self.disk_pod.is_some() || self.shim {
                    return violation(Kind::StuckName, "the name is free while the pod is there");
                }
                self.name = self.sabotage == Some(Sabotage::StuckName);
                Ok(())
            }
            Action::ShowPod(record, _) => self.show_pod(record),
            Action::ShowContainer(record) => {
                self.show(Arc::clone(&record))?;
                if self.sabotage == Some(Sabotage::DoubleExit)
                    && let Some(exit) = &record.exit
                {
                    let exit = Exit { code: exit.code + 1, ..exit.clone() };
                    self.show(Arc::new(ContainerRecord {
                        exit: Some(exit),
                        ..ContainerRecord::clone(&record)
                    }))?;
                }
                Ok(())
            }
            Action::HidePod => {
                self.shown_pod = None;
                Ok(())
            }
            Action::HideContainer(id) => {
                self.shown.remove(&id);
                Ok(())
            }
            Action::NotePod(record) => {
                self.newest_pod = Some(record);
                Ok(())
            }
            Action::NoteContainer(record) => {
                self.newest.insert(record.id.clone(), record);
                Ok(())
            }
            Action::Connect => Ok(()),
            Action::HangUp => {
                self.connection = None;
                self.said.clear();
                Ok(())
            }
            Action::Dial { .. } => {
                self.dials += 1;
                if self.sabotage == Some(Sabotage::EarlyKill) {
                    let record = self.life.as_ref().map(|life| Arc::new(life.record().clone()));
                    return record.map_or(Ok(()), |record| self.begin(Job::BuryPod(record, Vec::new())));
                }
                Ok(())
            }
            Action::Hasten(..) => Ok(()),
            Action::ExitSettled(id) => {
                self.settled.insert(id);
                Ok(())
            }
            Action::Begin(job) => {
                if self.sabotage == Some(Sabotage::HalfMade)
                    && let Job::Create(_, record) = &job
                {
                    self.show(Arc::clone(record))?;
                }
                self.begin(job)
            }
            Action::Wake(timer, _) => {
                self.timers.retain(|it| *it != timer);
                self.timers.push(timer);
                Ok(())
            }
            Action::Finish => {
                self.life = None;
                if self.disk_pod.is_some() {
                    return violation(Kind::Leak, "the driver ended and left a record");
                }
                if let Some((waiter, ask)) = self.waiting.first_key_value() {
                    return violation(Kind::LostWaiter, format!("{waiter:?} {ask:?} when the driver ended"));
                }
                Ok(())
            }
        }
    }

    fn answer(&mut self, waiter: Waiter, answer: Result<Answer, Error>) -> Checked {
        if self.sabotage == Some(Sabotage::LostWaiter) && waiter.0 % 5 == 4 {
            return Ok(());
        }
        if !self.answered.insert(waiter) {
            return violation(Kind::AnsweredTwice, format!("{waiter:?} {answer:?}"));
        }
        let Some(ask) = self.waiting.remove(&waiter) else {
            return violation(Kind::LostWaiter, format!("{waiter:?} is nobody: {answer:?}"));
        };
        let untrue = |text: &str| violation(Kind::Untrue, format!("{ask:?} was answered Ok: {text}"));
        if answer.is_ok() {
            let lives = |id: &ContainerId| self.holds.get(id).is_some_and(Process::lives);
            match &ask {
                Ask::StopPod if self.holds.values().any(Process::lives) => return untrue("containers live"),
                Ask::StopPod if self.pause && self.shim => return untrue("pause lives"),
                Ask::RemovePod if self.disk_pod.is_some() => return untrue("its record is there"),
                Ask::RemovePod if !self.disk.is_empty() => return untrue("records of containers are there"),
                Ask::Stop(id, _) if matches!(self.holds.get(id), Some(Process::Running(_))) => {
                    return untrue("it runs");
                }
                Ask::Remove(id) if lives(id) && self.shown.contains_key(id) => return untrue("it lives"),
                Ask::Remove(id) if self.shown.contains_key(id) => return untrue("it is listed"),
                Ask::Create { .. } => {
                    let Ok(Answer::Created(id)) = &answer else { return untrue("without an id") };
                    if !self.disk.contains_key(id) {
                        return untrue("it has no record");
                    }
                }
                Ask::Start(id) if matches!(self.holds.get(id), Some(Process::Waiting)) => {
                    return untrue("it was not started");
                }
                _ => {}
            }
        }
        self.answers.push((waiter, answer));
        Ok(())
    }

    fn show_pod(&mut self, record: Arc<PodRecord>) -> Checked {
        let unseen = match record.phase {
            PodPhase::Launching => !self.other_boot,
            PodPhase::Removing => true,
            PodPhase::Ready | PodPhase::Stopping | PodPhase::Stopped => false,
        };
        if unseen || self.disk_pod.is_none() {
            return violation(Kind::HalfMade, format!("a pod is listed that is {:?}", record.phase));
        }
        self.shown_pod = Some(record);
        Ok(())
    }

    fn show(&mut self, record: Arc<ContainerRecord>) -> Checked {
        let id = record.id.clone();
        let seen = matches!(
            record.phase,
            ContainerPhase::Created | ContainerPhase::Running | ContainerPhase::Exited
        );
        let committed = self.disk.get(&id).is_some_and(|it| it.phase != ContainerPhase::Creating);
        if !seen || !committed || self.shown_pod.is_none() {
            return violation(Kind::HalfMade, format!("container {id} is listed as {:?}", record.phase));
        }
        if let Some(told) = self.told.get(&id)
            && record.exit.as_ref() != Some(told)
        {
            return violation(Kind::DoubleExit, format!("container {id}: {told:?}, then {:?}", record.exit));
        }
        if let Some(exit) = &record.exit {
            if self.holds.get(&id).is_some_and(Process::lives) {
                return violation(Kind::FalseExit, format!("container {id} lives: {exit:?}"));
            }
            self.told.insert(id.clone(), exit.clone());
        }
        if !self.known.contains(&id) {
            self.known.push(id.clone());
        }
        self.shown.insert(id, record);
        Ok(())
    }

    fn begin(&mut self, job: Job) -> Checked {
        let committed = self
            .disk_pod
            .as_ref()
            .is_some_and(|it| !matches!(it.phase, PodPhase::Launching | PodPhase::Removing));
        let early = match &job {
            Job::EndPod(..) | Job::BuryPod(..) => committed && self.shim && !self.stop_asked,
            Job::Stop { record, .. } => !self.asked.contains(&record.id) && !self.stop_asked,
            Job::KillOrphan(id) => {
                let shown = self.shown.get(id).is_some_and(|it| it.phase != ContainerPhase::Exited);
                shown && !self.asked.contains(id) && !self.stop_asked
            }
            _ => false,
        };
        if early {
            return violation(Kind::EarlyKill, format!("nobody asked for {job:?}"));
        }
        if let Job::Launch(record) = &job {
            // The intent is first.
            self.disk_pod = Some(PodRecord::clone(record));
        }
        if let Job::Stop { record, .. } = &job {
            self.settled.remove(&record.id);
        }
        self.jobs.push(Begun { job, connection: self.connection, killed: false });
        Ok(())
    }

    // What happens of itself.

    pub(super) fn has_work(&self) -> bool {
        !self.jobs.is_empty() || self.dials > 0 || !self.said.is_empty()
    }

    fn say(&mut self, event: ShimEvent) {
        if self.connection.is_some() {
            self.said.push_back(Said::Event(event));
        }
    }

    /// A process ends: the shim keeps that in a file before it tells anybody.
    fn end(&mut self, id: &ContainerId, code: i32) {
        let Some(process) = self.holds.get_mut(id) else { return };
        let started_at = match process {
            Process::Waiting => 0,
            Process::Running(since) => *since,
            Process::Over(_) => return,
        };
        let exit = Exit { code, finished_at: i64::from(self.clock) * 1000 + 1, ..Exit::default() };
        let ending = (exit, started_at);
        *process = Process::Over(ending.clone());
        if self.shim {
            self.files.insert(id.clone(), ending.clone());
            self.say(ShimEvent::Exited(id.clone(), ending));
        }
    }

    /// A container ends by itself.
    pub(super) fn exits(&mut self, pick: u8, code: i32) {
        let live: Vec<ContainerId> =
            self.holds.iter().filter(|(_, it)| it.lives()).map(|(id, _)| id.clone()).collect();
        if let Some(id) = choose(&live, pick) {
            self.end(&id.clone(), code);
        }
    }

    pub(super) fn pause_exits(&mut self) {
        if std::mem::take(&mut self.pause) {
            self.say(ShimEvent::PauseExited { code: 0 });
        }
    }

    /// The connection ends; `torn`: with what was not read yet.
    pub(super) fn disconnect(&mut self, torn: bool) {
        if self.connection.take().is_some() {
            if torn {
                self.said.clear();
            }
            self.said.push_back(Said::Lost);
        }
    }

    pub(super) fn set_mute(&mut self, mute: bool) {
        self.mute = mute;
    }

    pub(super) fn kill_shim(&mut self) {
        if std::mem::take(&mut self.shim) {
            self.disconnect(true);
        }
    }

    /// The next thing that came over the connection.
    pub(super) fn deliver(&mut self) -> Checked {
        match self.said.pop_front() {
            Some(Said::Event(event)) => self.input(Input::Shim(event)),
            Some(Said::Lost) => self.input(Input::LinkLost),
            None => Ok(()),
        }
    }

    /// A dial ends.
    pub(super) fn dialled(&mut self) -> Checked {
        if self.dials == 0 {
            return Ok(());
        }
        self.dials -= 1;
        let heard = self.hear();
        self.input(Input::Heard(Box::new(heard)))
    }

    fn hear(&mut self) -> Heard {
        if self.other_boot {
            return Heard::of_another_boot();
        }
        let shim = match (self.shim, self.mute) {
            (false, _) => Shim::Gone,
            (true, true) => Shim::Silent,
            (true, false) => {
                self.connections += 1;
                self.connection = Some(self.connections);
                self.said.clear();
                let held = |process: &Process| match process {
                    Process::Waiting => Held::Created { pid: 7 },
                    Process::Running(since) => Held::Running { pid: 7, started_at: *since },
                    Process::Over((exit, since)) => Held::Exited { exit: exit.clone(), started_at: *since },
                };
                let containers = self.holds.iter().map(|(id, process)| (id.clone(), held(process))).collect();
                Shim::Answered { pause: self.pause, containers }
            }
        };
        Heard { pid: 5, exits: self.files.clone(), why: "it is silent".into(), ..Heard::of(shim) }
    }

    pub(super) fn fire(&mut self, pick: u8) -> Checked {
        if self.timers.is_empty() {
            return Ok(());
        }
        let timer = self.timers.remove(usize::from(pick) % self.timers.len());
        self.input(Input::Due(timer))
    }

    /// The daemon is killed and starts again; in another boot nothing of the pod lives.
    pub(super) fn restart(&mut self, reboot: bool, lucks: u8) -> Checked {
        if self.life.is_none() {
            return Ok(());
        }
        self.log.push(format!("restart, reboot {reboot}"));
        self.life = None;
        // Some of the work was done and nobody heard of it.
        for (at, begun) in std::mem::take(&mut self.jobs).into_iter().enumerate() {
            if lucks >> (at % 8) & 1 == 1 {
                drop(self.work(&begun.job, begun.connection, Luck::Lost, true)?);
            }
        }
        (self.dials, self.connection) = (0, None);
        self.said.clear();
        self.timers.clear();
        // Their connections are closed with the daemon.
        self.waiting.clear();
        self.shown_pod = None;
        self.shown.clear();
        self.newest.clear();
        if reboot {
            (self.shim, self.pause, self.other_boot) = (false, false, true);
            self.holds.clear();
            self.files.clear();
        }
        let Some(record) = self.disk_pod.clone() else {
            self.name = false;
            return self.check_gone();
        };
        let containers: Vec<ContainerRecord> = self.disk.values().cloned().collect();
        let leaving = model::reconcile::is_leaving(!self.other_boot, &record, &containers);
        self.newest_pod = Some(Arc::new(record.clone()));
        let now = self.now();
        let (life, actions) = Life::restore(record, containers, leaving, now);
        self.life = Some(life);
        self.perform(actions)?;
        let heard = self.hear();
        self.input(Input::Heard(Box::new(heard)))
    }

    /// A job ends; events that came before may be read before.
    pub(super) fn finish(&mut self, pick: u8, luck: Luck, late: bool) -> Checked {
        if self.jobs.is_empty() {
            return Ok(());
        }
        let at = usize::from(pick) % self.jobs.len();
        let begun = self.jobs[at].clone();
        if let Job::Stop { record, .. } = &begun.job
            && begun.killed
            && !self.settled.contains(&record.id)
        {
            // It waits for the exit, unless that can be seen without the shim.
            if self.connection.is_some() && begun.connection == self.connection {
                return Ok(());
            }
        }
        let outcome = self.work(&begun.job, begun.connection, luck, false)?;
        if let (Job::Stop { .. }, None) = (&begun.job, &outcome) {
            self.jobs[at].killed = true;
            return Ok(());
        }
        self.jobs.remove(at);
        self.log.push(format!("{luck:?}: {:?}", begun.job));
        if !late {
            while !self.said.is_empty() {
                self.deliver()?;
            }
        }
        outcome.map_or(Ok(()), |outcome| self.input(Input::Done(outcome)))
    }

    /// Does the work of a job; `crash`: half of it, and nobody hears.
    fn work(
        &mut self,
        job: &Job,
        with: Option<u32>,
        luck: Luck,
        crash: bool,
    ) -> Result<Option<Outcome>, Violation> {
        let fails = luck == Luck::Fails;
        let reachable = self.shim && with.is_some() && with == self.connection && !self.mute;
        Ok(match job {
            Job::Launch(record) => Some(Outcome::Launched(self.launch(record, luck, crash))),
            Job::Create(_, record) => Some(Outcome::Created(
                record.id.clone(),
                self.make(record, luck, reachable || crash && self.shim, crash),
            )),
            Job::Start(id) => {
                let started = self.start(id, luck, reachable || crash && self.shim);
                if !fails {
                    self.persist(id);
                }
                Some(Outcome::Started(id.clone(), started))
            }
            Job::Stop { record, .. } => {
                let id = &record.id;
                if fails && self.holds.get(id).is_some_and(Process::lives) {
                    return Ok(Some(Outcome::StopEnded(
                        id.clone(),
                        Err(broken("processes survive SIGKILL")),
                    )));
                }
                self.end(id, 137);
                if self.settled.contains(id) {
                    Some(Outcome::StopEnded(id.clone(), Ok(None)))
                } else if reachable {
                    None
                } else {
                    let exit = match self.holds.get(id) {
                        Some(Process::Over((exit, _))) => exit.clone(),
                        _ => Exit { code: 255, ..Exit::default() },
                    };
                    Some(Outcome::StopEnded(id.clone(), Ok(Some(exit))))
                }
            }
            Job::RecordExit(id) => {
                if !fails {
                    self.persist(id);
                }
                Some(Outcome::ExitRecorded(id.clone(), !fails))
            }
            Job::RemoveContainer(record) => {
                let id = &record.id;
                if self.holds.get(id).is_some_and(Process::lives)
                    && !self.asked.contains(id)
                    && !self.stop_asked
                {
                    return violation(Kind::EarlyKill, format!("container {id} is removed alive"))
                        .map(|()| None);
                }
                self.persist(id);
                let lives = self.holds.get(id).is_some_and(Process::lives);
                let errors = if fails || lives { vec![broken("not removed")] } else { Vec::new() };
                if errors.is_empty() {
                    self.forget(id);
                }
                Some(Outcome::ContainerRemoved(id.clone(), errors))
            }
            Job::Unmake(record) => {
                self.end(&record.id, 137);
                self.forget(&record.id);
                None
            }
            Job::KillOrphan(id) => {
                if reachable {
                    self.end(id, 137);
                    self.holds.remove(id);
                    self.files.remove(id);
                }
                None
            }
            Job::RemoveCgroup(_) | Job::KillExecs(_) => None,
            Job::ReopenLog(waiter, _) => {
                Some(Outcome::LogReopened(*waiter, if reachable { Ok(()) } else { Err(lost()) }))
            }
            Job::EndPod(..) => Some(Outcome::PodEnded(self.kill_all(luck, true))),
            Job::BuryPod(..) => Some(Outcome::PodBuried(self.kill_all(luck, false))),
            Job::RecordPod | Job::RecordStop => {
                if !fails
                    && self.disk_pod.is_some()
                    && let Some(newest) = &self.newest_pod
                {
                    self.disk_pod = Some(PodRecord::clone(newest));
                }
                matches!(job, Job::RecordStop).then_some(Outcome::PodRecorded)
            }
            Job::ForgetShim => {
                if !fails {
                    self.forget_shim()?;
                }
                Some(Outcome::ShimForgotten(if fails { vec![broken("folder")] } else { Vec::new() }))
            }
            Job::RemovePod(..) => Some(Outcome::PodRemoved(self.remove_pod(luck))),
        })
    }

    fn launch(
        &mut self,
        record: &PodRecord,
        luck: Luck,
        crash: bool,
    ) -> Result<Box<PodRecord>, LaunchFailed> {
        match luck {
            Luck::Good => {
                let record =
                    PodRecord { phase: PodPhase::Ready, shim_pid: 5, pause_pid: 6, ..record.clone() };
                self.disk_pod = Some(record.clone());
                (self.shim, self.pause) = (true, true);
                self.connections += 1;
                self.connection = Some(self.connections);
                Ok(Box::new(record))
            }
            Luck::Fails => {
                self.disk_pod = None;
                Err(LaunchFailed { error: broken("launch"), left: Vec::new() })
            }
            Luck::Lost => {
                (self.shim, self.pause) = (true, true);
                debug_assert!(crash || self.disk_pod.is_some());
                Err(LaunchFailed { error: broken("launch"), left: vec![broken("its undoing")] })
            }
        }
    }

    fn make(
        &mut self,
        record: &ContainerRecord,
        luck: Luck,
        reachable: bool,
        crash: bool,
    ) -> Result<Box<ContainerRecord>, Error> {
        let id = record.id.clone();
        match luck {
            _ if !reachable => Err(lost()),
            Luck::Good => {
                let record = ContainerRecord { phase: ContainerPhase::Created, pid: 7, ..record.clone() };
                self.disk.insert(id.clone(), record.clone());
                self.holds.insert(id, Process::Waiting);
                Ok(Box::new(record))
            }
            Luck::Fails => Err(Error::new(ErrorKind::InvalidArgument, "image")),
            Luck::Lost => {
                if crash {
                    self.disk.insert(id.clone(), record.clone());
                }
                self.holds.insert(id, Process::Waiting);
                Err(lost())
            }
        }
    }

    fn start(&mut self, id: &ContainerId, luck: Luck, reachable: bool) -> Result<i64, StartError> {
        let waits = self.holds.get(id) == Some(&Process::Waiting);
        if !reachable || !waits {
            return Err(StartError::Other(lost()));
        }
        if luck == Luck::Fails {
            self.end(id, 128);
            return Err(StartError::Never("no such file".into()));
        }
        let since = i64::from(self.clock) * 1000 + 2;
        self.holds.insert(id.clone(), Process::Running(since));
        if luck == Luck::Lost {
            return Err(StartError::Other(lost()));
        }
        self.say(ShimEvent::Started(id.clone(), since));
        Ok(since)
    }

    fn kill_all(&mut self, luck: Luck, all: bool) -> Ended {
        let mut ended = Ended::default();
        let ids: Vec<ContainerId> = self.holds.keys().cloned().collect();
        for (at, id) in ids.iter().enumerate() {
            // One of them hangs in the kernel.
            if luck == Luck::Fails && at == 0 && self.holds.get(id).is_some_and(Process::lives) {
                ended.alive.insert(id.clone());
                ended.errors.push(broken("a process survives SIGKILL"));
            } else {
                self.end(id, 137);
            }
        }
        ended.exits = self.files.clone();
        if !all {
            return ended;
        }
        if luck == Luck::Lost {
            ended.errors.push(broken("CNI DEL"));
        }
        if ended.errors.is_empty() {
            self.pause = false;
            self.kill_shim();
        }
        ended
    }

    fn remove_pod(&mut self, luck: Luck) -> Vec<Error> {
        if luck == Luck::Fails || self.holds.values().any(Process::lives) {
            if let Some(newest) = &self.newest_pod {
                self.disk_pod = Some(PodRecord::clone(newest));
            }
            return vec![broken("not removed")];
        }
        self.disk.clear();
        self.holds.clear();
        self.files.clear();
        if luck == Luck::Lost {
            return vec![broken("the pod's folder")];
        }
        self.disk_pod = None;
        (self.shim, self.pause) = (false, false);
        Vec::new()
    }

    fn persist(&mut self, id: &ContainerId) {
        if let (Some(newest), true) = (self.newest.get(id), self.disk.contains_key(id)) {
            self.disk.insert(id.clone(), ContainerRecord::clone(newest));
        }
    }

    fn forget(&mut self, id: &ContainerId) {
        self.disk.remove(id);
        self.holds.remove(id);
        self.files.remove(id);
    }

    fn forget_shim(&mut self) -> Checked {
        for id in self.files.keys() {
            let durable =
                self.disk.get(id).is_none_or(|it| it.exit.is_some() || it.phase == ContainerPhase::Creating);
            if !durable {
                return violation(Kind::Leak, format!("the exit of {id} is lost with the shim's folder"));
            }
        }
        self.files.clear();
        Ok(())
    }

    // The end of a sequence.

    /// Lets everything go well until nothing happens any more.
    pub(super) fn quiesce(&mut self) -> Checked {
        self.mute = false;
        for _ in 0..300 {
            if !self.said.is_empty() {
                self.deliver()?;
            } else if let Some(at) = (0..self.jobs.len()).find(|at| !self.is_waiting(*at)) {
                self.finish(u8::try_from(at).unwrap_or(0), Luck::Good, false)?;
            } else if self.dials > 0 {
                self.dialled()?;
            } else if !self.timers.is_empty() {
                self.fire(0)?;
            } else if self.jobs.is_empty() {
                return match self.waiting.first_key_value() {
                    Some((waiter, ask)) => violation(Kind::LostWaiter, format!("{waiter:?} {ask:?}")),
                    None => self.check_lists(),
                };
            } else {
                return violation(Kind::LostWaiter, format!("a stop waits for ever: {:?}", self.jobs));
            }
        }
        violation(Kind::Leak, "it never comes to rest")
    }

    fn is_waiting(&self, at: usize) -> bool {
        let begun = &self.jobs[at];
        let Job::Stop { record, .. } = &begun.job else { return false };
        let same = self.connection.is_some() && begun.connection == self.connection;
        begun.killed && same && !self.settled.contains(&record.id)
    }

    /// At rest, lists say what is.
    fn check_lists(&self) -> Checked {
        if self.life.is_none() {
            return self.check_gone();
        }
        for (id, record) in &self.shown {
            let lives = self.holds.get(id).is_some_and(Process::lives);
            if (record.phase == ContainerPhase::Exited) == lives {
                return violation(
                    Kind::FalseExit,
                    format!("container {id} is {:?}, lives {lives}", record.phase),
                );
            }
        }
        for (id, record) in &self.disk {
            let seen = !matches!(record.phase, ContainerPhase::Creating | ContainerPhase::Removing);
            if seen && self.shown_pod.is_some() && !self.shown.contains_key(id) {
                return violation(
                    Kind::HalfMade,
                    format!("container {id} is {:?} and not listed", record.phase),
                );
            }
        }
        Ok(())
    }

    fn check_gone(&self) -> Checked {
        if self.name {
            return violation(Kind::StuckName, "the pod is gone and its name is not free");
        }
        if self.shown_pod.is_some() || !self.shown.is_empty() {
            return violation(Kind::HalfMade, "what is gone is listed");
        }
        Ok(())
    }

    /// Stops and removes the pod: after that nothing is left and the name is free.
    pub(super) fn end_all(&mut self) -> Checked {
        self.quiesce()?;
        if self.life.is_some() {
            // One that nobody sees is asked for by nobody: it goes by itself.
            let stop = self.ask(Ask::StopPod)?;
            self.quiesce()?;
            self.expect_done(stop, "StopPodSandbox")?;
        }
        if self.life.is_some() {
            let remove = self.ask(Ask::RemovePod)?;
            self.quiesce()?;
            self.expect_done(remove, "RemovePodSandbox")?;
        }
        if self.life.is_some() || self.disk_pod.is_some() || !self.disk.is_empty() {
            return violation(Kind::StuckName, "a pod that was stopped and removed is there");
        }
        self.check_gone()?;
        self.run_pod()
    }

    fn expect_done(&self, waiter: Waiter, what: &str) -> Checked {
        match self.answers.iter().find(|(it, _)| *it == waiter) {
            Some((_, Ok(_))) => Ok(()),
            Some((_, Err(error))) => violation(Kind::Leak, format!("{what}: {error}")),
            None => violation(Kind::LostWaiter, what),
        }
    }
}

pub(super) fn choose<T>(all: &[T], pick: u8) -> Option<&T> {
    all.get(usize::from(pick).checked_rem(all.len())?)
}
