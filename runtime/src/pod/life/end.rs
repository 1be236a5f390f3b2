//! The end of a pod: its stop, then its removal.

use super::stage::{Asks, Container, Fate, Link, PodStage, Stage};
use super::{Action, Ended, Job, Leaf, Life, Timer, Waiter};
use crate::error::{Error, ErrorKind};
use crate::pod::backoff::later;
use model::transition::PodEvent;
use model::{ContainerId, ContainerRecord, PodPhase};
use std::sync::Arc;
use std::time::Duration;

/// Pauses before a stop or a removal that failed is tried again without being asked for.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(60);

impl Life {
    /// StopPodSandbox.
    pub(super) fn stop_pod(&mut self, waiter: Waiter) {
        if let Some(asks) = self.stage.asks() {
            return asks.stoppers.push(waiter);
        }
        match &self.stage {
            PodStage::Leftover | PodStage::Up | PodStage::Over => {
                self.end_pod(Asks { stoppers: vec![waiter], removers: Vec::new() });
            }
            PodStage::Stopped { .. } | PodStage::Removing { .. } => self.answer(waiter, Ok(())),
            PodStage::Launching => self.answer(waiter, Err(self.being_launched())),
            PodStage::Gone => self.answer(waiter, Err(self.gone())),
            // Answered above.
            PodStage::Burying(_)
            | PodStage::Ending(_)
            | PodStage::Recording(_)
            | PodStage::Settling(..)
            | PodStage::Forgetting(_) => {}
        }
    }

    /// RemovePodSandbox.
    pub(super) fn remove_pod(&mut self, waiter: Waiter) {
        if let Some(asks) = self.stage.asks() {
            return asks.removers.push(waiter);
        }
        match &mut self.stage {
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
            // Answered above.
            PodStage::Burying(_)
            | PodStage::Ending(_)
            | PodStage::Recording(_)
            | PodStage::Settling(..)
            | PodStage::Forgetting(_) => {}
        }
    }

    fn being_launched(&self) -> Error {
        Error::state(format!("pod {} is being launched", self.record.id))
    }

    fn gone(&self) -> Error {
        Error::new(ErrorKind::NotFound, format!("pod {} is gone", self.record.id))
    }

    /// Ends a pod that no stop is at work on; one whose removal had begun is gone on with.
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

    /// The shim is dead: kills what it left.
    pub(super) fn bury(&mut self) {
        let job = Job::BuryPod(Arc::clone(&self.record), self.leaves());
        self.stage = PodStage::Burying(Asks::default());
        self.begin(job);
    }

    fn leaves(&self) -> Vec<Leaf> {
        let records = self.containers.values().map(|container| &container.record);
        let leaves = records.map(|it| Leaf { id: it.id.clone(), cgroup: it.cgroup.clone(), pid: it.pid });
        leaves.filter(|leaf| !leaf.cgroup.is_empty()).collect()
    }

    /// Notes the ends of all containers but those that may live.
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

    /// Nothing of a dead shim's pod lives any more: says so, then gives back what it had.
    pub(super) fn buried(&mut self, ended: &Ended) {
        let PodStage::Burying(asks) = &mut self.stage else { return };
        let asks = std::mem::take(asks);
        for error in &ended.errors {
            tracing::error!(pod = %self.record.id, %error, "left by a dead shim");
        }
        self.settle_exits(ended, "its end was not seen: its shim is gone");
        self.end_pod(asks);
    }

