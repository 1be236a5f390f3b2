//! A process started in a container.
//!
//! ```text
//!             Closed            reaped          session killed, or no kill requested
//! Starting ───────────► Running ──────► Ended ──────────────────────────────────────► Gone
//!    │ failed, late        │ the session cannot be killed                              ▲
//!    └─────────────────────┴──────────► Leftover ──────────────────────────────────────┘
//!                                                 processes reaped, or ended
//! ```
//! Its session is killed by [`Kill`], in any phase in which its pid is known.

mod session;

use model::{ContainerId, ExecId};
use wire::{ErrorKind, Failure, Reply, Snapshot};

use super::action::{Action, Fork};
use super::checks::UntilEmpty;
use super::context::Context;
use super::id::{Requester, Serial};
use super::input::{ExecInput, WorkerInput};
use super::worker::{KILL_AGAIN_MS, KILLED, Process, Worker, late, no_report};
use crate::failure::refusal;

/// Time limit for a start.
const DEADLINE_MS: u64 = 30_000;
/// Number of kills of a late worker, [`KILL_AGAIN_MS`] apart, before the reply is sent without waiting for
/// its end. In a frozen v1 cgroup SIGKILL has no effect, and a container may freeze its own.
const LATE_KILLS: u32 = 3;
/// ESRCH, the same on all architectures.
const ESRCH: i32 = 3;

/// A process started in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Exec {
    pub(crate) id: ExecId,
    /// The connection whose number `id` is.
    pub(crate) generation: u32,
    pub(crate) serial: Serial,
    pub(crate) container: Serial,
    pub(crate) container_id: ContainerId,
    /// When to kill its session (monotonic ms).
    pub(crate) deadline: Option<u64>,
    pub(crate) kill: Kill,
    pub(crate) phase: Phase,
}

/// Its phase.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Phase {
    /// A worker starts it.
    Starting { worker: Worker, process: Option<Process> },
    /// It is running; the reply to its start was sent.
    Running(Process),
    /// It has ended; its session is being killed.
    Ended(Process, i32),
    /// All replies were sent; some processes are not ended yet. It does not count in the table any more.
    Leftover { worker: Option<u32>, process: Option<u32>, kill_at: u64 },
    /// To be removed from the table.
    Gone,
}

/// The state of killing its session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kill {
    /// Not requested.
    No,
    /// Its session will be killed once its pid is known. Until then the worker is not killed for this request either: it
    /// may have created a process that it has not reported.
    Deferred { requester: Option<Requester> },
    /// Its session is being killed, by request or (`None`) because its deadline passed. At the time `until` (monotonic
    /// ms) that is given up.
    Active { requester: Option<Requester>, checks: UntilEmpty, until: u64 },
}

/// An exec request.
pub(crate) struct ExecRequest {
    pub(crate) id: ExecId,
    pub(crate) requester: Requester,
    pub(crate) container: Serial,
    pub(crate) container_id: ContainerId,
    pub(crate) deadline_ms: Option<u64>,
}

impl Exec {
    /// Starts an exec.
    pub(crate) fn start(serial: Serial, wanted: ExecRequest, cx: &mut Context) -> Self {
        let ExecRequest { id, requester, container, container_id, deadline_ms } = wanted;
        cx.act(Action::Fork(serial, Fork::Exec { container }));
        let worker = Worker::new(requester, cx.time.ms.saturating_add(DEADLINE_MS));
        Self {
            id,
            generation: requester.generation,
            serial,
            container,
            container_id,
            deadline: deadline_ms.map(|after| cx.time.ms.saturating_add(after)),
            kill: Kill::No,
            phase: Phase::Starting { worker, process: None },
        }
    }

    /// Whether it counts in the table and is listed.
    pub(crate) fn is_listed(&self) -> bool {
        !matches!(self.phase, Phase::Leftover { .. } | Phase::Gone)
    }

    /// Whether one of its processes may be left, except other members of its session.
    pub(crate) fn lives(&self) -> bool {
        !matches!(self.phase, Phase::Ended(..) | Phase::Gone)
    }

    /// Whether its worker is running.
    pub(crate) fn is_starting(&self) -> bool {
        matches!(self.phase, Phase::Starting { .. })
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        Snapshot::Exec { exec: self.id, container: self.container_id.clone() }
    }

