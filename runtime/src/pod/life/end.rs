//! Stopping and removing a pod.

use super::stage::{Asks, Container, Fate, Link, PodStage, Stage};
use super::{Action, Ended, Job, Leaf, Life, Timer, Waiter};
use crate::error::{Error, ErrorKind};
use crate::pod::backoff::later;
use model::transition::PodEvent;
use model::{ContainerId, ContainerRecord, PodPhase};
use std::sync::Arc;
use std::time::Duration;

/// Pauses before a failed stop or removal is retried without a call.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(60);

impl Life {
    /// StopPodSandbox.
    pub(super) fn stop_pod(&mut self, waiter: Waiter) {
        match &mut self.stage {
            PodStage::Killing(asks)
            | PodStage::Ending(asks)
            | PodStage::Recording(asks)
            | PodStage::Settling(asks, _)
            | PodStage::Forgetting(asks) => asks.stoppers.push(waiter),
            PodStage::Leftover | PodStage::Up | PodStage::Over => {
                self.end_pod(Asks { stoppers: vec![waiter], removers: Vec::new() });
            }
            PodStage::Stopped { .. } | PodStage::Removing { .. } => self.answer(waiter, Ok(())),
            PodStage::Launching => self.answer(waiter, Err(self.being_launched())),
            PodStage::Gone => self.answer(waiter, Err(self.gone())),
        }
    }

    /// RemovePodSandbox.
    pub(super) fn remove_pod(&mut self, waiter: Waiter) {
        match &mut self.stage {
            PodStage::Killing(asks)
            | PodStage::Ending(asks)
            | PodStage::Recording(asks)
            | PodStage::Settling(asks, _)
            | PodStage::Forgetting(asks) => asks.removers.push(waiter),
            PodStage::Leftover | PodStage::Up | PodStage::Over => {
                self.end_pod(Asks { stoppers: Vec::new(), removers: vec![waiter] });
            }
            PodStage::Stopped { removers } => {
                removers.push(waiter);
                self.maybe_remove_pod();
            }
            PodStage::Removing { removers } => removers.push(waiter),
            PodStage::Launching => self.answer(waiter, Err(self.being_launched())),
            PodStage::Gone => self.answer(waiter, Err(self.gone())),
        }
    }

    fn being_launched(&self) -> Error {
        Error::state(format!("pod {} is being launched", self.record.id))
    }

    fn gone(&self) -> Error {
        Error::new(ErrorKind::NotFound, format!("pod {} is gone", self.record.id))
    }

    /// Stops a pod unless a stop is running. If its removal had begun, it is continued.
    pub(super) fn end_pod(&mut self, asks: Asks) {
        match self.record.phase {
            PodPhase::Stopped | PodPhase::Removing => return self.stopped(asks, Vec::new()),
            PodPhase::Stopping => {}
            PodPhase::Launching | PodPhase::Ready => self.show_ending("it was stopped"),
        }
        let job = Job::EndPod(Arc::clone(&self.record), self.leaves());
        self.stage = PodStage::Ending(asks);
        self.begin(job);
    }

    /// The shim is dead: kills the processes that it left.
    pub(super) fn kill_remains(&mut self) {
        let job = Job::KillRemains(Arc::clone(&self.record), self.leaves());
        self.stage = PodStage::Killing(Asks::default());
        self.begin(job);
    }

    fn leaves(&self) -> Vec<Leaf> {
        let records = self.containers.values().map(|container| &container.record);
        let leaves = records.map(|it| Leaf { id: it.id.clone(), cgroup: it.cgroup.clone(), pid: it.pid });
        leaves.filter(|leaf| !leaf.cgroup.is_empty()).collect()
    }

    /// Records the exits of all containers, except those that may still be running.
    fn settle_exits(&mut self, ended: &Ended, lost: &str) {
        let ids: Vec<ContainerId> = self.containers.keys().cloned().collect();
        for id in ids {
            match ended.exits.get(&id) {
                Some((exit, started_at)) => self.exited(&id, exit.clone(), *started_at),
                None if ended.alive.contains(&id) => {}
                // Where something went wrong the shim may live, and a create at work may still succeed.
                None if !ended.errors.is_empty() && self.is_creating(&id) => {}
                None => self.exited(&id, model::reconcile::lost(lost, self.now.wall), 0),
            }
        }
    }

