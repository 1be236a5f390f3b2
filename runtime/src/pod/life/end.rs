//! Stop and removal of a pod.

use super::stage::{Container, Fate, Link, PodCallers, PodStage, Stage};
use super::{Action, Job, Leaf, Life, Timer, TornDown, Waiter};
use crate::error::{Error, ErrorKind};
use crate::pod::backoff;
use model::transition::PodEvent;
use model::{ContainerId, ContainerRecord, PodPhase};
use std::sync::Arc;
use std::time::Duration;

/// First and longest pause before the daemon itself retries a failed stop or removal.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(60);

impl Life {
    /// StopPodSandbox.
    pub(super) fn stop_pod(&mut self, waiter: Waiter) {
        match &mut self.stage {
            PodStage::Killing(callers)
            | PodStage::TearingDown(callers)
            | PodStage::Recording(callers)
            | PodStage::Settling(callers, _)
            | PodStage::RemovingShim(callers) => callers.stoppers.push(waiter),
            PodStage::Leftover | PodStage::Ready | PodStage::NotReady => {
                self.tear_down(PodCallers { stoppers: vec![waiter], removers: Vec::new() });
            }
            PodStage::Stopped { removers, folder_left: true } => {
                let callers = PodCallers { stoppers: vec![waiter], removers: std::mem::take(removers) };
                self.remove_shim_folder(callers);
            }
            PodStage::Stopped { folder_left: false, .. } | PodStage::Removing { .. } => {
                self.answer(waiter, Ok(()));
            }
            PodStage::Launching => self.answer(waiter, Err(self.being_launched())),
            PodStage::Removed => self.answer(waiter, Err(self.gone())),
        }
    }

    /// RemovePodSandbox.
    pub(super) fn remove_pod(&mut self, waiter: Waiter) {
        match &mut self.stage {
            PodStage::Killing(callers)
            | PodStage::TearingDown(callers)
            | PodStage::Recording(callers)
            | PodStage::Settling(callers, _)
            | PodStage::RemovingShim(callers) => callers.removers.push(waiter),
            PodStage::Leftover | PodStage::Ready | PodStage::NotReady => {
                self.tear_down(PodCallers { stoppers: Vec::new(), removers: vec![waiter] });
            }
            PodStage::Stopped { removers, .. } => {
                removers.push(waiter);
                self.continue_removal();
            }
            PodStage::Removing { removers, .. } => removers.push(waiter),
            PodStage::Launching => self.answer(waiter, Err(self.being_launched())),
            PodStage::Removed => self.answer(waiter, Err(self.gone())),
        }
    }

    fn being_launched(&self) -> Error {
        Error::state(format!("pod {} is being launched", self.record.id))
    }

    fn gone(&self) -> Error {
        Error::new(ErrorKind::NotFound, format!("pod {} is gone", self.record.id))
    }

    /// Tears the pod down. A pod that was stopped before is not torn down again; if its removal had begun, that
    /// continues.
    pub(super) fn tear_down(&mut self, callers: PodCallers) {
        match self.record.phase {
            PodPhase::Stopped | PodPhase::Removing => return self.stopped(callers, Vec::new()),
            PodPhase::Stopping => {}
            PodPhase::Launching | PodPhase::Ready => self.publish_stopping("it was stopped"),
        }
        let job = Job::TearDownPod(Arc::clone(&self.record), self.leaves());
        self.stage = PodStage::TearingDown(callers);
        self.begin(job);
    }

    /// Kills the processes that a dead shim has left.
    pub(super) fn kill_remains(&mut self) {
        let job = Job::KillRemains(Arc::clone(&self.record), self.leaves());
        self.stage = PodStage::Killing(PodCallers::default());
        self.begin(job);
    }

