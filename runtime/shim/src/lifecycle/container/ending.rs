//! The end of a container: remaining processes are killed, then follow log, exit file and event, in this
//! order.

use wire::{Event, ExitFacts};

use super::Container;
use crate::lifecycle::action::{Action, CgroupLook};
use crate::lifecycle::context::Context;
use crate::lifecycle::input::Happened;
use crate::lifecycle::look::Look;
use crate::lifecycle::phase::{Ending, Phase, Unstarted};

impl Container {
    /// Init was reaped, or has ended and cannot be reaped. `executed`: whether it had called execve, if
    /// known.
    pub(super) fn end(&mut self, code: i32, executed: Option<bool>, cx: &mut Context) {
        if executed == Some(true) {
            self.started(cx);
        }
        let pid = self.phase.pid();
        let mut facts = ExitFacts { code, finished_at: cx.time.wall, ..ExitFacts::default() };
        let mut start = None;
        match &mut self.phase {
            Phase::Running { started_at, .. } => facts.started_at = *started_at,
            Phase::Starting { requester, said, pipe_closed, .. } => {
                // It reported nothing before it closed the pipe, and had not called execve at the last check.
                let executed = executed.or(pipe_closed.then_some(false));
                start = Some(Unstarted { requester: *requester, executed, said: said.take() });
                cx.act(Action::ReadErrorPipe(self.serial));
            }
            _ => {}
        }
        cx.act(Action::DropNamespaces(self.serial));
        self.phase = Phase::Ending(Ending { pid, facts, start, look: Look::at(cx.time.ms) });
        self.look(cx);
    }

    pub(super) fn while_ending(&mut self, happened: Happened, cx: &mut Context) {
        let Phase::Ending(ending) = &mut self.phase else { return };
        match happened {
            Happened::ErrorPipe { said, closed } => {
                let Some(start) = &mut ending.start else { return };
                if said.is_some() {
                    start.said = said;
                } else if start.said.is_none() && closed && start.executed.is_none() {
                    let (requester, started_at) = (start.requester, ending.facts.finished_at);
                    ending.facts.started_at = started_at;
                    ending.start = None;
                    self.tell_started(requester, started_at, cx);
                }
            }
            Happened::CgroupSeen(state) if state.empty => {
                ending.facts.oom_killed = state.oom_killed;
                self.finish(cx);
            }
            Happened::CgroupSeen(_) => {
                ending.look.again(cx.time.ms);
                cx.act(Action::KillCgroup(self.serial));
            }
            Happened::Due if ending.look.at <= cx.time.ms => self.look(cx),
            _ => {}
        }
    }

    /// Checks whether any process of it is left. If a creation failed, its worker and init are killed first, and
    /// unknown children as well unless another worker is running, whose children they may be.
    pub(super) fn look(&self, cx: &mut Context) {
        let look = match &self.phase {
            Phase::Ending(ending) => {
                CgroupLook { patient: ending.look.is_patient(), init: None, strays: false }
            }
            Phase::Undoing(undoing) => {
                for pid in [undoing.worker, undoing.init].into_iter().flatten() {
                    cx.kill(pid);
                }
                CgroupLook { patient: undoing.look.is_patient(), init: undoing.init, strays: !cx.others_work }
            }
            _ => return,
        };
        cx.act(Action::LookAtCgroup(self.serial, look));
    }

    /// No process is left: log, exit file, then the event, in this order.
    pub(super) fn finish(&mut self, cx: &mut Context) {
        let Phase::Ending(ending) = &mut self.phase else { return };
        let failed = ending.start.take().map(|start| (start.requester, start.failed(&mut ending.facts)));
        let (pid, facts) = (ending.pid, std::mem::take(&mut ending.facts));
        cx.act(Action::FinishOutputs(self.serial));
        cx.act(Action::RemoveFiles(self.id.clone()));
        cx.act(Action::WriteRecord(self.serial, self.id.clone(), facts.clone()));
        self.phase = Phase::Recording { pid, facts, failed };
    }

    pub(super) fn while_recording(&mut self, happened: Happened, cx: &mut Context) {
        let (Phase::Recording { pid, facts, failed }, Happened::Recorded(outcome)) =
            (&mut self.phase, happened)
        else {
            return;
        };
        if let Err(error) = outcome {
            cx.warn(Some(&self.id), format!("exit record: {error}"));
        }
        cx.act(Action::Release(self.serial));
        if let Some((requester, failure)) = failed.take() {
            cx.fail(requester, failure);
        }
        cx.event(Event::Exited { container: self.id.clone(), facts: facts.clone() });
        self.phase = Phase::Exited { pid: *pid, facts: std::mem::take(facts) };
    }
}