    fn is_creating(&self, id: &ContainerId) -> bool {
        self.containers.get(id).is_some_and(|it| matches!(it.stage, Stage::Creating { .. }))
    }

    /// No process of a dead shim's pod is left: publishes that, and then releases the pod's resources.
    pub(super) fn remains_killed(&mut self, ended: &Ended) {
        let PodStage::Killing(asks) = &mut self.stage else { return };
        let asks = std::mem::take(asks);
        for error in &ended.errors {
            tracing::error!(pod = %self.record.id, %error, "not cleaned up after a dead shim");
        }
        self.settle_exits(ended, "its exit was not seen: its shim is gone");
        self.end_pod(asks);
    }

    pub(super) fn ended(&mut self, ended: &Ended) {
        let PodStage::Ending(asks) = &mut self.stage else { return };
        let asks = std::mem::take(asks);
        self.settle_exits(ended, "its exit was not seen: the pod was stopped");
        if !ended.errors.is_empty() {
            self.stage = PodStage::Settling(asks, ended.errors.clone());
            return self.maybe_settled();
        }
        self.hang_up();
        self.failures = 0;
        self.step(PodEvent::Ended);
        self.change(|record| (record.pause_pid, record.shim_pid) = (0, 0));
        self.actions.push(Action::NotePod(Arc::clone(&self.record)));
        // The pod's record is written before the reply; those of its containers are written at the same time,
        // and waited for.
        self.stage = PodStage::Recording(asks);
        self.begin(Job::RecordStop);
    }

    pub(super) fn hang_up(&mut self) {
        self.link = Link::None;
        self.actions.push(Action::HangUp);
    }

    pub(super) fn recorded(&mut self) {
        let PodStage::Recording(asks) = &mut self.stage else { return };
        self.stage = PodStage::Settling(std::mem::take(asks), Vec::new());
        self.maybe_settled();
    }

    /// The stop is complete when all exits are published and no create is running. Without the shim a create
    /// fails soon. The shim's folder is removed last: until an exit is durable in its container's record, the
    /// exit file is its only copy.
    pub(super) fn maybe_settled(&mut self) {
        if self.containers.values().any(Container::keeps_pod) {
            return;
        }
        let PodStage::Settling(asks, errors) = &mut self.stage else { return };
        let (asks, errors) = (std::mem::take(asks), std::mem::take(errors));
        if !errors.is_empty() || self.containers.values().any(Container::is_unrecorded) {
            return self.stopped(asks, errors);
        }
        self.stage = PodStage::Forgetting(asks);
        self.begin(Job::ForgetShim);
    }

    pub(super) fn forgotten(&mut self, errors: Vec<Error>) {
        let PodStage::Forgetting(asks) = &mut self.stage else { return };
        let asks = std::mem::take(asks);
        self.stopped(asks, errors);
    }

    fn stopped(&mut self, asks: Asks, errors: Vec<Error>) {
        let Asks { stoppers, removers } = asks;
        // A pod whose removal had begun was stopped already.
        let over = matches!(self.record.phase, PodPhase::Stopped | PodPhase::Removing);
        self.stage = if over { PodStage::Stopped { removers: Vec::new() } } else { PodStage::Over };
        let outcome =
            Error::gathered(errors).map_err(|error| error.context(format!("stop pod {}", self.record.id)));
        if let Err(error) = &outcome {
            if stoppers.is_empty() && removers.is_empty() {
                tracing::error!(pod = %self.record.id, %error, "cannot stop the pod; it will be retried");
            }
            self.failed(error);
            self.try_again();
            self.answer_all([stoppers, removers].concat(), &outcome);
            return;
        }
        self.show_pod();
        self.answer_all(stoppers, &outcome);
        self.stage = PodStage::Stopped { removers };
        self.maybe_remove_pod();
    }

    /// The pod is listed again, so that a client can request its removal, and callers that wait for its name
    /// get an error.
    fn failed(&mut self, error: &Error) {
        self.change(|record| record.message.clone_from(&error.message));
        if self.fate == Fate::Leaves {
            // Its containers are removed with it, and may be removed already.
            self.fate = Fate::Stuck;
        }
        self.show_pod();
        if self.fate == Fate::Stuck {
            self.actions.push(Action::TellName(Err(error.clone())));
        }
    }

