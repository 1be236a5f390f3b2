//! Inputs and actions of a pod's state machine: plain values, so that it can run without a runtime, a shim or
//! a disk.

use crate::error::Error;
use model::reconcile::Shim;
use model::{ContainerConfig, ContainerId, ContainerRecord, ExecId, Exit, PodId, PodRecord};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// A waiting caller. The driver knows where to send the reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Waiter(pub(crate) u64);

/// The time of an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Moment {
    /// Nanoseconds since the epoch, never 0: for records.
    pub(crate) wall: i64,
    /// Monotonic time, for deadlines.
    pub(crate) steady: Duration,
}

/// An exit and the start time, which is 0 if it is unknown or the container never ran.
pub(crate) type Ending = (Exit, i64);

/// An input of a pod's state machine.
#[derive(Debug, Clone)]
pub(crate) enum Input {
    /// A CRI call. It gets exactly one reply.
    Ask(Waiter, Ask),
    /// An event from the shim.
    Shim(ShimEvent),
    /// The connection to the shim has ended.
    LinkLost,
    /// The result of connecting to the shim.
    Heard(Box<Heard>),
    /// A job has ended.
    Done(Outcome),
    /// A timer has expired.
    Due(Timer),
}

/// A CRI call.
#[derive(Debug, Clone)]
pub(crate) enum Ask {
    /// StopPodSandbox.
    StopPod,
    /// RemovePodSandbox.
    RemovePod,
    /// CreateContainer.
    Create {
        /// The id of the new container.
        id: ContainerId,
        /// Boxed, because it is the only large call.
        config: Box<ContainerConfig>,
    },
    /// StartContainer.
    Start(ContainerId),
    /// StopContainer with its grace period.
    Stop(ContainerId, Duration),
    /// RemoveContainer.
    Remove(ContainerId),
    /// ReopenContainerLog.
    ReopenLog(ContainerId),
    /// Asks whether a process may be started in it.
    Exec(ContainerId),
}

/// An event from a shim.
#[derive(Debug, Clone)]
pub(crate) enum ShimEvent {
    /// A container has exited.
    Exited(ContainerId, Ending),
    /// A container's init has called execve, at a time in nanoseconds since the epoch.
    Started(ContainerId, i64),
    /// Pause has ended.
    PauseExited {
        /// Its exit code.
        code: i32,
    },
}

/// The result of connecting to a shim.
#[derive(Debug, Clone)]
pub(crate) struct Heard {
    /// Its snapshot, or that it is silent or gone.
    pub(crate) shim: Shim,
    /// Why it is silent, for users.
    pub(crate) why: String,
    /// The shim's pid, if it is connected.
    pub(crate) pid: u32,
    /// Execs that an earlier connection started.
    pub(crate) execs: Vec<ExecId>,
    /// The exit files that it has written.
    pub(crate) exits: BTreeMap<ContainerId, Ending>,
    /// Containers that it holds and whose records cannot be used; they are not touched.
    pub(crate) kept: BTreeSet<ContainerId>,
    /// False if the pod is of another boot.
    pub(crate) same_boot: bool,
}

impl Heard {
    /// For a pod of another boot: nothing of it is running.
    pub(crate) fn of_another_boot() -> Self {
        Self { same_boot: false, ..Self::of(Shim::Gone) }
    }

    /// A result with only the shim's snapshot.
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

/// The result of a job.
#[derive(Debug, Clone)]
pub(crate) enum Outcome {
    /// The pod is ready; its committed record.
    Launched(Result<Box<PodRecord>, LaunchFailed>),
    /// The container is created; its committed record.
    Created(ContainerId, Result<Box<ContainerRecord>, Error>),
    /// The start time.
    Started(ContainerId, Result<i64, StartError>),
    /// No process of the container is left. The exit, if the shim has not reported it; `None` if it is known
    /// already.
    StopEnded(ContainerId, Result<Option<Exit>, Error>),
    /// Whether the exit is durable; if not, the error was logged.
    ExitRecorded(ContainerId, bool),
    /// Errors of what could not be removed.
    ContainerRemoved(ContainerId, Vec<Error>),
    /// The new log file exists.
    LogReopened(Waiter, Result<(), Error>),
    /// Everything of the pod except its records is gone, or the errors say what is left.
    PodEnded(Ended),
    /// The processes of a dead shim's pod were killed.
    PodKilled(Ended),
    /// The record says Stopped, or the error was logged.
    PodRecorded,
    /// The shim's folder was removed.
    ShimForgotten(Vec<Error>),
    /// Errors of what could not be removed of the pod.
    PodRemoved(Vec<Error>),
}

/// A launch that failed.
#[derive(Debug, Clone)]
pub(crate) struct LaunchFailed {
    /// The first error, with its stage.
    pub(crate) error: Error,
    /// Errors of what could not be undone; empty if nothing is left.
    pub(crate) left: Vec<Error>,
}

/// Why a container did not start.
#[derive(Debug, Clone)]
pub(crate) enum StartError {
    /// It has exited; the error of execve.
    Never(String),
    /// It may still be created, or running.
    Other(Error),
}

/// The result of tearing a pod down.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ended {
    /// Exits from exit files or from the kernel.
    pub(crate) exits: BTreeMap<ContainerId, Ending>,
    /// Containers with processes that may still be running.
    pub(crate) alive: BTreeSet<ContainerId>,
    /// Errors of what could not be stopped or released.
    pub(crate) errors: Vec<Error>,
}

