//! The stages of a pod and of its containers, each with the data that is legal in it. `mod.rs` draws both.

use super::io::{ExitReport, Waiter};
use crate::error::Error;
use model::{ContainerPhase, ContainerRecord, Update};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

/// The stage of a pod.
#[derive(Debug)]
pub(super) enum PodStage {
    /// It is being launched; not listed.
    Launching,
    /// An earlier daemon left its launch or its removal incomplete. Once the daemon has tried to connect to its shim, the
    /// launch is undone, or the removal continues. (A pod with containers from before a reboot is only torn down, and
    /// stays: `model::reconcile::is_leaving`.)
    Leftover,
    /// It is ready.
    Ready,
    /// It is not ready any more. A stop was not requested yet, or has failed and will be retried.
    NotReady,
    /// Its shim is dead, and the processes that are left are being killed; then the pod is torn down.
    Killing(PodCallers),
    /// It is being torn down: processes, network, shim, cgroups.
    TearingDown(PodCallers),
    /// No process is left; its record is being written.
    Recording(PodCallers),
    /// Its stop waits for exits that are being recorded, which has a time limit, and for running creates: these fail
    /// soon after the shim has ended, or when their disk responds. The errors are those of the teardown.
    Settling(PodCallers, Vec<Error>),
    /// Its shim's folder is being removed.
    RemovingShim(PodCallers),
    /// Only records are left. A removal waits until no container is being removed and no
    /// exit is being recorded.
    Stopped {
        /// Callers of RemovePodSandbox.
        removers: Vec<Waiter>,
        /// Whether the removal of its shim's folder has failed: a timer, StopPodSandbox and the removal try it again. False if it
        /// stays on purpose, because an exit in it is not durable: then only the removal of the pod removes it.
        folder_left: bool,
    },
    /// Its records are being removed, and its shim's folder if that is left.
    Removing {
        /// Callers of RemovePodSandbox, and of RemoveContainer for its containers.
        removers: Vec<Waiter>,
        /// As in `Stopped`.
        folder_left: bool,
    },
    /// Nothing of it is left.
    Removed,
}

/// Callers that wait for the end of the pod.
#[derive(Debug, Default)]
pub(super) struct PodCallers {
    /// Callers of StopPodSandbox.
    pub(super) stoppers: Vec<Waiter>,
    /// Callers of RemovePodSandbox.
    pub(super) removers: Vec<Waiter>,
}

impl PodStage {
    /// Whether a stop or removal is running: other changes must wait or are refused.
    pub(super) fn is_ending(&self) -> bool {
        match self {
            Self::Killing(_)
            | Self::TearingDown(_)
            | Self::Recording(_)
            | Self::Settling(..)
            | Self::RemovingShim(_)
            | Self::Removing { .. }
            | Self::Removed => true,
            Self::Launching | Self::Leftover | Self::Ready | Self::NotReady | Self::Stopped { .. } => false,
        }
    }
}

/// Whether the daemon removes the pod without a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// No: it stays until a call removes it.
    Stays,
    /// Yes, because it was never committed or its removal had begun. It is not listed.
    Leaves,
    /// Yes, but that has failed. It is listed, so that a client can request its removal, which is also retried.
    Stuck,
}

/// The connection to the shim.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Link {
    /// Connected.
    Up,
    /// The shim exists, or may exist, and the daemon tries to connect to it.
    Down {
        /// When the connection was lost, in nanoseconds since the epoch.
        since: i64,
        /// Number of attempts that have begun. The pause before the next one grows with it.
        attempts: u32,
        /// Whether an attempt has failed because the shim did not respond.
        silent: bool,
        /// Why connecting failed, for users.
        why: String,
    },
    /// There is no shim, or none yet.
    None,
}

impl Link {
    /// A lost connection.
    pub(super) fn down(since: i64, why: &str) -> Self {
        Self::Down { since, attempts: 0, silent: false, why: why.to_owned() }
    }

    /// Time since which the shim is silent, in nanoseconds since the epoch; 0 if it is not.
    pub(super) fn silent_since(&self) -> i64 {
        match self {
            Self::Down { since, silent: true, .. } => *since,
            Self::Down { .. } | Self::Up | Self::None => 0,
        }
    }
}

/// One container.
#[derive(Debug)]
pub(super) struct Container {
    pub(super) record: Arc<ContainerRecord>,
    pub(super) stage: Stage,
    /// Updates of its resources, which run beside its starts and stops.
    pub(super) updates: Updates,
}

