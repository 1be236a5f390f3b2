//! Pause, whose namespaces are the pod's.
//!
//! ```text
//!              Made                 Closed            Adopted
//! None ──► Starting ──────────────────────► Adopting ─────────► Running ──► Exited
//!   ▲         │ failed, late, pod stopped       │                 reaped, or ended
//!   └──── Undoing ◄─────────────────────────────┘
//!     worker and process reaped: the failure is reported
//! ```

use wire::{ErrorKind, Event, Failure, Reply, Snapshot};

use super::action::{Action, Fork};
use super::context::Context;
use super::id::{Requester, Serial};
use super::input::{PauseInput, WorkerInput};
use super::worker::{KILL_AGAIN_MS, Process, Worker, late, no_report};
use crate::failure::refusal;

/// Time limit for starting pause.
const DEADLINE_MS: u64 = 30_000;

/// The state of pause.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) enum Pause {
    /// Not requested, or it failed.
    #[default]
    None,
    /// A worker starts it.
    Starting { serial: Serial, worker: Worker, process: Option<Process> },
    /// It has called execve; its namespaces are being opened. Before the result, nothing else can follow than the
    /// end of its worker's packets.
    Adopting { serial: Serial, requester: Requester, process: Process },
    /// It is running.
    Running { serial: Serial, pid: u32 },
    /// It has ended.
    Exited { serial: Serial, pid: u32, code: i32 },
    /// It failed. Its worker and its process are being killed; once they are reaped, the failure is reported.
    Undoing {
        serial: Serial,
        requester: Requester,
        failure: Failure,
        worker: Option<u32>,
        process: Option<u32>,
        kill_at: u64,
    },
}

impl Pause {
    /// Starts it.
    pub(crate) fn start(&mut self, serial: Serial, requester: Requester, cx: &mut Context) {
        let worker = Worker::new(requester, cx.time.ms.saturating_add(DEADLINE_MS));
        *self = Self::Starting { serial, worker, process: None };
        cx.act(Action::Fork(serial, Fork::Pause));
    }

    pub(crate) fn serial(&self) -> Option<Serial> {
        match self {
            Self::None => None,
            Self::Starting { serial, .. }
            | Self::Adopting { serial, .. }
            | Self::Running { serial, .. }
            | Self::Exited { serial, .. }
            | Self::Undoing { serial, .. } => Some(*serial),
        }
    }

    /// Its serial, if containers can be created.
    pub(crate) fn running(&self) -> Option<Serial> {
        if let Self::Running { serial, .. } = self { Some(*serial) } else { None }
    }

    /// Whether one of its processes may be left.
    pub(crate) fn lives(&self) -> bool {
        !matches!(self, Self::None | Self::Exited { .. })
    }

    /// Whether its worker is running.
    pub(crate) fn is_starting(&self) -> bool {
        matches!(self, Self::Starting { .. })
    }

    pub(crate) fn timer(&self) -> Option<u64> {
        match self {
            Self::Starting { worker, .. } => Some(worker.deadline),
            Self::Undoing { kill_at, .. } => Some(*kill_at),
            _ => None,
        }
    }

    pub(crate) fn snapshot(&self) -> Option<Snapshot> {
        match self {
            Self::Running { pid, .. } => Some(Snapshot::Pause { pid: *pid, exited: None }),
            Self::Exited { pid, code, .. } => Some(Snapshot::Pause { pid: *pid, exited: Some(*code) }),
            _ => None,
        }
    }

    /// The input if the reaped child is pause or its worker.
    pub(crate) fn reaped(&self, pid: u32, code: i32) -> Option<PauseInput> {
        let reaped_worker = PauseInput::Worker(WorkerInput::Reaped(code));
        let own = PauseInput::Reaped(code);
        match self {
            Self::Starting { worker, .. } if worker.pid == Some(pid) => Some(reaped_worker),
            Self::Starting { process, .. } => process.as_ref().is_some_and(|p| p.is(pid)).then_some(own),
            Self::Running { pid: running, .. } => (*running == pid).then_some(own),
            Self::Undoing { worker, .. } if *worker == Some(pid) => Some(reaped_worker),
            Self::Undoing { process, .. } => (*process == Some(pid)).then_some(own),
            Self::None | Self::Adopting { .. } | Self::Exited { .. } => None,
        }
    }

    /// Handles an input for it.
    pub(crate) fn on(&mut self, input: PauseInput, cx: &mut Context) {
        match self {
            Self::Starting { .. } => self.while_starting(input, cx),
            Self::Adopting { serial, requester, process } => {
                let PauseInput::Adopted(outcome) = input else { return };
                let (serial, requester, process) = (*serial, *requester, *process);
                if let Err(failure) = outcome {
                    return self.undo(serial, requester, failure, None, process.unreaped(), cx);
                }
                cx.reply_with(requester, Reply::PauseStarted { pid: process.pid }, Some(serial));
                cx.act(Action::DropWorker(serial));
                *self = Self::Running { serial, pid: process.pid };
                if let Some(code) = process.code {
                    self.end(serial, process.pid, code, cx);
                }
            }
            Self::Running { serial, pid } => {
                let (serial, pid) = (*serial, *pid);
                match input {
                    PauseInput::Reaped(code) | PauseInput::Checked(Some(code)) => {
                        self.end(serial, pid, code, cx);
                    }
                    PauseInput::Stop => cx.kill(pid),
                    _ => {}
                }
            }
            Self::Undoing { .. } => self.while_undoing(&input, cx),
            Self::None | Self::Exited { .. } => {}
        }
    }

