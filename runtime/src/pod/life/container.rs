//! Handles results of containers' jobs, and the shim's reports about containers.

use super::stage::{End, PodStage, Stage, Start};
use super::{Action, Answer, Job, Life, StartError, Timer, Waiter, step};
use crate::error::{Error, ErrorKind};
use crate::pod::exit;
use model::transition::ContainerEvent;
use model::{ContainerId, ContainerPhase, ContainerRecord, Exit};
use std::sync::Arc;
use std::time::Duration;

/// Pause before a failed removal without a caller is retried.
const REMOVE_AGAIN: Duration = Duration::from_secs(60);

impl Life {
    pub(super) fn created(&mut self, id: &ContainerId, created: Result<Box<ContainerRecord>, Error>) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let Stage::Creating { callers, exit } = &mut container.stage else { return };
        let (callers, exit) = (std::mem::take(callers), exit.take());
        let outcome = match created {
            Ok(record) => {
                container.record = Arc::new(*record);
                container.stage = Stage::Created { start: Start::Not, end: None };
                self.note(id);
                self.show(id);
                if let Some((exit, started_at)) = exit {
                    self.exited(id, exit, started_at);
                }
                Ok(Answer::Created(id.clone()))
            }
            Err(error) => {
                let name = container.record.config.meta.name.clone();
                self.containers.remove(id);
                // The shim's part of it may have been lost with the connection, or may arrive late.
                if matches!(error.kind, ErrorKind::Unavailable | ErrorKind::DeadlineExceeded) {
                    self.begin(Job::KillOrphan(id.clone()));
                }
                Err(self.overtaken(&format!("container {name} was not created"), error))
            }
        };
        self.actions.extend(callers.into_iter().map(|waiter| Action::Answer(waiter, outcome.clone())));
        self.maybe_settled();
    }

    /// The error for an operation that failed because its pod was stopped: it names the stop, not the error
    /// of the killed processes.
    fn overtaken(&self, what: &str, error: Error) -> Error {
        let own_fault = matches!(
            error.kind,
            ErrorKind::NotFound | ErrorKind::InvalidArgument | ErrorKind::ResourceExhausted
        );
        match self.admit() {
            Err(over) if !own_fault => {
                tracing::debug!(pod = %self.record.id, %error, "overtaken by the end of the pod");
                over.context(what)
            }
            _ => error,
        }
    }

    pub(super) fn started(&mut self, id: &ContainerId, outcome: Result<i64, StartError>) {
        let outcome = outcome.map_err(|error| self.not_started(id, error));
        let Some(container) = self.containers.get_mut(id) else { return };
        let (callers, answer) = match &mut container.stage {
            Stage::Created { start, end } => {
                let Start::Asked(callers) = start else { return };
                let callers = std::mem::take(callers);
                if let Ok(started_at) = outcome {
                    container.stage = Stage::Running { start: None, end: end.take() };
                    step(container, ContainerEvent::Started);
                    container.change(|record| record.started_at = started_at);
                } else {
                    *start = Start::Doubtful;
                }
                (callers, outcome.map(drop))
            }
            Stage::Running { start, .. } => {
                let Some(callers) = start.take() else { return };
                if let Ok(started_at) = outcome {
                    container.change(|record| record.started_at = started_at);
                }
                // The reply was lost, but an event has already told the result.
                (callers, Ok(()))
            }
            Stage::Exiting { start, told, .. } => {
                let Some(callers) = start.take() else { return };
                let answer = outcome.clone().map(drop);
                told.extend(callers.into_iter().map(|waiter| (waiter, answer.clone())));
                if let Ok(started_at) = outcome {
                    container.change(|record| record.started_at = started_at);
                    self.note(id);
                }
                return;
            }
            Stage::Exited { start, .. } => {
                let Some(callers) = start.take() else { return };
                (callers, outcome.map(drop))
            }
            // There is no caller, or the caller got a reply when the removal began.
            Stage::Creating { .. } | Stage::CutOff | Stage::Removing { .. } => return,
        };
        self.note(id);
        if self.containers.get(id).is_some_and(|it| it.record.phase == ContainerPhase::Running) {
            self.show(id);
        }
        self.answer_all(callers, &answer);
    }

    /// The error that callers of a failed start get. Records the exit of a container that never ran.
    fn not_started(&mut self, id: &ContainerId, error: StartError) -> Error {
        let stopped = self.containers.get(id).is_some_and(|it| it.is_being_stopped());
        // If the container was stopped meanwhile, the error comes from its killed process and is not the reason.
        let aborted = |error: Error| match error.kind {
            ErrorKind::Internal if stopped => {
                Error::new(ErrorKind::Aborted, format!("stopped while it was started: {}", error.message))
            }
            _ => error,
        };
        match error {
            StartError::Never(message) => {
                // First, because the caller gets a reply when this exit is published.
                self.exited(id, exit::never_ran(message.clone(), self.now.wall), 0);
                let name = self.containers.get(id).map(|it| it.record.config.meta.name.clone());
                let name = name.unwrap_or_default();
                let error =
                    aborted(Error::internal(format!("container {name} cannot be started: {message}")));
                self.overtaken(&format!("container {name} was not started"), error)
            }
            StartError::Other(error) => {
                let error = aborted(error.context(format!("start container {id}")));
                self.overtaken(&format!("container {id} was not started"), error)
            }
        }
    }

    /// The shim reports that init has called execve. The reply to the start request may have been lost with a
    /// daemon, or may have come after the caller's time-out.
    pub(super) fn running(&mut self, id: &ContainerId, started_at: i64) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let Stage::Created { start, end } = &mut container.stage else { return };
        let (start, end) = (std::mem::replace(start, Start::Not), end.take());
        let start = match start {
            Start::Asked(callers) => Some(callers),
            Start::Not | Start::Doubtful => None,
        };
        let shown = start.is_none();
        container.stage = Stage::Running { start, end };
        step(container, ContainerEvent::Started);
        container.change(|record| record.started_at = started_at);
        self.note(id);
        // A running start publishes it once its record is durable.
        if shown {
            tracing::info!(container = %id, "container was started by a request whose caller has gone");
            self.show(id);
        }
    }

    pub(super) fn stop_ended(&mut self, id: &ContainerId, outcome: Result<Option<Exit>, Error>) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let (Stage::Created { end, .. } | Stage::Running { end, .. }) = &mut container.stage else {
            // The exit was reported first; the callers get replies when it is recorded.
            return;
        };
        let error = match outcome {
            Ok(Some(exit)) => {
                tracing::warn!(container = %id, code = exit.code, "container exited; its shim has not reported it");
                return self.exited(id, exit, 0);
            }
            Ok(None) => Error::internal(format!("container {id}: its stop has ended without an exit")),
            Err(error) => error,
        };
        let Some(End { stoppers, removers, .. }) = end.take() else { return };
        self.answer_all([stoppers, removers].concat(), &Err(error));
    }

    /// Records an exit, which is published when it is durable. Later reports of the same exit are ignored.
    pub(super) fn exited(&mut self, id: &ContainerId, exit: Exit, started_at: i64) {
        let Some(container) = self.containers.get_mut(id) else {
            tracing::debug!(container = %id, "exit of an unknown container");
            return;
        };
        let (start, end) = match &mut container.stage {
            // The create job will write its record.
            Stage::Creating { exit: early, .. } => {
                early.get_or_insert((exit, started_at));
                return;
            }
            Stage::CutOff | Stage::Exiting { .. } | Stage::Exited { .. } | Stage::Removing { .. } => return,
            Stage::Created { start, end } => {
                let start = match std::mem::replace(start, Start::Not) {
                    Start::Asked(callers) => Some(callers),
                    Start::Not | Start::Doubtful => None,
                };
                (start, end.take())
            }
            Stage::Running { start, end } => (start.take(), end.take()),
        };
        let (stoppers, removers) = end.map(|end| (end.stoppers, end.removers)).unwrap_or_default();
        container.stage = Stage::Exiting { start, told: Vec::new(), stoppers, removers };
        step(container, ContainerEvent::Exited);
        container.change(|record| {
            record.exit = Some(exit);
            record.pid = 0;
            if started_at != 0 {
                record.started_at = started_at;
            }
        });
        self.note(id);
        self.begin(Job::RecordExit(id.clone()));
    }

    /// The exit may be published: replies to all waiting callers.
    pub(super) fn exit_recorded(&mut self, id: &ContainerId, durable: bool) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let Stage::Exiting { start, told, stoppers, removers } = &mut container.stage else { return };
        let (start, told) = (start.take(), std::mem::take(told));
        let (stoppers, removers) = (std::mem::take(stoppers), std::mem::take(removers));
        container.stage = Stage::Exited { durable, start };
        let record = Arc::clone(&container.record);
        self.actions.push(Action::ExitSettled(id.clone()));
        self.show(id);
        self.answer_all(stoppers, &Ok(()));
        for (waiter, outcome) in told {
            self.answer(waiter, outcome);
        }
        if !removers.is_empty() {
            self.begin_remove(id, removers);
        } else if !self.stage.is_ending() {
            // The cgroup is not needed any more, and kubelet wants to remove the pod's cgroup above it.
            self.begin(Job::RemoveCgroup(record));
        }
        self.maybe_settled();
        self.maybe_remove_pod();
    }

    /// Removes an exited container, or continues its removal.
    pub(super) fn begin_remove(&mut self, id: &ContainerId, new: Vec<Waiter>) {
        // The removal of its pod includes it, and sends the replies.
        if let PodStage::Removing { removers } = &mut self.stage {
            return removers.extend(new);
        }
        let Some(container) = self.containers.get_mut(id) else { return self.answer_all(new, &Ok(())) };
        let (start, durable) = match &mut container.stage {
            Stage::Removing { at_work: true, callers, .. } => return callers.extend(new),
            Stage::Removing { at_work: false, durable, .. } => (None, *durable),
            Stage::Exited { start, durable } => (start.take(), *durable),
            Stage::Creating { .. }
            | Stage::CutOff
            | Stage::Created { .. }
            | Stage::Running { .. }
            | Stage::Exiting { .. } => {
                let error = Error::internal(format!("container {id} is to be removed before it has ended"));
                return self.answer_all(new, &Err(error));
            }
        };
        container.stage = Stage::Removing { durable, at_work: true, callers: new };
        // In memory its phase stays Exited, so that it is still that after a failed removal.
        let mut record = ContainerRecord::clone(&container.record);
        if let Ok(phase) = model::transition::container(record.phase, ContainerEvent::Remove) {
            record.phase = phase;
        }
        let record = Arc::new(record);
        self.answer_all(
            start.unwrap_or_default(),
            &Err(Error::state(format!("container {id} is being removed"))),
        );
        self.actions.push(Action::NoteContainer(Arc::clone(&record)));
        self.begin(Job::RemoveContainer(record));
    }

    pub(super) fn container_removed(&mut self, id: &ContainerId, errors: Vec<Error>) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let Stage::Removing { durable, at_work: at_work @ true, callers } = &mut container.stage else {
            return;
        };
        let (durable, callers) = (*durable, std::mem::take(callers));
        let outcome =
            Error::gathered(errors).map_err(|error| error.context(format!("remove container {id}")));
        match &outcome {
            Ok(()) => {
                self.containers.remove(id);
                self.actions.push(Action::HideContainer(id.clone()));
            }
            Err(error) => {
                *at_work = false;
                if container.record.phase == ContainerPhase::Exited {
                    container.stage = Stage::Exited { durable, start: None };
                } else {
                    tracing::error!(container = %id, %error, again = ?REMOVE_AGAIN, "cannot remove the container; it will be retried");
                    self.actions.push(Action::Wake(Timer::Container(id.clone()), REMOVE_AGAIN));
                }
            }
        }
        self.answer_all(callers, &outcome);
        self.maybe_remove_pod();
    }

    /// Retries a removal that an earlier daemon had begun.
    pub(super) fn remove_again(&mut self, id: &ContainerId) {
        let waits = self
            .containers
            .get(id)
            .is_some_and(|it| matches!(it.stage, Stage::Removing { at_work: false, .. }));
        if !waits {
            return;
        }
        if self.stage.is_ending() {
            self.actions.push(Action::Wake(Timer::Container(id.clone()), REMOVE_AGAIN));
        } else {
            self.begin_remove(id, Vec::new());
        }
    }

    /// A container that the shim still has is managed again.
    pub(super) fn resume(&mut self, id: &ContainerId, phase: ContainerPhase, pid: u32, started_at: i64) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let (start, end) = match &mut container.stage {
            Stage::Created { start, end } => (std::mem::replace(start, Start::Not), end.take()),
            Stage::Running { start, end } => (start.take().map_or(Start::Not, Start::Asked), end.take()),
            Stage::Creating { .. }
            | Stage::CutOff
            | Stage::Exiting { .. }
            | Stage::Exited { .. }
            | Stage::Removing { .. } => return,
        };
        if phase == ContainerPhase::Running {
            let start = match start {
                Start::Asked(callers) => Some(callers),
                Start::Not | Start::Doubtful => None,
            };
            container.stage = Stage::Running { start, end };
            if container.record.phase == ContainerPhase::Created {
                step(container, ContainerEvent::Started);
            }
        } else {
            container.stage = Stage::Created { start, end };
            if container.record.phase == ContainerPhase::Running {
                step(container, ContainerEvent::NeverStarted);
            }
        }
        container.change(|record| {
            record.pid = pid;
            // A shim of a later version may not report the time.
            if started_at != 0 || phase == ContainerPhase::Created {
                record.started_at = started_at;
            }
        });
        self.note(id);
        self.show(id);
    }

    /// Undoes a container that was never committed, and so never listed.
    pub(super) fn roll_back(&mut self, id: &ContainerId) {
        let Some(container) = self.containers.get(id) else { return };
        let record = Arc::clone(&container.record);
        let undone = Err(Error::new(
            ErrorKind::Aborted,
            format!("container {id} was undone: its create was interrupted"),
        ));
        self.drop_container(id, &undone);
        self.actions.push(Action::HideContainer(id.clone()));
        self.begin(Job::Unmake(record));
    }
}
