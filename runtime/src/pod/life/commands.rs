//! Handles CRI calls: starts, joins or refuses them, depending on the stage.

use super::stage::{Container, End, PodStage, Stage, Start};
use super::{Action, Answer, Ask, Job, Life, Waiter};
use crate::error::{Error, ErrorKind};
use crate::pod::{admission, intent};
use model::{ContainerConfig, ContainerId, ContainerPhase, ContainerRecord, EnvVar, Text};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use wire::MAX_CONTAINERS;

/// Longest grace period of a stop: kubelet accepts any i64; a year means no limit.
const LONGEST_GRACE: Duration = Duration::from_secs(365 * 24 * 3600);

impl Life {
    pub(super) fn ask(&mut self, waiter: Waiter, ask: Ask) {
        match ask {
            Ask::StopPod => self.stop_pod(waiter),
            Ask::RemovePod => self.remove_pod(waiter),
            Ask::Create { id, config } => self.create(waiter, id, *config),
            Ask::Start(id) => self.start(waiter, &id),
            Ask::Stop(id, grace) => self.stop(waiter, &id, grace),
            Ask::Remove(id) => self.remove(waiter, &id),
            Ask::ReopenLog(id) => match self.may_use(&id) {
                Ok(_) => {
                    self.reopening.insert(waiter);
                    self.begin(Job::ReopenLog(waiter, id));
                }
                Err(error) => self.answer(waiter, Err(error)),
            },
            Ask::Exec(id) => {
                let answer = self.may_use(&id).map(Answer::MayExec);
                self.actions.push(Action::Answer(waiter, answer));
            }
        }
    }

    /// A running container whose shim is connected.
    fn may_use(&self, id: &ContainerId) -> Result<Arc<ContainerRecord>, Error> {
        let container = self.find(id)?;
        admission::running(&container.record)?;
        self.shim()?;
        Ok(Arc::clone(&container.record))
    }

