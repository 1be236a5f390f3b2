//! Converts the shim's events to inputs of the pod's state machine.

use crate::clock::now;
use crate::pod::exit;
use crate::pod::life::ShimEvent;
use model::PodRecord;
use wire::Event;

/// Converts an event for the pod's state machine. A warning is logged; other events are ignored.
pub(super) fn of(pod: &PodRecord, event: Event) -> Option<ShimEvent> {
    match event {
        Event::Exited { container, facts } => {
            let ending = (exit::exit_of(&facts, now()), facts.started_at);
            Some(ShimEvent::Exited(container, ending))
        }
        Event::Started { container, started_at } => Some(ShimEvent::Started(container, started_at)),
        Event::PauseExited { code } => Some(ShimEvent::PauseExited { code }),
        Event::Warning { container, message } => {
            tracing::warn!(pod = %pod.id, container = container.map(|id| id.to_string()), warning = message, "warning of the shim");
            None
        }
        Event::ExecExited { .. } | Event::Unknown => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{PodConfig, PodId};
    use std::io::{Read as _, Seek as _};
    use std::sync::Arc;

    /// A field named `message` would be a second one beside the text of the line: a JSON parser would drop one of them.
    #[test]
    fn a_warning_of_the_shim_has_a_field_of_its_own() {
        let file = Arc::new(tempfile::tempfile().unwrap());
        let json =
            tracing_subscriber::fmt().json().flatten_event(true).with_writer(Arc::clone(&file)).finish();
        let pod = PodRecord::new(PodId::from_random([1; 32]), PodConfig::default(), 1);
        let event = Event::Warning { container: None, message: "the log is full".to_owned() };
        tracing::subscriber::with_default(json, || assert!(of(&pod, event).is_none()));
        let (mut reader, mut line) = (&*file, String::new());
        reader.rewind().unwrap();
        reader.read_to_string(&mut line).unwrap();
        assert_eq!(line.matches("\"message\":").count(), 1, "{line}");
        assert!(line.contains("\"warning\":\"the log is full\""), "{line}");
    }
}
