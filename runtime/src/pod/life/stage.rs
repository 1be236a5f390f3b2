//! Where a pod and each of its containers are, with what is legal there. `mod.rs` draws both.

use super::io::{Ending, Waiter};
use crate::error::Error;
use model::{ContainerPhase, ContainerRecord};
use std::sync::Arc;
use std::time::Duration;

/// Where a pod is.
#[derive(Debug)]
pub(super) enum PodStage {
    /// It is being brought up; nobody sees it.
    Launching,
    /// An earlier daemon left it half launched or half removed: that goes on once its shim was asked.
    Leftover,
    /// It is ready.
    Up,
    /// It is not ready any more; a stop is wanted, or is tried again later.
    Over,
    /// What a dead shim has left is being killed; then it is ended.
    Burying(Asks),
    /// Everything of it is being ended.
    Ending(Asks),
    /// Nothing of it lives; its record is being written.
    Recording(Asks),
    /// It waits for creates, and for exits that are being recorded, then for what could not be ended.
    Settling(Asks, Vec<Error>),
    /// Its shim's folder is being removed.
    Forgetting(Asks),
    /// Only records are left. Who wants it removed waits for the removals of containers that are under way.
    Stopped {
        /// RemovePodSandbox.
        removers: Vec<Waiter>,
    },
    /// Its records are being removed.
    Removing {
        /// RemovePodSandbox, and RemoveContainer of those that go with it.
        removers: Vec<Waiter>,
    },
    /// It is no more.
    Gone,
}

/// Who waits for the end of a pod.
#[derive(Debug, Default)]
pub(super) struct Asks {
    /// StopPodSandbox.
    pub(super) stoppers: Vec<Waiter>,
    /// RemovePodSandbox.
    pub(super) removers: Vec<Waiter>,
}

impl PodStage {
    /// Who waits for a stop at work; `None` while none is.
    pub(super) fn asks(&mut self) -> Option<&mut Asks> {
        match self {
            Self::Burying(asks)
            | Self::Ending(asks)
            | Self::Recording(asks)
            | Self::Settling(asks, _)
            | Self::Forgetting(asks) => Some(asks),
            Self::Launching
            | Self::Leftover
            | Self::Up
            | Self::Over
            | Self::Stopped { .. }
            | Self::Removing { .. }
            | Self::Gone => None,
        }
    }

    /// Whether its stop or removal is at work: what else would change it waits, or is refused.
    pub(super) fn is_ending(&self) -> bool {
        match self {
            Self::Burying(_)
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

/// Whether the pod goes by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It stays until it is removed by a call.
    Stays,
    /// It is rolled back, or its removal was begun: it goes without being asked, and nobody sees it.
    Leaves,
    /// It could not go: it is shown, so that somebody can ask for it, and is tried again.
    Stuck,
}

/// What is known of the shim.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Link {
    /// It answers.
    Up,
    /// It lives, or may, and is being dialled.
    Down {
        /// Since when, nanoseconds since the epoch.
        since: i64,
        /// How often it was dialled in vain.
        tries: u32,
        /// Why it could not be asked, for people.
        why: String,
    },
    /// There is none any more.
    None,
}

impl Link {
    /// Down from now on.
    pub(super) fn down(since: i64, why: &str) -> Self {
        Self::Down { since, tries: 0, why: why.to_owned() }
    }

