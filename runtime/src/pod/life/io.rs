//! Inputs and actions of a pod's state machine. They are plain values, so that tests can run it without tokio,
//! a shim or a disk.

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
    /// ExecSync: whether a process may be started in the container.
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

/// The result of a job.
#[derive(Debug, Clone)]
pub(crate) enum Outcome {
    /// The committed record of a pod that is ready.
    Launched(Result<Box<PodRecord>, LaunchFailed>),
    /// The committed record of a container that is created.
    Created(ContainerId, Result<Box<ContainerRecord>, Error>),
    /// When it was started, in nanoseconds since the epoch.
    Started(ContainerId, Result<i64, StartError>),
    /// No process of the container is left. The exit is `None` if the shim has reported it.
    StopEnded(ContainerId, Result<Option<Exit>, Error>),
    /// Whether the exit is durable. If not, the job has logged why: the write has failed, or its disk hangs.
    ExitRecorded(ContainerId, bool),
    /// Errors of the steps that failed; without one, nothing is left.
    ContainerRemoved(ContainerId, Vec<Error>),
    /// Ok if the new log file exists.
    LogReopened(Waiter, Result<(), Error>),
    /// Ok if the container's cgroup has the values of its update; otherwise it has the values before.
    Updated(ContainerId, Result<(), Error>),
    /// The record has the outcome of the update, or the job has logged why it could not be written.
    UpdateRecorded(ContainerId),
    /// The record has the pod's new resources, or the job has logged why it could not be written.
    PodUpdateRecorded(Waiter),
    /// Without errors, only the records and the shim's folder are left of the pod.
    PodTornDown(TornDown),
    /// Without errors, no process of the dead shim's pod is left.
    RemainsKilled(TornDown),
    /// The record says Stopped, or the job has logged why it could not be written.
    StopRecorded,
    /// Without errors, the shim's folder is removed.
    ShimFolderRemoved(Vec<Error>),
    /// Errors of the steps that failed; without one, nothing of the pod is left.
    PodRemoved(Vec<Error>),
}

/// A launch that failed.
#[derive(Debug, Clone)]
pub(crate) struct LaunchFailed {
    /// The first error, with the name of the step.
    pub(crate) error: Error,
    /// Errors of the steps that could not be undone; empty if nothing is left.
    pub(crate) left: Vec<Error>,
}

/// Why a container did not start.
#[derive(Debug, Clone)]
pub(crate) enum StartError {
    /// Its execve failed with this error, so it has exited.
    Never(String),
    /// Any other error: it may be waiting for another start request, or be running.
    Other(Error),
}

