//! Updates of a container's resources, and of a pod's.
//!
//! Updates of one container run one after the other, beside its starts and stops. The update that runs is in the record
//! (`ContainerRecord::update`) before its job changes anything, until its end is recorded too. After a crash in between,
//! the next daemon reads the cgroup: if that has all of the new values, they are recorded; if not, the old ones are
//! restored.

use super::stage::{PodStage, RunningUpdate, Stage};
use super::{Action, Answer, Job, Life, Waiter};
use crate::error::{Error, ErrorKind};
use crate::pod::admission;
use model::{ContainerId, PodResources, Update};
use std::sync::Arc;

/// Maximum number of updates of one container that wait for the running one. kubelet sends one at a time. An update can
/// take long: for a lower memory limit the kernel may have to write memory to a slow disk.
const MAX_WAITING: usize = 8;

impl Life {
    /// UpdateContainerResources.
    pub(super) fn update(&mut self, waiter: Waiter, id: &ContainerId, update: Box<Update>) {
        if let Err(error) = self.may_update(id) {
            return self.answer(waiter, Err(error));
        }
        let Some(container) = self.containers.get_mut(id) else { return };
        if container.updates.waiting.len() >= MAX_WAITING {
            let text =
                format!("{MAX_WAITING} updates of container {id} wait for a running one: try again later");
            return self.answer(waiter, Err(Error::new(ErrorKind::ResourceExhausted, text)));
        }
        container.updates.waiting.push_back((waiter, update));
        self.next_update(id);
    }

    /// A container has limits from its creation to its exit. The shim is not needed.
    fn may_update(&self, id: &ContainerId) -> Result<(), Error> {
        let container = self.find(id)?;
        admission::has_cgroup(&container.record)?;
        if self.stage.is_ending() {
            return Err(Error::state(format!("pod {} is being stopped", self.record.id)));
        }
        Ok(())
    }

    /// Begins the next update, if none is running.
    fn next_update(&mut self, id: &ContainerId) {
        loop {
            let Some(container) = self.containers.get_mut(id) else { return };
            if container.updates.running.is_some() {
                return;
            }
            let Some((waiter, update)) = container.updates.waiting.pop_front() else { return };
            let updated = self.may_update(id).and_then(|()| {
                let record = &self.find(id)?.record;
                let refused = |error| Error::from(error).context(format!("update container {id}"));
                spec::resources::updated(&record.config.resources, &update.resources).map_err(refused)
            });
            if let Err(error) = updated {
                self.answer(waiter, Err(error));
                continue;
            }
            let Some(container) = self.containers.get_mut(id) else { return };
            container.updates.running = Some(RunningUpdate::Applying(Some(waiter)));
            container.change(|record| record.update = Some(update));
            let record = Arc::clone(&container.record);
            self.set_record(id);
            return self.begin(Job::Update(record));
        }
    }

    /// Continues the update during which an earlier daemon has ended.
    pub(super) fn settle_update(&mut self, id: &ContainerId) {
        let Some(container) = self.containers.get_mut(id) else { return };
        if container.record.update.is_none() {
            return;
        }
        if matches!(container.stage, Stage::Created { .. } | Stage::Running { .. }) {
            container.updates.running = Some(RunningUpdate::Applying(None));
            let record = Arc::clone(&container.record);
            self.begin(Job::SettleUpdate(record));
        } else {
            container.change(|record| record.update = None);
        }
    }

    /// The job has ended: the cgroup has the new values, or after an error those before, unless these could not be
    /// restored.
    pub(super) fn updated(&mut self, id: &ContainerId, outcome: Result<(), Error>) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let Some(RunningUpdate::Applying(caller)) = &container.updates.running else { return };
        let caller = *caller;
        let Some(update) = container.record.update.clone() else { return };
        let exited = !matches!(container.stage, Stage::Created { .. } | Stage::Running { .. });
        let mut recorded = Ok(());
        container.change(|record| {
            record.update = None;
            if outcome.is_ok() {
                recorded = spec::resources::applied(record, *update);
            }
        });
        let outcome = outcome.and(recorded.map_err(Error::from)).map_err(|error| {
            let error = error.context(format!("update container {id}"));
            // The cgroup was removed at its exit, and the error says only that a file is missing.
            if exited { error.with_kind(ErrorKind::FailedPrecondition) } else { error }
        });
        // Not published here: a start or an exit that is being recorded, which is published when that has ended. Nor a
        // container that has exited and whose update failed: nothing has changed, and its record may be gone by now, because a
        // removal of the pod has deleted it before it failed at something else; what has no record on disk must not be
        // published.
        let publishes = (outcome.is_ok() || !exited)
            && !matches!(container.stage, Stage::Exiting { .. } | Stage::Running { start: Some(_), .. });
        container.updates.running = Some(RunningUpdate::Recording(caller, outcome));
        self.set_record(id);
        if publishes {
            self.publish(id);
        }
        self.begin(Job::RecordUpdate(id.clone()));
    }

    /// The write of the record has ended. If it has failed, the job has logged that; the values are in force.
    pub(super) fn update_recorded(&mut self, id: &ContainerId) {
        let Some(container) = self.containers.get_mut(id) else { return };
        match container.updates.running.take() {
            Some(RunningUpdate::Recording(caller, outcome)) => {
                match caller {
                    Some(waiter) => self.answer(waiter, outcome),
                    None => {
                        tracing::info!(container = %id, applied = outcome.is_ok(), "an update during which the daemon had ended is settled")
                    }
                }
                self.next_update(id);
            }
            running => container.updates.running = running,
        }
    }

    /// UpdatePodSandboxResources.
    pub(super) fn update_pod(&mut self, waiter: Waiter, new: PodResources) {
        match &self.stage {
            PodStage::Removed => {
                let gone = Error::new(ErrorKind::NotFound, format!("pod {} is gone", self.record.id));
                return self.answer(waiter, Err(gone));
            }
            _ => {
                if let Err(error) = self.admit() {
                    return self.answer(waiter, Err(error));
                }
            }
        }
        self.change(|record| {
            let known = record.updated.get_or_insert_default();
            let PodResources { overhead, resources } = new;
            known.overhead = overhead.or(known.overhead.take());
            known.resources = resources.or(known.resources.take());
        });
        self.publish_pod();
        self.actions.push(Action::SetPodRecord(Arc::clone(&self.record)));
        self.awaiting.insert(waiter);
        self.begin(Job::RecordPodUpdate(waiter));
    }

    /// A job has ended that concerns only its caller.
    pub(super) fn served(&mut self, waiter: Waiter, outcome: Result<(), Error>) {
        if self.awaiting.remove(&waiter) {
            self.actions.push(Action::Answer(waiter, outcome.map(|()| Answer::Done)));
        }
    }
}
