//! Effects of jobs on disk, shim and processes, with and without faults.

use super::*;

/// The limits of a container after the update in its record.
fn updated_limits(record: &ContainerRecord) -> Resources {
    let update = record.update.as_ref().expect("an update");
    spec::resources::updated(&record.config.resources, &update.resources).expect("a valid update")
}

impl World {
    /// A job ends; earlier events may be read first.
    pub(in super::super) fn finish(&mut self, pick: u8, luck: Luck, late: bool) -> Checked {
        if self.jobs.is_empty() {
            return Ok(());
        }
        let at = usize::from(pick) % self.jobs.len();
        let begun = self.jobs[at].clone();
        if let Job::Stop { record, .. } = &begun.job
            && begun.killed
            && !self.settled.contains(&record.id)
        {
            // It waits for the exit, unless that is visible without the shim.
            if self.connection.is_some() && begun.connection == self.connection {
                return Ok(());
            }
        }
        let outcome = self.work(&begun.job, begun.connection, luck, false)?;
        if let (Job::Stop { .. }, None) = (&begun.job, &outcome) {
            self.jobs[at].killed = true;
            return Ok(());
        }
        self.jobs.remove(at);
        if let Some(log) = &mut self.log {
            log.push(format!("{luck:?}: {:?}", begun.job));
        }
        if !late {
            while !self.unread.is_empty() {
                self.deliver()?;
            }
        }
        outcome.map_or(Ok(()), |outcome| self.input(Input::Done(outcome)))
    }

    /// Does the work of a job. `with`: the connection when it began. `crash`: it does only a part, and the result is lost.
    #[expect(clippy::too_many_lines, reason = "one match over all jobs")]
    pub(super) fn work(
        &mut self,
        job: &Job,
        with: Option<u32>,
        luck: Luck,
        crash: bool,
    ) -> Result<Option<Outcome>, Violation> {
        let fails = luck == Luck::Fails;
        let reachable = self.shim && with.is_some() && with == self.connection && !self.mute;
        Ok(match job {
            Job::Launch(record) => Some(Outcome::Launched(self.launch(record, luck, crash))),
            Job::Create(_, record) => Some(Outcome::Created(
                record.id.clone(),
                self.make(record, luck, reachable || crash && self.shim, crash),
            )),
            Job::Start(id) => {
                let started = self.start(id, luck, reachable || crash && self.shim);
                if !fails {
                    self.persist(id);
                }
                Some(Outcome::Started(id.clone(), started))
            }
            Job::Stop { record, .. } => {
                let id = &record.id;
                if fails && self.holds.get(id).is_some_and(Process::lives) {
                    return Ok(Some(Outcome::StopEnded(
                        id.clone(),
                        Err(broken("processes survive SIGKILL")),
                    )));
                }
                self.end(id, 137);
                if self.settled.contains(id) {
                    Some(Outcome::StopEnded(id.clone(), Ok(None)))
                } else if reachable {
                    None
                } else {
                    let exit = match self.holds.get(id) {
                        Some(Process::Over((exit, _))) => exit.clone(),
                        _ => Exit { code: 255, ..Exit::default() },
                    };
                    Some(Outcome::StopEnded(id.clone(), Ok(Some(exit))))
                }
            }
            Job::RecordExit(id) => {
                if !fails {
                    self.persist(id);
                }
                Some(Outcome::ExitRecorded(id.clone(), !fails))
            }
            Job::RemoveContainer(record) => {
                let id = &record.id;
                if self.holds.get(id).is_some_and(Process::lives)
                    && !self.asked.contains(id)
                    && !self.stop_asked
                {
                    return violation(Kind::EarlyKill, format!("container {id} is removed alive"))
                        .map(|()| None);
                }
                self.persist(id);
                let lives = self.holds.get(id).is_some_and(Process::lives);
                let errors = if fails || lives { vec![broken("not removed")] } else { Vec::new() };
                if errors.is_empty() {
                    self.forget(id);
                }
                Some(Outcome::ContainerRemoved(id.clone(), errors))
            }
            Job::UndoCreate(record) => {
                self.end(&record.id, 137);
                self.forget(&record.id);
                None
            }
            Job::KillOrphan(id) => {
                if reachable {
                    self.end(id, 137);
                    self.holds.remove(id);
                    self.files.remove(id);
                }
                None
            }
            Job::RemoveCgroup(_) | Job::KillExecs(_) => None,
            Job::ReopenLog(waiter, _) => {
                Some(Outcome::LogReopened(*waiter, if reachable { Ok(()) } else { Err(lost()) }))
            }
            Job::Update(record) => {
                if luck != Luck::Lost || crash {
                    self.persist(&record.id);
                }
                Some(Outcome::Updated(record.id.clone(), self.limit(record, luck)))
            }
            Job::SettleUpdate(record) if !crash => {
                let wanted = updated_limits(record);
                let limits = self.limits.entry(record.id.clone()).or_default();
                let applied = *limits == wanted;
                *limits = if applied { wanted } else { record.config.resources.clone() };
                let settled = if applied { Ok(()) } else { Err(broken("undone")) };
                Some(Outcome::Updated(record.id.clone(), settled))
            }
            Job::SettleUpdate(_) => None,
            Job::RecordUpdate(id) => {
                if !fails {
                    self.persist(id);
                }
                Some(Outcome::UpdateRecorded(id.clone()))
            }
            Job::TearDownPod(..) => Some(Outcome::PodTornDown(self.kill_all(luck, true))),
            Job::KillRemains(..) => Some(Outcome::RemainsKilled(self.kill_all(luck, false))),
            Job::RecordPod | Job::RecordStop | Job::RecordPodUpdate(_) => {
                if !fails
                    && self.disk_pod.is_some()
                    && let Some(newest) = &self.newest_pod
                {
                    self.disk_pod = Some(PodRecord::clone(newest));
                }
                match job {
                    Job::RecordPodUpdate(waiter) => Some(Outcome::PodUpdateRecorded(*waiter)),
                    Job::RecordStop => Some(Outcome::StopRecorded),
                    _ => None,
                }
            }
            Job::RemoveShimFolder => {
                if !fails {
                    self.forget_shim()?;
                }
                Some(Outcome::ShimFolderRemoved(if fails { vec![broken("folder")] } else { Vec::new() }))
            }
            Job::RemovePod(..) => Some(Outcome::PodRemoved(self.remove_pod(luck))),
        })
    }

