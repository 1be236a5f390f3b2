//! What goes into a pod's life and what comes out of it: plain values, so that it can be run without a runtime,
//! a shim or a disk.

use crate::error::Error;
use model::reconcile::Shim;
use model::{ContainerConfig, ContainerId, ContainerRecord, ExecId, Exit, PodId, PodRecord};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// A caller that waits for an answer. Where it goes is the driver's to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Waiter(pub(crate) u64);

/// The time of an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Moment {
    /// Nanoseconds since the epoch, never 0: for records.
    pub(crate) wall: i64,
    /// By a clock that nobody sets: for deadlines.
    pub(crate) steady: Duration,
}

/// An exit and the time of the start, 0 when it is not known or never was.
pub(crate) type Ending = (Exit, i64);

/// What happens to a pod.
#[derive(Debug, Clone)]
pub(crate) enum Input {
    /// A call of CRI. It is answered once.
    Ask(Waiter, Ask),
    /// The shim's word.
    Shim(ShimEvent),
    /// The connection to the shim has ended.
    LinkLost,
    /// The shim was dialled.
    Heard(Box<Heard>),
    /// A job has ended.
    Done(Outcome),
    /// A timer has run out.
    Due(Timer),
}

/// A call of CRI.
#[derive(Debug, Clone)]
pub(crate) enum Ask {
    /// StopPodSandbox.
    StopPod,
    /// RemovePodSandbox.
    RemovePod,
    /// CreateContainer.
    Create {
        /// The container's, if it becomes one.
        id: ContainerId,
        /// Boxed: it is the one large call.
        config: Box<ContainerConfig>,
    },
    /// StartContainer.
    Start(ContainerId),
    /// StopContainer, with the time between the stop signal and SIGKILL.
    Stop(ContainerId, Duration),
    /// RemoveContainer.
    Remove(ContainerId),
    /// ReopenContainerLog.
    ReopenLog(ContainerId),
    /// May a process be started in it.
    Exec(ContainerId),
}

/// What a shim tells by itself.
#[derive(Debug, Clone)]
pub(crate) enum ShimEvent {
    /// A container has ended.
    Exited(ContainerId, Ending),
    /// A container's init has exec'd, nanoseconds since the epoch.
    Started(ContainerId, i64),
    /// The sandbox has lost its PID 1.
    PauseExited {
        /// How.
        code: i32,
    },
}

/// What dialling a shim has brought.
#[derive(Debug, Clone)]
pub(crate) struct Heard {
    /// Its word; for a silent one, `why` says why.
    pub(crate) shim: Shim,
    /// Why it could not be asked, for people.
    pub(crate) why: String,
    /// The shim's process, when it answered.
    pub(crate) pid: u32,
    /// Execs of an earlier connection.
    pub(crate) execs: Vec<ExecId>,
    /// Exit records that it has left.
    pub(crate) exits: BTreeMap<ContainerId, Ending>,
    /// Containers that it holds whose records cannot be used: they are left alone.
    pub(crate) kept: BTreeSet<ContainerId>,
    /// False when the pod is of another boot.
    pub(crate) same_boot: bool,
}

impl Heard {
    /// Nothing of another boot lives.
    pub(crate) fn of_another_boot() -> Self {
        Self { same_boot: false, ..Self::of(Shim::Gone) }
    }

    /// A shim's word and nothing else.
    pub(crate) fn of(shim: Shim) -> Self {
        Self {
            shim,
            why: String::new(),
            pid: 0,
            execs: Vec::new(),
            exits: BTreeMap::new(),
            kept: BTreeSet::new(),
            same_boot: true,
        }
    }
}

/// How a job has ended.
#[derive(Debug, Clone)]
pub(crate) enum Outcome {
    /// The pod is up, with its record as committed.
    Launched(Result<Box<PodRecord>, LaunchFailed>),
    /// The container waits for its start, with its record as committed.
    Created(ContainerId, Result<Box<ContainerRecord>, Error>),
    /// Since when it runs.
    Started(ContainerId, Result<i64, StartError>),
    /// Nothing of it runs. The exit, where the shim has not told it; without one, it is settled already.
    StopEnded(ContainerId, Result<Option<Exit>, Error>),
    /// The exit is durable; or false: it cannot be made so, which the log tells.
    ExitRecorded(ContainerId, bool),
    /// What could not be removed.
    ContainerRemoved(ContainerId, Vec<Error>),
    /// The new log file exists.
    LogReopened(Waiter, Result<(), Error>),
    /// Everything of the pod but its records is gone, or the errors say what is not.
    PodEnded(Ended),
    /// A dead shim's pod was killed.
    PodBuried(Ended),
    /// The record says Stopped, or the log says why not.
    PodRecorded,
    /// The shim's folder is gone.
    ShimForgotten(Vec<Error>),
    /// What of the pod could not be removed.
    PodRemoved(Vec<Error>),
}

