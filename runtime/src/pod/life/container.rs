//! Handles results of containers' jobs, and the shim's reports about containers.

use super::stage::{PodStage, RunningStop, Stage, Start};
use super::{Action, Answer, Job, Life, StartError, Timer, Waiter, next_phase};
use crate::error::{Error, ErrorKind};
use crate::pod::exit;
use model::transition::ContainerEvent;
use model::{ContainerId, ContainerPhase, ContainerRecord, Exit};
use std::sync::Arc;
use std::time::Duration;

/// Pause before the daemon itself retries a failed removal.
const REMOVE_AGAIN: Duration = Duration::from_secs(60);

impl Life {
    pub(super) fn created(&mut self, id: &ContainerId, created: Result<Box<ContainerRecord>, Error>) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let Stage::Creating { callers, exit } = &mut container.stage else { return };
        let (callers, exit) = (std::mem::take(callers), exit.take());
        let outcome = match created {
            Ok(record) => {
                container.record = Arc::new(*record);
                container.stage = Stage::Created { start: Start::NotRequested, stop: None };
                self.set_record(id);
                self.publish(id);
                let exited = exit.map_or(Ok(()), |(exit, started_at)| self.exited(id, exit, started_at));
                exited.map(|()| Answer::Created(id.clone()))
            }
            Err(error) => {
                let name = container.record.config.meta.name.clone();
                self.containers.remove(id);
                // The shim may have created it all the same, or may do so later.
                if matches!(error.kind, ErrorKind::Unavailable | ErrorKind::DeadlineExceeded) {
                    self.begin(Job::KillOrphan(id.clone()));
                }
                Err(self.overtaken(&format!("container {name} was not created"), error))
            }
        };
        self.actions.extend(callers.into_iter().map(|waiter| Action::Answer(waiter, outcome.clone())));
        self.continue_stop();
    }

    /// The error of an operation that failed while its pod was being stopped. The stop is the reason, so it
    /// replaces the error of the killed processes; errors of the request itself stay.
    fn overtaken(&self, what: &str, error: Error) -> Error {
        let own_fault = matches!(
            error.kind,
            ErrorKind::NotFound | ErrorKind::InvalidArgument | ErrorKind::ResourceExhausted
        );
        match self.admit() {
            Err(over) if !own_fault => {
                tracing::debug!(error = %error.text(), "overtaken by the stop of the pod");
                over.context(what)
            }
            _ => error,
        }
    }

    pub(super) fn started(&mut self, id: &ContainerId, outcome: Result<i64, StartError>) {
        let outcome = outcome.map_err(|error| self.not_started(id, error));
        let Some(container) = self.containers.get_mut(id) else { return };
        let (callers, answer) = match &mut container.stage {
            Stage::Created { start, stop } => {
                let Start::Requested(callers) = start else { return };
                let callers = std::mem::take(callers);
                match outcome {
                    Ok(started_at) => {
                        container.stage = Stage::Running { start: None, stop: stop.take() };
                        container.change(|record| record.started_at = started_at);
                        (callers, self.step_container(id, ContainerEvent::Started))
                    }
                    Err(error) => {
                        *start = Start::Unconfirmed;
                        (callers, Err(error))
                    }
                }
            }
            Stage::Running { start, .. } => {
                let Some(callers) = start.take() else { return };
                if let Ok(started_at) = outcome {
                    container.change(|record| record.started_at = started_at);
                }
                // Even if the shim's reply was lost: its event has reported the start.
                (callers, Ok(()))
            }
            Stage::Exiting { start, start_replies, .. } => {
                let Some(callers) = start.take() else { return };
                let answer = outcome.clone().map(drop);
                start_replies.extend(callers.into_iter().map(|waiter| (waiter, answer.clone())));
                if let Ok(started_at) = outcome {
                    container.change(|record| record.started_at = started_at);
                    self.set_record(id);
                }
                return;
            }
            Stage::Exited { start, .. } => {
                let Some(callers) = start.take() else { return };
                (callers, outcome.map(drop))
            }
            // No start is running, or its callers got a reply when the removal began.
            Stage::Creating { .. } | Stage::CutOff | Stage::Removing { .. } => return,
        };
        self.set_record(id);
        if self.containers.get(id).is_some_and(|it| it.record.phase == ContainerPhase::Running) {
            self.publish(id);
        }
        self.answer_all(callers, &answer);
    }

    /// The error for the callers of a failed start. If the container never ran, its exit is recorded.
    fn not_started(&mut self, id: &ContainerId, error: StartError) -> Error {
        let stopped = self.containers.get(id).is_some_and(|it| it.is_being_stopped());
        // If the container was stopped meanwhile, the error is that of its killed process, not the reason.
        let aborted = |error: Error| match error.kind {
            ErrorKind::Internal if stopped => error
                .context("the container was stopped while it was being started")
                .with_kind(ErrorKind::Aborted),
            _ => error,
        };
        match error {
            StartError::Never(message) => {
                // First, because the callers get their reply when this exit is published.
                if let Err(error) = self.exited(id, exit::never_ran(message.clone(), self.now.wall), 0) {
                    return error;
                }
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

    /// The shim reports that init has called execve. This event is the only report of it if the reply to the start
    /// request was lost with an earlier daemon, or came after the job's time limit.
    pub(super) fn start_reported(&mut self, id: &ContainerId, started_at: i64) {
        let Some(container) = self.containers.get_mut(id) else { return };
        if !matches!(container.stage, Stage::Created { .. }) {
            return;
        }
        let (start, stop) = container.take_start_and_stop();
        let has_job = start.is_some();
        container.stage = Stage::Running { start, stop };
        container.change(|record| record.started_at = started_at);
        // An error was reported; the event has no caller.
        drop(self.step_container(id, ContainerEvent::Started));
        self.set_record(id);
        // A start job that is running publishes it once its record is durable.
        if !has_job {
            tracing::info!(container = %id, "container was started by a request whose caller has gone");
            self.publish(id);
        }
    }

    pub(super) fn stop_ended(&mut self, id: &ContainerId, outcome: Result<Option<Exit>, Error>) {
        let Some(container) = self.containers.get(id) else { return };
        if !matches!(container.stage, Stage::Created { .. } | Stage::Running { .. }) {
            // The exit was reported before: the callers get replies when it is recorded.
            return;
        }
        let error = match outcome {
            Ok(Some(exit)) => {
                tracing::warn!(container = %id, code = exit.code, "container exited; its shim has not reported it");
                match self.exited(id, exit, 0) {
                    Ok(()) => return,
                    Err(error) => error,
                }
            }
            Ok(None) => Error::internal(format!("container {id}: its stop has ended without an exit")),
            Err(error) => error,
        };
        let stop = match self.containers.get_mut(id).map(|container| &mut container.stage) {
            Some(Stage::Created { stop, .. } | Stage::Running { stop, .. }) => stop.take(),
            _ => None,
        };
        let Some(RunningStop { stoppers, removers, .. }) = stop else { return };
        self.answer_all([stoppers, removers].concat(), &Err(error));
    }

    /// Records an exit, which is published when that has ended. Later reports of the same exit are ignored.
    ///
    /// # Errors
    /// The container cannot exit in its phase: a bug, which is logged. Nothing is changed.
    pub(super) fn exited(&mut self, id: &ContainerId, exit: Exit, started_at: i64) -> Result<(), Error> {
        let Some(container) = self.containers.get_mut(id) else {
            tracing::debug!(container = %id, "exit of an unknown container");
            return Ok(());
        };
        let phase = match &mut container.stage {
            // It is recorded after the create job, which writes the first record.
            Stage::Creating { exit: early, .. } => {
                early.get_or_insert((exit, started_at));
                return Ok(());
            }
            Stage::CutOff | Stage::Exiting { .. } | Stage::Exited { .. } | Stage::Removing { .. } => {
                return Ok(());
            }
            Stage::Created { .. } | Stage::Running { .. } => {
                next_phase(&container.record, ContainerEvent::Exited)
            }
        };
        let phase = match phase {
            Ok(phase) => phase,
            Err(error) => return Err(self.refused(error)),
        };
        let (start, stop) = container.take_start_and_stop();
        let (stoppers, removers) = stop.map(|stop| (stop.stoppers, stop.removers)).unwrap_or_default();
        container.stage = Stage::Exiting { start, start_replies: Vec::new(), stoppers, removers };
        container.change(|record| {
            record.phase = phase;
            record.exit = Some(exit);
            record.pid = 0;
            if started_at != 0 {
                record.started_at = started_at;
            }
        });
        self.set_record(id);
        self.begin(Job::RecordExit(id.clone()));
        Ok(())
    }

    /// The write of an exit has ended: publishes it and replies to the callers that wait for it.
    pub(super) fn exit_recorded(&mut self, id: &ContainerId, durable: bool) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let Stage::Exiting { start, start_replies, stoppers, removers } = &mut container.stage else {
            return;
        };
        let (start, start_replies) = (start.take(), std::mem::take(start_replies));
        let (stoppers, removers) = (std::mem::take(stoppers), std::mem::take(removers));
        container.stage = Stage::Exited { durable, start };
        let record = Arc::clone(&container.record);
        self.actions.push(Action::FinishStop(id.clone()));
        self.publish(id);
        self.answer_all(stoppers, &Ok(()));
        for (waiter, outcome) in start_replies {
            self.answer(waiter, outcome);
        }
        if !removers.is_empty() {
            self.begin_remove(id, removers);
        } else if !self.stage.is_ending() {
            // An exited container needs no cgroup, and kubelet cannot remove the pod's above it otherwise.
            self.begin(Job::RemoveCgroup(record));
        }
        self.continue_stop();
        self.continue_removal();
    }

    /// Removes an exited container, or continues its removal.
    pub(super) fn begin_remove(&mut self, id: &ContainerId, new: Vec<Waiter>) {
        // The removal of its pod includes it, and its callers wait for that.
        if let PodStage::Removing { removers, .. } = &mut self.stage {
            return removers.extend(new);
        }
        let Some(container) = self.containers.get_mut(id) else { return self.answer_all(new, &Ok(())) };
        let (start, durable) = match &mut container.stage {
            Stage::Removing { job_running: true, callers, .. } => return callers.extend(new),
            Stage::Removing { job_running: false, durable, .. } => (None, *durable),
            Stage::Exited { start, durable } => (start.take(), *durable),
            Stage::Creating { .. }
            | Stage::CutOff
            | Stage::Created { .. }
            | Stage::Running { .. }
            | Stage::Exiting { .. } => {
                let error = Error::internal(format!("container {id} cannot be removed before it has exited"));
                return self.answer_all(new, &Err(error));
            }
        };
        let start = start.unwrap_or_default();
        let phase = match next_phase(&container.record, ContainerEvent::Remove) {
            Ok(phase) => phase,
            Err(error) => {
                let refused = Err(self.refused(error));
                return self.answer_all([start, new].concat(), &refused);
            }
        };
        container.stage = Stage::Removing { durable, job_running: true, callers: new };
        let updates = container.take_updates();
        // Only the record on disk says Removing. In memory the phase stays Exited, which it still is if the
        // removal fails.
        let record = Arc::new(ContainerRecord { phase, ..ContainerRecord::clone(&container.record) });
        let removed = Err(Error::state(format!("container {id} is being removed")));
        self.answer_all([start, updates].concat(), &removed);
        self.actions.push(Action::SetContainerRecord(Arc::clone(&record)));
        self.begin(Job::RemoveContainer(record));
    }

    pub(super) fn container_removed(&mut self, id: &ContainerId, errors: Vec<Error>) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let Stage::Removing { durable, job_running: job_running @ true, callers } = &mut container.stage
        else {
            return;
        };
        let (durable, callers) = (*durable, std::mem::take(callers));
        let outcome =
            Error::gathered(errors).map_err(|error| error.context(format!("remove container {id}")));
        match &outcome {
            Ok(()) => {
                self.containers.remove(id);
                self.actions.push(Action::UnpublishContainer(id.clone()));
            }
            Err(error) => {
                *job_running = false;
                if container.is_leftover() {
                    tracing::error!(container = %id, error = %error.text(), again = ?REMOVE_AGAIN, "cannot remove the container; it will be retried");
                    self.actions.push(Action::StartTimer(Timer::Container(id.clone()), REMOVE_AGAIN));
                } else {
                    container.stage = Stage::Exited { durable, start: None };
                }
            }
        }
        self.answer_all(callers, &outcome);
        self.continue_removal();
    }

    /// The pause is over: retries a removal that an earlier daemon had begun.
    pub(super) fn remove_again(&mut self, id: &ContainerId) {
        let waits = self
            .containers
            .get(id)
            .is_some_and(|it| matches!(it.stage, Stage::Removing { job_running: false, .. }));
        if !waits {
            return;
        }
        if self.stage.is_ending() {
            self.actions.push(Action::StartTimer(Timer::Container(id.clone()), REMOVE_AGAIN));
        } else {
            self.begin_remove(id, Vec::new());
        }
    }

    /// Adopts a container that the shim has, in the state that the shim reports.
    pub(super) fn resume(&mut self, id: &ContainerId, phase: ContainerPhase, pid: u32, started_at: i64) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let (start, stop) = match &mut container.stage {
            Stage::Created { start, stop } => (std::mem::replace(start, Start::NotRequested), stop.take()),
            Stage::Running { start, stop } => {
                (start.take().map_or(Start::NotRequested, Start::Requested), stop.take())
            }
            Stage::Creating { .. }
            | Stage::CutOff
            | Stage::Exiting { .. }
            | Stage::Exited { .. }
            | Stage::Removing { .. } => return,
        };
        if phase == ContainerPhase::Running {
            let start = match start {
                Start::Requested(callers) => Some(callers),
                Start::NotRequested | Start::Unconfirmed => None,
            };
            container.stage = Stage::Running { start, stop };
        } else {
            container.stage = Stage::Created { start, stop };
        }
        let event = match (container.record.phase, phase) {
            (ContainerPhase::Created, ContainerPhase::Running) => Some(ContainerEvent::Started),
            (ContainerPhase::Running, ContainerPhase::Created) => Some(ContainerEvent::NeverStarted),
            _ => None,
        };
        container.change(|record| {
            record.pid = pid;
            // 0 for a running container: a shim of a later version reports a state without the time.
            if started_at != 0 || phase == ContainerPhase::Created {
                record.started_at = started_at;
            }
        });
        if let Some(event) = event {
            // An error was reported; there is no caller.
            drop(self.step_container(id, event));
        }
        self.set_record(id);
        self.publish(id);
    }

    /// Undoes the create of a container that was never committed, or that its shim is still creating although its record says
    /// that it is created (`model::reconcile`): such a one is listed.
    pub(super) fn roll_back(&mut self, id: &ContainerId) {
        let Some(container) = self.containers.get(id) else { return };
        let record = Arc::clone(&container.record);
        let undone = Err(Error::new(
            ErrorKind::Aborted,
            format!("container {id} was undone: its create was interrupted"),
        ));
        self.drop_container(id, &undone);
        self.actions.push(Action::UnpublishContainer(id.clone()));
        self.begin(Job::UndoCreate(record));
    }
}
