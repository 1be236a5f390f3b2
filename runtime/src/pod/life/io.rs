//! Inputs and actions of a pod's state machine. They are plain values, so that tests can run it without tokio,
//! a shim or a disk.

mod job;

pub(crate) use job::{Job, LaunchFailed, Leaf, Outcome, StartError, TornDown};

use crate::error::Error;
use model::reconcile::Shim;
use model::{
    ContainerConfig, ContainerId, ContainerRecord, ExecId, Exit, PodId, PodRecord, PodResources, Update,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// A caller that waits for its reply. The driver knows where to send it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Waiter(pub(crate) u64);

/// The time of an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Moment {
    /// For records: nanoseconds since the epoch, never 0.
    pub(crate) wall: i64,
    /// For deadlines: monotonic time.
    pub(crate) monotonic: Duration,
}

impl Moment {
    /// This time, but for records later than `earlier`, which may lie in the future if the clock was set back. kubelet takes
    /// the newest of several attempts for the current one: if that was an ended one, it would restart for ever.
    pub(crate) fn later_than(self, earlier: Option<i64>) -> Self {
        let wall = earlier.map_or(self.wall, |earlier| self.wall.max(earlier.saturating_add(1)));
        Self { wall, ..self }
    }
}

/// An exit, and when the container was started: nanoseconds since the epoch, 0 if that is unknown or it never
/// ran.
pub(crate) type ExitReport = (Exit, i64);

/// An input of a pod's state machine.
#[derive(Debug, Clone)]
pub(crate) enum Input {
    /// A CRI call. It gets exactly one reply.
    Call(Waiter, Call),
    /// An event from the shim.
    Shim(ShimEvent),
    /// The connection to the shim has ended.
    LinkLost,
    /// The result of connecting to the shim.
    Dialled(Box<DialResult>),
    /// A job has ended.
    Done(Outcome),
    /// A timer has expired.
    Due(Timer),
}

/// A CRI call.
#[derive(Debug, Clone)]
pub(crate) enum Call {
    /// StopPodSandbox.
    StopPod,
    /// RemovePodSandbox.
    RemovePod,
    /// CreateContainer.
    Create {
        /// The id of the new container.
        id: ContainerId,
        /// Boxed, because requests are large.
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
    /// ExecSync, Exec and Attach: whether the container can be used.
    Exec(ContainerId),
    /// UpdateContainerResources. Boxed, because requests are large.
    Update(ContainerId, Box<Update>),
    /// UpdatePodSandboxResources.
    UpdatePod(Box<PodResources>),
}

/// An event from a shim.
#[derive(Debug, Clone)]
pub(crate) enum ShimEvent {
    /// A container has exited.
    Exited(ContainerId, ExitReport),
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
pub(crate) struct DialResult {
    /// Its snapshot, or that it is silent or dead.
    pub(crate) shim: Shim,
    /// Why it is silent, for users.
    pub(crate) why: String,
    /// The shim's pid, if it is connected.
    pub(crate) pid: u32,
    /// Execs in its snapshot: an earlier connection started them.
    pub(crate) execs: Vec<ExecId>,
    /// The exits in its exit files.
    pub(crate) exits: BTreeMap<ContainerId, ExitReport>,
    /// Containers in its snapshot whose records cannot be used; they are not touched.
    pub(crate) kept: BTreeSet<ContainerId>,
    /// False if the pod's record is of an earlier boot.
    pub(crate) same_boot: bool,
}

impl DialResult {
    /// For a pod of an earlier boot: none of its processes is left.
    pub(crate) fn of_another_boot() -> Self {
        Self { same_boot: false, ..Self::of(Shim::Gone) }
    }

    /// A result without execs and exits.
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

/// A timer of the state machine.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Timer {
    /// The pause before a failed stop or removal of the pod is retried.
    Pod,
    /// The pause before the removal of a container is retried.
    Container(ContainerId),
}

/// The reply to a call.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Answer {
    /// The call is done.
    Done,
    /// The container that was created.
    Created(ContainerId),
    /// A process may be started in this container, or its streams used.
    MayExec(Arc<ContainerRecord>),
}

/// Actions, which the driver performs in order.
#[derive(Debug, Clone)]
pub(crate) enum Action {
    /// Sends the reply to a call.
    Answer(Waiter, Result<Answer, Error>),
    /// Tells the callers of RunPodSandbox that wait for the pod's name: the result of the launch, or why the name
    /// cannot be released yet.
    ReplyToRun(Result<PodId, Error>),
    /// Releases the pod's name: the next RunPodSandbox with it launches a new pod.
    ReleaseName,
    /// Publishes the current state of the pod, and since when its shim is silent: nanoseconds since the epoch, 0
    /// if it is not.
    PublishPod(Arc<PodRecord>, i64),
    /// Publishes the current state of the container.
    PublishContainer(Arc<ContainerRecord>),
    /// Removes the pod from the lists.
    UnpublishPod,
    /// Removes the container from the lists. The driver also drops its recorder and the handle of its stop. So this is sent
    /// only together with dropping the container's entry: a container that stays would get a second recorder, which writes
    /// the same file beside the first.
    UnpublishContainer(ContainerId),
    /// Sets what the next write of the pod's record contains. Writes nothing.
    SetPodRecord(Arc<PodRecord>),
    /// Sets what the next write of the container's record contains. Writes nothing.
    SetContainerRecord(Arc<ContainerRecord>),
    /// Uses the connection that came with this input.
    Connect,
    /// Drops the connection.
    Disconnect,
    /// Connects to the shim after a pause, and waits at most `limit` for its hello.
    Dial {
        /// The pause before it.
        pause: Duration,
        /// The limit for the hello.
        limit: Duration,
    },
    /// Moves the end of a running stop's grace period to an earlier time, which is monotonic.
    ShortenGrace(ContainerId, Duration),
    /// Tells the running stop job, if there is one, that the exit is recorded: then it ends.
    FinishStop(ContainerId),
    /// Starts a job; its outcome, if it has one, is an input.
    Begin(Job),
    /// Starts a timer. If it is running already, it starts again.
    StartTimer(Timer, Duration),
    /// Logs a transition that the tables of `model::transition` do not have. That is a bug of the state machine;
    /// the call that needed the transition has failed.
    ReportBug(Error),
    /// Ends the driver: nothing is left to do.
    Finish,
}
