//! Performs the lifecycle's actions on the simulated kernel and daemon, and checks each.

use wire::{Event, Reply, Snapshot};

use super::super::action::{Action, CgroupLook, Fork, Session};
use super::super::id::Serial;
use super::super::input::{CgroupState, Happened, Held, InitState, Input};
use super::super::worker::KILLED;
use super::check::Violation;
use super::kernel::Owner;
use super::op::Sabotage;
use super::world::{Packet, Worker, World};
use super::{Checked, user};
use crate::failure::refusal;

impl World {
    #[expect(clippy::too_many_lines, reason = "one match over all actions")]
    pub(super) fn perform(&mut self, action: Action) -> Checked {
        match action {
            Action::Greet => return self.greet(),
            Action::Reply { to, reply, .. } => {
                self.check.answered(self.connection, to, &reply)?;
                self.replies.push((to.id, reply));
            }
            Action::Event(event) => {
                self.event(&event)?;
                self.events.push(event);
            }
            Action::Fork(serial, fork) => self.fork(serial, fork),
            Action::ReadPackets(serial) => self.read_packet(serial),
            Action::DropWorker(serial) => self.drop_worker(serial),
            Action::Release(serial) => self.drop_worker(serial),
            Action::Signal { pid, signal } => return self.signal(pid, signal),
            Action::SignalFor { requester, pid, signal } => {
                self.signal(pid, signal)?;
                self.inputs.push_back(Input::Served { requester, outcome: Ok(()) });
            }
            Action::Adopt(serial, pid) => return self.adopt(serial, pid),
            Action::StartInit(serial, _) => {
                self.told_to_start.push(serial);
                self.result(serial, Happened::StartSent(Ok(())));
            }
            Action::ReadErrorPipe(serial) => {
                let executed = self.containers.get(&serial.0).and_then(|(_, init)| *init).map(|init| init.1);
                let closed = self.told_to_start.contains(&serial);
                self.told_to_start.retain(|known| *known != serial);
                let said = (executed == Some(false) && serial.0.is_multiple_of(2))
                    .then(|| "it is missing".to_owned());
                self.result(serial, Happened::ErrorPipe { said, closed });
            }
            Action::LookAtInit(serial, pid) => {
                self.child(pid, "look at")?;
                self.result(serial, Happened::InitSeen(self.init_state(pid)));
            }
            Action::LookAtProcess(serial, pid) => {
                self.child(pid, "look at")?;
                let over = self.kernel.processes.get(&pid).and_then(|process| process.code);
                self.result(serial, Happened::ProcessSeen(over));
            }
            Action::KillCgroup(serial) => {
                self.may_kill(serial, "the cgroup")?;
                self.kernel.kill_cgroup(serial);
            }
            Action::LookAtCgroup(serial, look) => return self.look_at_cgroup(serial, look),
            Action::KillSessions { container, sessions } => return self.kill_sessions(container, &sessions),
            Action::LookForOom { exec, .. } => {
                self.result(exec, Happened::MemorySeen(exec.0.is_multiple_of(2)))
            }
            Action::WriteRecord(serial, _, facts) => {
                let failed =
                    self.kernel.of(|process| process.cgroup == Some(serial) && process.code.is_none());
                if !failed.is_empty() {
                    return Err(Violation::Slot(format!("{serial:?} is over, but {failed:?} live in it")));
                }
                self.check.records.insert(serial.0, facts);
                self.result(serial, Happened::Recorded(Ok(())));
            }
            Action::RemoveRecord { requester, .. } | Action::ReopenLog { requester, .. } => {
                self.inputs.push_back(Input::Served { requester, outcome: Ok(()) });
            }
            Action::DropErrorPipe(serial) => self.told_to_start.retain(|known| *known != serial),
            Action::DropNamespaces(_)
            | Action::WatchOutputs(_)
            | Action::FinishOutputs(_)
            | Action::RemoveFiles(_) => {}
            Action::End => return self.end(),
        }
        Ok(())
    }

