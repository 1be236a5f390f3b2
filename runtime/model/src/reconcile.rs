//! After a restart: what becomes of a pod and its containers, from the records, the shim's word and the exit
//! records that it left. Pure: the daemon gathers the facts and carries the plan out.

use crate::{ContainerId, ContainerPhase, ContainerRecord, Exit, PodPhase, PodRecord};
use std::collections::BTreeMap;

/// Exit code of a container whose end nobody saw.
const LOST_CODE: i32 = 255;

/// A container as its shim knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Held {
    /// Its worker is at work.
    Creating,
    /// Init waits for start.
    Created {
        /// Of init.
        pid: u32,
    },
    /// Init has exec'd.
    Running {
        /// Of init.
        pid: u32,
        /// Nanoseconds since the epoch.
        started_at: i64,
    },
    /// It has ended.
    Exited {
        /// How.
        exit: Exit,
        /// Nanoseconds since the epoch, 0 when it never ran.
        started_at: i64,
    },
}

/// What the shim said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shim {
    /// It answered with its snapshot.
    Answered {
        /// Pause lives.
        pause: bool,
        /// Every container it holds.
        containers: BTreeMap<ContainerId, Held>,
    },
    /// Its process does not exist.
    Gone,
    /// It exists, or may, and does not answer.
    Silent,
}

/// All that is known of a pod.
#[derive(Debug, Clone)]
pub struct Facts<'a> {
    /// The records are of this boot: what they name may live.
    pub same_boot: bool,
    /// The pod's record.
    pub pod: &'a PodRecord,
    /// Its containers' records.
    pub containers: &'a [ContainerRecord],
    /// The shim's word; not asked after another boot.
    pub shim: Shim,
    /// Exit records the shim left, with the time of the start.
    pub exits: BTreeMap<ContainerId, (Exit, i64)>,
}

/// What becomes of the pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PodAction {
    /// It goes on.
    Adopt,
    /// It is over; network, cgroups and files may still be owed their end, which StopPodSandbox pays.
    NotReady {
        /// Why, for people.
        reason: String,
    },
    /// It was never committed: everything of it is undone.
    RollBack,
    /// Its removal had begun and goes on.
    Remove,
    /// It was stopped, and stays so.
    Keep,
    /// Ask the shim again; until then nothing is changed.
    Retry,
}

/// What becomes of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContainerAction {
    /// It goes on, in this phase.
    Adopt {
        /// Created or Running.
        phase: ContainerPhase,
        /// Of init.
        pid: u32,
        /// Nanoseconds since the epoch, 0 before start.
        started_at: i64,
    },
    /// It has ended, or its end was missed.
    MarkExited {
        /// How.
        exit: Exit,
        /// Nanoseconds since the epoch, 0 when it never ran.
        started_at: i64,
    },
    /// It was never committed: killed if it lives, and undone.
    RollBack,
    /// Its removal had begun and goes on.
    Remove,
    /// It has no record, or one that says it is over, and lives: killed.
    KillOrphan,
    /// The record is right.
    Keep,
    /// As the pod.
    Retry,
}

/// The plan for one pod: one action for it, one for each container that has a record or is held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The pod's.
    pub pod: PodAction,
    /// The containers'.
    pub containers: BTreeMap<ContainerId, ContainerAction>,
}

/// An end that nobody saw.
pub fn lost(message: impl Into<String>, finished_at: i64) -> Exit {
    Exit {
        code: LOST_CODE,
        finished_at,
        oom_killed: false,
        reason: "Unknown".to_owned(),
        message: message.into(),
    }
}

/// Whether a pod is rolled back or its removal goes on, whatever its shim says: then it is not shown.
pub fn is_leaving(same_boot: bool, pod: &PodRecord, containers: &[ContainerRecord]) -> bool {
    match pod.phase {
        PodPhase::Removing => true,
        // After a power loss the commit may be lost while a container had run already: its exit must be seen.
        PodPhase::Launching => same_boot || containers.is_empty(),
        PodPhase::Ready | PodPhase::Stopping | PodPhase::Stopped => false,
    }
}

