//! The connection to the shim, and the plan of `model::reconcile` that is applied after each attempt to connect.
//!
//! While the shim's process exists, the daemon tries to reconnect, however long the shim is silent, and its pod
//! continues. Only StopPodSandbox and RemovePodSandbox end it.

use super::stage::{Container, Fate, Link, PodCallers, PodStage, Stage};
use super::{Action, DialResult, Job, Life};
use crate::clock;
use crate::error::{Error, ErrorKind};
use crate::pod::backoff;
use model::reconcile::{ContainerAction, Facts, PodAction, Shim, reconcile};
use model::{ContainerId, ContainerRecord};
use std::time::Duration;

/// Time limit for the shim's hello in the first attempt after a restart or a lost connection. After a restart the
/// pod's calls wait for it.
pub(crate) const GREETING: Duration = Duration::from_secs(3);
/// Time limit for the hello in later attempts. It can be long: the connection waits in the shim's queue, so a shim
/// that was stopped and continues answers at once.
const LONG_GREETING: Duration = Duration::from_secs(30);
/// First and longest pause between attempts to connect.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

impl Life {
    /// Fails if the shim is not connected.
    pub(super) fn connected(&self) -> Result<(), Error> {
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
            PodStage::Leftover | PodStage::Ready | PodStage::NotReady => {
                self.actions.push(Action::Disconnect);
                self.link = Link::down(self.now.wall, "the connection was lost");
                self.publish_pod();
                self.dial();
            }
            // Not dialled again, also if the stop fails: there is no link then, and the retried teardown does without the shim.
            PodStage::Launching
            | PodStage::Killing(_)
            | PodStage::TearingDown(_)
            | PodStage::Recording(_)
            | PodStage::Settling(..)
            | PodStage::RemovingShim(_)
            | PodStage::Stopped { .. }
            | PodStage::Removing { .. }
            | PodStage::Removed => self.disconnect(),
        }
    }

    /// Tells the driver to reconnect after a pause that grows with each attempt.
    fn dial(&mut self) {
        let Link::Down { attempts, .. } = &mut self.link else { return };
        let pause = backoff::pause(FIRST_PAUSE, *attempts, LONGEST_PAUSE);
        let limit = if *attempts == 0 { GREETING } else { LONG_GREETING };
        *attempts = attempts.saturating_add(1);
        self.actions.push(Action::Dial { pause, limit });
    }

    /// Connecting failed: the pod keeps its state, and its status shows that the shim is silent.
    fn note_silence(&mut self, reason: String) {
        let Link::Down { silent, why, .. } = &mut self.link else { return };
        let was_silent = std::mem::replace(silent, true);
        // Logged when the silence begins, and when its reason changes.
        if !was_silent || *why != reason {
            tracing::warn!(
                shim = self.record.shim_pid,
                why = reason,
                "the shim cannot be used: its pod keeps running, and connecting is retried until that works or its process ends"
            );
        }
        *why = reason;
        self.publish_pod();
    }

    /// Handles the result of connecting, after a lost connection or a restart of the daemon.
    pub(super) fn dialled(&mut self, dialled: DialResult) {
        if !matches!(self.link, Link::Down { .. }) {
            return;
        }
        match self.stage {
            PodStage::Leftover | PodStage::Ready | PodStage::NotReady | PodStage::Stopped { .. } => {
                self.apply(dialled)
            }
            // A stop that was requested meanwhile does not need the shim. But the link stays Down, and nothing else begins an
            // attempt: if the stop fails, the pod is NotReady and goes on connecting. (A connection that is lost during a stop
            // leaves no link: `link_lost`.)
            PodStage::Killing(_)
            | PodStage::TearingDown(_)
            | PodStage::Recording(_)
            | PodStage::Settling(..)
            | PodStage::RemovingShim(_)
            | PodStage::Removing { .. } => self.dial(),
            PodStage::Launching | PodStage::Removed => {}
        }
    }

    /// Computes the plan for this pod and applies it.
    fn apply(&mut self, dialled: DialResult) {
        let DialResult { mut shim, why, pid, execs, exits, kept, same_boot } = dialled;
        if shim == Shim::Silent {
            self.note_silence(why);
        }
        let is_creating = |it: &Container| matches!(it.stage, Stage::Creating { .. });
        // A running create job has noticed that the connection was lost, and undoes its container itself.
        if let Shim::Answered { containers, .. } = &mut shim {
            containers.retain(|id, _| !self.containers.get(id).is_some_and(is_creating));
        }
        let settled = self.containers.values().filter(|it| !is_creating(it));
        let records: Vec<ContainerRecord> = settled.map(|it| ContainerRecord::clone(&it.record)).collect();
        let (gone, answered) = (shim == Shim::Gone, matches!(shim, Shim::Answered { .. }));
        let facts = Facts { same_boot, pod: &self.record, containers: &records, shim, exits };
        let plan = reconcile(&facts, self.now.wall);
        tracing::debug!(action = ?plan.pod, containers = ?plan.containers, "reconciled");
        if answered {
            self.attach(pid);
            if !execs.is_empty() {
                tracing::info!(execs = execs.len(), "killing execs of an earlier connection");
                self.begin(Job::KillExecs(execs));
            }
        } else if gone {
            self.link = Link::None;
        }
        // A dead shim's processes are killed before their exits are published. (A pod that is rolled back publishes none:
        // its teardown kills them.)
        let kill_remains = gone && same_boot && matches!(plan.pod, PodAction::NotReady { .. });
        for (id, action) in plan.containers {
            match action {
                ContainerAction::MarkExited { .. } if kill_remains => {}
                // Removed with its pod.
                ContainerAction::RollBack if plan.pod == PodAction::RollBack => {}
                ContainerAction::Remove if plan.pod == PodAction::Remove => {}
                // It has a record, which cannot be used.
                ContainerAction::KillOrphan if kept.contains(&id) => {}
                action => self.apply_to(&id, action),
            }
        }
        self.apply_to_pod(plan.pod, gone, kill_remains);
    }

    /// `gone`: the shim is dead, or the pod is of an earlier boot. `kill_remains`: processes of the pod may be
    /// alive.
    fn apply_to_pod(&mut self, action: PodAction, gone: bool, kill_remains: bool) {
        match action {
            PodAction::Adopt => self.publish_pod(),
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
                    // Of an earlier boot: no process is left, but the network, cgroups and leases are to be released.
                    self.tear_down(PodCallers::default());
                }
            }
            PodAction::RollBack => {
                self.mark_leaving();
                self.not_ready("the daemon ended while it was launched");
                self.tear_down(PodCallers::default());
            }
            PodAction::Remove => {
                self.mark_leaving();
                self.tear_down(PodCallers::default());
            }
            PodAction::Retry => self.dial(),
        }
    }

    fn apply_to(&mut self, id: &ContainerId, action: ContainerAction) {
        match action {
            ContainerAction::Adopt { phase, pid, started_at } => self.resume(id, phase, pid, started_at),
            // An error was reported; there is no caller.
            ContainerAction::MarkExited { exit, started_at } => drop(self.exited(id, exit, started_at)),
            ContainerAction::RollBack => self.roll_back(id),
            ContainerAction::Remove => self.begin_remove(id, Vec::new()),
            ContainerAction::KillOrphan => self.begin(Job::KillOrphan(id.clone())),
            ContainerAction::Keep | ContainerAction::Retry => {}
        }
    }

    fn mark_leaving(&mut self) {
        if self.fate == Fate::Stays {
            self.fate = Fate::Leaves;
        }
    }

    fn attach(&mut self, pid: u32) {
        if let Link::Down { since, silent: true, .. } = &self.link {
            let silent_for = clock::between(*since, self.now.wall);
            tracing::info!(?silent_for, "the shim responds again");
        }
        self.change(|record| record.shim_pid = pid);
        self.link = Link::Up;
        self.actions.push(Action::Connect);
    }
}
