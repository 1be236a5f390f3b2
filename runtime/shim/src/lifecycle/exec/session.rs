//! Killing the session of an exec.

use wire::{ErrorKind, Event, Reply};

use super::{Exec, Kill, Phase};
use crate::failure::refusal;
use crate::lifecycle::action::Session;
use crate::lifecycle::checks::UntilEmpty;
use crate::lifecycle::context::Context;
use crate::lifecycle::id::Requester;
use crate::lifecycle::worker::KILLED;

/// Time limit for killing a session.
const KILL_SESSION_MS: u64 = 10_000;

impl Exec {
    /// The session that must be killed now.
    pub(crate) fn session_due(&self, now: u64) -> Option<Session> {
        let (Kill::Active { checks, .. }, Some(process)) = (&self.kill, self.process()) else { return None };
        let unreaped = process.unreaped().is_some() && process.code.is_none();
        (checks.at <= now).then_some(Session { exec: self.serial, pid: process.pid, unreaped })
    }

    pub(super) fn kill_session(&mut self, requester: Requester, cx: &mut Context) {
        match &mut self.kill {
            Kill::No => self.begin_kill(Some(requester), cx),
            Kill::Deferred { requester: slot } | Kill::Active { requester: slot, .. } => match slot {
                Some(other) if cx.is_connected(*other) => {
                    let message = format!("exec {} is being killed", self.id.0);
                    cx.refuse(requester, ErrorKind::Busy, "kill", message);
                }
                slot => *slot = Some(requester),
            },
        }
    }

    /// Has its session killed, for a requester or because its deadline passed: at the end of the next
    /// [`Input::TimerDue`](crate::lifecycle::Input::TimerDue), which is due at once (or of this one, at its deadline), together
    /// with other sessions of its container. If it is being killed already, that continues.
    pub(super) fn begin_kill(&mut self, requester: Option<Requester>, cx: &Context) {
        self.deadline = None;
        if self.kill == Kill::No {
            self.kill = match self.process() {
                None => Kill::Deferred { requester },
                Some(_) => Kill::active(requester, cx.time.ms),
            };
        }
    }

    /// `count` processes of the session were killed now; `leader`: the leader's exit code, if it has ended and is not
    /// reaped.
    pub(super) fn session_killed(&mut self, mut count: u32, leader: Option<i32>, cx: &mut Context) {
        let Kill::Active { checks, until, .. } = &mut self.kill else { return };
        let process = match &mut self.phase {
            Phase::Starting { process: Some(process), .. } | Phase::Running(process) => Some(process),
            _ => None,
        };
        if let Some(process) = process
            && process.code.is_none()
        {
            // An ended leader is usually reaped soon; after some checks a tracer must be holding it.
            process.code = leader.filter(|_| checks.reaping_is_over() || cx.time.ms >= *until);
            if process.code.is_none() {
                count = count.max(1);
            }
        }
        if count > 0 && cx.time.ms < *until {
            return checks.again(cx.time.ms);
        }
        if count == 0 {
            self.reply_to_kill(Reply::Done, cx);
            return self.report_exit(cx);
        }
        // The kill is given up. A running exec is reported as exited (`Gone`), and then goes on as `Leftover`, not counted,
        // until its leader is reaped or found to have ended; one that has ended is removed. One that is still starting stays
        // as it is: its start's reply or deadline decides. Other processes of the session end with the container.
        let message = format!("{count} processes of the session could not be killed");
        self.reply_to_kill(Reply::Failed(refusal(ErrorKind::Timeout, "kill", message)), cx);
        if let Phase::Running(process) = &mut self.phase {
            process.code.get_or_insert(KILLED);
            let left = process.unreaped();
            self.report_exit(cx);
            self.leave(None, left, cx);
        } else {
            self.report_exit(cx);
        }
    }

    pub(super) fn reply_to_kill(&mut self, reply: Reply, cx: &mut Context) {
        if let Kill::Deferred { requester: Some(to) } | Kill::Active { requester: Some(to), .. } = self.kill {
            cx.reply(to, reply);
        }
        self.kill = Kill::No;
    }

    /// Reports its exit if it has ended, the reply to its start was sent, and its session is not being killed.
    pub(super) fn report_exit(&mut self, cx: &mut Context) {
        if let Phase::Running(process) = &self.phase
            && let Some(code) = process.code
        {
            self.phase = Phase::Ended(*process, code);
        }
        if let (Phase::Ended(_, code), Kill::No) = (&self.phase, self.kill) {
            cx.event(Event::ExecExited { exec: self.id, code: *code });
            self.phase = Phase::Gone;
        }
    }
}

impl Kill {
    pub(super) fn active(requester: Option<Requester>, now: u64) -> Self {
        Self::Active { requester, checks: UntilEmpty::new(now), until: now.saturating_add(KILL_SESSION_MS) }
    }
}
