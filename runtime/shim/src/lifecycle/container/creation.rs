//! The creation of a container: its worker, its init, and the clean-up if it fails.

use super::Container;
use crate::failure::refusal;
use crate::lifecycle::action::Action;
use crate::lifecycle::checks::UntilEmpty;
use crate::lifecycle::context::Context;
use crate::lifecycle::input::{ContainerInput, WorkerInput};
use crate::lifecycle::phase::{Init, Phase, Undoing};
use crate::lifecycle::worker::{Process, late, no_report};
use wire::ErrorKind;

impl Container {
    pub(super) fn while_creating(&mut self, input: ContainerInput, cx: &mut Context) {
        let Phase::Creating(worker) = &mut self.phase else { return };
        match input {
            ContainerInput::Worker(input) => self.creator_reported(input, cx),
            // The worker continues; the container is undone once it exists.
            ContainerInput::StreamsReceived(Err(failure)) => worker.fail(failure),
            ContainerInput::Created { reply, pid, ended } => {
                let process = Process::new(pid, ended);
                if worker.failure.is_some() {
                    return self.undo(process.unreaped(), cx);
                }
                let (requester, unreaped) = (worker.requester, worker.pid);
                cx.act(Action::Adopt(self.serial, process.unreaped()));
                self.phase = Phase::Adopting { requester, worker: unreaped, process, reply };
            }
            ContainerInput::Due if worker.deadline <= cx.time.ms => worker.give_up(late(), cx),
            _ => {}
        }
    }

    fn creator_reported(&mut self, input: WorkerInput, cx: &mut Context) {
        let Phase::Creating(worker) = &mut self.phase else { return };
        match input {
            WorkerInput::Forked(Ok(pid)) => worker.pid = Some(pid),
            WorkerInput::Forked(Err(failure)) => {
                cx.fail(worker.requester, failure);
                cx.act(Action::Release(self.serial));
                self.phase = Phase::Gone;
            }
            WorkerInput::Failed(failure) => {
                worker.fail(failure);
                self.undo(None, cx);
            }
            WorkerInput::Reaped(code) => worker.was_reaped(self.serial, code, cx),
            WorkerInput::PacketsRead => {
                if let Some(code) = worker.reaped {
                    worker.fail(no_report(code, false));
                    self.undo(None, cx);
                }
            }
            // Init may also hold the worker's socket, so only the worker's exit counts.
            WorkerInput::Closed | WorkerInput::Warning(_) => {}
        }
    }

    pub(super) fn while_adopting(&mut self, input: ContainerInput, cx: &mut Context) {
        let Phase::Adopting { requester, worker, process, reply } = &self.phase else { return };
        match input {
            ContainerInput::Adopted(Err(failure)) => {
                let checks = UntilEmpty::new(cx.time.ms);
                let init = process.unreaped();
                let undoing = Undoing { requester: *requester, failure, worker: *worker, init, checks };
                self.begin_undoing(undoing, cx);
            }
            ContainerInput::Adopted(Ok(())) => {
                cx.act(Action::WatchOutputs(self.serial));
                let (requester, process) = (*requester, *process);
                cx.reply(requester, reply.clone());
                cx.act(Action::DropWorker(self.serial));
                self.phase = Phase::Created(Init { pid: process.pid, ending: None });
                if let Some(code) = process.code {
                    self.end(code, None, cx);
                }
            }
            _ => {}
        }
    }

    /// Creation has failed; init may exist.
    fn undo(&mut self, init: Option<u32>, cx: &mut Context) {
        let Phase::Creating(worker) = &mut self.phase else { return };
        let failure = worker.failure.take();
        let failure =
            failure.unwrap_or_else(|| refusal(ErrorKind::Internal, "worker", "it failed without a reason"));
        let (requester, worker) = (worker.requester, worker.pid);
        let checks = UntilEmpty::new(cx.time.ms);
        self.begin_undoing(Undoing { requester, failure, worker, init, checks }, cx);
    }

    fn begin_undoing(&mut self, undoing: Undoing, cx: &mut Context) {
        self.phase = Phase::Undoing(undoing);
        cx.act(Action::DropWorker(self.serial));
        self.check_cgroup(cx);
    }

    pub(super) fn while_undoing(&mut self, input: &ContainerInput, cx: &mut Context) {
        let Phase::Undoing(undoing) = &mut self.phase else { return };
        match input {
            ContainerInput::Reaped { .. } => undoing.init = None,
            ContainerInput::Worker(WorkerInput::Reaped(_)) => undoing.worker = None,
            ContainerInput::Due if undoing.checks.at <= cx.time.ms => {}
            ContainerInput::CgroupChecked(state) => {
                if undoing.checks.reaping_is_over() && state.init_over {
                    undoing.init = None;
                }
                if undoing.init.is_some() || undoing.worker.is_some() || state.strays || !state.empty {
                    undoing.checks.again(cx.time.ms);
                    return cx.act(Action::KillCgroup(self.serial));
                }
                let (requester, failure) = (undoing.requester, undoing.failed(state.oom_killed));
                cx.act(Action::FinishOutputs(self.serial));
                cx.act(Action::RemoveFiles(self.id.clone()));
                cx.act(Action::Release(self.serial));
                cx.fail(requester, failure);
                self.phase = Phase::Gone;
                return;
            }
            _ => return,
        }
        self.check_cgroup(cx);
    }
}
