//! The start of a container: init continues to its execve, and other processes may stop or trace it meanwhile.

use wire::{Event, Reply};

use super::Container;
use crate::lifecycle::action::Action;
use crate::lifecycle::context::Context;
use crate::lifecycle::id::Requester;
use crate::lifecycle::input::{ContainerInput, InitState, Stopped};
use crate::lifecycle::phase::{Execve, Phase};

impl Container {
    pub(super) fn while_init_lives(&mut self, input: ContainerInput, cx: &mut Context) {
        match input {
            ContainerInput::StartSent(Err(failure)) => {
                if let Phase::Starting { init, requester, .. } = self.phase {
                    self.phase = Phase::Created(init);
                    cx.fail(requester, failure);
                }
            }
            ContainerInput::StartPipe { error, closed } => {
                let Phase::Starting { init, execve, .. } = &mut self.phase else { return };
                if let Some(error) = error {
                    // Init exits by itself; the reply waits until it is reaped.
                    *execve = Execve::Failed(error);
                } else if closed {
                    if *execve == Execve::Pending {
                        *execve = Execve::Unclear;
                    }
                    cx.act(Action::CheckInit(self.serial, init.pid));
                }
            }
            ContainerInput::InitChecked(Some(state)) => self.init_checked(state, cx),
            ContainerInput::InitChecked(None) => self.init_unchecked(cx),
            ContainerInput::Due => {
                if let Some((init, at)) = self.phase.init_timer()
                    && at <= cx.time.ms
                {
                    self.phase.postpone(cx.time.ms);
                    cx.act(Action::CheckInit(self.serial, init));
                }
            }
            ContainerInput::Reaped { code, executed } => self.end(code, executed, cx),
            _ => {}
        }
    }

    fn init_checked(&mut self, state: InitState, cx: &mut Context) {
        if state.executed {
            self.started(cx);
        }
        if let (Some(init), Some(code)) = (self.phase.init_mut(), state.code) {
            // A tracer can keep it from being reaped for ever; it still counts as ended.
            if init.check_end(cx.time.ms).has_ended() {
                self.end(code, Some(state.executed), cx);
            }
            return;
        }
        let Phase::Starting { init, checks, execve, .. } = &mut self.phase else { return };
        if *execve == Execve::Unclear {
            *execve = Execve::NotCalled;
        }
        match state.stopped {
            Stopped::No => return,
            Stopped::BySignal => cx.act(Action::Signal { pid: init.pid, signal: sys::signal::CONT }),
            Stopped::ByTracer => {}
        }
        if init.ending.is_none() && checks.was_stopped() {
            let message = "init was stopped or traced by another process before execve, and was killed";
            *execve = Execve::Failed(message.to_owned());
            cx.act(Action::KillCgroup(self.serial));
            init.kill(cx);
        }
    }

    /// Init could not be examined, which takes a descriptor. It is checked again. But the requester of the start must
    /// not wait for ever: an init that has closed its start pipe without an error, and is neither killed nor reaped
    /// after so many checks, is running.
    fn init_unchecked(&mut self, cx: &mut Context) {
        let Phase::Starting { init, checks, execve: Execve::Unclear, .. } = &mut self.phase else { return };
        if init.ending.is_none() && checks.was_unchecked() {
            let message = "counted as started, because init reported no error: /proc could not be read to confirm it \
                           (is the node out of file descriptors or memory?)";
            cx.warn(Some(&self.id), message.to_owned());
            self.started(cx);
        }
    }

    /// Init has called execve. Data on the pipe did not come from init.
    pub(super) fn started(&mut self, cx: &mut Context) {
        let Phase::Starting { init, requester, .. } = self.phase else { return };
        let started_at = cx.time.wall;
        self.phase = Phase::Running { init, started_at };
        cx.act(Action::DropStartPipe(self.serial));
        self.report_start(requester, started_at, cx);
    }

    pub(super) fn report_start(&self, requester: Requester, started_at: i64, cx: &mut Context) {
        // Also sent to the daemon that requested the start, because it may have timed out.
        cx.event(Event::Started { container: self.id.clone(), started_at });
        cx.reply(requester, Reply::Started { started_at });
    }
}
