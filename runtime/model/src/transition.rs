//! The legal transitions between phases, as tables.

use crate::{ContainerPhase, PodPhase};

/// An event of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PodEvent {
    /// Its launch is complete.
    Launched,
    /// A stop was requested, or pause or the shim has ended.
    StopBegan,
    /// It was torn down.
    TornDown,
    /// Its removal begins.
    Remove,
    /// Its removal failed; a client can request it again.
    RemovalFailed,
}

/// An event of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContainerEvent {
    /// Init waits for the start request.
    Created,
    /// Init has called execve.
    Started,
    /// Its start was recorded, but the shim did not receive the request: init still waits.
    NeverStarted,
    /// All its processes have ended.
    Exited,
    /// Its removal begins.
    Remove,
}

/// An event that is not legal in a phase: a bug of the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Of a pod.
    #[error("there is no transition of a pod in phase {phase:?} by the event {event:?}")]
    Pod {
        /// The pod's phase.
        phase: PodPhase,
        /// The event.
        event: PodEvent,
    },
    /// Of a container.
    #[error("there is no transition of a container in phase {phase:?} by the event {event:?}")]
    Container {
        /// The container's phase.
        phase: ContainerPhase,
        /// The event.
        event: ContainerEvent,
    },
}

/// The legal transitions of pods.
const PODS: [(PodPhase, PodEvent, PodPhase); 10] = [
    (PodPhase::Launching, PodEvent::Launched, PodPhase::Ready),
    // A launch that failed and could not be undone completely; the begin of a roll-back by the next daemon; a pod whose
    // commit a power loss has taken, and that has containers (`reconcile::is_leaving`).
    (PodPhase::Launching, PodEvent::StopBegan, PodPhase::Stopping),
    (PodPhase::Ready, PodEvent::StopBegan, PodPhase::Stopping),
    // Reported twice, or a stop that is repeated.
    (PodPhase::Stopping, PodEvent::StopBegan, PodPhase::Stopping),
    (PodPhase::Stopping, PodEvent::TornDown, PodPhase::Stopped),
    (PodPhase::Stopped, PodEvent::StopBegan, PodPhase::Stopped),
    (PodPhase::Stopped, PodEvent::TornDown, PodPhase::Stopped),
    (PodPhase::Stopped, PodEvent::Remove, PodPhase::Removing),
    (PodPhase::Removing, PodEvent::Remove, PodPhase::Removing),
    (PodPhase::Removing, PodEvent::RemovalFailed, PodPhase::Stopped),
];

/// The legal transitions of containers.
const CONTAINERS: [(ContainerPhase, ContainerEvent, ContainerPhase); 9] = [
    (ContainerPhase::Creating, ContainerEvent::Created, ContainerPhase::Created),
    (ContainerPhase::Created, ContainerEvent::Started, ContainerPhase::Running),
    // The record of a start is written while the request is sent to the shim, and may be on disk first.
    (ContainerPhase::Running, ContainerEvent::NeverStarted, ContainerPhase::Created),
    // A failed start, a removal, a stop of the sandbox, or init was killed. (StopContainer leaves init waiting.)
    (ContainerPhase::Created, ContainerEvent::Exited, ContainerPhase::Exited),
    (ContainerPhase::Running, ContainerEvent::Exited, ContainerPhase::Exited),
    // Reported twice: by an event and by a snapshot.
    (ContainerPhase::Exited, ContainerEvent::Exited, ContainerPhase::Exited),
    (ContainerPhase::Exited, ContainerEvent::Remove, ContainerPhase::Removing),
    (ContainerPhase::Removing, ContainerEvent::Exited, ContainerPhase::Removing),
    (ContainerPhase::Removing, ContainerEvent::Remove, ContainerPhase::Removing),
];

/// The phase of a pod after an event.
///
/// # Errors
/// The table has no such transition.
pub fn pod(phase: PodPhase, event: PodEvent) -> Result<PodPhase, Refusal> {
    let step = PODS.iter().find(|(from, by, _)| (*from, *by) == (phase, event));
    step.map(|(_, _, to)| *to).ok_or(Refusal::Pod { phase, event })
}

/// The phase of a container after an event.
///
/// # Errors
/// The table has no such transition.
pub fn container(phase: ContainerPhase, event: ContainerEvent) -> Result<ContainerPhase, Refusal> {
    let step = CONTAINERS.iter().find(|(from, by, _)| (*from, *by) == (phase, event));
    step.map(|(_, _, to)| *to).ok_or(Refusal::Container { phase, event })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rank(phase: ContainerPhase) -> u8 {
        match phase {
            ContainerPhase::Creating => 0,
            ContainerPhase::Created => 1,
            ContainerPhase::Running => 2,
            ContainerPhase::Exited => 3,
            ContainerPhase::Removing => 4,
            ContainerPhase::Unknown => 5,
        }
    }

    proptest! {
        /// Whatever the order of events, a container never returns to an earlier phase and never runs twice.
        /// (NeverStarted is not among the events: it corrects a record, not the container.)
        #[test]
        fn containers_never_return_to_an_earlier_phase(events in proptest::collection::vec(0usize..4, 0..20)) {
            let all =
                [ContainerEvent::Created, ContainerEvent::Started, ContainerEvent::Exited, ContainerEvent::Remove];
            let (mut phase, mut starts) = (ContainerPhase::Creating, 0);
            for event in events.into_iter().map(|at| all[at]) {
                let Ok(next) = container(phase, event) else { continue };
                prop_assert!(rank(next) >= rank(phase));
                starts += usize::from(next == ContainerPhase::Running);
                phase = next;
            }
            prop_assert!(starts <= 1);
        }
    }

    #[test]
    fn a_pod_is_never_ready_again_and_is_removed_only_when_stopped() {
        for (from, _, to) in PODS {
            assert!(to != PodPhase::Ready || from == PodPhase::Launching);
            assert!(to != PodPhase::Removing || matches!(from, PodPhase::Stopped | PodPhase::Removing));
        }
        let refusal = pod(PodPhase::Ready, PodEvent::Remove).unwrap_err();
        assert_eq!(refusal, Refusal::Pod { phase: PodPhase::Ready, event: PodEvent::Remove });
        assert_eq!(refusal.to_string(), "there is no transition of a pod in phase Ready by the event Remove");
    }
}
