//! The link to the shim: up, down and dialled again, or found dead; and what `model::reconcile` makes of the
//! shim's word.
//!
//! While the shim's process lives it is dialled for ever, however long it is silent, and its pod goes on: the
//! daemon alone does not end it. Only StopPodSandbox and RemovePodSandbox do.

use super::stage::{Asks, Container, Fate, Link, PodStage, Stage};
use super::{Action, Heard, Job, Life};
use crate::clock;
use crate::error::{Error, ErrorKind};
use crate::pod::backoff::later;
use model::reconcile::{ContainerAction, Facts, PodAction, Shim, reconcile};
use model::{ContainerId, ContainerRecord};
use std::time::Duration;

/// How long the first greeting may take; commands of the pod wait for it after a restart.
pub(crate) const GREETING: Duration = Duration::from_secs(3);
/// How long later ones may take. A shim that goes on is heard at once, for the connection waits in its queue.
const LONG_GREETING: Duration = Duration::from_secs(30);
/// Pauses before a shim is dialled again.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

impl Life {
    /// Whether the shim can be asked for something.
    pub(super) fn shim(&self) -> Result<(), Error> {
        let pod = &self.record.id;
        let text = match &self.link {
            Link::Up => return Ok(()),
            Link::None => format!("pod {pod}: its shim is gone"),
            Link::Down { since, why, .. } => {
                let silent = clock::between(*since, self.now.wall);
                let pid = self.record.shim_pid;
                format!("pod {pod}: its shim (pid {pid}) has not answered for {silent:.1?}: {why}")
            }
        };
        Err(Error::new(ErrorKind::Unavailable, text))
    }

    /// The connection ended. Wanted, when the pod is being stopped; else the shim is dialled again.
    pub(super) fn link_lost(&mut self) {
        if self.link != Link::Up {
            return;
        }
        match self.stage {
            PodStage::Leftover | PodStage::Up | PodStage::Over => {
                self.actions.push(Action::HangUp);
                self.link = Link::down(self.now.wall, "the connection was lost");
                self.show_pod();
                self.dial();
            }
            // The job that stops it has a client of its own.
            PodStage::Launching
            | PodStage::Burying(_)
            | PodStage::Ending(_)
            | PodStage::Recording(_)
            | PodStage::Settling(..)
            | PodStage::Forgetting(_)
            | PodStage::Stopped { .. }
            | PodStage::Removing { .. }
            | PodStage::Gone => self.hang_up(),
        }
    }

    /// Dials a shim that is down, after a pause that grows with each time in vain.
    fn dial(&mut self) {
        let Link::Down { tries, .. } = &mut self.link else { return };
        let pause = later(FIRST_PAUSE, *tries, LONGEST_PAUSE);
        let limit = if *tries == 0 { GREETING } else { LONG_GREETING };
        *tries = tries.saturating_add(1);
        self.actions.push(Action::Dial { pause, limit });
    }

    /// The shim was dialled in vain: the pod stays as it was, and says so.
    fn note_silence(&mut self, said: String) {
        let Link::Down { tries, why, .. } = &mut self.link else { return };
        *tries = (*tries).max(1);
        // Once when it begins, then when the reason changes.
        if *tries == 1 || *why != said {
            tracing::warn!(
                pod = %self.record.id, shim = self.record.shim_pid, why = said,
                "shim does not answer: its pod goes on, and it is dialled until it does or its process ends"
            );
        }
        *why = said;
        self.show_pod();
    }

    /// What the shim says after the connection was lost, or after the daemon's restart.
    pub(super) fn heard(&mut self, heard: Heard) {
        if !matches!(self.link, Link::Down { .. }) {
            return;
        }
        match self.stage {
            PodStage::Leftover | PodStage::Up | PodStage::Over | PodStage::Stopped { .. } => {
                self.apply(heard)
            }
            // A stop that came meanwhile needs no shim. Should it fail, the shim is still being dialled.
            PodStage::Burying(_)
            | PodStage::Ending(_)
            | PodStage::Recording(_)
            | PodStage::Settling(..)
            | PodStage::Forgetting(_)
            | PodStage::Removing { .. } => self.dial(),
            PodStage::Launching | PodStage::Gone => {}
        }
    }

