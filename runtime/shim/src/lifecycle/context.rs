//! Shared data of the lifecycle's parts: the time, the connection, and the list of actions.

use std::collections::VecDeque;

use model::ContainerId;
use wire::{ErrorKind, Event, Failure, Reply};

use super::action::{Action, SIGKILL};
use super::id::{Requester, Serial};
use crate::failure::refusal;

/// When an input arrived.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Time {
    /// Monotonic time in milliseconds, used for all deadlines.
    pub(crate) ms: u64,
    /// Nanoseconds since the epoch, for messages to the daemon.
    pub(crate) wall: i64,
}

/// The actions to perform, in order, and data that all objects share.
#[derive(Debug, Default)]
pub(crate) struct Context {
    pub(crate) time: Time,
    /// Number of the current connection.
    pub(crate) connection: Option<u32>,
    /// A worker of another container, or of an exec, is running, so an unknown process may be its child.
    pub(crate) others_work: bool,
    pub(crate) actions: VecDeque<Action>,
}

impl Context {
    /// Adds an action.
    pub(crate) fn act(&mut self, action: Action) {
        self.actions.push_back(action);
    }

    /// Kills a child that is not reaped.
    pub(crate) fn kill(&mut self, pid: u32) {
        self.act(Action::Signal { pid, signal: SIGKILL });
    }

    /// Replies to a request, if its connection still exists.
    pub(crate) fn reply(&mut self, to: Requester, reply: Reply) {
        self.reply_with(to, reply, None);
    }

    /// The same, with the descriptor for the daemon that a worker has sent.
    pub(crate) fn reply_with(&mut self, to: Requester, reply: Reply, fd_of: Option<Serial>) {
        if self.is_connected(to) {
            self.act(Action::Reply { to, reply, fd_of });
        }
    }

    /// Replies that it failed.
    pub(crate) fn fail(&mut self, to: Requester, failure: Failure) {
        self.reply(to, Reply::Failed(failure));
    }

    /// Replies that it is refused.
    pub(crate) fn refuse(&mut self, to: Requester, kind: ErrorKind, stage: &str, message: impl Into<String>) {
        self.fail(to, refusal(kind, stage, message));
    }

    /// Sends an event to the connected daemon. Without one it is dropped: a later daemon gets states from the snapshot, but
    /// neither warnings nor exit codes of execs.
    pub(crate) fn event(&mut self, event: Event) {
        if self.connection.is_some() {
            self.act(Action::Event(event));
        }
    }

    /// Sends a warning to the connected daemon.
    pub(crate) fn warn(&mut self, container: Option<&ContainerId>, message: String) {
        self.event(Event::Warning { container: container.cloned(), message });
    }

    /// Whether a requester can still get a reply.
    pub(crate) fn is_connected(&self, requester: Requester) -> bool {
        self.connection == Some(requester.generation)
    }
}
