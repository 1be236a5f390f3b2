//! Handles CRI calls. Depending on the stage, a call is refused, starts a job, or joins an equal call's job.

use super::stage::{Container, PodStage, RunningStop, Stage, Start};
use super::{Action, Answer, Call, Job, Life, Waiter, next_phase};
use crate::error::{Error, ErrorKind};
use crate::pod::{admission, intent};
use model::transition::ContainerEvent;
use model::{ContainerConfig, ContainerId, ContainerRecord, EnvVar, Text};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use wire::MAX_CONTAINERS;

/// Longest grace period of a stop: a year stands for no limit. kubelet passes on any i64.
const LONGEST_GRACE: Duration = Duration::from_secs(365 * 24 * 3600);

impl Life {
    pub(super) fn call(&mut self, waiter: Waiter, call: Call) {
        match call {
            Call::StopPod => self.stop_pod(waiter),
            Call::RemovePod => self.remove_pod(waiter),
            Call::Create { id, config } => self.create(waiter, id, *config),
            Call::Start(id) => self.start(waiter, &id),
            Call::Stop(id, grace) => self.stop(waiter, &id, grace),
            Call::Remove(id) => self.remove(waiter, &id),
            Call::ReopenLog(id) => match self.may_use(&id) {
                Ok(_) => {
                    self.awaiting.insert(waiter);
                    self.begin(Job::ReopenLog(waiter, id));
                }
                Err(error) => self.answer(waiter, Err(error)),
            },
            Call::Update(id, update) => self.update(waiter, &id, update),
            Call::UpdatePod(resources) => self.update_pod(waiter, *resources),
            Call::Exec(id) => {
                let answer = self.may_use(&id).map(Answer::MayExec);
                self.actions.push(Action::Answer(waiter, answer));
            }
        }
    }

    /// The record of a container, if it is running and its shim is connected.
    fn may_use(&self, id: &ContainerId) -> Result<Arc<ContainerRecord>, Error> {
        let container = self.find(id)?;
        admission::running(&container.record)?;
        self.connected()?;
        Ok(Arc::clone(&container.record))
    }

