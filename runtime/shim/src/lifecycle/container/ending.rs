//! The end of a container: remaining processes are killed, then follow log, exit file and event, in this
//! order.

use wire::{Event, ExitFacts};

use super::Container;
use crate::lifecycle::action::{Action, CgroupCheck};
use crate::lifecycle::checks::UntilEmpty;
use crate::lifecycle::context::Context;
use crate::lifecycle::input::ContainerInput;
use crate::lifecycle::phase::{Ending, Execve, Phase, Unstarted};

impl Container {
    /// Init was reaped, or has ended and cannot be reaped. `executed`: whether it had called execve, if
    /// known.
    pub(super) fn end(&mut self, code: i32, executed: Option<bool>, cx: &mut Context) {
        // If nothing else is known, a start pipe that was closed without an error means execve.
        let unclear = matches!(&self.phase, Phase::Starting { execve: Execve::Unclear, .. });
        if executed.unwrap_or(unclear) {
            self.started(cx);
        }
        let pid = self.phase.pid();
        let mut facts = ExitFacts { code, finished_at: cx.time.wall, ..ExitFacts::default() };
        let mut start = None;
        match &mut self.phase {
            Phase::Running { started_at, .. } => facts.started_at = *started_at,
            Phase::Starting { requester, execve, .. } => {
                let (known, error) = match std::mem::replace(execve, Execve::Pending) {
                    Execve::Failed(error) => (None, Some(error)),
                    Execve::NotCalled => (Some(false), None),
                    Execve::Pending | Execve::Unclear => (None, None),
                };
                let (requester, executed) = (*requester, executed.or(known));
                start = Some(Unstarted { requester, executed, error });
                cx.act(Action::ReadStartPipe(self.serial));
            }
            _ => {}
        }
        cx.act(Action::DropNamespaces(self.serial));
        let checks = UntilEmpty::new(cx.time.ms);
        self.phase = Phase::Ending(Ending { pid, facts, start, checks });
        self.check_cgroup(cx);
    }

    pub(super) fn while_ending(&mut self, input: ContainerInput, cx: &mut Context) {
        let Phase::Ending(ending) = &mut self.phase else { return };
        match input {
            ContainerInput::StartPipe { error, closed } => {
                let Some(start) = &mut ending.start else { return };
                if error.is_some() {
                    start.error = error;
                } else if start.error.is_none() && closed && start.executed.is_none() {
                    let (requester, started_at) = (start.requester, ending.facts.finished_at);
                    ending.facts.started_at = started_at;
                    ending.start = None;
                    self.report_start(requester, started_at, cx);
                }
            }
            ContainerInput::CgroupChecked(state) if state.empty => {
                ending.facts.oom_killed = state.oom_killed;
                self.finish(cx);
            }
            ContainerInput::CgroupChecked(_) => {
                ending.checks.again(cx.time.ms);
                cx.act(Action::KillCgroup(self.serial));
            }
            ContainerInput::Due if ending.checks.at <= cx.time.ms => self.check_cgroup(cx),
            _ => {}
        }
    }

    /// Checks whether any process of it is left. If a creation failed, its worker and init are killed first, and
    /// unknown children as well unless another worker is running, whose children they may be.
    pub(super) fn check_cgroup(&self, cx: &mut Context) {
        let check = match &self.phase {
            Phase::Ending(ending) => {
                CgroupCheck { skip_unreapable: ending.checks.reaping_is_over(), init: None, strays: false }
            }
            Phase::Undoing(undoing) => {
                for pid in [undoing.worker, undoing.init].into_iter().flatten() {
                    cx.kill(pid);
                }
                let skip_unreapable = undoing.checks.reaping_is_over();
                CgroupCheck { skip_unreapable, init: undoing.init, strays: !cx.others_work }
            }
            _ => return,
        };
        cx.act(Action::CheckCgroup(self.serial, check));
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

    pub(super) fn while_recording(&mut self, input: ContainerInput, cx: &mut Context) {
        let (Phase::Recording { pid, facts, failed }, ContainerInput::Recorded(outcome)) =
            (&mut self.phase, input)
        else {
            return;
        };
        if let Err(error) = outcome {
            cx.warn(Some(&self.id), format!("exit file: {error}"));
        }
        cx.act(Action::Release(self.serial));
        if let Some((requester, failure)) = failed.take() {
            cx.fail(requester, failure);
        }
        cx.event(Event::Exited { container: self.id.clone(), facts: facts.clone() });
        self.phase = Phase::Exited { pid: *pid, facts: std::mem::take(facts) };
    }
}
