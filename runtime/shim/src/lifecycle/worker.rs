//! A forked worker, the process it makes, and children that end before anybody knows of them.

use wire::{ErrorKind, Failure};

use super::action::Action;
use super::context::Context;
use super::id::{Requester, Serial};
use crate::failure::refusal;

/// By kernel number, the same on all architectures.
pub(crate) const SIGKILL: i32 = 9;
/// Code of a process that was killed.
pub(crate) const KILLED: i32 = 128 + SIGKILL;
/// A code for a process that nobody could wait for.
pub(crate) const LOST: i32 = 255;
/// Pause between two kills of a worker that does not end (D state, a frozen cgroup).
pub(crate) const KILL_AGAIN_MS: u64 = 1000;

/// A worker at work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Worker {
    /// Who is answered when it is done.
    pub(crate) requester: Requester,
    /// From its fork until it is reaped.
    pub(crate) pid: Option<u32>,
    /// Its code, once it was reaped.
    pub(crate) reaped: Option<i32>,
    /// When it is killed (monotonic ms), and then again.
    pub(crate) deadline: u64,
    /// How often it was killed.
    pub(crate) kills: u32,
    /// What was said so far against it; the first counts.
    pub(crate) failure: Option<Failure>,
}

impl Worker {
    pub(crate) fn new(requester: Requester, deadline: u64) -> Self {
        Self { requester, pid: None, reaped: None, deadline, kills: 0, failure: None }
    }

    /// It was not reaped and has said nothing against itself.
    pub(crate) fn is_silent(&self) -> bool {
        self.reaped.is_none() && self.failure.is_none()
    }

    /// Notes why it cannot succeed any more.
    pub(crate) fn fail(&mut self, failure: Failure) {
        self.failure.get_or_insert(failure);
    }

    /// It was reaped: what it said last is read before that counts.
    pub(crate) fn was_reaped(&mut self, serial: Serial, code: i32, cx: &mut Context) {
        (self.pid, self.reaped) = (None, Some(code));
        cx.act(Action::ReadPackets(serial));
    }

    /// Kills it now, for this reason; again later, should that not suffice.
    pub(crate) fn give_up(&mut self, failure: Failure, cx: &mut Context) {
        self.fail(failure);
        self.kills = self.kills.saturating_add(1);
        self.deadline = cx.time.ms.saturating_add(KILL_AGAIN_MS);
        if let Some(pid) = self.pid {
            cx.act(Action::Signal { pid, signal: SIGKILL });
        }
    }
}

/// Why a worker is killed at its deadline.
pub(crate) fn late() -> Failure {
    refusal(ErrorKind::Timeout, "worker", "the deadline has passed; the worker was killed")
}

/// What the end of a worker that said nothing means. `oom_killed`: the container, in whose cgroup it works, has lost
/// a process for memory.
pub(crate) fn left(code: i32, oom_killed: bool) -> Failure {
    let message = if oom_killed {
        "the kernel killed the worker for memory: the limit of the container, or of its pod, leaves too little to \
         start a process in it"
            .to_owned()
    } else {
        format!("the worker left with status {code}")
    };
    refusal(ErrorKind::Internal, "worker", message)
}

/// A process that a worker has made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    /// Its code, once it was reaped or is over.
    pub(crate) code: Option<i32>,
    /// It was reaped: its number is not its own any more.
    pub(crate) reaped: bool,
}

impl Process {
    pub(crate) fn new(pid: u32, ended: Option<i32>) -> Self {
        Self { pid, code: ended, reaped: ended.is_some() }
    }

    pub(crate) fn unreaped(&self) -> Option<u32> {
        (!self.reaped).then_some(self.pid)
    }

    /// Whether it is this one that was reaped.
    pub(crate) fn is(&self, pid: u32) -> bool {
        self.unreaped() == Some(pid)
    }

    /// It was reaped; how it ended was known already when it was over before.
    pub(crate) fn was_reaped(&mut self, code: i32) {
        self.reaped = true;
        self.code.get_or_insert(code);
    }

    /// Kills it, if it lives.
    pub(crate) fn kill(&self, cx: &mut Context) {
        if let (Some(pid), None) = (self.unreaped(), self.code) {
            cx.act(Action::Signal { pid, signal: SIGKILL });
        }
    }
}

/// Children that were reaped while a worker was about to report a pid: the process it made may end first.
#[derive(Debug, Default)]
pub(crate) struct ReapedEarly {
    ended: Vec<(u32, i32)>,
}

impl ReapedEarly {
    /// Most that are remembered: 32 KiB, while a worker is at work only. The code of others is [`LOST`].
    const MAX: usize = 4096;

    pub(crate) fn remember(&mut self, pid: u32, code: i32) {
        if let Some(known) = self.ended.iter_mut().find(|(known, _)| *known == pid) {
            // The number came round: nobody has asked for the one before.
            known.1 = code;
        } else if self.ended.len() < Self::MAX {
            self.ended.push((pid, code));
        }
    }

    /// How a process has ended that is not a child any more.
    pub(crate) fn take(&mut self, pid: u32) -> i32 {
        match self.ended.iter().position(|(known, _)| *known == pid) {
            Some(place) => self.ended.swap_remove(place).1,
            None => LOST,
        }
    }

    /// No worker is at work: nobody will ask.
    pub(crate) fn clear(&mut self) {
        self.ended = Vec::new();
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.ended.is_empty()
    }
}
