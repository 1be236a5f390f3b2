//! The state machine of a pod and its containers: each input results in a list of actions. It has no clock,
//! does no I/O and does not block; the driver (`pod::driver`) performs the actions.
//!
//! ```text
//! pod         Launching ─┬──► Up ──► Over ─────────┐
//!                        └── failed ──► Over       │ StopPodSandbox, RemovePodSandbox, a retry
//!             (an earlier daemon's)                ▼
//!             Leftover ──────────────────► (Killing) ──► Ending ──► Recording ──► Settling ──► Forgetting ──► Stopped
//!                                                          │ failed: Over, and tried again later                │
//!                                                          └──────────────────◄─────────────────────────        ▼
//!                                                                              Gone ◄─────────────────────── Removing
//!
//! container   Creating ──► Created ──► Running ──► Exiting ──► Exited ──► Removing ──► (forgotten)
//!             CutOff (an earlier daemon's) ──► (undone)
//! ```
//!
//! The variant of a stage holds what is legal in it (`stage`): waiting callers and the running job. Phases of
//! records change only by `model::transition`. docs/pod-states.md lists the result of every input in every
//! stage.

mod commands;
mod container;
mod end;
mod io;
mod link;
mod stage;
#[cfg(test)]
mod tests;

pub(crate) use io::{
    Action, Answer, Ask, Ended, Ending, Heard, Input, Job, LaunchFailed, Leaf, Moment, Outcome, ShimEvent,
    StartError, Timer, Waiter,
};
pub(crate) use link::GREETING;

use crate::error::Error;
use model::transition::{self, ContainerEvent, PodEvent};
use model::{ContainerId, ContainerRecord, PodConfig, PodId, PodPhase, PodRecord};
use stage::{Container, Fate, Link, PodStage};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A pod with its containers and waiting callers.
#[derive(Debug)]
pub(crate) struct Life {
    record: Arc<PodRecord>,
    stage: PodStage,
    fate: Fate,
    link: Link,
    /// Number of failed stops and removals in a row, which determines the pause before the next.
    failures: u32,
    containers: BTreeMap<ContainerId, Container>,
    /// Callers of ReopenContainerLog, while the job is running.
    reopening: BTreeSet<Waiter>,
    /// The time of the current input.
    now: Moment,
    actions: Vec<Action>,
}

impl Life {
    /// Creates a new pod; its launch is the first job.
    pub(crate) fn launch(id: PodId, config: PodConfig, now: Moment) -> (Self, Vec<Action>) {
        let record = PodRecord::new(id, config, now.wall);
        let mut life = Self::new(record, PodStage::Launching, Fate::Stays, Link::None, now);
        life.begin(Job::Launch(Arc::clone(&life.record)));
        let actions = std::mem::take(&mut life.actions);
        (life, actions)
    }

    /// Restores a pod from records that an earlier daemon wrote. The driver must connect to its shim; the
    /// first input is the result. `leaving`: `model::reconcile::is_leaving`.
    pub(crate) fn restore(
        record: PodRecord,
        containers: Vec<ContainerRecord>,
        leaving: bool,
        now: Moment,
    ) -> (Self, Vec<Action>) {
        let stage = match record.phase {
            PodPhase::Launching | PodPhase::Removing => PodStage::Leftover,
            PodPhase::Ready => PodStage::Up,
            PodPhase::Stopping => PodStage::Over,
            PodPhase::Stopped => PodStage::Stopped { removers: Vec::new() },
        };
        let fate = if leaving { Fate::Leaves } else { Fate::Stays };
        let link = Link::down(now.wall, "it has not been contacted since the daemon's start");
        let mut life = Self::new(record, stage, fate, link, now);
        for record in containers {
            life.containers.insert(record.id.clone(), Container::restored(record));
        }
        life.show_all();
        let actions = std::mem::take(&mut life.actions);
        (life, actions)
    }

    fn new(record: PodRecord, stage: PodStage, fate: Fate, link: Link, now: Moment) -> Self {
        Self {
            record: Arc::new(record),
            stage,
            fate,
            link,
            failures: 0,
            containers: BTreeMap::new(),
            reopening: BTreeSet::new(),
            now,
            actions: Vec::new(),
        }
    }

    /// Handles an input; returns the actions in order.
    pub(crate) fn handle(&mut self, now: Moment, input: Input) -> Vec<Action> {
        self.now = now;
        match input {
            Input::Ask(waiter, ask) => self.ask(waiter, ask),
            Input::Shim(ShimEvent::Exited(id, (exit, started_at))) => self.exited(&id, exit, started_at),
            Input::Shim(ShimEvent::Started(id, started_at)) => self.running(&id, started_at),
            Input::Shim(ShimEvent::PauseExited { code }) => {
                self.not_ready(&format!("pause ended with code {code}"));
            }
            Input::LinkLost => self.link_lost(),
            Input::Heard(heard) => self.heard(*heard),
            Input::Done(outcome) => self.done(outcome),
            Input::Due(Timer::Pod) => self.go_on(),
            Input::Due(Timer::Container(id)) => self.remove_again(&id),
        }
        std::mem::take(&mut self.actions)
    }