    /// When its next timer is due (monotonic ms).
    pub(crate) fn timer(&self) -> Option<u64> {
        let worker = match &self.phase {
            Phase::Starting { worker, .. } => Some(worker.deadline),
            Phase::Leftover { kill_at, .. } => Some(*kill_at),
            _ => None,
        };
        let kill = if let Kill::Active { checks, .. } = self.kill { Some(checks.at) } else { None };
        [worker, kill, self.deadline.filter(|_| self.is_listed())].into_iter().flatten().min()
    }

    fn process(&self) -> Option<&Process> {
        match &self.phase {
            Phase::Starting { process, .. } => process.as_ref(),
            Phase::Running(process) | Phase::Ended(process, _) => Some(process),
            _ => None,
        }
    }

    /// The pid of its process, if that is known and not reaped.
    pub(crate) fn unreaped(&self) -> Option<u32> {
        match &self.phase {
            Phase::Leftover { process, .. } => *process,
            _ => self.process().and_then(Process::unreaped),
        }
    }

    /// The input if the reaped child is its process or its worker.
    pub(crate) fn reaped(&self, pid: u32, code: i32) -> Option<ExecInput> {
        match &self.phase {
            Phase::Starting { worker, .. } if worker.pid == Some(pid) => {
                Some(ExecInput::Worker(WorkerInput::Reaped(code)))
            }
            Phase::Leftover { worker, .. } if *worker == Some(pid) => {
                Some(ExecInput::Worker(WorkerInput::Reaped(code)))
            }
            _ => (self.unreaped() == Some(pid)).then_some(ExecInput::Reaped(code)),
        }
    }

    /// Handles an input for it. `container_is_up`: the container's init exists and was not killed.
    pub(crate) fn on(&mut self, input: ExecInput, container_is_up: bool, cx: &mut Context) {
        match input {
            ExecInput::KillSession(requester) => return self.kill_session(requester, cx),
            ExecInput::SessionKilled { count, leader } => return self.session_killed(count, leader, cx),
            ExecInput::Due if self.deadline.is_some_and(|at| at <= cx.time.ms) && self.is_listed() => {
                self.begin_kill(None, cx);
            }
            _ => {}
        }
        match &mut self.phase {
            Phase::Starting { .. } => self.while_starting(input, container_is_up, cx),
            Phase::Running(process) => match input {
                ExecInput::Reaped(code) => {
                    process.was_reaped(code);
                    self.report_exit(cx);
                }
                ExecInput::Checked(Some(code)) => {
                    process.code = Some(code);
                    self.report_exit(cx);
                }
                ExecInput::Stop => process.kill(cx),
                _ => {}
            },
            Phase::Ended(process, _) => {
                if let ExecInput::Reaped(code) = input {
                    process.was_reaped(code);
                }
            }
            Phase::Leftover { .. } => self.while_leftover(&input, cx),
            Phase::Gone => {}
        }
    }

    fn while_starting(&mut self, input: ExecInput, container_is_up: bool, cx: &mut Context) {
        let Phase::Starting { worker, process } = &mut self.phase else { return };
        match input {
            ExecInput::Worker(input) => self.worker_reported(input, container_is_up, cx),
            ExecInput::Made { pid, ended } => {
                *process = Some(Process::new(pid, ended));
                if let Kill::Deferred { requester } = self.kill {
                    self.kill = Kill::active(requester, cx.time.ms);
                }
            }
            ExecInput::OomChecked(oom_killed) => {
                worker.fail(no_report(KILLED, oom_killed));
                self.worker_done(container_is_up, cx);
            }
            ExecInput::Reaped(code) => {
                if let Some(process) = process {
                    process.was_reaped(code);
                }
            }
            ExecInput::Checked(Some(code)) => {
                if let Some(process) = process {
                    process.code.get_or_insert(code);
                }
            }
            ExecInput::Due if worker.deadline <= cx.time.ms => {
                worker.give_up(late(), cx);
                if let Some(process) = process {
                    process.kill(cx);
                }
                if worker.kills > LATE_KILLS {
                    self.worker_done(container_is_up, cx);
                }
            }
            // If it has created a process, that is in the container's cgroup, which is being killed.
            ExecInput::ContainerEnded if process.is_none() => {
                worker.give_up(refusal(ErrorKind::WrongState, "worker", "the exec had not started"), cx);
            }
            ExecInput::Stop => {
                worker.give_up(refusal(ErrorKind::WrongState, "worker", "the pod is being stopped"), cx);
                if let Some(process) = process {
                    process.kill(cx);
                }
            }
            _ => {}
        }
    }

