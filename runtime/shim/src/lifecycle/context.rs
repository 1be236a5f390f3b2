//! What every part of the machine needs: the time, who is connected, and where actions go.

use std::collections::VecDeque;

use model::ContainerId;
use wire::{ErrorKind, Event, Failure, Reply};

use super::action::Action;
use super::id::{Requester, Serial};
use crate::failure::refusal;

/// When an input arrived.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Time {
    /// Monotonic milliseconds, which all deadlines are in.
    pub(crate) ms: u64,
    /// Nanoseconds since the epoch, for what the daemon is told.
    pub(crate) wall: i64,
}

/// The actions to perform, in order, and what decides about them beside the state of a thing.
#[derive(Debug, Default)]
pub(crate) struct Context {
    pub(crate) time: Time,
    /// The connection, by its number.
    pub(crate) connection: Option<u32>,
    /// A worker is at work on a container or an exec, whose child an unknown process may be.
    pub(crate) busy: bool,
    pub(crate) actions: VecDeque<Action>,
}

impl Context {
    /// Adds an action.
    pub(crate) fn act(&mut self, action: Action) {
        self.actions.push_back(action);
    }

    /// Answers a request, if the connection that it came on is still there.
    pub(crate) fn reply(&mut self, to: Requester, reply: Reply) {
        self.reply_with(to, reply, None);
    }

    /// The same, with the descriptor that came with the process of a worker.
    pub(crate) fn reply_with(&mut self, to: Requester, reply: Reply, fd_of: Option<Serial>) {
        if self.is_connected(to) {
            self.act(Action::Reply { to, reply, fd_of });
        }
    }

    /// Answers that it failed.
    pub(crate) fn fail(&mut self, to: Requester, failure: Failure) {
        self.reply(to, Reply::Failed(failure));
    }

    /// Answers that it is not possible now.
    pub(crate) fn refuse(&mut self, to: Requester, kind: ErrorKind, stage: &str, message: impl Into<String>) {
        self.fail(to, refusal(kind, stage, message));
    }

    /// Tells whoever is connected; a daemon that connects later learns it from the snapshot.
    pub(crate) fn event(&mut self, event: Event) {
        if self.connection.is_some() {
            self.act(Action::Event(event));
        }
    }

    /// Warns whoever is connected.
    pub(crate) fn warn(&mut self, container: Option<&ContainerId>, message: String) {
        self.event(Event::Warning { container: container.cloned(), message });
    }

    /// Whether a requester can still be answered.
    pub(crate) fn is_connected(&self, requester: Requester) -> bool {
        self.connection == Some(requester.generation)
    }
}