    fn done(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Launched(launched) => self.launched(launched),
            Outcome::Created(id, created) => self.created(&id, created),
            Outcome::Started(id, started) => self.started(&id, started),
            Outcome::StopEnded(id, stopped) => self.stop_ended(&id, stopped),
            Outcome::ExitRecorded(id, durable) => self.exit_recorded(&id, durable),
            Outcome::ContainerRemoved(id, errors) => self.container_removed(&id, errors),
            Outcome::LogReopened(waiter, reopened) => {
                if self.reopening.remove(&waiter) {
                    self.answer(waiter, reopened);
                }
            }
            Outcome::PodEnded(ended) => self.ended(&ended),
            Outcome::PodKilled(ended) => self.remains_killed(&ended),
            Outcome::PodRecorded => self.recorded(),
            Outcome::ShimForgotten(errors) => self.forgotten(errors),
            Outcome::PodRemoved(errors) => self.removed(errors),
        }
    }

    /// The pod's record.
    pub(crate) fn record(&self) -> &PodRecord {
        &self.record
    }

    fn launched(&mut self, launched: Result<Box<PodRecord>, LaunchFailed>) {
        if !matches!(self.stage, PodStage::Launching) {
            return;
        }
        let id = self.record.id.clone();
        match launched {
            Ok(record) => {
                self.record = Arc::new(*record);
                self.stage = PodStage::Up;
                self.actions.push(Action::NotePod(Arc::clone(&self.record)));
                self.actions.push(Action::Connect);
                self.link = Link::Up;
                self.show_pod();
                self.actions.push(Action::TellName(Ok(id)));
            }
            Err(LaunchFailed { error, left }) if left.is_empty() => {
                self.stage = PodStage::Gone;
                // The name is released before the replies, so that a retry starts a new launch.
                self.actions.push(Action::ReleaseName);
                self.actions.push(Action::TellName(Err(error)));
                self.actions.push(Action::Finish);
            }
            Err(LaunchFailed { error, left }) => {
                for left in &left {
                    tracing::error!(pod = %id, error = %left, "not cleaned up after a failed launch");
                }
                self.stage = PodStage::Over;
                self.show_ending(&format!("launch failed: {}", error.message));
                self.try_again();
                self.actions.push(Action::TellName(Err(error)));
            }
        }
    }

    fn begin(&mut self, job: Job) {
        self.actions.push(Action::Begin(job));
    }

    fn answer(&mut self, waiter: Waiter, outcome: Result<(), Error>) {
        self.actions.push(Action::Answer(waiter, outcome.map(|()| Answer::Done)));
    }

    fn answer_all(&mut self, waiters: Vec<Waiter>, outcome: &Result<(), Error>) {
        for waiter in waiters {
            self.answer(waiter, outcome.clone());
        }
    }

    fn is_hidden(&self) -> bool {
        self.fate == Fate::Leaves || matches!(self.stage, PodStage::Launching | PodStage::Gone)
    }

    /// Publishes the pod's current state, unless it is hidden.
    fn show_pod(&mut self) {
        if !self.is_hidden() {
            self.actions.push(Action::ShowPod(Arc::clone(&self.record), self.link.silent_since()));
        }
    }

    /// Publishes a container, unless it is hidden.
    fn show(&mut self, id: &ContainerId) {
        if let Some(container) = self.containers.get(id)
            && !self.is_hidden()
            && container.is_committed()
            && container.record.phase != model::ContainerPhase::Removing
        {
            self.actions.push(Action::ShowContainer(Arc::clone(&container.record)));
        }
    }

    fn show_all(&mut self) {
        self.show_pod();
        let ids: Vec<ContainerId> = self.containers.keys().cloned().collect();
        ids.iter().for_each(|id| self.show(id));
    }

    /// Changes the pod's record; published lists and running writes keep the old one.
    fn change(&mut self, change: impl FnOnce(&mut PodRecord)) {
        change(Arc::make_mut(&mut self.record));
    }

    /// Changes the pod's phase; false if the table has no such transition.
    fn step(&mut self, event: PodEvent) -> bool {
        match transition::pod(self.record.phase, event) {
            Ok(phase) => {
                self.change(|record| record.phase = phase);
                true
            }
            Err(refusal) => {
                tracing::debug!(pod = %self.record.id, %refusal, "no such transition of a pod");
                false
            }
        }
    }

    /// Sets the content of a container's record for the next write.
    fn note(&mut self, id: &ContainerId) {
        if let Some(container) = self.containers.get(id) {
            self.actions.push(Action::NoteContainer(Arc::clone(&container.record)));
        }
    }

    /// Drops a container and replies to all callers that wait for it.
    fn drop_container(&mut self, id: &ContainerId, outcome: &Result<(), Error>) {
        if let Some(container) = self.containers.remove(id) {
            self.answer_all(container.into_waiters(), outcome);
        }
    }
}

/// Changes a container's phase by the table; it is unchanged if the table has no such transition.
fn step(container: &mut Container, event: ContainerEvent) {
    match transition::container(container.record.phase, event) {
        Ok(phase) => container.change(|record| record.phase = phase),
        Err(refusal) => {
            tracing::debug!(container = %container.record.id, %refusal, "no such transition of a container")
        }
    }
}