/// The stage of a container.
#[derive(Debug)]
pub(super) enum Stage {
    /// The create job is running; not listed.
    Creating {
        /// Callers of CreateContainer, one or more.
        callers: Vec<Waiter>,
        /// Its exit, if that was reported before the job ended; it is recorded once the container is created.
        exit: Option<ExitReport>,
    },
    /// An earlier daemon ended while it created the container; that is undone when the shim has answered or is found dead.
    /// While the shim is silent the container stays in this stage, and calls meet it; if its pod is stopped meanwhile, it
    /// stays so until the pod is removed.
    CutOff,
    /// Init waits for the start request.
    Created {
        /// The state of its start.
        start: Start,
        /// The running stop.
        stop: Option<RunningStop>,
    },
    /// Init has called execve.
    Running {
        /// Callers of StartContainer while the start job is running: the record is not durable yet.
        start: Option<Vec<Waiter>>,
        /// The running stop.
        stop: Option<RunningStop>,
    },
    /// It has exited. The exit is being recorded, and is published when that has ended: when it is durable, or when
    /// it cannot be recorded in time.
    Exiting {
        /// Callers of StartContainer while the start job is running.
        start: Option<Vec<Waiter>>,
        /// Callers of StartContainer whose start job has ended, with their replies: these are sent once the exit
        /// is published.
        start_replies: Vec<(Waiter, Result<(), Error>)>,
        /// Callers of StopContainer.
        stoppers: Vec<Waiter>,
        /// Callers of RemoveContainer.
        removers: Vec<Waiter>,
    },
    /// Its exit is published.
    Exited {
        /// False if the only sure copy of the exit is in the shim's folder, which must then stay.
        durable: bool,
        /// Callers of StartContainer while the start job is running.
        start: Option<Vec<Waiter>>,
    },
    /// It is being removed.
    Removing {
        /// As in `Exited`.
        durable: bool,
        /// Whether the removal job is running; if not, it has failed or is yet to begin.
        job_running: bool,
        /// Callers of RemoveContainer.
        callers: Vec<Waiter>,
    },
}

/// Whether a created container was started.
#[derive(Debug)]
pub(super) enum Start {
    /// No start was requested.
    NotRequested,
    /// The start job is running for these callers of StartContainer.
    Requested(Vec<Waiter>),
    /// The start job has failed, perhaps without a reply of the shim: the container may be running.
    Unconfirmed,
}

/// A stop job that is running.
#[derive(Debug)]
pub(super) struct RunningStop {
    /// When to kill, in monotonic time.
    pub(super) deadline: Duration,
    /// Callers of StopContainer.
    pub(super) stoppers: Vec<Waiter>,
    /// Callers of RemoveContainer.
    pub(super) removers: Vec<Waiter>,
}

/// The updates of a container.
#[derive(Debug, Default)]
pub(super) struct Updates {
    /// The one that runs.
    pub(super) running: Option<RunningUpdate>,
    /// Those that wait for it.
    pub(super) waiting: VecDeque<(Waiter, Box<Update>)>,
}

/// The update that runs. Without a caller it is one of an earlier daemon.
#[derive(Debug)]
pub(super) enum RunningUpdate {
    /// Its job is running.
    Applying(Option<Waiter>),
    /// Its outcome is being recorded.
    Recording(Option<Waiter>, Result<(), Error>),
}

impl Updates {
    /// All callers that wait.
    pub(super) fn into_waiters(self) -> impl Iterator<Item = Waiter> {
        let running = self.running.and_then(|running| match running {
            RunningUpdate::Applying(caller) | RunningUpdate::Recording(caller, _) => caller,
        });
        running.into_iter().chain(self.waiting.into_iter().map(|(waiter, _)| waiter))
    }

    #[cfg(test)]
    pub(super) fn of(running: RunningUpdate) -> Self {
        Self { running: Some(running), waiting: VecDeque::new() }
    }
}

impl Container {
    /// A container in this stage.
    pub(super) fn new(record: Arc<ContainerRecord>, stage: Stage) -> Self {
        Self { record, stage, updates: Updates::default() }
    }

    /// Restores a container from a record that an earlier daemon wrote.
    pub(super) fn restored(record: ContainerRecord) -> Self {
        let stage = match record.phase {
            ContainerPhase::Creating => Stage::CutOff,
            ContainerPhase::Created => Stage::Created { start: Start::NotRequested, stop: None },
            ContainerPhase::Running => Stage::Running { start: None, stop: None },
            // Unknown is never written.
            ContainerPhase::Exited | ContainerPhase::Unknown => Stage::Exited { durable: true, start: None },
            ContainerPhase::Removing => {
                Stage::Removing { durable: true, job_running: false, callers: Vec::new() }
            }
        };
        Self::new(Arc::new(record), stage)
    }

