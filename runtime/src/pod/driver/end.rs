//! The end of a pod: its stop, then its removal.

use super::link::Link;
use super::{Container, Driver, FIRST_RETRY, LONGEST_RETRY, Outcome, answer, later};
use crate::error::Error;
use crate::pod::teardown::{self, Ended, Leaf};
use crate::pod::{blocking, containers, now};
use model::transition::{self, PodEvent};
use model::{ContainerId, ContainerPhase, ContainerRecord, PodPhase};
use std::collections::BTreeMap;
use std::sync::Arc;
use wire::ExitFacts;

impl Driver {
    /// Stops the pod, unless that is done or under way; then goes on to its removal, if asked for.
    pub(crate) fn begin_stop(&mut self) {
        if self.ending || self.removing {
            return;
        }
        match self.record.phase {
            PodPhase::Stopped | PodPhase::Removing => return self.stopped(Vec::new()),
            PodPhase::Stopping => {}
            PodPhase::Launching | PodPhase::Ready => self.show_ending("it was stopped"),
        }
        self.ending = true;
        let (context, record, client) = (Arc::clone(&self.context), self.record.clone(), self.link.client());
        let leaves = self.leaves();
        self.jobs
            .spawn(async move { Outcome::Ended(teardown::end(&context, &record, client, leaves).await) });
    }

    pub(super) fn leaves(&self) -> Vec<Leaf> {
        let records = self.containers.values().map(|container| &container.record);
        let leaves = records.map(|it| Leaf { id: it.id.clone(), cgroup: it.cgroup.clone(), pid: it.pid });
        leaves.filter(|leaf| !leaf.cgroup.is_empty()).collect()
    }

    /// What the shim has said, first the events that came before the end, then what it left in files.
    pub(super) fn settle_exits(&mut self, exits: &BTreeMap<ContainerId, ExitFacts>, lost: &str) {
        while let Some(event) = self.link.try_event() {
            self.event(event);
        }
        let live: Vec<ContainerId> = self
            .containers
            .values()
            .filter(|it| !matches!(it.record.phase, ContainerPhase::Exited | ContainerPhase::Removing))
            .map(|it| it.record.id.clone())
            .collect();
        for id in live {
            match exits.get(&id) {
                Some(facts) => self.exited(&id, containers::exit_of(facts), facts.started_at),
                None => self.exited(&id, model::reconcile::lost(lost, now()), 0),
            }
        }
    }

    pub(super) fn ended(&mut self, ended: Ended) {
        self.settle_exits(&ended.exits, "its end was not seen: the pod was stopped");
        if !ended.errors.is_empty() {
            self.stopped_with = Some(ended.errors);
            return self.maybe_stopped();
        }
        self.link = Link::None;
        self.failures = 0;
        self.record.phase = PodPhase::Stopped;
        (self.record.pause_pid, self.record.shim_pid) = (0, 0);
        self.recorder.set(self.record.clone());
        // The pod's record before the answer; those of its containers are written meanwhile, and waited for.
        let (context, recorder, id) =
            (Arc::clone(&self.context), Arc::clone(&self.recorder), self.record.id.clone());
        self.jobs.spawn(async move {
            // Nothing of it lives, whatever the disk says: a node that cannot write must still end its pods.
            if let Err(error) = recorder.persist(&context, true).await {
                tracing::error!(pod = %id, %error, "stop not recorded: the next start of the daemon stops it again");
            }
            Outcome::Stopped
        });
    }

    /// The stop is answered when all exits can be seen, and no job makes what a removal would not know of.
    /// Without the shim a create ends soon. The shim's folder goes last: until an exit is durable in its
    /// container's record, the file in there is all there is of it.
    pub(super) fn maybe_stopped(&mut self) {
        if self.containers.values().any(Container::keeps_pod) {
            return;
        }
        let Some(errors) = self.stopped_with.take() else { return };
        if !errors.is_empty() || self.containers.values().any(|container| container.unrecorded) {
            return self.stopped(errors);
        }
        let (context, id) = (Arc::clone(&self.context), self.record.id.clone());
        self.jobs.spawn(async move { Outcome::ShimForgotten(teardown::forget_shim(&context, &id).await) });
    }

    pub(super) fn stopped(&mut self, errors: Vec<Error>) {
        self.ending = false;
        let outcome =
            Error::gathered(errors).map_err(|error| error.context(format!("stop pod {}", self.record.id)));
        if let Err(error) = &outcome {
            self.record.message = error.message.clone();
            if self.stop_waiters.is_empty() && self.remove_waiters.is_empty() {
                tracing::error!(pod = %self.record.id, %error, "not stopped; it is tried again");
            }
            self.show_failure(error);
            self.try_again();
        }
        self.publish();
        for waiter in std::mem::take(&mut self.stop_waiters) {
            answer(waiter, outcome.clone());
        }
        match outcome {
            Err(error) => {
                for waiter in std::mem::take(&mut self.remove_waiters) {
                    answer(waiter, Err(error.clone()));
                }
            }
            Ok(()) if !self.remove_waiters.is_empty() || self.remove_when_stopped => {
                self.begin_pod_removal();
            }
            Ok(()) => {}
        }
    }