    pub(super) fn launch(
        &mut self,
        record: &PodRecord,
        luck: Luck,
        crash: bool,
    ) -> Result<Box<PodRecord>, LaunchFailed> {
        match luck {
            Luck::Good => {
                let record =
                    PodRecord { phase: PodPhase::Ready, shim_pid: 5, pause_pid: 6, ..record.clone() };
                self.disk_pod = Some(record.clone());
                (self.shim, self.pause) = (true, true);
                self.connections += 1;
                self.offered = Some(self.connections);
                self.committed = true;
                Ok(Box::new(record))
            }
            Luck::Fails => {
                self.disk_pod = None;
                Err(LaunchFailed { error: broken("launch"), left: Vec::new() })
            }
            Luck::Lost => {
                (self.shim, self.pause) = (true, true);
                debug_assert!(crash || self.disk_pod.is_some());
                Err(LaunchFailed { error: broken("launch"), left: vec![broken("its undoing")] })
            }
        }
    }

    pub(super) fn make(
        &mut self,
        record: &ContainerRecord,
        luck: Luck,
        reachable: bool,
        crash: bool,
    ) -> Result<Box<ContainerRecord>, Error> {
        let id = record.id.clone();
        match luck {
            _ if !reachable => Err(lost()),
            Luck::Good => {
                let record = ContainerRecord { phase: ContainerPhase::Created, pid: 7, ..record.clone() };
                self.disk.insert(id.clone(), record.clone());
                self.limits.insert(id.clone(), record.config.resources.clone());
                self.holds.insert(id, Process::Waiting);
                Ok(Box::new(record))
            }
            Luck::Fails => Err(Error::new(ErrorKind::InvalidArgument, "image")),
            Luck::Lost => {
                if crash {
                    self.disk.insert(id.clone(), record.clone());
                }
                self.holds.insert(id, Process::Waiting);
                Err(lost())
            }
        }
    }