    fn result(&mut self, serial: Serial, happened: Happened) {
        self.inputs.push_back(Input::Of(serial, happened));
    }

    fn owner(&self, pid: u32) -> Option<Owner> {
        self.kernel.processes.get(&pid).map(|process| process.owner)
    }

    /// The pid must be that of a child that is not reaped.
    fn child(&self, pid: u32, what: &str) -> Checked {
        if self.kernel.is_child(pid) {
            return Ok(());
        }
        Err(Violation::WrongKill(format!("{what} {pid}, which is {:?}", self.kernel.processes.get(&pid))))
    }

    fn may_kill(&self, serial: Serial, what: &str) -> Checked {
        let worker = self.workers.iter().find(|worker| worker.serial == serial);
        let container_ended = worker.is_some_and(|worker| match worker.fork {
            Fork::Exec { container } => self.kernel.made(container).is_none_or(|pid| !self.kernel.runs(pid)),
            _ => false,
        });
        if container_ended || self.wanted_dead.contains(&serial) || self.is_late(serial) {
            return Ok(());
        }
        Err(Violation::EarlyKill(format!("{what} of {serial:?}: {:?}", self.life)))
    }

    /// Whether a deadline has passed.
    fn is_late(&self, serial: Serial) -> bool {
        let worker = self.workers.iter().find(|worker| worker.serial == serial);
        let exec = self.execs.get(&serial.0).and_then(|(_, deadline)| *deadline);
        worker.map(|worker| worker.deadline).into_iter().chain(exec).any(|at| at <= self.now)
    }

    fn signal(&mut self, pid: u32, signal: i32) -> Checked {
        self.child(pid, "signal")?;
        if signal != 9 {
            return Ok(());
        }
        if let Some(Owner::Worker(serial) | Owner::Made(serial)) = self.owner(pid) {
            self.may_kill(serial, "the process")?;
        }
        self.kernel.kill(pid);
        Ok(())
    }

    fn event(&mut self, event: &Event) -> Checked {
        match event {
            Event::Exited { container, facts } => {
                let serial = self.serial_of(container);
                if facts.start_error.is_none() && self.code_of(serial) != Some(facts.code) {
                    let code = self.code_of(serial);
                    return Err(Violation::Exit(format!("{facts:?}, but init's exit code is {code:?}")));
                }
                self.check.exited(self.connection, serial, facts)
            }
            Event::ExecExited { exec, code } => {
                let own = self.execs.iter().find(|(_, (id, _))| *id == exec.0).map(|(serial, _)| *serial);
                // One that cannot be killed is reported as killed before it ends.
                match own.and_then(|serial| self.code_of(Serial(serial))).unwrap_or(KILLED) {
                    ended if ended == *code => self.check.exec_exited(exec.0),
                    ended => Err(Violation::Exit(format!("{event:?}, but its exit code is {ended}"))),
                }
            }
            Event::PauseExited { code } => {
                match self.life.pause.serial().and_then(|serial| self.code_of(serial)) {
                    Some(ended) if ended == *code => Ok(()),
                    ended => Err(Violation::Exit(format!("{event:?}, but its exit code is {ended:?}"))),
                }
            }
            Event::Started { container, .. } => {
                let serial = self.serial_of(container);
                match self.containers.get(&serial.0) {
                    Some((_, Some((_, true)))) => Ok(()),
                    other => Err(Violation::Listing(format!("{other:?} was not started"))),
                }
            }
            _ => Ok(()),
        }
    }

    fn greet(&mut self) -> Checked {
        let Some(connection) = self.connection else { return Ok(()) };
        let mut entries: Vec<Snapshot> = self.life.snapshot().collect();
        if self.sabotage == Sabotage::HalfMade {
            for entry in &mut entries {
                if let Snapshot::Container { state, .. } = entry
                    && *state == wire::ContainerState::Creating
                {
                    *state = wire::ContainerState::Created;
                }
            }
        }
        let mut listed = Vec::new();
        for entry in &entries {
            if let Snapshot::Container { container, .. } = entry {
                let serial = self.serial_of(container);
                let init = self.containers.get(&serial.0).and_then(|(_, init)| *init);
                self.check.listed(connection, entry, Some(serial), init)?;
                listed.push(serial);
            }
        }
        let held: Vec<Serial> = self.life.containers.iter().map(|container| container.serial).collect();
        if listed != held {
            return Err(Violation::Listing(format!("{listed:?} of {held:?} are listed")));
        }
        Ok(())
    }