    /// Somebody must be able to ask for it again, and nobody waits for its name any more.
    fn show_failure(&mut self, error: &Error) {
        self.hidden = false;
        if let Some(launched) = &self.launched {
            launched.send_replace(Some(Err(error.clone())));
        }
    }

    /// Later, without being asked for: kubelet asks again, others may not.
    pub(super) fn try_again(&mut self) {
        let pause = later(FIRST_RETRY, self.failures, LONGEST_RETRY);
        self.failures = self.failures.saturating_add(1);
        let retry = self.waits.spawn(async move {
            tokio::time::sleep(pause).await;
            Outcome::StopAgain
        });
        if let Some(earlier) = self.retry.replace(retry) {
            earlier.abort();
        }
    }

    /// Goes on with a stop or a removal that failed a while ago, unless that is done or under way.
    pub(super) fn stop_again(&mut self) {
        if self.record.phase == PodPhase::Stopping || self.remove_when_stopped {
            self.begin_stop();
        }
    }

    /// Goes on with the removal of the pod once those of its containers have ended that were at work.
    pub(super) fn maybe_remove_pod(&mut self) {
        let wanted = !self.remove_waiters.is_empty() || self.remove_when_stopped;
        if wanted && !self.ending && self.record.phase == PodPhase::Stopped {
            self.begin_pod_removal();
        }
    }

    fn begin_pod_removal(&mut self) {
        // One removes what the other is at: `maybe_remove_pod` comes back here.
        if self.removing || self.containers.values().any(|container| container.being_removed) {
            return;
        }
        self.removing = true;
        self.record.phase = PodPhase::Removing;
        self.recorder.set(self.record.clone());
        let (context, recorder, record) =
            (Arc::clone(&self.context), Arc::clone(&self.recorder), self.record.clone());
        let containers: Vec<ContainerRecord> = self.containers.values().map(|it| it.record.clone()).collect();
        self.jobs.spawn(async move {
            // As with containers, a disk that is full must not prevent this.
            if let Err(error) = recorder.persist(&context, false).await {
                tracing::debug!(pod = %record.id, %error, "removed without a record of it");
            }
            let mut errors = Vec::new();
            for container in containers {
                errors.extend(containers::remove(&context, None, &container).await);
            }
            // It stays where exits could not be recorded.
            errors.extend(teardown::forget_shim(&context, &record.id).await);
            // A create that was at work when the pod was stopped may have made them again.
            errors.extend(teardown::remove_cgroups(&context, &record, Vec::new()).await);
            if errors.is_empty() {
                let dir = context.layout.pod_dir(&record.id);
                let removed = blocking("remove the pod", move || Ok(state::file::remove_dir(&dir)?)).await;
                errors.extend(removed.err());
            }
            Outcome::Removed(errors)
        });
    }

    pub(super) fn removed(&mut self, errors: Vec<Error>) {
        self.removing = false;
        let outcome =
            Error::gathered(errors).map_err(|error| error.context(format!("remove pod {}", self.record.id)));
        if outcome.is_ok() {
            for id in self.containers.keys() {
                self.registry.published().take_container(id);
            }
            self.registry.published().take_pod(&self.record.id);
            self.registry.release(&self.record.id);
            self.finished = true;
        }
        if let Err(error) = &outcome {
            self.record.phase = PodPhase::Stopped;
            self.record.message = error.message.clone();
            self.show_failure(error);
            self.publish();
            if self.remove_when_stopped {
                tracing::error!(pod = %self.record.id, %error, "not removed; it is tried again");
                self.try_again();
            }
        }
        for container in self.containers.values_mut() {
            for waiter in std::mem::take(&mut container.removing) {
                answer(waiter, outcome.clone());
            }
        }
        for waiter in self.remove_waiters.drain(..).chain(self.stop_waiters.drain(..)) {
            answer(waiter, outcome.clone());
        }
    }

    /// The pod is over, though nobody has stopped it yet.
    pub(crate) fn not_ready(&mut self, why: &str) {
        if self.record.phase == PodPhase::Ready {
            tracing::warn!(pod = %self.record.id, why, "pod is not ready any more");
        }
        self.show_ending(why);
    }

    /// Shows and records that the pod is ending, however that came.
    fn show_ending(&mut self, why: &str) {
        if let Ok(phase) = transition::pod(self.record.phase, PodEvent::Ending) {
            self.record.phase = phase;
            self.record.message = why.to_owned();
            self.publish();
            self.persist_pod();
        }
    }
}