    fn worker_reported(&mut self, input: WorkerInput, container_is_up: bool, cx: &mut Context) {
        let Phase::Starting { worker, process } = &mut self.phase else { return };
        match input {
            WorkerInput::Forked(Ok(pid)) => worker.pid = Some(pid),
            WorkerInput::Forked(Err(failure)) => {
                cx.fail(worker.requester, failure);
                self.phase = Phase::Gone;
            }
            WorkerInput::Warning(text) => cx.warn(Some(&self.container_id), text),
            WorkerInput::Failed(failure) => worker.fail(failure),
            // The worker exited without a report. The reason is its exit code: it is reaped, and then `PacketsRead` follows,
            // also if it was reaped before this end was read.
            WorkerInput::Closed if process.is_none() && worker.failure.is_none() => {}
            WorkerInput::Closed => self.worker_done(container_is_up, cx),
            WorkerInput::Reaped(code) => worker.was_reaped(self.serial, code, cx),
            // If a process was created, wait for its execve to close the socket.
            WorkerInput::PacketsRead => match (worker.reaped, &process, &worker.failure) {
                (Some(KILLED), None, None) => {
                    cx.act(Action::CheckOom { exec: self.serial, container: self.container });
                }
                (Some(code), None, _) => {
                    worker.fail(no_report(code, false));
                    self.worker_done(container_is_up, cx);
                }
                _ => {}
            },
        }
    }

    /// The worker and its process will report nothing more.
    fn worker_done(&mut self, container_is_up: bool, cx: &mut Context) {
        let Phase::Starting { worker, process } = &mut self.phase else { return };
        let requester = worker.requester;
        match (worker.failure.take(), process.take()) {
            (None, Some(process)) => {
                cx.reply_with(requester, Reply::ExecStarted { pid: process.pid }, Some(self.serial));
                cx.act(Action::DropWorker(self.serial));
                self.phase = Phase::Running(process);
                self.report_exit(cx);
            }
            (failure, process) => {
                let nothing = || refusal(ErrorKind::Internal, "exec", "the worker created no process");
                let failure = failure.unwrap_or_else(nothing);
                let (worker, process) = (worker.pid, process.and_then(|process| process.unreaped()));
                cx.fail(requester, self.explain(failure, container_is_up));
                cx.act(Action::DropWorker(self.serial));
                self.reply_to_kill(Reply::Done, cx);
                self.leave(worker, process, cx);
            }
        }
    }

    /// The failure as reported to the daemon.
    fn explain(&self, mut failure: Failure, container_is_up: bool) -> Failure {
        // The container ended meanwhile; its init may not be reaped yet (ESRCH).
        if !container_is_up || failure.errno == ESRCH {
            let message = format!("container {} has ended ({})", self.container_id, failure.message);
            failure = refusal(ErrorKind::WrongState, "exec", message);
        }
        // The code before execve is shared with init, and calls every failure one of a start.
        if failure.kind == ErrorKind::StartFailed {
            failure.kind = ErrorKind::ExecFailed;
        }
        failure
    }

    /// Kills its remaining processes and waits for their end; it does not count in the table.
    fn leave(&mut self, worker: Option<u32>, process: Option<u32>, cx: &mut Context) {
        self.phase = Phase::Leftover { worker, process, kill_at: cx.time.ms };
        self.while_leftover(&ExecInput::Due, cx);
    }

    fn while_leftover(&mut self, input: &ExecInput, cx: &mut Context) {
        let Phase::Leftover { worker, process, kill_at } = &mut self.phase else { return };
        match input {
            ExecInput::Worker(WorkerInput::Reaped(_)) => *worker = None,
            ExecInput::Reaped(_) | ExecInput::Checked(Some(_)) => *process = None,
            ExecInput::Due if *kill_at > cx.time.ms => return,
            ExecInput::Due | ExecInput::Stop => {
                *kill_at = cx.time.ms.saturating_add(KILL_AGAIN_MS);
                for pid in [*worker, *process].into_iter().flatten() {
                    cx.kill(pid);
                }
                // A tracer may keep it from being reaped for ever.
                if let Some(pid) = *process {
                    cx.act(Action::CheckProcess(self.serial, pid));
                }
            }
            _ => {}
        }
        if worker.is_none() && process.is_none() {
            self.phase = Phase::Gone;
        }
    }
}
