//! The order of messages that is allowed on a connection, as a table.
//!
//! The shim starts with Hello, one Snapshot for each object it holds, and SnapshotEnd, and only then sends
//! replies and events. The daemon may send requests from the start; they are processed after SnapshotEnd.

use std::ops::RangeInclusive;

use crate::message::{MAX_FDS, Message, Reply, Request};

/// The sender of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The shim, which accepted the connection.
    Shim,
    /// The daemon, which connected.
    Daemon,
}

/// The state of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Phase {
    /// No message was sent.
    #[default]
    Opened,
    /// Hello was sent; snapshots follow.
    Snapshots,
    /// The snapshot is complete.
    Live,
}

/// A message that its sender may not send in this phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{class} from the {from:?} in phase {phase:?}")]
pub struct OutOfOrder {
    /// The phase.
    pub phase: Phase,
    /// The sender.
    pub from: Side,
    /// The class of the message.
    pub class: &'static str,
}

/// What is legal on a connection of the event loop: `(phase, sender, class, next phase)`. A shim that cannot start sends
/// `Reply::Failed` with id 0 as its only message, and has no session.
const LEGAL: &[(Phase, Side, &str, Phase)] = &[
    (Phase::Opened, Side::Shim, "Hello", Phase::Snapshots),
    (Phase::Snapshots, Side::Shim, "Snapshot", Phase::Snapshots),
    (Phase::Snapshots, Side::Shim, "SnapshotEnd", Phase::Live),
    (Phase::Live, Side::Shim, "Reply", Phase::Live),
    (Phase::Live, Side::Shim, "Event", Phase::Live),
    // An unknown snapshot entry is decoded as an unknown event.
    (Phase::Snapshots, Side::Shim, "UnknownEvent", Phase::Snapshots),
    (Phase::Live, Side::Shim, "UnknownEvent", Phase::Live),
    (Phase::Opened, Side::Daemon, "Request", Phase::Opened),
    (Phase::Snapshots, Side::Daemon, "Request", Phase::Snapshots),
    (Phase::Live, Side::Daemon, "Request", Phase::Live),
];

fn class(message: &Message) -> &'static str {
    match message {
        Message::Hello(_) => "Hello",
        Message::Snapshot(_) => "Snapshot",
        Message::SnapshotEnd => "SnapshotEnd",
        Message::Request(_) => "Request",
        Message::Reply(_) => "Reply",
        Message::Event(crate::Event::Unknown) => "UnknownEvent",
        Message::Event(_) => "Event",
    }
}

/// The state of one connection, tracked by the shim. The daemon checks the order itself (`shims::client`).
#[derive(Debug, Clone, Copy, Default)]
pub struct Session {
    phase: Phase,
}

impl Session {
    /// A new connection.
    pub fn new() -> Self {
        Self::default()
    }

    /// The current phase.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Records a sent or received message.
    ///
    /// # Errors
    /// The message is not legal now; the phase is unchanged.
    pub fn note(&mut self, from: Side, message: &Message) -> Result<Phase, OutOfOrder> {
        let class = class(message);
        let next = LEGAL
            .iter()
            .find(|(phase, side, legal, _)| *phase == self.phase && *side == from && *legal == class);
        match next {
            Some((_, _, _, phase)) => {
                self.phase = *phase;
                Ok(*phase)
            }
            None => Err(OutOfOrder { phase: self.phase, from, class }),
        }
    }
}

/// How many descriptors a message may carry.
pub fn descriptors(message: &Message) -> RangeInclusive<usize> {
    match message {
        // The plan and the cgroup folders.
        Message::Request(Request::StartPause) => 1..=MAX_FDS,
        // The plan, kubelet's mount namespace and the cgroup folders.
        Message::Request(Request::Create { .. }) => 2..=MAX_FDS,
        // The plan, and three streams unless it has a terminal.
        Message::Request(Request::Exec { .. }) => 1..=4,
        // The end, and the wanted outputs.
        Message::Request(Request::Attach { .. }) => 1..=3,
        // Messages of later versions: their descriptors are closed.
        Message::Request(Request::Unknown) => 0..=MAX_FDS,
        // The network namespace; the pty master; the input of what a client attaches to.
        Message::Reply(Reply::PauseStarted { .. } | Reply::ExecStarted { .. } | Reply::Done) => 0..=1,
        _ => 0..=0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Event, Hello};

    fn hello() -> Message {
        let pod = "ab".repeat(32).parse().unwrap();
        Message::Hello(Hello { protocol: 1, build: "1".into(), pod, pid: 2, features: Vec::new() })
    }

    #[test]
    fn hello_snapshots_end_then_events() {
        let mut session = Session::new();
        let event = Message::Event(Event::PauseExited { code: 0 });
        assert!(session.note(Side::Shim, &event).is_err());
        assert!(session.note(Side::Daemon, &Message::Request(Request::StopPod)).is_ok());
        assert_eq!(session.note(Side::Shim, &hello()), Ok(Phase::Snapshots));
        assert!(session.note(Side::Shim, &hello()).is_err());
        assert!(session.note(Side::Shim, &event).is_err());
        assert_eq!(session.note(Side::Shim, &Message::SnapshotEnd), Ok(Phase::Live));
        assert_eq!(session.note(Side::Shim, &event), Ok(Phase::Live));
        assert!(session.note(Side::Shim, &Message::SnapshotEnd).is_err());
        assert!(session.note(Side::Daemon, &event).is_err());
    }

    #[test]
    fn only_named_messages_carry_descriptors() {
        assert_eq!(descriptors(&Message::Request(Request::StopPod)), 0..=0);
        assert!(!descriptors(&Message::Request(Request::StartPause)).contains(&0));
        assert!(!descriptors(&hello()).contains(&1));
    }
}