    /// The latest container with this name.
    pub(super) fn serial_of(&self, id: &model::ContainerId) -> Serial {
        let found = self.containers.iter().rev().find(|(_, (known, _))| known == id);
        Serial(found.map_or(0, |(serial, _)| *serial))
    }

    // Workers.

    fn fork(&mut self, serial: Serial, fork: Fork) {
        let mut deadline = self.now + 30_000;
        match &fork {
            Fork::Pause => {}
            Fork::Container { .. } => {
                deadline = self.now + 20_000;
                if let Some(container) = self.life.containers.iter().find(|c| c.serial == serial) {
                    self.containers.insert(serial.0, (container.id.clone(), None));
                }
            }
            Fork::Exec { .. } => {
                if let Some(exec) = self.life.execs.iter().find(|exec| exec.serial == serial) {
                    self.execs.insert(serial.0, (exec.id.0, exec.deadline));
                }
            }
        }
        let forked = match self.kernel.spawn(Owner::Worker(serial), None) {
            Some(pid) => {
                self.workers.push(Worker::new(serial, fork, pid, deadline));
                Ok(pid)
            }
            None => Err(refusal(wire::ErrorKind::Internal, "fork", "no number is left")),
        };
        if let (Ok(pid), Sabotage::EarlyKill) = (&forked, self.sabotage) {
            self.life.act_first(Action::Signal { pid: *pid, signal: 9 });
        }
        self.result(serial, Happened::Forked(forked));
    }

    fn read_packet(&mut self, serial: Serial) {
        let Self { workers, kernel, inputs, .. } = self;
        let Some(worker) = workers.iter_mut().find(|worker| worker.serial == serial && worker.open) else {
            return self.result(serial, Happened::PacketsRead);
        };
        let input = match worker.packets.pop_front() {
            Some(Packet::Prepared(true)) => Input::Of(serial, Happened::Prepared(Ok(()))),
            Some(Packet::Prepared(false)) => {
                let failure = refusal(wire::ErrorKind::Internal, "streams", "no descriptors");
                Input::Of(serial, Happened::Prepared(Err(failure)))
            }
            Some(Packet::Warning) => Input::Of(serial, Happened::Warning("it is so".to_owned())),
            Some(Packet::Failed) => {
                let failure = refusal(wire::ErrorKind::Internal, "worker", "it failed");
                Input::Of(serial, Happened::Failed(failure))
            }
            Some(Packet::Made(pid)) => {
                kernel.release(pid);
                Input::Made { serial, pid, is_child: kernel.is_child(pid) }
            }
            Some(Packet::Created(pid)) => {
                kernel.release(pid);
                let reply = Reply::Created { pid, user: user(), home: "/".to_owned() };
                Input::Created { serial, reply, pid, is_child: kernel.is_child(pid) }
            }
            None => {
                if worker.closed || !worker.is_at_eof(kernel) {
                    return self.result(serial, Happened::PacketsRead);
                }
                worker.closed = true;
                Input::Of(serial, Happened::Closed)
            }
        };
        inputs.push_back(input);
        self.life.act_first(Action::ReadPackets(serial));
    }

    fn drop_worker(&mut self, serial: Serial) {
        for worker in self.workers.iter_mut().filter(|worker| worker.serial == serial) {
            worker.open = false;
            if let Some(pid) = worker.made {
                self.kernel.release(pid);
            }
        }
    }