    fn while_starting(&mut self, input: PauseInput, cx: &mut Context) {
        let Self::Starting { worker, process, .. } = self else { return };
        match input {
            PauseInput::Worker(input) => self.worker_reported(input, cx),
            PauseInput::Made { pid, ended } => *process = Some(Process::new(pid, ended)),
            PauseInput::Reaped(code) => {
                if let Some(process) = process {
                    process.was_reaped(code);
                }
            }
            PauseInput::Due if worker.deadline <= cx.time.ms => {
                worker.give_up(late(), cx);
                if let Some(process) = process {
                    process.kill(cx);
                }
            }
            PauseInput::Stop => {
                worker.give_up(refusal(ErrorKind::WrongState, "worker", "the pod is being stopped"), cx);
                if let Some(process) = process {
                    process.kill(cx);
                }
            }
            _ => {}
        }
    }

    fn worker_reported(&mut self, input: WorkerInput, cx: &mut Context) {
        let Self::Starting { serial, worker, process } = self else { return };
        match input {
            WorkerInput::Forked(Ok(pid)) => worker.pid = Some(pid),
            WorkerInput::Forked(Err(failure)) => {
                cx.fail(worker.requester, failure);
                *self = Self::None;
            }
            WorkerInput::Warning(text) => cx.warn(None, text),
            WorkerInput::Failed(failure) => worker.fail(failure),
            // The worker exited without a report. The reason is its exit code: it is reaped, and then `PacketsRead` follows,
            // also if it was reaped before this end was read.
            WorkerInput::Closed if process.is_none() && worker.failure.is_none() => {}
            WorkerInput::Closed => self.worker_done(cx),
            WorkerInput::Reaped(code) => worker.was_reaped(*serial, code, cx),
            // If a process was created, wait for its execve to close the socket.
            WorkerInput::PacketsRead => {
                if let (Some(code), None) = (worker.reaped, &process) {
                    worker.fail(no_report(code, false));
                    self.worker_done(cx);
                }
            }
        }
    }

    /// The worker and its process will report nothing more.
    fn worker_done(&mut self, cx: &mut Context) {
        let Self::Starting { serial, worker, process } = self else { return };
        let (serial, requester) = (*serial, worker.requester);
        match (worker.failure.take(), process.take()) {
            (None, Some(process)) => {
                cx.act(Action::Adopt(serial, process.unreaped()));
                *self = Self::Adopting { serial, requester, process };
            }
            (failure, process) => {
                let nothing = || refusal(ErrorKind::Internal, "pause", "the worker created no process");
                let (failure, worker) = (failure.unwrap_or_else(nothing), worker.pid);
                self.undo(serial, requester, failure, worker, process.and_then(|p| p.unreaped()), cx);
            }
        }
    }

    fn undo(
        &mut self,
        serial: Serial,
        requester: Requester,
        failure: Failure,
        worker: Option<u32>,
        process: Option<u32>,
        cx: &mut Context,
    ) {
        cx.act(Action::DropWorker(serial));
        *self = Self::Undoing { serial, requester, failure, worker, process, kill_at: cx.time.ms };
        self.while_undoing(&PauseInput::Due, cx);
    }

    fn while_undoing(&mut self, input: &PauseInput, cx: &mut Context) {
        let Self::Undoing { serial, requester, failure, worker, process, kill_at } = self else { return };
        match input {
            PauseInput::Worker(WorkerInput::Reaped(_)) => *worker = None,
            PauseInput::Reaped(_) | PauseInput::Checked(Some(_)) => *process = None,
            PauseInput::Due | PauseInput::Stop => {
                *kill_at = cx.time.ms.saturating_add(KILL_AGAIN_MS);
                for pid in [*worker, *process].into_iter().flatten() {
                    cx.kill(pid);
                }
                // A tracer may keep it from being reaped for ever.
                if let Some(pid) = *process {
                    cx.act(Action::CheckProcess(*serial, pid));
                }
            }
            _ => {}
        }
        if worker.is_none() && process.is_none() {
            cx.fail(*requester, failure.clone());
            cx.act(Action::Release(*serial));
            *self = Self::None;
        }
    }

    fn end(&mut self, serial: Serial, pid: u32, code: i32, cx: &mut Context) {
        *self = Self::Exited { serial, pid, code };
        cx.act(Action::Release(serial));
        cx.event(Event::PauseExited { code });
    }
}
