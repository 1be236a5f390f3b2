//! Converts the shim's events to inputs of the pod's state machine.

use crate::clock::now;
use crate::pod::exit;
use crate::pod::life::ShimEvent;
use model::PodRecord;
use wire::Event;

/// Converts an event for the pod's state machine; other events are logged.
pub(super) fn of(pod: &PodRecord, event: Event) -> Option<ShimEvent> {
    match event {
        Event::Exited { container, facts } => {
            let ending = (exit::exit_of(&facts, now()), facts.started_at);
            Some(ShimEvent::Exited(container, ending))
        }
        Event::Started { container, started_at } => Some(ShimEvent::Started(container, started_at)),
        Event::PauseExited { code } => Some(ShimEvent::PauseExited { code }),
        Event::Warning { container, message } => {
            tracing::warn!(pod = %pod.id, container = container.map(|id| id.to_string()), message, "shim");
            None
        }
        Event::ExecExited { .. } | Event::Unknown => None,
    }
}