    fn leaves(&self) -> Vec<Leaf> {
        let records = self.containers.values().map(|container| &container.record);
        let leaves = records.map(|it| Leaf { id: it.id.clone(), cgroup: it.cgroup.clone(), pid: it.pid });
        leaves.filter(|leaf| !leaf.cgroup.is_empty()).collect()
    }

    /// Records the exits of all containers, except those that may still be running. An exit that is not in `torn_down`
    /// gets the message `unseen`. Returns the errors of exits that could not be recorded.
    fn settle_exits(&mut self, torn_down: &TornDown, unseen: &str) -> Vec<Error> {
        let ids: Vec<ContainerId> = self.containers.keys().cloned().collect();
        let mut errors = Vec::new();
        for id in ids {
            let recorded = match torn_down.exits.get(&id) {
                Some((exit, started_at)) => self.exited(&id, exit.clone(), *started_at),
                None if torn_down.alive.contains(&id) => Ok(()),
                // After an error the shim may be alive, so that a running create may still succeed.
                None if !torn_down.errors.is_empty() && self.is_creating(&id) => Ok(()),
                None => self.exited(&id, model::reconcile::unseen_exit(unseen, self.now.wall), 0),
            };
            errors.extend(recorded.err());
        }
        errors
    }

    fn is_creating(&self, id: &ContainerId) -> bool {
        self.containers.get(id).is_some_and(|it| matches!(it.stage, Stage::Creating { .. }))
    }

    /// The processes that a dead shim has left were killed: records their exits, and tears the pod down.
    pub(super) fn remains_killed(&mut self, torn_down: &TornDown) {
        let PodStage::Killing(callers) = &mut self.stage else { return };
        let callers = std::mem::take(callers);
        for error in &torn_down.errors {
            tracing::error!(error = %error.text(), "cannot kill what a dead shim has left; the teardown tries again");
        }
        // Exits that could not be recorded are found again by the teardown.
        drop(self.settle_exits(torn_down, "its exit was not seen: its shim is gone"));
        self.tear_down(callers);
    }

    pub(super) fn torn_down(&mut self, torn_down: &TornDown) {
        let PodStage::TearingDown(callers) = &mut self.stage else { return };
        let callers = std::mem::take(callers);
        let mut errors = torn_down.errors.clone();
        errors.extend(self.settle_exits(torn_down, "its exit was not seen: the pod was stopped"));
        if errors.is_empty() {
            errors.extend(self.step(PodEvent::TornDown).err());
        }
        if !errors.is_empty() {
            self.stage = PodStage::Settling(callers, errors);
            return self.continue_stop();
        }
        self.disconnect();
        self.failures = 0;
        self.change(|record| (record.pause_pid, record.shim_pid) = (0, 0));
        self.actions.push(Action::SetPodRecord(Arc::clone(&self.record)));
        // The records of its containers are being written at the same time. The callers get their reply when all
        // are written.
        self.stage = PodStage::Recording(callers);
        self.begin(Job::RecordStop);
    }

    pub(super) fn disconnect(&mut self) {
        self.link = Link::None;
        self.actions.push(Action::Disconnect);
    }

    pub(super) fn stop_recorded(&mut self) {
        let PodStage::Recording(callers) = &mut self.stage else { return };
        self.stage = PodStage::Settling(std::mem::take(callers), Vec::new());
        self.continue_stop();
    }

    /// Completes a stop once no create is running and all exits are published. (A running create fails soon after
    /// the shim has ended.) The shim's folder is removed last, and only if all exits are durable: until then its
    /// exit files are their only copy.
    pub(super) fn continue_stop(&mut self) {
        if self.containers.values().any(Container::delays_stop) {
            return;
        }
        let PodStage::Settling(callers, errors) = &mut self.stage else { return };
        let (callers, errors) = (std::mem::take(callers), std::mem::take(errors));
        if !errors.is_empty() || self.containers.values().any(Container::is_unrecorded) {
            return self.stopped(callers, errors);
        }
        self.remove_shim_folder(callers);
    }

