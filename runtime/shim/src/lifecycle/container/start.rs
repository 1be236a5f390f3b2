//! The start of a container: init continues to its execve, and other processes may stop or trace it meanwhile.

use wire::{Event, Reply};

use super::Container;
use crate::lifecycle::action::Action;
use crate::lifecycle::context::Context;
use crate::lifecycle::id::Requester;
use crate::lifecycle::input::{Happened, Held, InitState};
use crate::lifecycle::phase::Phase;

/// Kernel numbers, the same on all architectures.
const SIGCONT: i32 = 18;

impl Container {
    pub(super) fn while_init_lives(&mut self, happened: Happened, cx: &mut Context) {
        match happened {
            Happened::StartSent(Err(failure)) => {
                if let Phase::Starting { init, requester, .. } = self.phase {
                    self.phase = Phase::Created(init);
                    cx.fail(requester, failure);
                }
            }
            Happened::ErrorPipe { said: text, closed } => {
                let Phase::Starting { init, said, pipe_closed, .. } = &mut self.phase else { return };
                *pipe_closed |= closed;
                if text.is_some() {
                    // Init exits by itself; the reply waits until it is reaped.
                    *said = text;
                } else if closed {
                    // The pipe also closes if init is killed before its execve.
                    cx.act(Action::LookAtInit(self.serial, init.pid));
                }
            }
            Happened::InitSeen(state) => self.init_seen(state, cx),
            Happened::Due => {
                if let Some((init, at)) = self.phase.init_timer()
                    && at <= cx.time.ms
                {
                    self.phase.postpone(cx.time.ms);
                    cx.act(Action::LookAtInit(self.serial, init));
                }
            }
            Happened::Reaped { code, executed } => self.end(code, executed, cx),
            _ => {}
        }
    }

    pub(super) fn init_seen(&mut self, state: Option<InitState>, cx: &mut Context) {
        if let Some(InitState { executed: true, .. }) = state {
            self.started(cx);
        }
        if let (Some(init), Some(InitState { over: Some(code), executed, .. })) =
            (self.phase.init_mut(), state)
        {
            // A tracer can keep it from being reaped for ever; it still counts as ended.
            if init.check_end(cx.time.ms).was_over() {
                self.end(code, Some(executed), cx);
            }
            return;
        }
        let Phase::Starting { init, look, said, pipe_closed, .. } = &mut self.phase else { return };
        let Some(state) = state else {
            // It is not reaped and has closed the pipe without an error.
            if *pipe_closed && said.is_none() {
                self.started(cx);
            }
            return;
        };
        match state.held {
            Held::No => return,
            Held::Stopped => cx.act(Action::Signal { pid: init.pid, signal: SIGCONT }),
            Held::Traced => {}
        }
        if init.ending.is_none() && look.was_held() {
            let message = "init was stopped or traced by another process before execve, and was killed";
            *said = Some(message.to_owned());
            cx.act(Action::KillCgroup(self.serial));
            init.kill(cx);
        }
    }

    /// Init has called execve. Data on the pipe did not come from init.
    pub(super) fn started(&mut self, cx: &mut Context) {
        let Phase::Starting { init, requester, .. } = self.phase else { return };
        let started_at = cx.time.wall;
        self.phase = Phase::Running { init, started_at };
        cx.act(Action::DropErrorPipe(self.serial));
        self.tell_started(requester, started_at, cx);
    }

    pub(super) fn tell_started(&self, requester: Requester, started_at: i64, cx: &mut Context) {
        // Also sent to the daemon that requested the start, because it may have timed out.
        cx.event(Event::Started { container: self.id.clone(), started_at });
        cx.reply(requester, Reply::Started { started_at });
    }
}