/// Timers of the state machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Timer {
    /// The pause before a failed stop or removal of the pod is retried.
    Pod,
    /// The same for the removal of one container.
    Container(ContainerId),
}

/// The reply to a call.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Answer {
    /// It is done.
    Done,
    /// The container of CreateContainer.
    Created(ContainerId),
    /// A process may be started in this one.
    MayExec(Arc<ContainerRecord>),
}

/// Actions, which the driver performs in order.
#[derive(Debug, Clone)]
pub(crate) enum Action {
    /// Sends the reply to a call.
    Answer(Waiter, Result<Answer, Error>),
    /// Sends the result of the launch, or the error why the name is still reserved, to callers that want the
    /// pod's name.
    TellName(Result<PodId, Error>),
    /// Releases the name.
    ReleaseName,
    /// Publishes the current state of the pod. The shim is silent since this time in nanoseconds since the
    /// epoch, or 0.
    ShowPod(Arc<PodRecord>, i64),
    /// Publishes the current state of the container.
    ShowContainer(Arc<ContainerRecord>),
    /// The pod is gone.
    HidePod,
    /// The container is gone.
    HideContainer(ContainerId),
    /// Sets the content of the pod's record for the next write.
    NotePod(Arc<PodRecord>),
    /// Sets the content of the container's record for the next write.
    NoteContainer(Arc<ContainerRecord>),
    /// Uses the connection that came with this input.
    Connect,
    /// Drops the connection.
    HangUp,
    /// Connects to the shim after a pause, and waits at most `limit` for its hello.
    Dial {
        /// The pause before it.
        pause: Duration,
        /// The limit for the hello.
        limit: Duration,
    },
    /// Shortens the grace period of a running stop.
    Hasten(ContainerId, Duration),
    /// The exit is recorded: a running stop may end.
    ExitSettled(ContainerId),
    /// Starts a job; its outcome, if it has one, is an input.
    Begin(Job),
    /// Starts a timer. There is one of each kind at a time.
    Wake(Timer, Duration),
    /// Nothing is left to do.
    Finish,
}

/// A job, which takes time. It uses the connection that exists when it starts.
#[derive(Debug, Clone)]
pub(crate) enum Job {
    /// Brings the pod up.
    Launch(Arc<PodRecord>),
    /// Creates a container in the pod.
    Create(Arc<PodRecord>, Arc<ContainerRecord>),
    /// Starts init and syncs the record at the same time.
    Start(ContainerId),
    /// Stop signal, grace period until `deadline` in monotonic time, SIGKILL.
    Stop {
        /// The container.
        record: Arc<ContainerRecord>,
        /// The shim's process.
        shim_pid: u32,
        /// When to kill.
        deadline: Duration,
    },
    /// Writes and syncs the container's record.
    RecordExit(ContainerId),
    /// Removes everything of the container.
    RemoveContainer(Arc<ContainerRecord>),
    /// Undoes an interrupted create. No outcome.
    Unmake(Arc<ContainerRecord>),
    /// Kills a container that only the shim knows. No outcome.
    KillOrphan(ContainerId),
    /// Removes the cgroup of an exited container. No outcome.
    RemoveCgroup(Arc<ContainerRecord>),
    /// Reopens the log.
    ReopenLog(Waiter, ContainerId),
    /// Kills execs whose callers have gone. No outcome.
    KillExecs(Vec<ExecId>),
    /// Tears down everything of the pod except its records and its shim's folder.
    EndPod(Arc<PodRecord>, Vec<Leaf>),
    /// Kills the processes that a dead shim left.
    KillRemains(Arc<PodRecord>, Vec<Leaf>),
    /// Writes the pod's record. Only informational, so it has no outcome.
    RecordPod,
    /// Writes and syncs the pod's record.
    RecordStop,
    /// Removes the shim's folder.
    ForgetShim,
    /// Removes the containers and then the pod.
    RemovePod(Arc<PodRecord>, Vec<Arc<ContainerRecord>>),
}

impl Job {
    /// The container whose record the job writes.
    pub(crate) fn container(&self) -> Option<&ContainerId> {
        match self {
            Self::Start(id) | Self::RecordExit(id) => Some(id),
            Self::RemoveContainer(record) => Some(&record.id),
            Self::Launch(_)
            | Self::Create(..)
            | Self::Stop { .. }
            | Self::Unmake(_)
            | Self::KillOrphan(_)
            | Self::RemoveCgroup(_)
            | Self::ReopenLog(..)
            | Self::KillExecs(_)
            | Self::EndPod(..)
            | Self::KillRemains(..)
            | Self::RecordPod
            | Self::RecordStop
            | Self::ForgetShim
            | Self::RemovePod(..) => None,
        }
    }
}

/// A container to be torn down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Leaf {
    /// Which.
    pub(crate) id: ContainerId,
    /// Its cgroup.
    pub(crate) cgroup: String,
    /// Pid of init; 0 after its exit.
    pub(crate) pid: u32,
}
