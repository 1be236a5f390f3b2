//! A simulated node with one pod: disk, shim, processes, lists, callers. It performs the actions of the state machine
//! as the driver would, with the faults that a test selects, and checks the invariants after each step.

mod checks;
mod nature;
mod work;

use super::super::{
    Action, Answer, Call, DialResult, ExitReport, Input, Job, LaunchFailed, Life, Moment, Outcome, ShimEvent,
    StartError, Timer, TornDown, Waiter,
};
use crate::error::{Error, ErrorKind};
use model::reconcile::{InShim, Shim};
use model::{
    ContainerConfig, ContainerId, ContainerMeta, ContainerPhase, ContainerRecord, Exit, PodConfig, PodId,
    PodMeta, PodPhase, PodRecord, Resources, Update,
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// What an invariant forbids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A call gets no reply, or a reply has no call.
    LostWaiter,
    /// A call gets a second reply.
    AnsweredTwice,
    /// A reply is wrong.
    Untrue,
    /// An exit is reported again with other content.
    DoubleExit,
    /// The exit of a running process is reported.
    FalseExit,
    /// An incomplete object is listed, or a committed one is not.
    HalfMade,
    /// A pod whose shim is alive is killed without a stop or removal.
    EarlyKill,
    /// The name is reserved without an owner, or free with one.
    StuckName,
    /// Something is left behind, or an exit is lost with the shim's folder.
    Leak,
    /// The tables of `model::transition` refuse a transition.
    Refused,
    /// Other limits are shown, or were answered, than those in force.
    FalseLimits,
}

/// A violated invariant, and what happened.
#[derive(Debug, Clone)]
pub(super) struct Violation {
    pub(super) kind: Kind,
    pub(super) text: String,
}

/// Bugs that are planted in the state machine's decisions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sabotage {
    /// Every fifth reply is dropped.
    LostWaiter,
    /// An exit is reported again with another code.
    DoubleExit,
    /// The name is not released.
    StuckName,
    /// A silent shim is treated as dead.
    EarlyKill,
    /// A container is listed when its create begins.
    HalfMade,
    /// Updates of resources are not published.
    FalseLimits,
}

/// How a job ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Luck {
    /// It succeeds.
    Good,
    /// It fails without an effect.
    Fails,
    /// It is done, but its result is lost; or it is done partly.
    Lost,
}

/// The kernel's state of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Process {
    Waiting,
    Running(i64),
    Over(ExitReport),
}

impl Process {
    fn lives(&self) -> bool {
        !matches!(self, Self::Over(_))
    }
}

/// A message on the connection, in order.
#[derive(Debug, Clone)]
enum Message {
    Event(ShimEvent),
    Lost,
}

#[derive(Debug, Clone)]
struct Begun {
    job: Job,
    /// The connection at its start, if there was one.
    connection: Option<u32>,
    /// A stop has killed the processes and waits until the exit is recorded.
    killed: bool,
}

