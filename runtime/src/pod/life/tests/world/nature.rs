//! Events without a call: exits, lost connections, dead shims, restarts.

use super::*;

impl World {
    pub(super) fn send_event(&mut self, event: ShimEvent) {
        if self.connection.is_some() {
            self.unread.push_back(Message::Event(event));
        }
    }

    /// A process ends: the shim writes a file before it reports that.
    pub(super) fn end(&mut self, id: &ContainerId, code: i32) {
        let Some(process) = self.holds.get_mut(id) else { return };
        let started_at = match process {
            Process::Waiting => 0,
            Process::Running(since) => *since,
            Process::Over(_) => return,
        };
        let exit = Exit { code, finished_at: i64::from(self.clock) * 1000 + 1, ..Exit::default() };
        let ending = (exit, started_at);
        *process = Process::Over(ending.clone());
        if self.shim {
            self.files.insert(id.clone(), ending.clone());
            self.send_event(ShimEvent::Exited(id.clone(), ending));
        }
    }

    /// A container exits by itself.
    pub(in super::super) fn exits(&mut self, pick: u8, code: i32) {
        let live: Vec<ContainerId> =
            self.holds.iter().filter(|(_, it)| it.lives()).map(|(id, _)| id.clone()).collect();
        if let Some(id) = choose(&live, pick) {
            self.end(&id.clone(), code);
        }
    }

    pub(in super::super) fn pause_exits(&mut self) {
        if std::mem::take(&mut self.pause) {
            self.send_event(ShimEvent::PauseExited { code: 0 });
        }
    }

    /// The connection ends; `torn`: unread messages are lost.
    pub(in super::super) fn disconnect(&mut self, torn: bool) {
        if self.connection.take().is_some() {
            if torn {
                self.unread.clear();
            }
            self.unread.push_back(Message::Lost);
        }
    }

    pub(in super::super) fn set_mute(&mut self, mute: bool) {
        self.mute = mute;
    }

    pub(in super::super) fn kill_shim(&mut self) {
        if std::mem::take(&mut self.shim) {
            self.disconnect(true);
        }
    }

    /// The next message on the connection.
    pub(in super::super) fn deliver(&mut self) -> Checked {
        match self.unread.pop_front() {
            Some(Message::Event(event)) => self.input(Input::Shim(event)),
            Some(Message::Lost) => self.input(Input::LinkLost),
            None => Ok(()),
        }
    }

    /// An attempt to connect ends.
    pub(in super::super) fn dialled(&mut self) -> Checked {
        if self.dials == 0 {
            return Ok(());
        }
        self.dials -= 1;
        let dialled = self.dial_result();
        self.input(Input::Dialled(Box::new(dialled)))
    }

    pub(super) fn dial_result(&mut self) -> DialResult {
        if self.other_boot {
            return DialResult::of_another_boot();
        }
        let shim = match (self.shim, self.mute) {
            (false, _) => Shim::Gone,
            (true, true) => Shim::Silent,
            (true, false) => {
                self.connections += 1;
                self.offered = Some(self.connections);
                let held = |process: &Process| match process {
                    Process::Waiting => InShim::Created { pid: 7 },
                    Process::Running(since) => InShim::Running { pid: 7, started_at: *since },
                    Process::Over((exit, since)) => InShim::Exited { exit: exit.clone(), started_at: *since },
                };
                let containers = self.holds.iter().map(|(id, process)| (id.clone(), held(process))).collect();
                Shim::Answered { pause: self.pause, containers }
            }
        };
        DialResult { pid: 5, exits: self.files.clone(), why: "it is silent".into(), ..DialResult::of(shim) }
    }

    pub(in super::super) fn fire(&mut self, pick: u8) -> Checked {
        if self.timers.is_empty() {
            return Ok(());
        }
        let timer = self.timers.remove(usize::from(pick) % self.timers.len());
        self.input(Input::Due(timer))
    }

    /// The daemon is killed and starts again; in another boot no process of the pod is left.
    pub(in super::super) fn restart(&mut self, reboot: bool, lucks: u8) -> Checked {
        if self.life.is_none() {
            return Ok(());
        }
        if let Some(log) = &mut self.log {
            log.push(format!("restart, reboot {reboot}"));
        }
        self.life = None;
        // Some jobs were done partly, and their results are lost.
        for (at, begun) in std::mem::take(&mut self.jobs).into_iter().enumerate() {
            if lucks >> (at % 8) & 1 == 1 {
                drop(self.work(&begun.job, begun.connection, Luck::Lost, true)?);
            }
        }
        (self.dials, self.connection) = (0, None);
        self.unread.clear();
        self.timers.clear();
        // Their connections close with the daemon.
        self.waiting.clear();
        self.shown_pod = None;
        self.shown.clear();
        self.newest.clear();
        // What could not be recorded is forgotten, and is reported as it is found.
        let disk = &self.disk;
        self.told.retain(|id, _| disk.get(id).is_some_and(|it| it.exit.is_some()));
        if reboot {
            (self.shim, self.pause, self.other_boot) = (false, false, true);
            self.holds.clear();
            self.files.clear();
        }
        let Some(record) = self.disk_pod.clone() else {
            self.name = false;
            return self.check_gone();
        };
        let containers: Vec<ContainerRecord> = self.disk.values().cloned().collect();
        let leaving = model::reconcile::is_leaving(!self.other_boot, &record, &containers);
        self.newest_pod = Some(Arc::new(record.clone()));
        let now = self.now();
        let (life, actions) = Life::restore(record, containers, leaving, now);
        self.life = Some(life);
        self.perform(actions)?;
        let dialled = self.dial_result();
        self.input(Input::Dialled(Box::new(dialled)))
    }
}