    /// Retries later without a call: kubelet repeats its calls, other clients may not.
    pub(super) fn try_again(&mut self) {
        let pause = later(FIRST_RETRY, self.failures, LONGEST_RETRY);
        self.failures = self.failures.saturating_add(1);
        self.actions.push(Action::Wake(Timer::Pod, pause));
    }

    /// Retries a failed stop or removal, unless it is done or running.
    pub(super) fn go_on(&mut self) {
        match self.stage {
            PodStage::Over => self.end_pod(Asks::default()),
            PodStage::Stopped { .. } => self.maybe_remove_pod(),
            PodStage::Launching
            | PodStage::Leftover
            | PodStage::Up
            | PodStage::Killing(_)
            | PodStage::Ending(_)
            | PodStage::Recording(_)
            | PodStage::Settling(..)
            | PodStage::Forgetting(_)
            | PodStage::Removing { .. }
            | PodStage::Gone => {}
        }
    }

    /// Continues the removal of a stopped pod once the running removals of its containers have ended, because
    /// both would remove the same files.
    pub(super) fn maybe_remove_pod(&mut self) {
        let PodStage::Stopped { removers } = &mut self.stage else { return };
        if removers.is_empty() && self.fate == Fate::Stays {
            return;
        }
        if self.containers.values().any(|it| it.is_being_removed() || it.keeps_pod()) {
            return;
        }
        self.stage = PodStage::Removing { removers: std::mem::take(removers) };
        self.step(PodEvent::Remove);
        self.actions.push(Action::NotePod(Arc::clone(&self.record)));
        let containers: Vec<Arc<ContainerRecord>> =
            self.containers.values().map(|container| Arc::clone(&container.record)).collect();
        self.begin(Job::RemovePod(Arc::clone(&self.record), containers));
    }

    pub(super) fn removed(&mut self, errors: Vec<Error>) {
        let PodStage::Removing { removers } = &mut self.stage else { return };
        let removers = std::mem::take(removers);
        let outcome =
            Error::gathered(errors).map_err(|error| error.context(format!("remove pod {}", self.record.id)));
        match &outcome {
            Ok(()) => {
                self.stage = PodStage::Gone;
                let ids: Vec<ContainerId> = self.containers.keys().cloned().collect();
                for id in ids {
                    let removed = Err(Error::state(format!("container {id} was removed with its pod")));
                    self.actions.push(Action::HideContainer(id.clone()));
                    self.drop_container(&id, &removed);
                }
                let gone = Err(self.gone());
                let reopening = std::mem::take(&mut self.reopening).into_iter().collect();
                self.answer_all(reopening, &gone);
                self.actions.push(Action::HidePod);
                self.actions.push(Action::ReleaseName);
                self.answer_all(removers, &outcome);
                self.actions.push(Action::Finish);
            }
            Err(error) => {
                self.stage = PodStage::Stopped { removers: Vec::new() };
                self.step(PodEvent::NotRemoved);
                self.failed(error);
                if self.fate == Fate::Stuck {
                    tracing::error!(pod = %self.record.id, %error, "cannot remove the pod; it will be retried");
                    self.try_again();
                }
                self.answer_all(removers, &outcome);
            }
        }
    }

    /// The pod has ended without a stop.
    pub(super) fn not_ready(&mut self, why: &str) {
        match self.stage {
            PodStage::Up => {
                tracing::warn!(pod = %self.record.id, why, "pod is not ready any more");
                self.stage = PodStage::Over;
                self.show_ending(why);
            }
            PodStage::Leftover | PodStage::Over => self.show_ending(why),
            // Its stop is running and gives the reason itself.
            PodStage::Launching
            | PodStage::Killing(_)
            | PodStage::Ending(_)
            | PodStage::Recording(_)
            | PodStage::Settling(..)
            | PodStage::Forgetting(_)
            | PodStage::Stopped { .. }
            | PodStage::Removing { .. }
            | PodStage::Gone => {}
        }
    }

    /// Publishes and records that the pod is ending.
    pub(super) fn show_ending(&mut self, why: &str) {
        if self.step(PodEvent::Ending) {
            self.change(|record| why.clone_into(&mut record.message));
            self.show_pod();
            self.actions.push(Action::NotePod(Arc::clone(&self.record)));
            self.begin(Job::RecordPod);
        }
    }
}
