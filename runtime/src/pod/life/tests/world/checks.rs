//! Performs and checks the state machine's actions: lists, replies, names, and what may be killed.

use super::super::super::stage::Fate;
use super::*;

impl World {
    pub(super) fn perform(&mut self, actions: Vec<Action>) -> Checked {
        for action in actions {
            self.perform_one(action)?;
        }
        Ok(())
    }

    #[expect(clippy::too_many_lines, reason = "one match over all actions")]
    pub(super) fn perform_one(&mut self, action: Action) -> Checked {
        match action {
            Action::Answer(waiter, answer) => self.answer(waiter, answer),
            Action::ReplyToRun(_) => Ok(()),
            Action::ReleaseName => {
                if self.disk_pod.is_some() || self.shim {
                    return violation(Kind::StuckName, "the name is free while the pod is there");
                }
                self.name = self.sabotage == Some(Sabotage::StuckName);
                Ok(())
            }
            Action::PublishPod(record, _) => self.publish_pod(record),
            Action::PublishContainer(record) => {
                self.publish(Arc::clone(&record))?;
                if self.sabotage == Some(Sabotage::DoubleExit)
                    && let Some(exit) = &record.exit
                {
                    let exit = Exit { code: exit.code + 1, ..exit.clone() };
                    self.publish(Arc::new(ContainerRecord {
                        exit: Some(exit),
                        ..ContainerRecord::clone(&record)
                    }))?;
                }
                Ok(())
            }
            Action::UnpublishPod => {
                self.shown_pod = None;
                Ok(())
            }
            Action::UnpublishContainer(id) => {
                self.shown.remove(&id);
                Ok(())
            }
            Action::SetPodRecord(record) => {
                self.newest_pod = Some(record);
                Ok(())
            }
            Action::SetContainerRecord(record) => {
                self.newest.insert(record.id.clone(), record);
                Ok(())
            }
            Action::Connect => {
                self.connection = self.offered.take();
                self.unread.clear();
                Ok(())
            }
            Action::Disconnect => {
                self.connection = None;
                self.unread.clear();
                Ok(())
            }
            Action::Dial { .. } => {
                self.dials += 1;
                if self.sabotage == Some(Sabotage::EarlyKill)
                    && self.shim
                    && self.committed
                    && !self.stop_asked
                {
                    let record = self.life.as_ref().map(|life| Arc::new(life.record().clone()));
                    return record.map_or(Ok(()), |record| self.begin(Job::KillRemains(record, Vec::new())));
                }
                Ok(())
            }
            Action::ShortenGrace(..) => Ok(()),
            Action::FinishStop(id) => {
                self.settled.insert(id);
                Ok(())
            }
            Action::Begin(job) => {
                if self.sabotage == Some(Sabotage::HalfMade)
                    && let Job::Create(_, record) = &job
                {
                    self.publish(Arc::clone(record))?;
                }
                self.begin(job)
            }
            Action::StartTimer(timer, _) => {
                self.timers.retain(|it| *it != timer);
                self.timers.push(timer);
                Ok(())
            }
            Action::ReportBug(error) => violation(Kind::Refused, error.text()),
            Action::Finish => {
                self.life = None;
                // They end with the driver.
                self.jobs.clear();
                self.timers.clear();
                self.unread.clear();
                (self.dials, self.connection) = (0, None);
                if self.disk_pod.is_some() {
                    return violation(Kind::Leak, "the driver ended and left a record");
                }
                if let Some((waiter, call)) = self.waiting.first_key_value() {
                    return violation(Kind::LostWaiter, format!("{waiter:?} {call:?} when the driver ended"));
                }
                Ok(())
            }
        }
    }

