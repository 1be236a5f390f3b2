//! The stages of a pod and of its containers, each with the data that is legal in it. `mod.rs` draws both.

use super::io::{Ending, Waiter};
use crate::error::Error;
use model::{ContainerPhase, ContainerRecord};
use std::sync::Arc;
use std::time::Duration;

/// The stage of a pod.
#[derive(Debug)]
pub(super) enum PodStage {
    /// It is being launched; not listed.
    Launching,
    /// An earlier daemon left its launch or removal incomplete; that continues once the shim was contacted.
    Leftover,
    /// It is ready.
    Up,
    /// It is not ready any more; a stop was not requested yet, or will be retried.
    Over,
    /// The processes that a dead shim left are being killed; then the pod is torn down.
    Killing(Asks),
    /// It is being torn down.
    Ending(Asks),
    /// No process is left; its record is being written.
    Recording(Asks),
    /// It waits for running creates and for exits that are being recorded.
    Settling(Asks, Vec<Error>),
    /// Its shim's folder is being removed.
    Forgetting(Asks),
    /// Only records are left. A removal waits for running removals of containers.
    Stopped {
        /// RemovePodSandbox.
        removers: Vec<Waiter>,
    },
    /// Its records are being removed.
    Removing {
        /// Callers of RemovePodSandbox, and of RemoveContainer for its containers.
        removers: Vec<Waiter>,
    },
    /// It was removed.
    Gone,
}

/// Callers that wait for the end of a pod.
#[derive(Debug, Default)]
pub(super) struct Asks {
    /// StopPodSandbox.
    pub(super) stoppers: Vec<Waiter>,
    /// RemovePodSandbox.
    pub(super) removers: Vec<Waiter>,
}

impl PodStage {
    /// Whether a stop or removal is running: other changes must wait or are refused.
    pub(super) fn is_ending(&self) -> bool {
        match self {
            Self::Killing(_)
            | Self::Ending(_)
            | Self::Recording(_)
            | Self::Settling(..)
            | Self::Forgetting(_)
            | Self::Removing { .. }
            | Self::Gone => true,
            Self::Launching | Self::Leftover | Self::Up | Self::Over | Self::Stopped { .. } => false,
        }
    }
}

/// Whether the pod is removed without a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It stays until a call removes it.
    Stays,
    /// It is rolled back or its removal had begun: it is removed without a call, and is not listed.
    Leaves,
    /// Its removal failed: it is listed, so that a client can request it, and the removal is retried.
    Stuck,
}

/// The connection to the shim.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Link {
    /// Connected.
    Up,
    /// The shim exists, or may exist, and the daemon tries to connect.
    Down {
        /// When the connection was lost, in nanoseconds since the epoch.
        since: i64,
        /// Number of failed attempts.
        tries: u32,
        /// Why connecting failed, for users.
        why: String,
    },
    /// The shim is gone.
    None,
}

impl Link {
    /// A lost connection.
    pub(super) fn down(since: i64, why: &str) -> Self {
        Self::Down { since, tries: 0, why: why.to_owned() }
    }

    /// Time since which the shim is silent, in nanoseconds since the epoch; 0 if it is not.
    pub(super) fn silent_since(&self) -> i64 {
        match self {
            Self::Down { since, tries: 1.., .. } => *since,
            Self::Down { .. } | Self::Up | Self::None => 0,
        }
    }
}

/// One container.
#[derive(Debug)]
pub(super) struct Container {
    pub(super) record: Arc<ContainerRecord>,
    pub(super) stage: Stage,
}

/// The stage of a container.
#[derive(Debug)]
pub(super) enum Stage {
    /// The create job is running; not listed.
    Creating {
        /// Callers of CreateContainer, one or more.
        callers: Vec<Waiter>,
        /// Its exit, if that was reported first; it is used once the container is created.
        exit: Option<Ending>,
    },
    /// An earlier daemon's create was interrupted; it is undone once the shim was contacted.
    CutOff,
    /// Init waits for the start request.
    Created {
        /// The state of its start.
        start: Start,
        /// The running stop.
        end: Option<End>,
    },
    /// Init has called execve.
    Running {
        /// The start job is still running: the record is not durable yet.
        start: Option<Vec<Waiter>>,
        /// The running stop.
        end: Option<End>,
    },
    /// It has exited, and the exit is being recorded and then published.
    Exiting {
        /// The start job is still running.
        start: Option<Vec<Waiter>>,
        /// Callers of StartContainer, which get a reply once the exit is published.
        told: Vec<(Waiter, Result<(), Error>)>,
        /// StopContainer.
        stoppers: Vec<Waiter>,
        /// RemoveContainer.
        removers: Vec<Waiter>,
    },
    /// Its exit is published.
    Exited {
        /// False if the exit is only in the shim's folder, which must then stay.
        durable: bool,
        /// The start job is still running.
        start: Option<Vec<Waiter>>,
    },
    /// It is being removed.
    Removing {
        /// Like in `Exited`.
        durable: bool,
        /// Whether the job is running; otherwise it failed and will be retried.
        at_work: bool,
        /// RemoveContainer.
        callers: Vec<Waiter>,
    },
}