    /// Carries out the plan for this pod.
    fn apply(&mut self, heard: Heard) {
        let Heard { mut shim, why, pid, execs, exits, kept, same_boot } = heard;
        if shim == Shim::Silent {
            self.note_silence(why);
        }
        let is_creating = |it: &Container| matches!(it.stage, Stage::Creating { .. });
        // Those whose create is at work are its own: it hears of the lost connection, and undoes them.
        if let Shim::Answered { containers, .. } = &mut shim {
            containers.retain(|id, _| !self.containers.get(id).is_some_and(is_creating));
        }
        let settled = self.containers.values().filter(|it| !is_creating(it));
        let records: Vec<ContainerRecord> = settled.map(|it| ContainerRecord::clone(&it.record)).collect();
        let (gone, answered) = (shim == Shim::Gone, matches!(shim, Shim::Answered { .. }));
        let facts = Facts { same_boot, pod: &self.record, containers: &records, shim, exits };
        let plan = reconcile(&facts, self.now.wall);
        tracing::debug!(pod = %self.record.id, action = ?plan.pod, containers = ?plan.containers, "reconciled");
        if answered {
            self.attach(pid);
            if !execs.is_empty() {
                tracing::info!(pod = %self.record.id, execs = execs.len(), "killing execs that nobody waits for any more");
                self.begin(Job::KillExecs(execs));
            }
        } else if gone {
            self.link = Link::None;
        }
        // A dead shim's processes are killed before anything is said of their end.
        let bury = gone && same_boot && matches!(plan.pod, PodAction::NotReady { .. } | PodAction::RollBack);
        for (id, action) in plan.containers {
            match action {
                ContainerAction::MarkExited { .. } if bury => {}
                // With its pod.
                ContainerAction::RollBack if plan.pod == PodAction::RollBack => {}
                ContainerAction::Remove if plan.pod == PodAction::Remove => {}
                // Its record is there, and cannot be used.
                ContainerAction::KillOrphan if kept.contains(&id) => {}
                action => self.apply_to(&id, action),
            }
        }
        match plan.pod {
            PodAction::Adopt => self.show_pod(),
            PodAction::Keep => {
                if self.link != Link::Up {
                    self.link = Link::None;
                }
            }
            PodAction::NotReady { reason } => {
                self.not_ready(&reason);
                if bury {
                    self.bury();
                } else if gone {
                    // Another boot: nothing lives, the network may be owed.
                    self.end_pod(Asks::default());
                } else if matches!(self.stage, PodStage::Leftover) {
                    self.stage = PodStage::Over;
                }
            }
            PodAction::RollBack => {
                self.leave();
                self.not_ready("the daemon ended while it was launched");
                self.end_pod(Asks::default());
            }
            PodAction::Remove => {
                self.leave();
                self.end_pod(Asks::default());
            }
            PodAction::Retry => self.dial(),
        }
    }

    fn apply_to(&mut self, id: &ContainerId, action: ContainerAction) {
        match action {
            ContainerAction::Adopt { phase, pid, started_at } => self.resume(id, phase, pid, started_at),
            ContainerAction::MarkExited { exit, started_at } => self.exited(id, exit, started_at),
            ContainerAction::RollBack => self.roll_back(id),
            ContainerAction::Remove => self.begin_remove(id, Vec::new()),
            ContainerAction::KillOrphan => self.begin(Job::KillOrphan(id.clone())),
            ContainerAction::Keep | ContainerAction::Retry => {}
        }
    }

    fn leave(&mut self) {
        if self.fate == Fate::Stays {
            self.fate = Fate::Leaves;
        }
    }

    fn attach(&mut self, pid: u32) {
        if let Link::Down { since, tries: 1.., .. } = &self.link {
            let silent = clock::between(*since, self.now.wall);
            tracing::info!(pod = %self.record.id, ?silent, "shim answers again");
        }
        self.change(|record| record.shim_pid = pid);
        self.link = Link::Up;
        self.actions.push(Action::Connect);
    }
}
