//! The connection to the shim: connected, reconnecting, or the shim is dead; and how the plan of
//! `model::reconcile` is applied.
//!
//! While the shim's process exists, the daemon tries to reconnect for ever, however long it is silent, and
//! its pod continues. Only StopPodSandbox and RemovePodSandbox end it.

use super::stage::{Asks, Container, Fate, Link, PodStage, Stage};
use super::{Action, Heard, Job, Life};
use crate::clock;
use crate::error::{Error, ErrorKind};
use crate::pod::backoff::later;
use model::reconcile::{ContainerAction, Facts, PodAction, Shim, reconcile};
use model::{ContainerId, ContainerRecord};
use std::time::Duration;

/// Time limit for the first hello after a restart; commands of the pod wait for it.
pub(crate) const GREETING: Duration = Duration::from_secs(3);
/// Time limit for later ones. A shim that continues is noticed at once, because the connection waits in its
/// queue.
const LONG_GREETING: Duration = Duration::from_secs(30);
/// Pauses between attempts to connect.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

impl Life {
    /// Fails if the shim is not connected.
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

    /// The connection ended. That is expected when the pod is being stopped; otherwise the daemon reconnects.
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
            // The job that stops it has its own client.
            PodStage::Launching
            | PodStage::Killing(_)
            | PodStage::Ending(_)
            | PodStage::Recording(_)
            | PodStage::Settling(..)
            | PodStage::Forgetting(_)
            | PodStage::Stopped { .. }
            | PodStage::Removing { .. }
            | PodStage::Gone => self.hang_up(),
        }
    }

    /// Reconnects after a pause that grows with each failed attempt.
    fn dial(&mut self) {
        let Link::Down { tries, .. } = &mut self.link else { return };
        let pause = later(FIRST_PAUSE, *tries, LONGEST_PAUSE);
        let limit = if *tries == 0 { GREETING } else { LONG_GREETING };
        *tries = tries.saturating_add(1);
        self.actions.push(Action::Dial { pause, limit });
    }

    /// Connecting failed: the pod keeps its state, and its status shows that the shim is silent.
    fn note_silence(&mut self, said: String) {
        let Link::Down { tries, why, .. } = &mut self.link else { return };
        *tries = (*tries).max(1);
        // Logged when the silence begins, and when its reason changes.
        if *tries == 1 || *why != said {
            tracing::warn!(
                pod = %self.record.id, shim = self.record.shim_pid, why = said,
                "the shim does not respond: its pod keeps running, and connecting is retried until it responds or its process ends"
            );
        }
        *why = said;
        self.show_pod();
    }

    /// Handles the result of connecting, after a lost connection or a restart of the daemon.
    pub(super) fn heard(&mut self, heard: Heard) {
        if !matches!(self.link, Link::Down { .. }) {
            return;
        }
        match self.stage {
            PodStage::Leftover | PodStage::Up | PodStage::Over | PodStage::Stopped { .. } => {
                self.apply(heard)
            }
            // A stop that was requested meanwhile needs no shim. If it fails, connecting is still being
            // retried.
            PodStage::Killing(_)
            | PodStage::Ending(_)
            | PodStage::Recording(_)
            | PodStage::Settling(..)
            | PodStage::Forgetting(_)
            | PodStage::Removing { .. } => self.dial(),
            PodStage::Launching | PodStage::Gone => {}
        }
    }

    /// Applies the plan for this pod.
    fn apply(&mut self, heard: Heard) {
        let Heard { mut shim, why, pid, execs, exits, kept, same_boot } = heard;
        if shim == Shim::Silent {
            self.note_silence(why);
        }
        let is_creating = |it: &Container| matches!(it.stage, Stage::Creating { .. });
        // Running create jobs handle their containers themselves: they notice the lost connection and undo
        // them.
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
                tracing::info!(pod = %self.record.id, execs = execs.len(), "killing execs whose callers have gone");
                self.begin(Job::KillExecs(execs));
            }
        } else if gone {
            self.link = Link::None;
        }
        // A dead shim's processes are killed before their exits are published.
        let kill_remains =
            gone && same_boot && matches!(plan.pod, PodAction::NotReady { .. } | PodAction::RollBack);
        for (id, action) in plan.containers {
            match action {
                ContainerAction::MarkExited { .. } if kill_remains => {}
                // Handled with its pod.
                ContainerAction::RollBack if plan.pod == PodAction::RollBack => {}
                ContainerAction::Remove if plan.pod == PodAction::Remove => {}
                // Its record exists but cannot be used.
                ContainerAction::KillOrphan if kept.contains(&id) => {}
                action => self.apply_to(&id, action),
            }
        }
        self.apply_to_pod(plan.pod, gone, kill_remains);
    }

    /// `gone`: the shim is dead. `kill_remains`: its processes may be alive.
    fn apply_to_pod(&mut self, action: PodAction, gone: bool, kill_remains: bool) {
        match action {
            PodAction::Adopt => self.show_pod(),
            PodAction::Keep => {
                if self.link != Link::Up {
                    self.link = Link::None;
                }
            }
            PodAction::NotReady { reason } => {
                self.not_ready(&reason);
                if kill_remains {
                    self.kill_remains();
                } else if gone {
                    // Another boot: no process is running, but CNI DEL may be due.
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
            tracing::info!(pod = %self.record.id, ?silent, "the shim responds again");
        }
        self.change(|record| record.shim_pid = pid);
        self.link = Link::Up;
        self.actions.push(Action::Connect);
    }
}