/// A launch that failed.
#[derive(Debug, Clone)]
pub(crate) struct LaunchFailed {
    /// The first cause, with its stage.
    pub(crate) error: Error,
    /// What could not be undone; empty when nothing is left.
    pub(crate) left: Vec<Error>,
}

/// Why a container did not start.
#[derive(Debug, Clone)]
pub(crate) enum StartError {
    /// It is exited: execve said this.
    Never(String),
    /// It may still be created, or run.
    Other(Error),
}

/// What ending a pod has left to say.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ended {
    /// Exits that the shim had recorded, or the kernel told.
    pub(crate) exits: BTreeMap<ContainerId, Ending>,
    /// Containers with processes that may live: their end is not known.
    pub(crate) alive: BTreeSet<ContainerId>,
    /// What could not be ended or given back.
    pub(crate) errors: Vec<Error>,
}

/// Pauses of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Timer {
    /// Before a pod's stop or removal that failed is tried again.
    Pod,
    /// The same for the removal of one container.
    Container(ContainerId),
}

/// What a caller is answered.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Answer {
    /// It is done.
    Done,
    /// The container of CreateContainer.
    Created(ContainerId),
    /// A process may be started in this one.
    MayExec(Arc<ContainerRecord>),
}

/// What is to be done, in this order.
#[derive(Debug, Clone)]
pub(crate) enum Action {
    /// Answers a call.
    Answer(Waiter, Result<Answer, Error>),
    /// Answers those who want the pod's name: the launch, or why its holder does not go.
    TellName(Result<PodId, Error>),
    /// The name is free again.
    ReleaseName,
    /// Shows the pod as it is now. The shim does not answer since then, nanoseconds since the epoch, or 0.
    ShowPod(Arc<PodRecord>, i64),
    /// Shows the container as it is now.
    ShowContainer(Arc<ContainerRecord>),
    /// The pod is gone.
    HidePod,
    /// The container is gone.
    HideContainer(ContainerId),
    /// What the next write of the pod's record writes.
    NotePod(Arc<PodRecord>),
    /// What the next write of the container's record writes.
    NoteContainer(Arc<ContainerRecord>),
    /// Uses the connection that came with this input.
    Connect,
    /// Lets the connection go.
    HangUp,
    /// Dials the shim after a pause, waiting at most `limit` for its greeting.
    Dial {
        /// Before it.
        pause: Duration,
        /// For it.
        limit: Duration,
    },
    /// A stop under way has less time.
    Hasten(ContainerId, Duration),
    /// The exit is recorded: a stop under way may end.
    ExitSettled(ContainerId),
    /// Begins a job; its outcome comes back, where it has one.
    Begin(Job),
    /// Begins a pause. There is one of a kind at a time.
    Wake(Timer, Duration),
    /// Nothing is left to do.
    Finish,
}

/// Work that takes time. It uses the connection there is when it begins.
#[derive(Debug, Clone)]
pub(crate) enum Job {
    /// Brings the pod up.
    Launch(Arc<PodRecord>),
    /// Makes a container of the pod.
    Create(Arc<PodRecord>, Arc<ContainerRecord>),
    /// Lets init go on, and makes the record durable meanwhile.
    Start(ContainerId),
    /// Stop signal, grace until `deadline` on the steady clock, SIGKILL.
    Stop {
        /// The container.
        record: Arc<ContainerRecord>,
        /// The shim's process.
        shim_pid: u32,
        /// When to kill.
        deadline: Duration,
    },
    /// Makes the container's record durable.
    RecordExit(ContainerId),
    /// Removes what the container has.
    RemoveContainer(Arc<ContainerRecord>),
    /// Undoes a create that was cut off. No outcome.
    Unmake(Arc<ContainerRecord>),
    /// Kills a container that only the shim knows of. No outcome.
    KillOrphan(ContainerId),
    /// Removes the cgroup of a container that has ended. No outcome.
    RemoveCgroup(Arc<ContainerRecord>),
    /// Opens the log anew.
    ReopenLog(Waiter, ContainerId),
    /// Kills execs that nobody waits for any more. No outcome.
    KillExecs(Vec<ExecId>),
    /// Ends everything of the pod but its records and its shim's folder.
    EndPod(Arc<PodRecord>, Vec<Leaf>),
    /// Kills what a dead shim has left.
    BuryPod(Arc<PodRecord>, Vec<Leaf>),
    /// Writes the pod's record: informational, so no outcome.
    RecordPod,
    /// Makes the pod's record durable.
    RecordStop,
    /// Removes the shim's folder.
    ForgetShim,
    /// Removes the containers and then the pod.
    RemovePod(Arc<PodRecord>, Vec<Arc<ContainerRecord>>),
}

/// What of a container has to be ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Leaf {
    /// Which.
    pub(crate) id: ContainerId,
    /// Its cgroup.
    pub(crate) cgroup: String,
    /// Of init; 0 once it is over.
    pub(crate) pid: u32,
}