    /// Changes the limits of a container: all, none, or with [`Luck::Lost`] before a crash only one.
    fn limit(&mut self, record: &ContainerRecord, luck: Luck) -> Result<(), Error> {
        if !self.holds.get(&record.id).is_some_and(Process::lives) {
            return Err(broken("its cgroup is gone"));
        }
        let (wanted, limits) = (updated_limits(record), self.limits.entry(record.id.clone()).or_default());
        match luck {
            Luck::Good => *limits = wanted,
            Luck::Fails => return Err(broken("the kernel refuses a limit")),
            Luck::Lost if self.life.is_none() => limits.cpu_shares = wanted.cpu_shares,
            Luck::Lost => return Err(broken("the update cannot be recorded")),
        }
        Ok(())
    }

    pub(super) fn start(&mut self, id: &ContainerId, luck: Luck, reachable: bool) -> Result<i64, StartError> {
        let waits = self.holds.get(id) == Some(&Process::Waiting);
        if !reachable || !waits {
            return Err(StartError::Other(lost()));
        }
        if luck == Luck::Fails {
            self.end(id, 128);
            return Err(StartError::Never("no such file".into()));
        }
        let since = i64::from(self.clock) * 1000 + 2;
        self.holds.insert(id.clone(), Process::Running(since));
        if luck == Luck::Lost {
            return Err(StartError::Other(lost()));
        }
        self.send_event(ShimEvent::Started(id.clone(), since));
        Ok(since)
    }

    pub(super) fn kill_all(&mut self, luck: Luck, all: bool) -> TornDown {
        let mut ended = TornDown::default();
        let ids: Vec<ContainerId> = self.holds.keys().cloned().collect();
        for (at, id) in ids.iter().enumerate() {
            // One process hangs in the kernel.
            if luck == Luck::Fails && at == 0 && self.holds.get(id).is_some_and(Process::lives) {
                ended.alive.insert(id.clone());
                ended.errors.push(broken("a process survives SIGKILL"));
            } else {
                self.end(id, 137);
            }
        }
        ended.exits = self.files.clone();
        if !all {
            return ended;
        }
        if luck == Luck::Lost {
            ended.errors.push(broken("CNI DEL"));
        }
        if ended.errors.is_empty() {
            self.pause = false;
            self.kill_shim();
        }
        ended
    }

    pub(super) fn remove_pod(&mut self, luck: Luck) -> Vec<Error> {
        if let Some(newest) = &self.newest_pod {
            self.disk_pod = Some(PodRecord::clone(newest));
        }
        if luck == Luck::Fails || self.holds.values().any(Process::lives) {
            return vec![broken("not removed")];
        }
        self.disk.clear();
        self.holds.clear();
        self.files.clear();
        if luck == Luck::Lost {
            return vec![broken("the pod's folder")];
        }
        self.disk_pod = None;
        (self.shim, self.pause) = (false, false);
        Vec::new()
    }

    pub(super) fn persist(&mut self, id: &ContainerId) {
        if let (Some(newest), true) = (self.newest.get(id), self.disk.contains_key(id)) {
            self.disk.insert(id.clone(), ContainerRecord::clone(newest));
        }
    }

    pub(super) fn forget(&mut self, id: &ContainerId) {
        self.disk.remove(id);
        self.holds.remove(id);
        self.files.remove(id);
    }

    pub(super) fn forget_shim(&mut self) -> Checked {
        for id in self.files.keys() {
            let durable =
                self.disk.get(id).is_none_or(|it| it.exit.is_some() || it.phase == ContainerPhase::Creating);
            if !durable {
                return violation(Kind::Leak, format!("the exit of {id} is lost with the shim's folder"));
            }
        }
        self.files.clear();
        Ok(())
    }
}