    fn remove_shim_folder(&mut self, callers: PodCallers) {
        self.stage = PodStage::RemovingShim(callers);
        self.begin(Job::RemoveShimFolder);
    }

    pub(super) fn shim_folder_removed(&mut self, errors: Vec<Error>) {
        let PodStage::RemovingShim(callers) = &mut self.stage else { return };
        let callers = std::mem::take(callers);
        self.stopped(callers, errors);
    }

    fn stopped(&mut self, callers: PodCallers, errors: Vec<Error>) {
        let PodCallers { stoppers, removers } = callers;
        let outcome =
            Error::gathered(errors).map_err(|error| error.context(format!("stop pod {}", self.record.id)));
        if let Err(error) = &outcome {
            // If its record says that it was torn down, only the shim's folder is left.
            self.stage = match self.record.phase {
                PodPhase::Stopped | PodPhase::Removing => {
                    PodStage::Stopped { removers: Vec::new(), folder_left: true }
                }
                PodPhase::Launching | PodPhase::Ready | PodPhase::Stopping => PodStage::NotReady,
            };
            if stoppers.is_empty() && removers.is_empty() {
                tracing::error!(error = %error.text(), "cannot stop the pod; it will be retried");
            }
            self.failed(error);
            self.retry_later();
            self.answer_all([stoppers, removers].concat(), &outcome);
            return;
        }
        self.failures = 0;
        self.stage = PodStage::Stopped { removers, folder_left: false };
        self.publish_pod();
        self.answer_all(stoppers, &outcome);
        self.continue_removal();
    }

    /// A stop or removal has failed: the pod's message says why. If the daemon had begun it, the pod is listed
    /// from now on, so that a client can request its removal, and callers that wait for its name get the error.
    fn failed(&mut self, error: &Error) {
        self.change(|record| record.message = error.text());
        if self.fate == Fate::Leaves {
            // Its containers are not listed: they are removed with it, and may be gone already.
            self.fate = Fate::Stuck;
        }
        self.publish_pod();
        if self.fate == Fate::Stuck {
            self.actions.push(Action::ReplyToRun(Err(error.clone())));
        }
    }

    /// Schedules the retry of a failed stop or removal: kubelet repeats its calls, other clients may not.
    pub(super) fn retry_later(&mut self) {
        let pause = backoff::pause(FIRST_RETRY, self.failures, LONGEST_RETRY);
        self.failures = self.failures.saturating_add(1);
        self.actions.push(Action::StartTimer(Timer::Pod, pause));
    }

    /// The pause is over: retries a failed stop or removal, unless a call has done so meanwhile.
    pub(super) fn retry(&mut self) {
        match &self.stage {
            PodStage::NotReady => self.tear_down(PodCallers::default()),
            // A removal, if one is due, removes the shim's folder too.
            PodStage::Stopped { removers, folder_left: true }
                if removers.is_empty() && self.fate == Fate::Stays =>
            {
                self.remove_shim_folder(PodCallers::default());
            }
            PodStage::Stopped { .. } => self.continue_removal(),
            PodStage::Launching
            | PodStage::Leftover
            | PodStage::Ready
            | PodStage::Killing(_)
            | PodStage::TearingDown(_)
            | PodStage::Recording(_)
            | PodStage::Settling(..)
            | PodStage::RemovingShim(_)
            | PodStage::Removing { .. }
            | PodStage::Removed => {}
        }
    }

