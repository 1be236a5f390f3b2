//! A forked worker, the process it creates, and children that are reaped before they are known.

use sys::fork::NO_DESCRIPTORS;
use wire::{ErrorKind, Failure};

use super::action::{Action, SIGKILL};
use super::context::Context;
use super::id::{Requester, Serial};
use crate::failure::refusal;

/// Exit code of a killed process.
pub(crate) const KILLED: i32 = 128 + SIGKILL;
/// Reported for a process whose own exit code is lost: it was reaped before its worker's packet named it, and
/// [`ReapedEarly`] was full.
pub(crate) const LOST: i32 = 255;
/// Interval between two kills of something that does not end (D state, a frozen cgroup).
pub(crate) const KILL_AGAIN_MS: u64 = 1000;

/// A running worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Worker {
    /// The requester, which gets a reply at the end.
    pub(crate) requester: Requester,
    /// Set from its fork until it is reaped.
    pub(crate) pid: Option<u32>,
    /// Its exit code, once it was reaped.
    pub(crate) reaped: Option<i32>,
    /// When it is killed (monotonic ms), and killed again.
    pub(crate) deadline: u64,
    /// How often it was killed.
    pub(crate) kills: u32,
    /// The first failure that was reported.
    pub(crate) failure: Option<Failure>,
}

impl Worker {
    pub(crate) fn new(requester: Requester, deadline: u64) -> Self {
        Self { requester, pid: None, reaped: None, deadline, kills: 0, failure: None }
    }

    /// Records why it has failed, unless that is known.
    pub(crate) fn fail(&mut self, failure: Failure) {
        self.failure.get_or_insert(failure);
    }

    /// It was reaped; its last packets are read before that is used.
    pub(crate) fn was_reaped(&mut self, serial: Serial, code: i32, cx: &mut Context) {
        (self.pid, self.reaped) = (None, Some(code));
        cx.act(Action::ReadPackets(serial));
    }

    /// Kills it for this reason, and again later if it does not end.
    pub(crate) fn give_up(&mut self, failure: Failure, cx: &mut Context) {
        self.fail(failure);
        self.kills = self.kills.saturating_add(1);
        self.deadline = cx.time.ms.saturating_add(KILL_AGAIN_MS);
        if let Some(pid) = self.pid {
            cx.kill(pid);
        }
    }
}

/// Why a worker is killed at its deadline.
pub(crate) fn late() -> Failure {
    refusal(ErrorKind::Timeout, "worker", "the deadline has passed; the worker was killed")
}

/// The failure of a worker that exited without a report. `oom_killed`: a process of the container, in whose
/// cgroup it works, was OOM-killed.
pub(crate) fn no_report(code: i32, oom_killed: bool) -> Failure {
    let message = match code {
        _ if oom_killed => {
            "the kernel killed the worker for memory: the limit of the container, or of its pod, \
                            leaves too little to start a process in it"
                .to_owned()
        }
        NO_DESCRIPTORS => "the worker could not copy its descriptors: the shim or the node has no free file \
                           descriptor, or no memory"
            .to_owned(),
        code if code > 128 => format!("the worker was killed by signal {}", code - 128),
        code => format!("the worker exited with status {code} and reported nothing"),
    };
    refusal(ErrorKind::Internal, "worker", message)
}

/// A process that a worker has created.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    /// Its exit code, once it was reaped or has ended.
    pub(crate) code: Option<i32>,
    /// It was reaped, so its pid may be reused.
    pub(crate) reaped: bool,
}

impl Process {
    pub(crate) fn new(pid: u32, ended: Option<i32>) -> Self {
        Self { pid, code: ended, reaped: ended.is_some() }
    }

    pub(crate) fn unreaped(&self) -> Option<u32> {
        (!self.reaped).then_some(self.pid)
    }

    /// Whether the reaped child is this process.
    pub(crate) fn is(&self, pid: u32) -> bool {
        self.unreaped() == Some(pid)
    }

    /// It was reaped; its exit code is already known if it was found ended before.
    pub(crate) fn was_reaped(&mut self, code: i32) {
        self.reaped = true;
        self.code.get_or_insert(code);
    }

    /// Kills it, if it has not ended.
    pub(crate) fn kill(&self, cx: &mut Context) {
        if let (Some(pid), None) = (self.unreaped(), self.code) {
            cx.kill(pid);
        }
    }
}

/// Children that were reaped while a worker was running: the process it created may end before it is
/// reported.
#[derive(Debug, Default)]
pub(crate) struct ReapedEarly {
    ended: Vec<(u32, i32)>,
}

impl ReapedEarly {
    /// Maximum number of entries (32 KiB), only while a worker is running. Further children get the code [`LOST`].
    const MAX: usize = 4096;

    pub(crate) fn remember(&mut self, pid: u32, code: i32) {
        if let Some(known) = self.ended.iter_mut().find(|(known, _)| *known == pid) {
            // Two children had the pid and ended before a packet named it. Usually the earlier one was an orphan, which
            // no packet names.
            known.1 = code;
        } else if self.ended.len() < Self::MAX {
            self.ended.push((pid, code));
        }
    }

    /// The exit code of a process that is not a child any more.
    pub(crate) fn take(&mut self, pid: u32) -> i32 {
        match self.ended.iter().position(|(known, _)| *known == pid) {
            Some(place) => self.ended.swap_remove(place).1,
            None => LOST,
        }
    }

    /// No worker is running, so nothing will be looked up.
    pub(crate) fn clear(&mut self) {
        self.ended = Vec::new();
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.ended.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_worker_without_a_report_is_explained() {
        for (code, oom_killed, words) in [
            (KILLED, true, "for memory"),
            (KILLED, false, "by signal 9"),
            (NO_DESCRIPTORS, false, "no free file descriptor"),
            (1, false, "status 1"),
        ] {
            let failure = no_report(code, oom_killed);
            assert!(failure.message.contains(words), "{failure:?}");
        }
    }
}