    fn adopt(&mut self, serial: Serial, pid: Option<u32>) -> Checked {
        if let Some(pid) = pid {
            self.child(pid, "adopt")?;
            if self.owner(pid) != Some(Owner::Made(serial)) {
                return Err(Violation::WrongKill(format!("adopt {pid}: {:?}", self.owner(pid))));
            }
        }
        // Sometimes no descriptor is free.
        if serial.0.is_multiple_of(7) {
            let failure = refusal(wire::ErrorKind::Internal, "namespaces", "out of descriptors");
            self.result(serial, Happened::Adopted(Err(failure)));
            return Ok(());
        }
        let made = self.workers.iter().find(|worker| worker.serial == serial).and_then(|worker| worker.made);
        if let Some((_, init)) = self.containers.get_mut(&serial.0) {
            *init = made.map(|pid| (pid, false));
        }
        self.result(serial, Happened::Adopted(Ok(())));
        Ok(())
    }

    // Checks.

    fn init_state(&self, pid: u32) -> Option<InitState> {
        let process = self.kernel.processes.get(&pid)?;
        let held = match (process.traced, pid % 3) {
            (false, _) => Held::No,
            (true, 0) if process.code.is_none() => Held::Stopped,
            (true, 0 | 1) => Held::Traced,
            (true, _) if process.code.is_none() => Held::Traced,
            // It has ended, and is a zombie instead of stopped at PTRACE_EVENT_EXIT.
            (true, _) => Held::No,
        };
        Some(InitState { over: process.code, executed: process.executed, held })
    }

    fn look_at_cgroup(&mut self, serial: Serial, look: CgroupLook) -> Checked {
        if let Some(pid) = look.init {
            self.child(pid, "look at")?;
        }
        let mut strays = false;
        if look.strays {
            let unknown = self.kernel.of(|process| {
                process.owner != Owner::Bystander && process.cgroup.is_none() && process.code.is_none()
            });
            for pid in unknown.into_iter().filter(|pid| !self.life.knows(*pid)) {
                strays = true;
                self.kernel.kill(pid);
            }
        }
        let state = CgroupState {
            empty: self.kernel.is_empty(serial, look.patient),
            oom_killed: serial.0.is_multiple_of(5),
            strays,
            init_over: look.init.is_some_and(|pid| !self.kernel.runs(pid)),
        };
        self.result(serial, Happened::CgroupSeen(state));
        Ok(())
    }

    fn kill_sessions(&mut self, container: Serial, sessions: &[Session]) -> Checked {
        for session in sessions {
            self.may_kill(session.exec, "the session")?;
            let members = self.kernel.of(|process| {
                let own = [Owner::Made(session.exec), Owner::Descendant(session.exec)];
                own.contains(&process.owner) && process.cgroup == Some(container) && process.code.is_none()
            });
            let count = u32::try_from(members.len()).unwrap();
            members.into_iter().for_each(|pid| self.kernel.kill(pid));
            let mut over = None;
            if session.unreaped {
                self.child(session.pid, "kill")?;
                if self.owner(session.pid) != Some(Owner::Made(session.exec)) {
                    return Err(Violation::WrongKill(format!("{session:?}: {:?}", self.owner(session.pid))));
                }
                self.kernel.kill(session.pid);
                over = self.kernel.processes.get(&session.pid).and_then(|process| process.code);
            }
            self.result(session.exec, Happened::SessionSeen { count, over });
        }
        Ok(())
    }

    fn end(&mut self) -> Checked {
        self.ended = true;
        let alive: Vec<_> = self
            .kernel
            .processes
            .iter()
            .filter(|(_, process)| process.code.is_none() && !process.killed)
            .filter(|(_, process)| match process.owner {
                Owner::Bystander => false,
                // A worker exits after its last packet.
                Owner::Worker(serial) => self.workers.iter().any(|w| w.serial == serial && w.step <= 2),
                Owner::Made(_) | Owner::Descendant(_) => true,
            })
            .collect();
        if alive.is_empty() { Ok(()) } else { Err(Violation::EarlyEnd(format!("{alive:?} live"))) }
    }
}
