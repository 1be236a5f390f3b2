//! The state machine of a pod and its containers: each input results in a list of actions. It has no clock, does
//! no I/O and does not block; the driver (`pod::driver`) performs the actions.
//!
//! ```text
//! launch of a pod    Launching ──► Ready ──► NotReady
//! its stop           Ready, NotReady, Leftover ──► TearingDown ──► Recording ──► Settling ──► RemovingShim ──► Stopped
//! its removal        Stopped ──► Removing ──► Removed
//!
//! container          Creating ──► Created ──► Running ──► Exiting ──► Exited ──► Removing ──► (no entry)
//! ```
//!
//! The drawing leaves out:
//! - After an error a pod goes back: from TearingDown (by way of Settling) to NotReady, from RemovingShim and Removing to
//!   Stopped. The next call tries again, and so does a timer, except for a removal that a call has begun.
//! - A launch that fails ends in Removed, or in NotReady if something of it could not be undone.
//! - A Ready or NotReady pod whose shim is found dead is Killing before it is TearingDown; a Leftover is not: its teardown
//!   kills what is left.
//! - Leftover is a pod, and CutOff a container, that an earlier daemon left incomplete: it is removed or undone.
//! - A container can exit before it runs: Created to Exiting.
//! - If an exit is not durable, a pod goes from Settling to Stopped, and its shim's folder stays until the pod's removal.
//! - A Leftover whose record says Removing goes to Stopped and from there to Removing: it was torn down before.
//!
//! docs/pod-states.md lists the result of every input in every stage.
//!
//! | term | meaning |
//! | --- | --- |
//! | call, waiter | a CRI call, and the number by which the driver finds the caller to reply to; every call gets one reply |
//! | stage | where a pod or container is in this state machine (`stage`). Its variant holds what is legal then: waiting callers, the running job. In memory only |
//! | phase | where it is as far as a record says, so that another daemon can continue. Changed by `model::transition` alone |
//! | job, outcome | work that takes time (`pod::jobs`), and its result, which is an input |
//! | committed | created completely and recorded as such. What is not committed is not listed, and is undone by the next start of the daemon. Except a pod whose undoing has failed, or was itself cut off by the end of a daemon: its record says Stopping or Stopped then, and it is listed as not ready until a call removes it. If it is this daemon's roll-back of an earlier daemon's launch that has failed, the daemon also retries it and removes the pod itself (`Fate::Stuck`) |
//! | publish | to make the current state of an object visible to List and Status (`pod::publish`) |
//! | set a record | to say what the next write of a record contains; a job writes it |
//! | link | the connection to the shim: up, down (the daemon dials), or none |
//! | dial | to connect to the shim and receive its snapshot; the result (`DialResult`) also has its exit files |
//! | silent | of a shim whose process exists, or may exist, and that does not respond. It is not dead, and its pod continues |
//! | fate | whether the daemon removes the pod without a call, because it was never committed or its removal had begun |
//! | durable | of an exit: on disk in the container's record. Until then its only copy is the shim's exit file |

mod commands;
mod container;
mod end;
mod io;
mod link;
mod stage;
#[cfg(test)]
mod tests;
mod update;

pub(crate) use io::{
    Action, Answer, Call, DialResult, ExitReport, Input, Job, LaunchFailed, Leaf, Moment, Outcome, ShimEvent,
    StartError, Timer, TornDown, Waiter,
};
pub(crate) use link::GREETING;

use crate::error::Error;
use model::transition::{self, ContainerEvent, PodEvent};
use model::{ContainerId, ContainerPhase, ContainerRecord, PodPhase, PodRecord};
use stage::{Container, Fate, Link, PodStage, Stage, Start};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A pod with its containers and waiting callers.
#[derive(Debug)]
pub(crate) struct Life {
    record: Arc<PodRecord>,
    stage: PodStage,
    fate: Fate,
    link: Link,
    /// Number of failed stops and removals in a row. The pause before the next attempt grows with it.
    failures: u32,
    containers: BTreeMap<ContainerId, Container>,
    /// Callers of ReopenContainerLog and UpdatePodSandboxResources whose job is running.
    awaiting: BTreeSet<Waiter>,
    /// The time of the current input.
    now: Moment,
    actions: Vec<Action>,
}

