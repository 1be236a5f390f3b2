//! Carries out what `model::reconcile` decides once the shim was asked.

use super::link::{Answer, Link};
use super::{Driver, Outcome};
use crate::pod::{containers, now};
use crate::shims::dial::Dialled;
use model::reconcile::{ContainerAction, Facts, Held, PodAction, Shim, reconcile};
use model::{ContainerRecord, ExecId};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::task::JoinSet;
use wire::{ContainerState, Request, Snapshot};

/// Execs of an earlier connection that are killed at a time.
const KILLS: usize = 16;
/// For the shim to kill one session.
const KILL: Duration = Duration::from_secs(15);

impl Driver {
    /// Carries out the plan for this pod.
    pub(super) fn apply(&mut self, answer: Answer) {
        let Answer { shim: dialled, exits, same_boot } = answer;
        let (mut shim, connection) = match dialled {
            Dialled::Here(connection) => (held(&connection.snapshot), Some(connection)),
            Dialled::Gone => (Shim::Gone, None),
            Dialled::Silent(why) => {
                self.note_silence(why);
                (Shim::Silent, None)
            }
        };
        // Those whose create is at work are its own: it hears of the lost connection, and undoes them.
        if let Shim::Answered { containers, .. } = &mut shim {
            containers.retain(|id, _| !self.containers.get(id).is_some_and(|it| it.is_being_created()));
        }
        let settled = self.containers.values().filter(|it| !it.is_being_created());
        let records: Vec<ContainerRecord> = settled.map(|it| it.record.clone()).collect();
        let gone = shim == Shim::Gone;
        let facts = Facts { same_boot, pod: &self.record, containers: &records, shim, exits };
        let plan = reconcile(&facts, now());
        tracing::debug!(pod = %self.record.id, action = ?plan.pod, containers = ?plan.containers, "reconciled");
        if let Some(connection) = connection {
            self.kill_execs(&connection);
            self.attach(*connection);
        } else if gone {
            self.link = Link::None;
        }
        // A dead shim's processes are killed before anything is said of their end.
        let bury = gone && same_boot && matches!(plan.pod, PodAction::NotReady { .. } | PodAction::RollBack);
        for (id, action) in plan.containers {
            match action {
                ContainerAction::Adopt { phase, pid, started_at } => self.resume(&id, phase, pid, started_at),
                ContainerAction::MarkExited { .. } if bury => {}
                ContainerAction::MarkExited { exit, started_at } => self.exited(&id, exit, started_at),
                // With its pod.
                ContainerAction::RollBack if plan.pod == PodAction::RollBack => {}
                ContainerAction::Remove if plan.pod == PodAction::Remove => {}
                ContainerAction::RollBack => self.roll_back(&id),
                ContainerAction::Remove => self.begin_remove(&id),
                // Its record is there, and cannot be used.
                ContainerAction::KillOrphan if self.registry.managed(id.as_str()).is_err() => {}
                ContainerAction::KillOrphan => self.kill_orphan(&id),
                ContainerAction::Keep | ContainerAction::Retry => {}
            }
        }
        match plan.pod {
            PodAction::Adopt => self.publish(),
            PodAction::Keep => {
                if matches!(self.link, Link::Down { .. }) {
                    self.link = Link::None;
                }
            }
            PodAction::NotReady { reason } => {
                self.not_ready(&reason);
                if bury {
                    self.bury();
                } else if gone {
                    // Another boot: nothing lives, the network may be owed.
                    self.begin_stop();
                }
            }
            PodAction::RollBack => {
                self.remove_when_stopped = true;
                self.not_ready("the daemon ended while it was launched");
                self.begin_stop();
            }
            PodAction::Remove => {
                self.remove_when_stopped = true;
                self.begin_stop();
            }
            PodAction::Retry => self.dial(),
        }
    }

    /// Kills the execs that an earlier connection started: whoever waited for them has had an answer, or is gone
    /// with the daemon that was.
    fn kill_execs(&mut self, connection: &crate::shims::Connection) {
        let mut execs: Vec<ExecId> = Vec::new();
        for entry in &connection.snapshot {
            if let Snapshot::Exec { exec, .. } = entry {
                execs.push(*exec);
            }
        }
        if execs.is_empty() {
            return;
        }
        let (client, pod) = (connection.client.clone(), self.record.id.clone());
        tracing::info!(%pod, execs = execs.len(), "killing execs that nobody waits for any more");
        self.waits.spawn(async move {
            let mut kills = JoinSet::new();
            for exec in execs {
                if kills.len() >= KILLS {
                    kills.join_next().await;
                }
                let (client, pod) = (client.clone(), pod.clone());
                kills.spawn(async move {
                    let kill = client.done("the kill of an exec", Request::KillExec { exec }, KILL).await;
                    if let Err(error) = kill {
                        tracing::warn!(%pod, exec = exec.0, %error, "exec of an earlier connection not killed");
                    }
                });
            }
            while kills.join_next().await.is_some() {}
            Outcome::Nothing
        });
    }
}

/// The snapshot as the plan reads it.
fn held(snapshot: &[Snapshot]) -> Shim {
    let (mut pause, mut containers) = (false, BTreeMap::new());
    for entry in snapshot {
        match entry {
            Snapshot::Pause { exited, .. } => pause = exited.is_none(),
            Snapshot::Container { container, state, pid } => {
                let pid = *pid;
                let held = match state {
                    ContainerState::Creating => Held::Creating,
                    ContainerState::Created => Held::Created { pid },
                    ContainerState::Running { started_at } => Held::Running { pid, started_at: *started_at },
                    // Of a later version; its init lives, and when it began is in the record.
                    ContainerState::Unknown => Held::Running { pid, started_at: 0 },
                    ContainerState::Exited(facts) => {
                        Held::Exited { exit: containers::exit_of(facts), started_at: facts.started_at }
                    }
                };
                containers.insert(container.clone(), held);
            }
            // Killed, whatever becomes of the rest.
            Snapshot::Exec { .. } => {}
        }
    }
    Shim::Answered { pause, containers }
}