    pub(super) fn find(&self, id: &ContainerId) -> Result<&Container, Error> {
        let found = self.containers.get(id).filter(|container| container.is_committed());
        found.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("no container {id}")))
    }

    /// Containers are created and started only in a ready pod.
    pub(super) fn admit(&self) -> Result<(), Error> {
        match &self.stage {
            PodStage::Ready => Ok(()),
            PodStage::Launching | PodStage::Leftover | PodStage::NotReady | PodStage::Stopped { .. } => {
                admission::ready(&self.record)
            }
            PodStage::Killing(_)
            | PodStage::TearingDown(_)
            | PodStage::Recording(_)
            | PodStage::Settling(..)
            | PodStage::RemovingShim(_)
            | PodStage::Removing { .. }
            | PodStage::Removed => Err(Error::state(format!("pod {} is being stopped", self.record.id))),
        }
    }

    fn create(&mut self, waiter: Waiter, id: ContainerId, config: ContainerConfig) {
        let same = self.containers.values_mut().find(|it| it.record.config.meta == config.meta);
        if let Some(container) = same {
            let (id, meta) = (container.record.id.clone(), &config.meta);
            let name = format!("container {} attempt {}", meta.name, meta.attempt);
            let exists = |text: &str| Error::new(ErrorKind::AlreadyExists, format!("{name} {text}, as {id}"));
            let again =
                |text: &str| Error::new(ErrorKind::Unavailable, format!("{name} exists as {id}, {text}"));
            let answer = match &mut container.stage {
                Stage::CutOff => Err(again("whose create was interrupted and is being undone: try again")),
                Stage::Removing { .. } => Err(again("which is being removed: try again")),
                _ if !is_equal(&container.record, &config) => {
                    Err(exists("exists with another configuration"))
                }
                Stage::Creating { callers, .. } => return callers.push(waiter),
                // If the pod is being removed, the container's record may be gone already.
                Stage::Created { .. } => self.admit().map(|()| Answer::Created(id)),
                Stage::Running { .. } | Stage::Exiting { .. } | Stage::Exited { .. } => {
                    Err(exists("was started already"))
                }
            };
            return self.actions.push(Action::Answer(waiter, answer));
        }
        match self.new_record(id, config) {
            Err(error) => self.answer(waiter, Err(error)),
            Ok(record) => {
                let record = Arc::new(record);
                let stage = Stage::Creating { callers: vec![waiter], exit: None };
                self.begin(Job::Create(Arc::clone(&self.record), Arc::clone(&record)));
                self.containers.insert(record.id.clone(), Container::new(record, stage));
            }
        }
    }

    /// The first record of a container, if it may be created.
    fn new_record(&self, id: ContainerId, config: ContainerConfig) -> Result<ContainerRecord, Error> {
        self.admit()?;
        if self.containers.len() >= MAX_CONTAINERS {
            let text = format!(
                "pod {} has {MAX_CONTAINERS} containers, exited ones included, and may not have more: remove some first",
                self.record.id
            );
            return Err(Error::new(ErrorKind::ResourceExhausted, text));
        }
        let newest = self.containers.values().map(|it| it.record.created_at).max();
        let now = self.now.later_than(newest);
        let record = intent::container(id, &self.record, config, now.wall)?;
        let find = |id: &str| self.containers.values().map(|it| &*it.record).find(|it| it.id.as_str() == id);
        admission::target(&record, find)?;
        self.connected()?;
        Ok(record)
    }

    fn start(&mut self, waiter: Waiter, id: &ContainerId) {
        let admitted = (|| {
            self.admit()?;
            self.find(id)?;
            self.connected()
        })();
        if let Err(error) = admitted {
            return self.answer(waiter, Err(error));
        }
        let Some(container) = self.containers.get_mut(id) else { return };
        let being_removed = || Error::state(format!("container {id} is being removed"));
        match &mut container.stage {
            Stage::Created { stop: Some(RunningStop { removers, .. }), .. } if !removers.is_empty() => {
                self.answer(waiter, Err(being_removed()));
            }
            Stage::Exiting { removers, .. } if !removers.is_empty() => {
                self.answer(waiter, Err(being_removed()));
            }
            Stage::Created { start: Start::Requested(callers), .. }
            | Stage::Running { start: Some(callers), .. }
            | Stage::Exiting { start: Some(callers), .. }
            | Stage::Exited { start: Some(callers), .. } => callers.push(waiter),
            Stage::Created { start, .. } => match next_phase(&container.record, ContainerEvent::Started) {
                Ok(_) => {
                    *start = Start::Requested(vec![waiter]);
                    self.set_record(id);
                    self.begin(Job::Start(id.clone()));
                }
                Err(error) => {
                    let refused = Err(self.refused(error));
                    self.answer(waiter, refused);
                }
            },
            Stage::Removing { .. } => self.answer(waiter, Err(being_removed())),
            Stage::Running { start: None, .. }
            | Stage::Exiting { start: None, .. }
            | Stage::Exited { start: None, .. }
            | Stage::Creating { .. }
            | Stage::CutOff => {
                let refused = admission::start(&container.record);
                self.answer(waiter, refused);
            }
        }
    }

    fn stop(&mut self, waiter: Waiter, id: &ContainerId, grace: Duration) {
        let deadline = self.now.monotonic.saturating_add(grace.min(LONGEST_GRACE));
        let stop = RunningStop { deadline, stoppers: vec![waiter], removers: Vec::new() };
        let Some(container) = self.containers.get_mut(id) else { return self.answer(waiter, Ok(())) };
        match &mut container.stage {
            // It is not listed, was never started (its init waits until it is removed or the pod stops), or has exited.
            Stage::Creating { .. }
            | Stage::CutOff
            | Stage::Created { start: Start::NotRequested, stop: None }
            | Stage::Exited { .. }
            | Stage::Removing { .. } => self.answer(waiter, Ok(())),
            Stage::Created { .. } | Stage::Running { .. } => self.begin_stop(id, stop),
            Stage::Exiting { stoppers, .. } => stoppers.push(waiter),
        }
    }

    fn remove(&mut self, waiter: Waiter, id: &ContainerId) {
        let stop = RunningStop { deadline: self.now.monotonic, stoppers: Vec::new(), removers: vec![waiter] };
        let Some(container) = self.containers.get_mut(id) else { return self.answer(waiter, Ok(())) };
        match &mut container.stage {
            // It is not listed.
            Stage::Creating { .. } | Stage::CutOff => self.answer(waiter, Ok(())),
            Stage::Created { .. } | Stage::Running { .. } => self.begin_stop(id, stop),
            Stage::Exiting { removers, .. } => removers.push(waiter),
            Stage::Exited { .. } | Stage::Removing { .. } => self.begin_remove(id, vec![waiter]),
        }
    }

    /// Starts the stop of a container that may be running, or joins a running stop and shortens its grace
    /// period.
    fn begin_stop(&mut self, id: &ContainerId, new: RunningStop) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let (Stage::Created { stop, .. } | Stage::Running { stop, .. }) = &mut container.stage else {
            return;
        };
        let deadline = new.deadline;
        if let Some(stop) = stop {
            stop.stoppers.extend(new.stoppers);
            stop.removers.extend(new.removers);
            if deadline < stop.deadline {
                stop.deadline = deadline;
                self.actions.push(Action::ShortenGrace(id.clone(), deadline));
            }
            return;
        }
        *stop = Some(new);
        let (record, shim_pid) = (Arc::clone(&container.record), self.record.shim_pid);
        self.begin(Job::Stop { record, shim_pid, deadline });
    }
}

/// Whether a container was requested with this configuration. The environment is compared separately, because the
/// record of a created container does not hold it in its configuration (`spec::exec::keep`). If a variable is
/// requested twice, the last value counts. Resources are compared with those before the first update.
fn is_equal(record: &ContainerRecord, config: &ContainerConfig) -> bool {
    let by_name = |envs: Vec<EnvVar>| -> BTreeMap<String, Text> {
        envs.into_iter().map(|var| (var.key, var.value)).collect()
    };
    let without = |config: &ContainerConfig| ContainerConfig { envs: Vec::new(), ..config.clone() };
    let mut asked = without(&record.config);
    if let Some(resources) = &record.requested_resources {
        asked.resources = (**resources).clone();
    }
    asked == without(config) && by_name(spec::exec::requested_env(record)) == by_name(config.envs.clone())
}