    pub(super) fn answer(&mut self, waiter: Waiter, answer: Result<Answer, Error>) -> Checked {
        if self.sabotage == Some(Sabotage::LostWaiter) && waiter.0 % 5 == 4 {
            return Ok(());
        }
        if !self.answered.insert(waiter) {
            return violation(Kind::AnsweredTwice, format!("{waiter:?} {answer:?}"));
        }
        let Some(call) = self.waiting.remove(&waiter) else {
            return violation(
                Kind::LostWaiter,
                format!("a reply to {waiter:?}, which does not wait: {answer:?}"),
            );
        };
        let untrue = |text: &str| violation(Kind::Untrue, format!("{call:?} was answered Ok: {text}"));
        if answer.is_ok() {
            let lives = |id: &ContainerId| self.holds.get(id).is_some_and(Process::lives);
            match &call {
                Call::StopPod if self.holds.values().any(Process::lives) => return untrue("containers live"),
                Call::StopPod if self.pause && self.shim => return untrue("pause lives"),
                Call::RemovePod if self.disk_pod.is_some() => return untrue("its record is there"),
                Call::RemovePod if !self.disk.is_empty() => return untrue("records of containers are there"),
                Call::Stop(id, _) if matches!(self.holds.get(id), Some(Process::Running(_))) => {
                    return untrue("it runs");
                }
                Call::Remove(id) if lives(id) && self.shown.contains_key(id) => return untrue("it lives"),
                Call::Remove(id) if self.shown.contains_key(id) => return untrue("it is listed"),
                Call::Create { .. } => {
                    let Ok(Answer::Created(id)) = &answer else { return untrue("without an id") };
                    if !self.disk.contains_key(id) {
                        return untrue("it has no record");
                    }
                }
                Call::Update(id, update) if lives(id) => {
                    let limits = self.limits.get(id).cloned().unwrap_or_default();
                    if spec::resources::updated(&limits, &update.resources).as_ref() != Ok(&limits) {
                        return violation(Kind::FalseLimits, format!("{call:?} is not in force: {limits:?}"));
                    }
                }
                Call::Start(id) if matches!(self.holds.get(id), Some(Process::Waiting)) => {
                    return untrue("it was not started");
                }
                _ => {}
            }
        }
        self.answers.push((waiter, answer));
        Ok(())
    }

    pub(super) fn publish_pod(&mut self, record: Arc<PodRecord>) -> Checked {
        let unseen = match record.phase {
            PodPhase::Launching => !self.other_boot,
            PodPhase::Removing => true,
            PodPhase::Ready | PodPhase::Stopping | PodPhase::Stopped => false,
        };
        if unseen || self.disk_pod.is_none() {
            return violation(Kind::HalfMade, format!("a pod is listed that is {:?}", record.phase));
        }
        self.shown_pod = Some(record);
        Ok(())
    }

    pub(super) fn publish(&mut self, record: Arc<ContainerRecord>) -> Checked {
        let id = record.id.clone();
        let seen = matches!(
            record.phase,
            ContainerPhase::Created | ContainerPhase::Running | ContainerPhase::Exited
        );
        let committed = self.disk.get(&id).is_some_and(|it| it.phase != ContainerPhase::Creating);
        if !seen || !committed || self.shown_pod.is_none() {
            return violation(Kind::HalfMade, format!("container {id} is listed as {:?}", record.phase));
        }
        if let Some(told) = self.told.get(&id)
            && record.exit.as_ref() != Some(told)
        {
            return violation(Kind::DoubleExit, format!("container {id}: {told:?}, then {:?}", record.exit));
        }
        if let Some(exit) = &record.exit {
            if self.holds.get(&id).is_some_and(Process::lives) {
                return violation(Kind::FalseExit, format!("container {id} lives: {exit:?}"));
            }
            self.told.insert(id.clone(), exit.clone());
        }
        let record = match self.shown.get(&id) {
            Some(before) if self.sabotage == Some(Sabotage::FalseLimits) => {
                let mut record = ContainerRecord::clone(&record);
                record.config.resources = before.config.resources.clone();
                Arc::new(record)
            }
            _ => record,
        };
        if !self.known.contains(&id) {
            self.known.push(id.clone());
        }
        self.shown.insert(id, record);
        Ok(())
    }

    pub(super) fn begin(&mut self, job: Job) -> Checked {
        let early = match &job {
            Job::TearDownPod(..) | Job::KillRemains(..) => self.committed && self.shim && !self.stop_asked,
            Job::Stop { record, .. } => !self.asked.contains(&record.id) && !self.stop_asked,
            Job::KillOrphan(id) => {
                let shown = self.shown.get(id).is_some_and(|it| it.phase != ContainerPhase::Exited);
                shown && !self.asked.contains(id) && !self.stop_asked
            }
            _ => false,
        };
        if early {
            return violation(Kind::EarlyKill, format!("nobody asked for {job:?}"));
        }
        if let Job::Launch(record) = &job {
            // The intent is written first.
            self.disk_pod = Some(PodRecord::clone(record));
        }
        if let Job::Stop { record, .. } = &job {
            self.settled.remove(&record.id);
        }
        self.jobs.push(Begun { job, connection: self.connection, killed: false });
        Ok(())
    }