    /// Since when the shim is silent, nanoseconds since the epoch; 0 when it is not.
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

/// Where a container is.
#[derive(Debug)]
pub(super) enum Stage {
    /// The job that creates it is at work; nobody sees it.
    Creating {
        /// CreateContainer, once or more.
        askers: Vec<Waiter>,
        /// Its end, when that came first: it counts once it is created.
        exit: Option<Ending>,
    },
    /// An earlier daemon's create was cut off: it is undone once the shim was asked.
    CutOff,
    /// Init waits for start.
    Created {
        /// Whether it was asked to start.
        start: Start,
        /// Its stop, at work.
        end: Option<End>,
    },
    /// Init has exec'd.
    Running {
        /// The start job is still at work: its record is not durable yet.
        start: Option<Vec<Waiter>>,
        /// Its stop, at work.
        end: Option<End>,
    },
    /// It has ended, and the exit is being recorded; shown when that is done.
    Exiting {
        /// The start job is still at work.
        start: Option<Vec<Waiter>>,
        /// StartContainer, whose outcome can be seen once the exit can.
        told: Vec<(Waiter, Result<(), Error>)>,
        /// StopContainer.
        stoppers: Vec<Waiter>,
        /// RemoveContainer.
        removers: Vec<Waiter>,
    },
    /// Its exit is shown.
    Exited {
        /// False: the exit is nowhere but in the shim's folder, which stays.
        durable: bool,
        /// The start job is still at work.
        start: Option<Vec<Waiter>>,
    },
    /// It is being removed.
    Removing {
        /// As in `Exited`.
        durable: bool,
        /// The job is at work; else it failed, and is tried again.
        at_work: bool,
        /// RemoveContainer.
        askers: Vec<Waiter>,
    },
}

/// The start of a container that is created.
#[derive(Debug)]
pub(super) enum Start {
    /// Nobody asked for it.
    Not,
    /// The job is at work.
    Asked(Vec<Waiter>),
    /// It was asked for, and ended without the shim's word on it: it may run.
    Doubtful,
}

/// A stop at work.
#[derive(Debug)]
pub(super) struct End {
    /// When to kill, on the steady clock.
    pub(super) deadline: Duration,
    /// StopContainer.
    pub(super) stoppers: Vec<Waiter>,
    /// RemoveContainer.
    pub(super) removers: Vec<Waiter>,
}

impl Container {
    /// By its record, which an earlier daemon wrote.
    pub(super) fn restored(record: ContainerRecord) -> Self {
        let stage = match record.phase {
            ContainerPhase::Creating => Stage::CutOff,
            ContainerPhase::Created => Stage::Created { start: Start::Not, end: None },
            ContainerPhase::Running => Stage::Running { start: None, end: None },
            // An Unknown one is never written.
            ContainerPhase::Exited | ContainerPhase::Unknown => Stage::Exited { durable: true, start: None },
            ContainerPhase::Removing => Stage::Removing { durable: true, at_work: false, askers: Vec::new() },
        };
        Self { record: Arc::new(record), stage }
    }

    /// Whether anybody may see it.
    pub(super) fn is_committed(&self) -> bool {
        !matches!(self.stage, Stage::Creating { .. } | Stage::CutOff)
    }

    /// Whether the end of a pod has to wait for it.
    pub(super) fn keeps_pod(&self) -> bool {
        matches!(self.stage, Stage::Creating { .. } | Stage::Exiting { .. })
    }

    /// Whether its exit is nowhere but in the shim's folder.
    pub(super) fn is_unrecorded(&self) -> bool {
        matches!(self.stage, Stage::Exited { durable: false, .. } | Stage::Removing { durable: false, .. })
    }

    /// Whether the job that removes it is at work.
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

    /// Changes the record, which lists and writers may hold as it was.
    pub(super) fn change(&mut self, change: impl FnOnce(&mut ContainerRecord)) {
        change(Arc::make_mut(&mut self.record));
    }

    /// All who wait for something of it.
    pub(super) fn into_waiters(self) -> Vec<Waiter> {
        let of = |end: Option<End>| end.map(|end| [end.stoppers, end.removers].concat()).unwrap_or_default();
        match self.stage {
            Stage::Creating { askers, exit: _ } | Stage::Removing { askers, .. } => askers,
            Stage::CutOff => Vec::new(),
            Stage::Created { start: Start::Asked(askers), end } => [askers, of(end)].concat(),
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