/// The result of a teardown, or of killing what a dead shim has left.
#[derive(Debug, Clone, Default)]
pub(crate) struct TornDown {
    /// Exits from exit files or from the kernel.
    pub(crate) exits: BTreeMap<ContainerId, ExitReport>,
    /// Containers of which processes may still be running.
    pub(crate) alive: BTreeSet<ContainerId>,
    /// Errors of the steps that failed.
    pub(crate) errors: Vec<Error>,
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
    /// A process may be started in this container.
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
    /// Removes the container from the lists.
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

/// Work that takes time. It uses the connection that exists when it starts.
#[derive(Debug, Clone)]
pub(crate) enum Job {
    /// Launches the pod.
    Launch(Arc<PodRecord>),
    /// Creates a container in the pod.
    Create(Arc<PodRecord>, Arc<ContainerRecord>),
    /// Starts the container's init, and writes and syncs its record at the same time.
    Start(ContainerId),
    /// Sends the stop signal, waits until the deadline, and kills.
    Stop {
        /// The container.
        record: Arc<ContainerRecord>,
        /// Pid of the shim.
        shim_pid: u32,
        /// The end of the grace period, in monotonic time.
        deadline: Duration,
    },
    /// Writes and syncs the record of an exited container. Ends in time on a disk that hangs too (`pod::recorder`).
    RecordExit(ContainerId),
    /// Removes everything of the container.
    RemoveContainer(Arc<ContainerRecord>),
    /// Undoes an interrupted create. No outcome.
    UndoCreate(Arc<ContainerRecord>),
    /// Kills a container that the shim has and that has no record, or one that says Exited. No outcome.
    KillOrphan(ContainerId),
    /// Removes the cgroup of an exited container. No outcome.
    RemoveCgroup(Arc<ContainerRecord>),
    /// Asks the shim to reopen the container's log.
    ReopenLog(Waiter, ContainerId),
    /// Writes and syncs the container's record, which has an update, and applies that.
    Update(Arc<ContainerRecord>),
    /// Finds out whether the update in the record of an earlier daemon was applied; if not, undoes it.
    SettleUpdate(Arc<ContainerRecord>),
    /// Writes and syncs the container's record after an update. Ends in time on a disk that hangs too.
    RecordUpdate(ContainerId),
    /// Writes and syncs the pod's record after an update. Ends in time on a disk that hangs too.
    RecordPodUpdate(Waiter),
    /// Kills execs that an earlier connection started. No outcome.
    KillExecs(Vec<ExecId>),
    /// Tears down everything of the pod except its records and its shim's folder.
    TearDownPod(Arc<PodRecord>, Vec<Leaf>),
    /// Kills the processes that a dead shim has left.
    KillRemains(Arc<PodRecord>, Vec<Leaf>),
    /// Writes the pod's record. Losing this write is harmless, so it is not synced and has no outcome.
    RecordPod,
    /// Writes and syncs the record of a stopped pod. Ends in time on a disk that hangs too.
    RecordStop,
    /// Removes the shim's folder.
    RemoveShimFolder,
    /// Removes the containers and then the pod.
    RemovePod(Arc<PodRecord>, Vec<Arc<ContainerRecord>>),
}

impl Job {
    /// What the job does, for users.
    pub(crate) fn what(&self) -> &'static str {
        match self {
            Self::Launch(_) => "launch the pod",
            Self::Create(..) => "create the container",
            Self::Start(_) => "start the container",
            Self::Stop { .. } => "stop the container",
            Self::RecordExit(_) => "record the container's exit",
            Self::RemoveContainer(_) => "remove the container",
            Self::UndoCreate(_) => "undo an interrupted create",
            Self::KillOrphan(_) => "kill a container that should not exist",
            Self::RemoveCgroup(_) => "remove the container's cgroup",
            Self::ReopenLog(..) => "reopen the container's log",
            Self::Update(_) => "update the container's resources",
            Self::SettleUpdate(_) => "settle an interrupted update of the container's resources",
            Self::RecordUpdate(_) => "record the container's update",
            Self::RecordPodUpdate(_) => "record the pod's update",
            Self::KillExecs(_) => "kill execs of an earlier connection",
            Self::TearDownPod(..) => "tear down the pod",
            Self::KillRemains(..) => "kill what a dead shim has left",
            Self::RecordPod => "record the pod",
            Self::RecordStop => "record the pod's stop",
            Self::RemoveShimFolder => "remove the shim's folder",
            Self::RemovePod(..) => "remove the pod",
        }
    }

    /// The container that the job is about, and its name if the job has it.
    pub(crate) fn about(&self) -> Option<(&ContainerId, Option<&str>)> {
        match self {
            Self::Create(_, record)
            | Self::Stop { record, .. }
            | Self::RemoveContainer(record)
            | Self::UndoCreate(record)
            | Self::Update(record)
            | Self::SettleUpdate(record)
            | Self::RemoveCgroup(record) => Some((&record.id, Some(&record.config.meta.name))),
            Self::Start(id)
            | Self::RecordExit(id)
            | Self::RecordUpdate(id)
            | Self::KillOrphan(id)
            | Self::ReopenLog(_, id) => Some((id, None)),
            Self::Launch(_)
            | Self::KillExecs(_)
            | Self::TearDownPod(..)
            | Self::KillRemains(..)
            | Self::RecordPod
            | Self::RecordPodUpdate(_)
            | Self::RecordStop
            | Self::RemoveShimFolder
            | Self::RemovePod(..) => None,
        }
    }

    /// The container whose record the job writes.
    pub(crate) fn container(&self) -> Option<&ContainerId> {
        match self {
            Self::Start(id) | Self::RecordExit(id) | Self::RecordUpdate(id) => Some(id),
            Self::RemoveContainer(record) | Self::Update(record) => Some(&record.id),
            Self::Launch(_)
            | Self::Create(..)
            | Self::Stop { .. }
            | Self::UndoCreate(_)
            | Self::KillOrphan(_)
            | Self::RemoveCgroup(_)
            | Self::ReopenLog(..)
            | Self::SettleUpdate(_)
            | Self::RecordPodUpdate(_)
            | Self::KillExecs(_)
            | Self::TearDownPod(..)
            | Self::KillRemains(..)
            | Self::RecordPod
            | Self::RecordStop
            | Self::RemoveShimFolder
            | Self::RemovePod(..) => None,
        }
    }
}

/// A container to be torn down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Leaf {
    /// The container.
    pub(crate) id: ContainerId,
    /// Its cgroup.
    pub(crate) cgroup: String,
    /// Pid of init; 0 after its exit.
    pub(crate) pid: u32,
}