impl Life {
    /// Creates a new pod; its launch is the first job.
    pub(crate) fn launch(record: PodRecord, now: Moment) -> (Self, Vec<Action>) {
        let mut life = Self::new(record, PodStage::Launching, Fate::Stays, Link::None, now);
        life.begin(Job::Launch(Arc::clone(&life.record)));
        let actions = std::mem::take(&mut life.actions);
        (life, actions)
    }

    /// Restores a pod from records that an earlier daemon wrote. The first input must be the result of connecting
    /// to its shim. `leaving` is that of `model::reconcile::is_leaving`.
    pub(crate) fn restore(
        record: PodRecord,
        containers: Vec<ContainerRecord>,
        leaving: bool,
        now: Moment,
    ) -> (Self, Vec<Action>) {
        let stage = match record.phase {
            PodPhase::Launching | PodPhase::Removing => PodStage::Leftover,
            PodPhase::Ready => PodStage::Ready,
            PodPhase::Stopping => PodStage::NotReady,
            PodPhase::Stopped => PodStage::Stopped { removers: Vec::new(), folder_left: false },
        };
        let fate = if leaving { Fate::Leaves } else { Fate::Stays };
        // The driver of a restored pod begins the first attempt to connect.
        let why = "the daemon has not connected to it since its start".to_owned();
        let link = Link::Down { since: now.wall, attempts: 1, silent: false, why };
        let mut life = Self::new(record, stage, fate, link, now);
        for record in containers {
            let id = record.id.clone();
            life.containers.insert(id.clone(), Container::restored(record));
            life.settle_update(&id);
        }
        life.publish_all();
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
            awaiting: BTreeSet::new(),
            now,
            actions: Vec::new(),
        }
    }

    /// Handles an input; returns the actions in order.
    pub(crate) fn handle(&mut self, now: Moment, input: Input) -> Vec<Action> {
        self.now = now;
        match input {
            Input::Call(waiter, call) => self.call(waiter, call),
            // An error was reported; the event has no caller.
            Input::Shim(ShimEvent::Exited(id, (exit, started_at))) => {
                drop(self.exited(&id, exit, started_at));
            }
            Input::Shim(ShimEvent::Started(id, started_at)) => self.start_reported(&id, started_at),
            Input::Shim(ShimEvent::PauseExited { code }) => {
                self.not_ready(&format!("pause ended with code {code}"));
            }
            Input::LinkLost => self.link_lost(),
            Input::Dialled(dialled) => self.dialled(*dialled),
            Input::Done(outcome) => self.done(outcome),
            Input::Due(Timer::Pod) => self.retry(),
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
            Outcome::LogReopened(waiter, reopened) => self.served(waiter, reopened),
            Outcome::Updated(id, updated) => self.updated(&id, updated),
            Outcome::UpdateRecorded(id) => self.update_recorded(&id),
            Outcome::PodUpdateRecorded(waiter) => self.served(waiter, Ok(())),
            Outcome::PodTornDown(torn_down) => self.torn_down(&torn_down),
            Outcome::RemainsKilled(torn_down) => self.remains_killed(&torn_down),
            Outcome::StopRecorded => self.stop_recorded(),
            Outcome::ShimFolderRemoved(errors) => self.shim_folder_removed(errors),
            Outcome::PodRemoved(errors) => self.pod_removed(errors),
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
                self.stage = PodStage::Ready;
                self.actions.push(Action::SetPodRecord(Arc::clone(&self.record)));
                self.actions.push(Action::Connect);
                self.link = Link::Up;
                self.publish_pod();
                self.actions.push(Action::ReplyToRun(Ok(id)));
            }
            Err(LaunchFailed { error, left }) if left.is_empty() => {
                self.stage = PodStage::Removed;
                // The name is released before the replies, so that a retry starts a new launch.
                self.actions.push(Action::ReleaseName);
                self.actions.push(Action::ReplyToRun(Err(error)));
                self.actions.push(Action::Finish);
            }
            Err(LaunchFailed { error, left }) => {
                for left in &left {
                    tracing::error!(error = %left.text(), "cannot undo a failed launch; it is retried");
                }
                self.stage = PodStage::NotReady;
                self.publish_stopping(&format!("launch failed: {}", error.text()));
                self.retry_later();
                self.actions.push(Action::ReplyToRun(Err(error)));
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
        self.fate == Fate::Leaves || matches!(self.stage, PodStage::Launching | PodStage::Removed)
    }

    /// Publishes the pod's current state, unless it may not be listed.
    fn publish_pod(&mut self) {
        if !self.is_hidden() {
            self.actions.push(Action::PublishPod(Arc::clone(&self.record), self.link.silent_since()));
        }
    }

    /// Publishes a container's current state, unless it may not be listed.
    fn publish(&mut self, id: &ContainerId) {
        if let Some(container) = self.containers.get(id)
            && !self.is_hidden()
            && container.is_committed()
            && !container.is_leftover()
        {
            self.actions.push(Action::PublishContainer(Arc::clone(&container.record)));
        }
    }

    fn publish_all(&mut self) {
        self.publish_pod();
        let ids: Vec<ContainerId> = self.containers.keys().cloned().collect();
        ids.iter().for_each(|id| self.publish(id));
    }

    /// Changes the pod's record. Published views and running writes keep the old one.
    fn change(&mut self, change: impl FnOnce(&mut PodRecord)) {
        change(Arc::make_mut(&mut self.record));
    }

    /// Changes the pod's phase.
    ///
    /// # Errors
    /// The table has no such transition: a bug, which is logged. The caller must fail what needed it.
    fn step(&mut self, event: PodEvent) -> Result<(), Error> {
        match transition::pod(self.record.phase, event) {
            Ok(phase) => {
                self.change(|record| record.phase = phase);
                Ok(())
            }
            Err(refusal) => {
                let error = Error::from(refusal).context(format!("pod {}", self.record.id));
                Err(self.refused(error))
            }
        }
    }

    /// Changes a container's phase.
    ///
    /// # Errors
    /// As [`Self::step`].
    fn step_container(&mut self, id: &ContainerId, event: ContainerEvent) -> Result<(), Error> {
        let Some(container) = self.containers.get_mut(id) else { return Ok(()) };
        match next_phase(&container.record, event) {
            Ok(phase) => {
                container.change(|record| record.phase = phase);
                Ok(())
            }
            Err(error) => Err(self.refused(error)),
        }
    }

    /// Reports a refused transition as a bug, and returns its error for the caller that needed it.
    fn refused(&mut self, error: Error) -> Error {
        self.actions.push(Action::ReportBug(error.clone()));
        error
    }

    /// Sets what the next write of a container's record contains.
    fn set_record(&mut self, id: &ContainerId) {
        if let Some(container) = self.containers.get(id) {
            self.actions.push(Action::SetContainerRecord(self.durable(container)));
        }
    }

    /// What is written of a container. Once its start is requested, and as long as it is not known whether it was
    /// started, a daemon that reads the record must assume that it runs, and asks the shim. The published state changes only with the shim's report.
    fn durable(&self, container: &Container) -> Arc<ContainerRecord> {
        let record = &container.record;
        match (&container.stage, next_phase(record, ContainerEvent::Started)) {
            (Stage::Created { start: Start::Requested(_) | Start::Unconfirmed, .. }, Ok(phase)) => {
                Arc::new(ContainerRecord {
                    phase,
                    started_at: self.now.wall,
                    ..ContainerRecord::clone(record)
                })
            }
            _ => Arc::clone(record),
        }
    }

    /// Drops a container's entry and replies to all callers that wait for it.
    fn drop_container(&mut self, id: &ContainerId, outcome: &Result<(), Error>) {
        if let Some(container) = self.containers.remove(id) {
            self.answer_all(container.into_waiters(), outcome);
        }
    }
}

/// The phase of a container after an event.
///
/// # Errors
/// The table has no such transition: a bug.
fn next_phase(record: &ContainerRecord, event: ContainerEvent) -> Result<ContainerPhase, Error> {
    transition::container(record.phase, event)
        .map_err(|refusal| Error::from(refusal).context(format!("container {}", record.id)))
}