/// Decides. `now` is the time given to ends that nobody saw, nanoseconds since the epoch.
pub fn reconcile(facts: &Facts<'_>, now: i64) -> Plan {
    let pod = pod(facts);
    let mut containers = BTreeMap::new();
    for record in facts.containers {
        let held = match &facts.shim {
            Shim::Answered { containers, .. } => containers.get(&record.id),
            Shim::Gone | Shim::Silent => None,
        };
        containers.insert(record.id.clone(), container(facts, &pod, record, held, now));
    }
    if let Shim::Answered { containers: held, .. } = &facts.shim {
        for id in held.keys() {
            containers.entry(id.clone()).or_insert(ContainerAction::KillOrphan);
        }
    }
    Plan { pod, containers }
}

fn pod(facts: &Facts<'_>) -> PodAction {
    let not_ready = |reason: &str| PodAction::NotReady { reason: reason.to_owned() };
    match facts.pod.phase {
        PodPhase::Removing => PodAction::Remove,
        PodPhase::Stopped => PodAction::Keep,
        PodPhase::Launching if is_leaving(facts.same_boot, facts.pod, facts.containers) => {
            PodAction::RollBack
        }
        _ if !facts.same_boot => not_ready("the node was restarted"),
        PodPhase::Stopping | PodPhase::Launching => match &facts.shim {
            Shim::Silent => PodAction::Retry,
            _ if facts.pod.message.is_empty() => not_ready("its stop had begun"),
            _ => not_ready(&facts.pod.message),
        },
        PodPhase::Ready => match &facts.shim {
            Shim::Silent => PodAction::Retry,
            Shim::Gone => not_ready("its shim is gone"),
            Shim::Answered { pause: true, .. } => PodAction::Adopt,
            Shim::Answered { pause: false, .. } => not_ready("its pause process is gone"),
        },
    }
}

fn container(
    facts: &Facts<'_>,
    pod: &PodAction,
    record: &ContainerRecord,
    held: Option<&Held>,
    now: i64,
) -> ContainerAction {
    let lives = matches!(held, Some(Held::Creating | Held::Created { .. } | Held::Running { .. }));
    match (pod, record.phase) {
        (PodAction::RollBack, _) => return ContainerAction::RollBack,
        (PodAction::Remove, _) | (_, ContainerPhase::Removing) => return ContainerAction::Remove,
        (PodAction::Retry, _) => return ContainerAction::Retry,
        // What was never committed is nobody's, whatever became of it.
        (_, ContainerPhase::Creating) => return ContainerAction::RollBack,
        (_, ContainerPhase::Exited) if lives => return ContainerAction::KillOrphan,
        (_, ContainerPhase::Exited) => return ContainerAction::Keep,
        // Never written, so never read.
        (_, ContainerPhase::Unknown) => return ContainerAction::Keep,
        (_, ContainerPhase::Created | ContainerPhase::Running) => {}
    }
    match held {
        Some(Held::Created { pid }) => {
            ContainerAction::Adopt { phase: ContainerPhase::Created, pid: *pid, started_at: 0 }
        }
        Some(Held::Running { pid, started_at }) => {
            ContainerAction::Adopt { phase: ContainerPhase::Running, pid: *pid, started_at: *started_at }
        }
        Some(Held::Exited { exit, started_at }) => {
            ContainerAction::MarkExited { exit: exit.clone(), started_at: *started_at }
        }
        // Committed, and yet being created: not the one that was committed.
        Some(Held::Creating) => ContainerAction::RollBack,
        None => match facts.exits.get(&record.id).filter(|_| facts.same_boot) {
            Some((exit, started_at)) => {
                ContainerAction::MarkExited { exit: exit.clone(), started_at: *started_at }
            }
            None => {
                let why = if facts.same_boot { "its shim is gone" } else { "the node was restarted" };
                let exit = lost(format!("its end was not seen: {why}"), now);
                ContainerAction::MarkExited { exit, started_at: record.started_at }
            }
        },
    }
}

#[cfg(test)]
#[path = "reconcile_tests.rs"]
mod tests;