/// The start of a created container.
#[derive(Debug)]
pub(super) enum Start {
    /// Not requested.
    Not,
    /// The job is running.
    Asked(Vec<Waiter>),
    /// It ended without a report of the shim: the container may be running.
    Doubtful,
}

/// A running stop.
#[derive(Debug)]
pub(super) struct End {
    /// When to kill, in monotonic time.
    pub(super) deadline: Duration,
    /// StopContainer.
    pub(super) stoppers: Vec<Waiter>,
    /// RemoveContainer.
    pub(super) removers: Vec<Waiter>,
}

impl Container {
    /// Restores a container from a record that an earlier daemon wrote.
    pub(super) fn restored(record: ContainerRecord) -> Self {
        let stage = match record.phase {
            ContainerPhase::Creating => Stage::CutOff,
            ContainerPhase::Created => Stage::Created { start: Start::Not, end: None },
            ContainerPhase::Running => Stage::Running { start: None, end: None },
            // Unknown is never written.
            ContainerPhase::Exited | ContainerPhase::Unknown => Stage::Exited { durable: true, start: None },
            ContainerPhase::Removing => {
                Stage::Removing { durable: true, at_work: false, callers: Vec::new() }
            }
        };
        Self { record: Arc::new(record), stage }
    }

    /// Whether it is listed.
    pub(super) fn is_committed(&self) -> bool {
        !matches!(self.stage, Stage::Creating { .. } | Stage::CutOff)
    }

    /// Whether the stop of the pod must wait for it.
    pub(super) fn keeps_pod(&self) -> bool {
        matches!(self.stage, Stage::Creating { .. } | Stage::Exiting { .. })
    }

    /// Whether its exit is only in the shim's folder.
    pub(super) fn is_unrecorded(&self) -> bool {
        matches!(self.stage, Stage::Exited { durable: false, .. } | Stage::Removing { durable: false, .. })
    }

    /// Whether its removal job is running.
    pub(super) fn is_being_removed(&self) -> bool {
        matches!(self.stage, Stage::Removing { at_work: true, .. })
    }

    /// Whether a stop or a removal has set out to end it.
    pub(super) fn is_being_stopped(&self) -> bool {
        match &self.stage {
            Stage::Created { end, .. } | Stage::Running { end, .. } => end.is_some(),
            Stage::Exiting { stoppers, removers, .. } => !stoppers.is_empty() || !removers.is_empty(),
            Stage::Creating { .. } | Stage::CutOff | Stage::Exited { .. } | Stage::Removing { .. } => false,
        }
    }

    /// Changes the record; published lists and running writes keep the old one.
    pub(super) fn change(&mut self, change: impl FnOnce(&mut ContainerRecord)) {
        change(Arc::make_mut(&mut self.record));
    }

    /// All callers that wait for it.
    pub(super) fn into_waiters(self) -> Vec<Waiter> {
        let of = |end: Option<End>| end.map(|end| [end.stoppers, end.removers].concat()).unwrap_or_default();
        match self.stage {
            Stage::Creating { callers, exit: _ } | Stage::Removing { callers, .. } => callers,
            Stage::CutOff => Vec::new(),
            Stage::Created { start: Start::Asked(callers), end } => [callers, of(end)].concat(),
            Stage::Created { start: Start::Not | Start::Doubtful, end } => of(end),
            Stage::Running { start, end } => [start.unwrap_or_default(), of(end)].concat(),
            Stage::Exiting { start, told, stoppers, removers } => {
                let told = told.into_iter().map(|(waiter, _)| waiter).collect();
                [start.unwrap_or_default(), told, stoppers, removers].concat()
            }
            Stage::Exited { start, .. } => start.unwrap_or_default(),
        }
    }
}