    /// Whether it is committed: created completely, and recorded as such. Only then can it be listed.
    pub(super) fn is_committed(&self) -> bool {
        !matches!(self.stage, Stage::Creating { .. } | Stage::CutOff)
    }

    /// Whether the stop of the pod must wait for it.
    pub(super) fn delays_stop(&self) -> bool {
        matches!(self.stage, Stage::Creating { .. } | Stage::Exiting { .. })
    }

    /// Whether its exit is recorded in the shim's folder only.
    pub(super) fn is_unrecorded(&self) -> bool {
        matches!(self.stage, Stage::Exited { durable: false, .. } | Stage::Removing { durable: false, .. })
    }

    /// Whether its removal job is running.
    pub(super) fn is_being_removed(&self) -> bool {
        matches!(self.stage, Stage::Removing { job_running: true, .. })
    }

    /// Whether an earlier daemon began its removal. It is not listed then, and this daemon retries until it is removed.
    /// If this daemon begins the removal, only the record on disk says so. If that fails, the container stays Exited and listed
    /// in this daemon, but the record is not written back: the next daemon does not list it and continues the removal.
    pub(super) fn is_leftover(&self) -> bool {
        self.record.phase == ContainerPhase::Removing
    }

    /// Whether StopContainer or RemoveContainer is ending it.
    pub(super) fn is_being_stopped(&self) -> bool {
        match &self.stage {
            Stage::Created { stop, .. } | Stage::Running { stop, .. } => stop.is_some(),
            Stage::Exiting { stoppers, removers, .. } => !stoppers.is_empty() || !removers.is_empty(),
            Stage::Creating { .. } | Stage::CutOff | Stage::Exited { .. } | Stage::Removing { .. } => false,
        }
    }

    /// Takes the callers of a running start job and the running stop, of a container that has not exited.
    pub(super) fn take_start_and_stop(&mut self) -> (Option<Vec<Waiter>>, Option<RunningStop>) {
        match &mut self.stage {
            Stage::Created { start, stop } => {
                let start = match std::mem::replace(start, Start::NotRequested) {
                    Start::Requested(callers) => Some(callers),
                    Start::NotRequested | Start::Unconfirmed => None,
                };
                (start, stop.take())
            }
            Stage::Running { start, stop } => (start.take(), stop.take()),
            Stage::Creating { .. }
            | Stage::CutOff
            | Stage::Exiting { .. }
            | Stage::Exited { .. }
            | Stage::Removing { .. } => (None, None),
        }
    }

    /// Changes the record. Published views and running writes keep the old one.
    pub(super) fn change(&mut self, change: impl FnOnce(&mut ContainerRecord)) {
        change(Arc::make_mut(&mut self.record));
    }

    /// Ends all updates, because the container is being removed, and returns their callers.
    pub(super) fn take_updates(&mut self) -> Vec<Waiter> {
        if self.record.update.is_some() {
            self.change(|record| record.update = None);
        }
        std::mem::take(&mut self.updates).into_waiters().collect()
    }

    /// All callers that wait for it.
    pub(super) fn into_waiters(self) -> Vec<Waiter> {
        let waiters_of = |stop: Option<RunningStop>| {
            stop.map(|stop| [stop.stoppers, stop.removers].concat()).unwrap_or_default()
        };
        let mut waiters: Vec<Waiter> = self.updates.into_waiters().collect();
        waiters.extend(match self.stage {
            Stage::Creating { callers, exit: _ } | Stage::Removing { callers, .. } => callers,
            Stage::CutOff => Vec::new(),
            Stage::Created { start: Start::Requested(callers), stop } => [callers, waiters_of(stop)].concat(),
            Stage::Created { start: Start::NotRequested | Start::Unconfirmed, stop } => waiters_of(stop),
            Stage::Running { start, stop } => [start.unwrap_or_default(), waiters_of(stop)].concat(),
            Stage::Exiting { start, start_replies, stoppers, removers } => {
                let replied = start_replies.into_iter().map(|(waiter, _)| waiter).collect();
                [start.unwrap_or_default(), replied, stoppers, removers].concat()
            }
            Stage::Exited { start, .. } => start.unwrap_or_default(),
        });
        waiters
    }
}
