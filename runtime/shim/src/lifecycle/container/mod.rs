//! A container, from the fork of its worker until it is removed from the table.

mod creation;
mod ending;
mod start;

use model::ContainerId;
use wire::{ErrorKind, Reply, Snapshot};

use super::action::{Action, Fork, SIGKILL};
use super::checks::UntilExecve;
use super::context::Context;
use super::id::{Requester, Serial};
use super::input::{ContainerInput, WorkerInput};
use super::phase::{Execve, Phase};
use super::worker::Worker;
use crate::failure::refusal;

/// Longest accepted deadline of a create.
const MAX_DEADLINE_MS: u64 = 3_600_000;

/// A container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Container {
    pub(crate) id: ContainerId,
    pub(crate) serial: Serial,
    pub(crate) phase: Phase,
}

impl Container {
    /// Starts the creation of a container.
    pub(crate) fn create(
        id: ContainerId,
        serial: Serial,
        requester: Requester,
        deadline_ms: u64,
        fork: Fork,
        cx: &mut Context,
    ) -> Self {
        let deadline = cx.time.ms.saturating_add(deadline_ms.min(MAX_DEADLINE_MS));
        cx.act(Action::Fork(serial, fork));
        Self { id, serial, phase: Phase::Creating(Worker::new(requester, deadline)) }
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        let (state, pid) = (self.phase.state(), self.phase.pid());
        Snapshot::Container { container: self.id.clone(), state, pid }
    }

    /// The input if the reaped child is one of its processes.
    pub(crate) fn reaped(&self, pid: u32, code: i32, executed: Option<bool>) -> Option<ContainerInput> {
        let worker = ContainerInput::Worker(WorkerInput::Reaped(code));
        let init = ContainerInput::Reaped { code, executed };
        match &self.phase {
            Phase::Creating(creator) => (creator.pid == Some(pid)).then_some(worker),
            Phase::Created(of) | Phase::Starting { init: of, .. } | Phase::Running { init: of, .. } => {
                (of.pid == pid).then_some(init)
            }
            Phase::Undoing(undoing) if undoing.worker == Some(pid) => Some(worker),
            Phase::Undoing(undoing) => (undoing.init == Some(pid)).then_some(init),
            _ => None,
        }
    }

    /// Handles an input for it.
    pub(crate) fn on(&mut self, input: ContainerInput, cx: &mut Context) {
        let input = match input {
            ContainerInput::Worker(WorkerInput::Warning(text)) => return cx.warn(Some(&self.id), text),
            ContainerInput::Start(requester) => return self.start(requester, cx),
            ContainerInput::Kill { requester, signal, all } => return self.kill(requester, signal, all, cx),
            ContainerInput::ReopenLog(requester) => {
                let action = Action::ReopenLog { requester, serial: self.serial };
                return self.while_running(requester, "log", action, cx);
            }
            ContainerInput::Attach { requester, stdout, stderr, tell_loss } => {
                let action = Action::Attach { requester, serial: self.serial, stdout, stderr, tell_loss };
                return self.while_running(requester, "attach", action, cx);
            }
            ContainerInput::CloseStdin(requester) => {
                let action = Action::CloseStdin { requester, serial: self.serial };
                return self.while_running(requester, "stdin", action, cx);
            }
            ContainerInput::Forget(requester) => return self.forget(requester, cx),
            ContainerInput::Stop => return self.stop(cx),
            other => other,
        };
        match &self.phase {
            Phase::Creating(_) => self.while_creating(input, cx),
            Phase::Adopting { .. } => self.while_adopting(input, cx),
            Phase::Created(_) | Phase::Starting { .. } | Phase::Running { .. } => {
                self.while_init_lives(input, cx);
            }
            Phase::Ending(_) => self.while_ending(input, cx),
            Phase::Undoing(_) => self.while_undoing(&input, cx),
            Phase::Recording { .. } => self.while_recording(input, cx),
            Phase::Exited { .. } | Phase::Gone => {}
        }
    }

    // Requests.

    fn start(&mut self, requester: Requester, cx: &mut Context) {
        let Phase::Created(init) = self.phase else {
            let message = format!("container {} is not waiting to start", self.id);
            return cx.refuse(requester, ErrorKind::WrongState, "start", message);
        };
        let checks = UntilExecve::new(cx.time.ms);
        self.phase = Phase::Starting { init, requester, checks, execve: Execve::Pending };
        cx.act(Action::StartInit(self.serial, self.id.clone()));
    }

    fn kill(&mut self, requester: Requester, signal: i32, all: bool, cx: &mut Context) {
        let kills = all || signal == SIGKILL;
        if all && !matches!(self.phase, Phase::Exited { .. }) {
            cx.act(Action::KillCgroup(self.serial));
        }
        match &mut self.phase {
            // Its worker is running and would still create it.
            Phase::Creating(worker) if kills => {
                let message = "the container was killed while it was created";
                worker.give_up(refusal(ErrorKind::WrongState, "worker", message), cx);
            }
            Phase::Created(init) | Phase::Starting { init, .. } | Phase::Running { init, .. } => {
                if kills {
                    init.check_end(cx.time.ms);
                }
                let (pid, signal) = (init.pid, if all { SIGKILL } else { signal });
                return cx.act(Action::SignalFor { requester, pid, signal });
            }
            // It has exited, is being killed, or has no init yet that could get the signal: none of these is an error.
            _ => {}
        }
        cx.reply(requester, Reply::Done);
    }

    /// Does what a request asks for that is only allowed while the container runs.
    fn while_running(&self, requester: Requester, stage: &str, action: Action, cx: &mut Context) {
        if matches!(self.phase, Phase::Running { .. }) {
            cx.act(action);
        } else {
            let message = format!("container {} is not running", self.id);
            cx.refuse(requester, ErrorKind::WrongState, stage, message);
        }
    }

    fn forget(&mut self, requester: Requester, cx: &mut Context) {
        if matches!(self.phase, Phase::Exited { .. }) {
            self.phase = Phase::Gone;
            cx.act(Action::RemoveRecord { requester, container: self.id.clone() });
        } else {
            let message = format!("container {} has not exited", self.id);
            cx.refuse(requester, ErrorKind::WrongState, "forget", message);
        }
    }

    fn stop(&mut self, cx: &mut Context) {
        if matches!(self.phase, Phase::Exited { .. } | Phase::Recording { .. } | Phase::Gone) {
            return;
        }
        cx.act(Action::KillCgroup(self.serial));
        match &mut self.phase {
            Phase::Creating(worker) => {
                worker.give_up(refusal(ErrorKind::WrongState, "worker", "the pod is being stopped"), cx);
            }
            Phase::Created(init) | Phase::Starting { init, .. } | Phase::Running { init, .. } => {
                init.kill(cx);
            }
            _ => {}
        }
    }
}