    fn find(&self, id: &ContainerId) -> Result<&Container, Error> {
        let found = self.containers.get(id).filter(|container| container.is_committed());
        found.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("no container {id}")))
    }

    /// Containers are created and started only in a ready pod.
    pub(super) fn admit(&self) -> Result<(), Error> {
        match &self.stage {
            PodStage::Up => Ok(()),
            PodStage::Launching | PodStage::Leftover | PodStage::Over | PodStage::Stopped { .. } => {
                admission::ready(&self.record)
            }
            PodStage::Killing(_)
            | PodStage::Ending(_)
            | PodStage::Recording(_)
            | PodStage::Settling(..)
            | PodStage::Forgetting(_)
            | PodStage::Removing { .. }
            | PodStage::Gone => Err(Error::state(format!("pod {} is being stopped", self.record.id))),
        }
    }

    fn create(&mut self, waiter: Waiter, id: ContainerId, config: ContainerConfig) {
        let same = self.containers.values_mut().find(|it| it.record.config.meta == config.meta);
        if let Some(container) = same {
            let (id, meta) = (container.record.id.clone(), &config.meta);
            let name = format!("container {} attempt {}", meta.name, meta.attempt);
            let exists = |text: &str| Error::new(ErrorKind::AlreadyExists, format!("{name} {text}, as {id}"));
            let again = |text: &str| Error::new(ErrorKind::Unavailable, format!("{name}: {text} {id}"));
            let answer = match &mut container.stage {
                Stage::CutOff => {
                    Err(again("an earlier create of it was interrupted and is being undone, as"))
                }
                Stage::Removing { .. } => {
                    Err(again("an earlier container of this name is being removed, as"))
                }
                _ if !is_equal(&container.record, &config) => {
                    Err(exists("exists with another configuration"))
                }
                Stage::Creating { callers, .. } => return callers.push(waiter),
                // A pod that is being removed may have lost its record already.
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
                self.containers.insert(record.id.clone(), Container { record, stage });
            }
        }
    }

    /// The first record of a container, if it may be created.
    fn new_record(&self, id: ContainerId, config: ContainerConfig) -> Result<ContainerRecord, Error> {
        self.admit()?;
        if self.containers.len() >= MAX_CONTAINERS {
            let text = format!(
                "pod {} has {MAX_CONTAINERS} containers, its limit, exited ones included: remove some first",
                self.record.id
            );
            return Err(Error::new(ErrorKind::ResourceExhausted, text));
        }
        let record = intent::container(id, &self.record, config, self.now.wall)?;
        let find = |id: &str| self.containers.values().map(|it| &*it.record).find(|it| it.id.as_str() == id);
        admission::target(&record, find)?;
        self.shim()?;
        Ok(record)
    }

    fn start(&mut self, waiter: Waiter, id: &ContainerId) {
        let admitted = (|| {
            self.admit()?;
            self.find(id)?;
            self.shim()
        })();
        if let Err(error) = admitted {
            return self.answer(waiter, Err(error));
        }
        let Some(container) = self.containers.get_mut(id) else { return };
        let being_removed = || Error::state(format!("container {id} is being removed"));
        match &mut container.stage {
            Stage::Created { end: Some(End { removers, .. }), .. } if !removers.is_empty() => {
                self.answer(waiter, Err(being_removed()));
            }
            Stage::Exiting { removers, .. } if !removers.is_empty() => {
                self.answer(waiter, Err(being_removed()));
            }
            Stage::Created { start: Start::Asked(callers), .. }
            | Stage::Running { start: Some(callers), .. }
            | Stage::Exiting { start: Some(callers), .. }
            | Stage::Exited { start: Some(callers), .. } => callers.push(waiter),
            Stage::Created { start, .. } => {
                *start = Start::Asked(vec![waiter]);
                // The record on disk says "may have run"; the published state changes only with the shim's
                // report.
                let mut intent = ContainerRecord::clone(&container.record);
                intent.phase = ContainerPhase::Running;
                intent.started_at = self.now.wall;
                self.actions.push(Action::NoteContainer(Arc::new(intent)));
                self.begin(Job::Start(id.clone()));
            }
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
        let deadline = self.now.steady.saturating_add(grace.min(LONGEST_GRACE));
        let end = End { deadline, stoppers: vec![waiter], removers: Vec::new() };
        let Some(container) = self.containers.get_mut(id) else { return self.answer(waiter, Ok(())) };
        match &mut container.stage {
            // It is not listed, or has no process left to stop.
            Stage::Creating { .. }
            | Stage::CutOff
            | Stage::Created { start: Start::Not, end: None }
            | Stage::Exited { .. }
            | Stage::Removing { .. } => self.answer(waiter, Ok(())),
            Stage::Created { .. } | Stage::Running { .. } => self.end(id, end),
            Stage::Exiting { stoppers, .. } => stoppers.push(waiter),
        }
    }

    fn remove(&mut self, waiter: Waiter, id: &ContainerId) {
        let end = End { deadline: self.now.steady, stoppers: Vec::new(), removers: vec![waiter] };
        let Some(container) = self.containers.get_mut(id) else { return self.answer(waiter, Ok(())) };
        match &mut container.stage {
            // It is not listed.
            Stage::Creating { .. } | Stage::CutOff => self.answer(waiter, Ok(())),
            Stage::Created { .. } | Stage::Running { .. } => self.end(id, end),
            Stage::Exiting { removers, .. } => removers.push(waiter),
            Stage::Exited { .. } | Stage::Removing { .. } => self.begin_remove(id, vec![waiter]),
        }
    }

    /// Starts the stop of a container that may be running, or joins a running stop and shortens its grace
    /// period.
    fn end(&mut self, id: &ContainerId, new: End) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let (Stage::Created { end, .. } | Stage::Running { end, .. }) = &mut container.stage else { return };
        let deadline = new.deadline;
        if let Some(end) = end {
            end.stoppers.extend(new.stoppers);
            end.removers.extend(new.removers);
            if deadline < end.deadline {
                end.deadline = deadline;
                self.actions.push(Action::Hasten(id.clone(), deadline));
            }
            return;
        }
        *end = Some(new);
        let (record, shim_pid) = (Arc::clone(&container.record), self.record.shim_pid);
        self.begin(Job::Stop { record, shim_pid, deadline });
    }
}

/// Whether a container was requested with this configuration. The environment is compared separately, because a created
/// container's configuration does not hold it (`spec::exec::keep`). If a name is requested twice, the last value counts.
fn is_equal(record: &ContainerRecord, config: &ContainerConfig) -> bool {
    let by_name = |envs: Vec<EnvVar>| -> BTreeMap<String, Text> {
        envs.into_iter().map(|var| (var.key, var.value)).collect()
    };
    let without = |config: &ContainerConfig| ContainerConfig { envs: Vec::new(), ..config.clone() };
    without(&record.config) == without(config)
        && by_name(spec::exec::requested_env(record)) == by_name(config.envs.clone())
}