    /// Continues without faults until nothing more happens.
    pub(in super::super) fn quiesce(&mut self) -> Checked {
        self.mute = false;
        for _ in 0..300 {
            if !self.unread.is_empty() {
                self.deliver()?;
            } else if let Some(at) = (0..self.jobs.len()).find(|at| !self.is_waiting(*at)) {
                self.finish(u8::try_from(at).unwrap_or(0), Luck::Good, false)?;
            } else if self.dials > 0 {
                self.dialled()?;
            } else if !self.timers.is_empty() {
                self.fire(0)?;
            } else if self.jobs.is_empty() {
                return match self.waiting.first_key_value() {
                    Some((waiter, call)) => violation(Kind::LostWaiter, format!("{waiter:?} {call:?}")),
                    None => self.check_lists(),
                };
            } else {
                return violation(Kind::LostWaiter, format!("a stop waits for ever: {:?}", self.jobs));
            }
        }
        violation(Kind::Leak, "it never comes to rest")
    }

    pub(super) fn is_waiting(&self, at: usize) -> bool {
        let begun = &self.jobs[at];
        let Job::Stop { record, .. } = &begun.job else { return false };
        let same = self.connection.is_some() && begun.connection == self.connection;
        begun.killed && same && !self.settled.contains(&record.id)
    }

    /// When nothing is running, the lists must be correct.
    pub(super) fn check_lists(&self) -> Checked {
        if self.life.is_none() {
            return self.check_gone();
        }
        let stays =
            self.life.as_ref().is_some_and(|life| life.fate == Fate::Stays) && self.shown_pod.is_some();
        for (id, record) in &self.shown {
            let lives = self.holds.get(id).is_some_and(Process::lives);
            if (record.phase == ContainerPhase::Exited) == lives {
                return violation(
                    Kind::FalseExit,
                    format!("container {id} is {:?}, lives {lives}", record.phase),
                );
            }
            let (shown, limits) = (&record.config.resources, self.limits.get(id));
            if lives && limits != Some(shown) {
                return violation(Kind::FalseLimits, format!("container {id}: {limits:?}, shown {shown:?}"));
            }
        }
        for (id, record) in &self.disk {
            let seen = !matches!(record.phase, ContainerPhase::Creating | ContainerPhase::Removing);
            if seen && stays && !self.shown.contains_key(id) {
                return violation(
                    Kind::HalfMade,
                    format!("container {id} is {:?} and not listed", record.phase),
                );
            }
        }
        Ok(())
    }

    pub(super) fn check_gone(&self) -> Checked {
        if self.name {
            return violation(Kind::StuckName, "the pod is gone and its name is not free");
        }
        if self.shown_pod.is_some() || !self.shown.is_empty() {
            return violation(Kind::HalfMade, "what is gone is listed");
        }
        Ok(())
    }

    /// Stops and removes the pod: then nothing must be left, and the name must be free.
    pub(in super::super) fn end_all(&mut self) -> Checked {
        self.quiesce()?;
        if self.life.is_some() {
            // It is listed: a pod that is not has been removed without a call by now.
            let stop = self.call(Call::StopPod)?;
            self.quiesce()?;
            self.expect_done(stop, "StopPodSandbox")?;
        }
        if self.life.is_some() {
            let remove = self.call(Call::RemovePod)?;
            self.quiesce()?;
            self.expect_done(remove, "RemovePodSandbox")?;
        }
        if self.life.is_some() || self.disk_pod.is_some() || !self.disk.is_empty() {
            return violation(Kind::StuckName, "a pod that was stopped and removed is there");
        }
        self.check_gone()?;
        self.run_pod()
    }

    pub(super) fn expect_done(&self, waiter: Waiter, what: &str) -> Checked {
        match self.answers.iter().find(|(it, _)| *it == waiter) {
            Some((_, Ok(_))) => Ok(()),
            Some((_, Err(error))) => violation(Kind::Leak, format!("{what}: {}", error.text())),
            None => violation(Kind::LostWaiter, what),
        }
    }
}
