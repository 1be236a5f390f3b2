//! Decides what happens to a pod and its containers after a restart of the daemon or a lost connection, from the
//! records, the shim's snapshot and its exit files. Pure: the daemon collects the facts and applies the plan.

use crate::{ContainerId, ContainerPhase, ContainerRecord, Exit, PodPhase, PodRecord};
use std::collections::BTreeMap;

/// Exit code of a container whose exit was not seen.
const LOST_CODE: i32 = 255;

/// The state of a container in its shim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InShim {
    /// Its worker is creating it.
    Creating,
    /// Init waits for the start request.
    Created {
        /// Pid of init.
        pid: u32,
    },
    /// Init has called execve.
    Running {
        /// Pid of init.
        pid: u32,
        /// Nanoseconds since the epoch.
        started_at: i64,
    },
    /// It has exited.
    Exited {
        /// Its exit.
        exit: Exit,
        /// Nanoseconds since the epoch, 0 when it never ran.
        started_at: i64,
    },
}

/// The result of connecting to the shim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shim {
    /// It sent its snapshot.
    Answered {
        /// Whether pause is running.
        pause: bool,
        /// All containers in its table.
        containers: BTreeMap<ContainerId, InShim>,
    },
    /// Its process does not exist.
    Gone,
    /// Its process exists, or may exist, and does not respond.
    Silent,
}

/// The facts about a pod.
#[derive(Debug, Clone)]
pub struct Facts<'a> {
    /// Whether the pod's record is of this boot, so that processes of the pod may be running.
    pub same_boot: bool,
    /// The pod's record.
    pub pod: &'a PodRecord,
    /// Its containers' records.
    pub containers: &'a [ContainerRecord],
    /// The state of the shim; `Gone` if the record is of an earlier boot.
    pub shim: Shim,
    /// Exit files of the shim, with the start times.
    pub exits: BTreeMap<ContainerId, (Exit, i64)>,
}

/// What to do with the pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PodAction {
    /// Adopt it: it is managed again.
    Adopt,
    /// It is not ready any more. If its shim is gone, or the record is of an earlier boot, it is torn down; if its shim has
    /// answered, its containers go on until a call stops the pod.
    NotReady {
        /// The reason, for users.
        reason: String,
    },
    /// It was never committed: undo everything of it.
    RollBack,
    /// Its removal had begun: continue it.
    Remove,
    /// It was stopped: change nothing.
    Keep,
    /// Connect to the shim again; change nothing until then.
    Retry,
}

/// What to do with a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContainerAction {
    /// Adopt it in this phase.
    Adopt {
        /// Created or Running.
        phase: ContainerPhase,
        /// Pid of init.
        pid: u32,
        /// Nanoseconds since the epoch, 0 before start.
        started_at: i64,
    },
    /// It has exited, or its exit was not seen.
    MarkExited {
        /// Its exit.
        exit: Exit,
        /// Nanoseconds since the epoch, 0 when it never ran.
        started_at: i64,
    },
    /// It was never committed: kill it if it is running, and undo it.
    RollBack,
    /// Its removal had begun: continue it.
    Remove,
    /// It is alive in the shim, but it has no record, or its record says that it has exited: kill it.
    KillOrphan,
    /// The record is right: change nothing.
    Keep,
    /// Decided when the shim has answered, as for its pod.
    Retry,
}

/// The plan for one pod: an action for the pod, and one for each container that has a record or is in the
/// shim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The pod's action.
    pub pod: PodAction,
    /// The containers' actions.
    pub containers: BTreeMap<ContainerId, ContainerAction>,
}

/// The exit of a container that ended without a report: code 255, reason Unknown.
pub fn unseen_exit(message: impl Into<String>, finished_at: i64) -> Exit {
    Exit {
        code: LOST_CODE,
        finished_at,
        oom_killed: false,
        reason: "Unknown".to_owned(),
        message: message.into(),
    }
}

/// Whether the daemon removes a pod by itself, whatever its shim says: it was never committed, or its removal had
/// begun. Such a pod is not listed.
pub fn is_leaving(same_boot: bool, pod: &PodRecord, containers: &[ContainerRecord]) -> bool {
    match pod.phase {
        PodPhase::Removing => true,
        // The commit of a pod is not synced. After a power loss a pod with containers may still be Launching on
        // disk: the exits of its containers must be reported.
        PodPhase::Launching => same_boot || containers.is_empty(),
        PodPhase::Ready | PodPhase::Stopping | PodPhase::Stopped => false,
    }
}

/// Computes the plan. `now`, in nanoseconds since the epoch, is used as the time of exits that were not seen.
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
    held: Option<&InShim>,
    now: i64,
) -> ContainerAction {
    let lives = matches!(held, Some(InShim::Creating | InShim::Created { .. } | InShim::Running { .. }));
    match (pod, record.phase) {
        (PodAction::RollBack, _) => return ContainerAction::RollBack,
        (PodAction::Remove, _) | (_, ContainerPhase::Removing) => return ContainerAction::Remove,
        (PodAction::Retry, _) => return ContainerAction::Retry,
        // It was never committed, so it is undone in any state.
        (_, ContainerPhase::Creating) => return ContainerAction::RollBack,
        (_, ContainerPhase::Exited) if lives => return ContainerAction::KillOrphan,
        (_, ContainerPhase::Exited) => return ContainerAction::Keep,
        // This phase is never written, so it cannot be read.
        (_, ContainerPhase::Unknown) => return ContainerAction::Keep,
        (_, ContainerPhase::Created | ContainerPhase::Running) => {}
    }
    match held {
        Some(InShim::Created { pid }) => {
            ContainerAction::Adopt { phase: ContainerPhase::Created, pid: *pid, started_at: 0 }
        }
        Some(InShim::Running { pid, started_at }) => {
            ContainerAction::Adopt { phase: ContainerPhase::Running, pid: *pid, started_at: *started_at }
        }
        Some(InShim::Exited { exit, started_at }) => {
            ContainerAction::MarkExited { exit: exit.clone(), started_at: *started_at }
        }
        // The record says that its creation is complete, and the shim is still creating it: undo both.
        Some(InShim::Creating) => ContainerAction::RollBack,
        None => match facts.exits.get(&record.id).filter(|_| facts.same_boot) {
            Some((exit, started_at)) => {
                ContainerAction::MarkExited { exit: exit.clone(), started_at: *started_at }
            }
            None => {
                let exit = unseen_exit(format!("its exit was not seen: {}", why_unseen(facts)), now);
                ContainerAction::MarkExited { exit, started_at: record.started_at }
            }
        },
    }
}

/// Why the exit of a container is neither in the shim nor in an exit file.
fn why_unseen(facts: &Facts<'_>) -> &'static str {
    match &facts.shim {
        _ if !facts.same_boot => "the node was restarted",
        Shim::Gone => "its shim is gone",
        Shim::Answered { .. } => "its shim does not know it",
        // Then its pod was stopped before: otherwise nothing is decided until the shim answers.
        Shim::Silent => "the pod was stopped",
    }
}

#[cfg(test)]
mod tests;