    /// Removes a stopped pod for which that is due, once the running removals of its containers have ended (both remove the
    /// same files), and once no exit is being recorded: after a restart of the daemon, a stopped pod may have exits that were
    /// only in exit files.
    pub(super) fn continue_removal(&mut self) {
        let PodStage::Stopped { removers, folder_left } = &mut self.stage else { return };
        if removers.is_empty() && self.fate == Fate::Stays {
            return;
        }
        if self.containers.values().any(|it| it.is_being_removed() || it.delays_stop()) {
            return;
        }
        let (removers, folder_left) = (std::mem::take(removers), *folder_left);
        if let Err(error) = self.step(PodEvent::Remove) {
            return self.removal_failed(removers, folder_left, &error);
        }
        self.stage = PodStage::Removing { removers, folder_left };
        self.actions.push(Action::SetPodRecord(Arc::clone(&self.record)));
        let containers: Vec<Arc<ContainerRecord>> =
            self.containers.values().map(|container| Arc::clone(&container.record)).collect();
        self.begin(Job::RemovePod(Arc::clone(&self.record), containers));
    }

    pub(super) fn pod_removed(&mut self, errors: Vec<Error>) {
        let PodStage::Removing { removers, folder_left } = &mut self.stage else { return };
        let (removers, folder_left) = (std::mem::take(removers), *folder_left);
        let outcome =
            Error::gathered(errors).map_err(|error| error.context(format!("remove pod {}", self.record.id)));
        match &outcome {
            Ok(()) => {
                self.stage = PodStage::Removed;
                let ids: Vec<ContainerId> = self.containers.keys().cloned().collect();
                for id in ids {
                    let removed = Err(Error::state(format!("container {id} was removed with its pod")));
                    self.actions.push(Action::UnpublishContainer(id.clone()));
                    self.drop_container(&id, &removed);
                }
                let gone = Err(self.gone());
                let awaiting = std::mem::take(&mut self.awaiting).into_iter().collect();
                self.answer_all(awaiting, &gone);
                self.actions.push(Action::UnpublishPod);
                self.actions.push(Action::ReleaseName);
                self.answer_all(removers, &outcome);
                self.actions.push(Action::Finish);
            }
            Err(error) => {
                // If this is refused, the error was reported, and the removal has failed anyway.
                drop(self.step(PodEvent::RemovalFailed));
                self.removal_failed(removers, folder_left, error);
            }
        }
    }

    fn removal_failed(&mut self, removers: Vec<Waiter>, folder_left: bool, error: &Error) {
        self.stage = PodStage::Stopped { removers: Vec::new(), folder_left };
        self.failed(error);
        if self.fate == Fate::Stuck {
            tracing::error!(error = %error.text(), "cannot remove the pod; it will be retried");
            self.retry_later();
        } else if folder_left {
            // The client repeats its call, and the timer retries the removal of the folder meanwhile.
            self.retry_later();
        }
        self.answer_all(removers, &Err(error.clone()));
    }

    /// Pause or the shim has ended without a stop.
    pub(super) fn not_ready(&mut self, why: &str) {
        match self.stage {
            PodStage::Ready => {
                tracing::warn!(why, "the pod is not ready any more");
                self.stage = PodStage::NotReady;
                self.publish_stopping(why);
            }
            PodStage::Leftover | PodStage::NotReady => self.publish_stopping(why),
            // It is not up yet, or is being stopped or removed.
            PodStage::Launching
            | PodStage::Killing(_)
            | PodStage::TearingDown(_)
            | PodStage::Recording(_)
            | PodStage::Settling(..)
            | PodStage::RemovingShim(_)
            | PodStage::Stopped { .. }
            | PodStage::Removing { .. }
            | PodStage::Removed => {}
        }
    }

    /// Publishes and records that the pod is not ready any more.
    pub(super) fn publish_stopping(&mut self, why: &str) {
        // Its removal had begun: the record says more than this.
        if self.record.phase == PodPhase::Removing {
            return;
        }
        // If this is refused, the error was reported, and the teardown fails when it would record its end.
        if self.step(PodEvent::StopBegan).is_ok() {
            self.change(|record| why.clone_into(&mut record.message));
            self.publish_pod();
            self.actions.push(Action::SetPodRecord(Arc::clone(&self.record)));
            self.begin(Job::RecordPod);
        }
    }
}
