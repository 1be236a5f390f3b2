//! Jobs, the work that takes time, and their outcomes.

use super::{ExitReport, Waiter};
use crate::error::Error;
use model::{ContainerId, ContainerRecord, ExecId, Exit, PodRecord};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

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

    /// The container whose recorder the driver gives to the job. `Create` gets none: it writes the first records with its
    /// own, before the driver has one.
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
    /// Ok if the container's cgroup has the values of its update. After an error it has the values before, unless these
    /// could not be restored.
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