/// The simulated node.
#[derive(Debug, Default)]
pub(super) struct World {
    pub(super) life: Option<Life>,
    sabotage: Option<Sabotage>,
    clock: u32,
    /// Numbers of pods, containers and callers so far, for the next id.
    pods: u8,
    made: u8,
    callers: u64,
    // Lists and callers.
    waiting: BTreeMap<Waiter, Call>,
    answered: BTreeSet<Waiter>,
    pub(super) answers: Vec<(Waiter, Result<Answer, Error>)>,
    /// Whether the pod's name is reserved.
    name: bool,
    pub(super) shown_pod: Option<Arc<PodRecord>>,
    pub(super) shown: BTreeMap<ContainerId, Arc<ContainerRecord>>,
    /// Exits that were published.
    told: BTreeMap<ContainerId, Exit>,
    /// Ids that a caller knows.
    pub(super) known: Vec<ContainerId>,
    /// Whether the pod's stop or removal was requested.
    stop_asked: bool,
    /// Whether its launch has succeeded.
    committed: bool,
    /// Containers whose stop or removal was requested.
    asked: BTreeSet<ContainerId>,
    // Disk.
    pub(super) disk_pod: Option<PodRecord>,
    pub(super) disk: BTreeMap<ContainerId, ContainerRecord>,
    /// What the next write of a record contains.
    newest_pod: Option<Arc<PodRecord>>,
    newest: BTreeMap<ContainerId, Arc<ContainerRecord>>,
    /// Whether the pod's record is of an earlier boot.
    other_boot: bool,
    // Shim and kernel.
    /// Whether the shim's process exists.
    shim: bool,
    /// Whether pause is running.
    pause: bool,
    /// Whether the shim does not respond.
    mute: bool,
    connection: Option<u32>,
    /// The connection that came with the current input.
    offered: Option<u32>,
    connections: u32,
    /// The shim's table of containers.
    holds: BTreeMap<ContainerId, Process>,
    /// The limits in the containers' cgroups.
    limits: BTreeMap<ContainerId, Resources>,
    /// The shim's exit files.
    files: BTreeMap<ContainerId, ExitReport>,
    /// Messages on the connection that the daemon has not received.
    unread: VecDeque<Message>,
    // Work.
    jobs: Vec<Begun>,
    /// Containers whose stop job was told that the exit is recorded.
    settled: BTreeSet<ContainerId>,
    pub(super) dials: usize,
    pub(super) timers: Vec<Timer>,
    /// A log of the steps, for a failing sequence that is run again.
    pub(super) log: Option<Vec<String>>,
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

/// One of a few containers; `other` has the same name and another configuration.
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
        Moment { wall: i64::from(self.clock) * 1000, monotonic: Duration::from_millis(self.clock.into()) }
    }

    /// RunPodSandbox with a free name.
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
        let (life, actions) = Life::launch(PodRecord::new(id, pod_config(), now.wall), now);
        self.life = Some(life);
        self.name = true;
        (self.stop_asked, self.other_boot, self.committed) = (false, false, false);
        self.asked.clear();
        self.known.clear();
        self.told.clear();
        self.perform(actions)
    }

    pub(super) fn input(&mut self, input: Input) -> Checked {
        let now = self.now();
        let Some(life) = &mut self.life else { return Ok(()) };
        if let Some(log) = &mut self.log {
            log.push(format!("{input:?}"));
        }
        let actions = life.handle(now, input);
        self.perform(actions)?;
        self.offered = None;
        Ok(())
    }

    /// A CRI call; returns its waiter.
    pub(super) fn call(&mut self, call: Call) -> Result<Waiter, Violation> {
        let waiter = Waiter(self.callers);
        self.callers += 1;
        match &call {
            Call::StopPod | Call::RemovePod => self.stop_asked = true,
            Call::Stop(id, _) | Call::Remove(id) => {
                self.asked.insert(id.clone());
            }
            Call::Create { .. }
            | Call::Start(_)
            | Call::ReopenLog(_)
            | Call::Exec(_)
            | Call::Update(..)
            | Call::UpdatePod(_) => {}
        }
        if self.life.is_some() {
            self.waiting.insert(waiter, call.clone());
            self.input(Input::Call(waiter, call))?;
        }
        Ok(waiter)
    }

    /// CreateContainer.
    pub(super) fn create(&mut self, name: u8, other: bool) -> Result<Waiter, Violation> {
        self.made = self.made.wrapping_add(1);
        let id = ContainerId::from_random([self.made; 32]);
        self.call(Call::Create { id, config: Box::new(container_config(name, other)) })
    }
}

/// One of a few updates. Each changes two limits, so that it can be done in part.
pub(super) fn an_update(number: u8) -> Update {
    let number = i64::from(number % 4);
    let resources =
        Resources { cpu_shares: 2 + number, memory_limit: (1 + number) << 20, ..Resources::default() };
    Update { resources, ..Update::default() }
}

pub(super) fn choose<T>(all: &[T], pick: u8) -> Option<&T> {
    all.get(usize::from(pick).checked_rem(all.len())?)
}