    pub(super) fn ended(&mut self, ended: &Ended) {
        let PodStage::Ending(asks) = &mut self.stage else { return };
        let asks = std::mem::take(asks);
        self.settle_exits(ended, "its end was not seen: the pod was stopped");
        if !ended.errors.is_empty() {
            self.stage = PodStage::Settling(asks, ended.errors.clone());
            return self.maybe_settled();
        }
        self.hang_up();
        self.failures = 0;
        self.step(PodEvent::Ended);
        self.change(|record| (record.pause_pid, record.shim_pid) = (0, 0));
        self.actions.push(Action::NotePod(Arc::clone(&self.record)));
        // The pod's record before the answer; those of its containers are written meanwhile, and waited for.
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

    /// The stop is answered when all exits can be seen, and no job makes what a removal would not know of.
    /// Without the shim a create ends soon. The shim's folder goes last: until an exit is durable in its
    /// container's record, the file in there is all there is of it.
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
        // One whose removal had begun is beyond its stop.
        let over = matches!(self.record.phase, PodPhase::Stopped | PodPhase::Removing);
        self.stage = if over { PodStage::Stopped { removers: Vec::new() } } else { PodStage::Over };
        let outcome =
            Error::gathered(errors).map_err(|error| error.context(format!("stop pod {}", self.record.id)));
        if let Err(error) = &outcome {
            if stoppers.is_empty() && removers.is_empty() {
                tracing::error!(pod = %self.record.id, %error, "not stopped; it is tried again");
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

    /// Somebody must be able to ask for it again, and nobody waits for its name any more.
    fn failed(&mut self, error: &Error) {
        self.change(|record| record.message.clone_from(&error.message));
        if self.fate == Fate::Leaves {
            // Its containers go with it, and may have gone already.
            self.fate = Fate::Stuck;
        }
        self.show_pod();
        if self.fate == Fate::Stuck {
            self.actions.push(Action::TellName(Err(error.clone())));
        }
    }

    /// Later, without being asked for: kubelet asks again, others may not.
    pub(super) fn try_again(&mut self) {
        let pause = later(FIRST_RETRY, self.failures, LONGEST_RETRY);
        self.failures = self.failures.saturating_add(1);
        self.actions.push(Action::Wake(Timer::Pod, pause));
    }

    /// Goes on with a stop or a removal that failed a while ago, unless that is done or under way.
    pub(super) fn go_on(&mut self) {
        match self.stage {
            PodStage::Over => self.end_pod(Asks::default()),
            PodStage::Stopped { .. } => self.maybe_remove_pod(),
            PodStage::Launching
            | PodStage::Leftover
            | PodStage::Up
            | PodStage::Burying(_)
            | PodStage::Ending(_)
            | PodStage::Recording(_)
            | PodStage::Settling(..)
            | PodStage::Forgetting(_)
            | PodStage::Removing { .. }
            | PodStage::Gone => {}
        }
    }

    /// Goes on with the removal of a stopped pod once those of its containers have ended that are at work, and their
    /// exits are recorded: one removes what the other is at.
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
                    tracing::error!(pod = %self.record.id, %error, "not removed; it is tried again");
                    self.try_again();
                }
                self.answer_all(removers, &outcome);
            }
        }
    }

    /// The pod is over, though nobody has stopped it yet.
    pub(super) fn not_ready(&mut self, why: &str) {
        match self.stage {
            PodStage::Up => {
                tracing::warn!(pod = %self.record.id, why, "pod is not ready any more");
                self.stage = PodStage::Over;
                self.show_ending(why);
            }
            PodStage::Leftover | PodStage::Over => self.show_ending(why),
            // Its end is at work, and says why itself.
            PodStage::Launching
            | PodStage::Burying(_)
            | PodStage::Ending(_)
            | PodStage::Recording(_)
            | PodStage::Settling(..)
            | PodStage::Forgetting(_)
            | PodStage::Stopped { .. }
            | PodStage::Removing { .. }
            | PodStage::Gone => {}
        }
    }

    /// Shows and records that the pod is ending, however that came.
    pub(super) fn show_ending(&mut self, why: &str) {
        if self.step(PodEvent::Ending) {
            self.change(|record| why.clone_into(&mut record.message));
            self.show_pod();
            self.actions.push(Action::NotePod(Arc::clone(&self.record)));
            self.begin(Job::RecordPod);
        }
    }
}
