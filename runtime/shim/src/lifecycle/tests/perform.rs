//! Performs the lifecycle's actions on the simulated kernel and daemon, and checks each.

use wire::{Event, Reply, Snapshot};

use super::super::action::{Action, CgroupCheck, Fork, Session};
use super::super::id::Serial;
use super::super::input::{CgroupState, ContainerInput, ExecInput, InitState, Input, Stopped, WorkerInput};
use super::super::worker::KILLED;
use super::check::Violation;
use super::kernel::{Kernel, Owner};
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
                let outcome = self.needs_descriptor("start");
                if outcome.is_ok() {
                    self.told_to_start.push(serial);
                }
                self.result(serial, ContainerInput::StartSent(outcome));
            }
            Action::ReadStartPipe(serial) => {
                let executed = self.containers.get(&serial.0).and_then(|(_, init)| *init).map(|init| init.1);
                let closed = self.told_to_start.contains(&serial);
                self.told_to_start.retain(|known| *known != serial);
                let error = (executed == Some(false) && serial.0.is_multiple_of(2))
                    .then(|| "it is missing".to_owned());
                self.result(serial, ContainerInput::StartPipe { error, closed });
            }
            Action::CheckInit(serial, pid) => {
                self.child(pid, "check")?;
                let state = self.init_state(pid);
                if state.is_none() {
                    self.unchecked.push(serial);
                }
                self.result(serial, ContainerInput::InitChecked(state));
            }
            Action::CheckProcess(serial, pid) => {
                self.child(pid, "check")?;
                self.inputs.push_back(Input::ProcessChecked(serial, self.code_if_over(pid)));
            }
            Action::KillCgroup(serial) => {
                self.may_kill(serial, "the cgroup")?;
                if !self.kernel.out_of_descriptors {
                    self.kernel.kill_cgroup(serial);
                }
            }
            Action::CheckCgroup(serial, check) => return self.check_cgroup(serial, check),
            Action::KillSessions { container, sessions } => return self.kill_sessions(container, &sessions),
            Action::CheckOom { exec, .. } => {
                let killed = exec.0.is_multiple_of(2) && !self.kernel.out_of_descriptors;
                self.inputs.push_back(Input::Exec(exec, ExecInput::OomChecked(killed)));
            }
            Action::WriteRecord(serial, _, facts) => {
                let failed =
                    self.kernel.of(|process| process.cgroup == Some(serial) && process.code.is_none());
                if !failed.is_empty() {
                    return Err(Violation::Slot(format!("{serial:?} is over, but {failed:?} live in it")));
                }
                let outcome = if self.kernel.disk_full { Err("the disk is full".to_owned()) } else { Ok(()) };
                self.check.recorded(serial, facts, outcome.is_ok());
                self.result(serial, ContainerInput::Recorded(outcome));
            }
            Action::RemoveRecord { requester, .. }
            | Action::ReopenLog { requester, .. }
            | Action::Attach { requester, .. }
            | Action::CloseStdin { requester, .. } => {
                self.inputs.push_back(Input::Served { requester, outcome: Ok(()) });
            }
            Action::DropStartPipe(serial) => self.told_to_start.retain(|known| *known != serial),
            Action::DropNamespaces(_)
            | Action::WatchOutputs(_)
            | Action::FinishOutputs(_)
            | Action::RemoveFiles(_) => {}
            Action::End => return self.end(),
        }
        Ok(())
    }

    fn result(&mut self, container: Serial, input: ContainerInput) {
        self.inputs.push_back(Input::Container(container, input));
    }

    fn needs_descriptor(&self, stage: &str) -> Result<(), wire::Failure> {
        let none = || refusal(wire::ErrorKind::Internal, stage, "out of descriptors");
        if self.kernel.out_of_descriptors { Err(none()) } else { Ok(()) }
    }

    /// The exit code of an ended process, if /proc can be read.
    fn code_if_over(&self, pid: u32) -> Option<i32> {
        let process = self.kernel.processes.get(&pid).filter(|_| !self.kernel.out_of_descriptors);
        process.and_then(|process| process.code)
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
                if self.check.is_unwritten(serial) {
                    return Err(Violation::Unrecorded(format!(
                        "{facts:?}, and no warning about its exit file"
                    )));
                }
                let started = matches!(self.containers.get(&serial.0), Some((_, Some((_, true)))));
                if facts.start_error.is_some() && started {
                    return Err(Violation::Exit(format!("{facts:?}, but init had called execve")));
                }
                if facts.start_error.is_none() && self.code_of(serial) != Some(facts.code) {
                    let code = self.code_of(serial);
                    return Err(Violation::Exit(format!("{facts:?}, but init's exit code is {code:?}")));
                }
                self.check.exited(self.connection, serial, facts)
            }
            Event::ExecExited { exec, code } => {
                let own = self.execs.iter().find(|(_, (id, _))| *id == exec.0).map(|(serial, _)| *serial);
                let unchecked = own.is_some_and(|serial| self.unchecked.contains(&Serial(serial)));
                // One that cannot be killed is reported as killed before it ends; so is one that has ended but could
                // not be examined until the time limit.
                match own.and_then(|serial| self.code_of(Serial(serial))).unwrap_or(KILLED) {
                    ended if ended == *code || unchecked && *code == KILLED => self.check.exec_exited(exec.0),
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
                    _ if self.unchecked.contains(&serial) => Ok(()),
                    other => Err(Violation::Listing(format!("{other:?} was not started"))),
                }
            }
            Event::Warning { container, .. } => {
                let serial = container.as_ref().map(|id| self.serial_of(id));
                self.check.warned(serial);
                Ok(())
            }
            Event::Unknown => Ok(()),
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
                let init = init.map(|(pid, executed)| (pid, executed || self.unchecked.contains(&serial)));
                self.check.listed(connection, entry, Some(serial), init)?;
                listed.push(serial);
            }
        }
        let known: Vec<Serial> = self.life.containers.iter().map(|container| container.serial).collect();
        if listed != known {
            return Err(Violation::Listing(format!("{listed:?} of {known:?} are listed")));
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
        let free = self.needs_descriptor("fork");
        let forked = match free.map(|()| self.kernel.spawn(Owner::Worker(serial), None)) {
            Err(failure) => Err(failure),
            Ok(Some(pid)) => {
                self.workers.push(Worker::new(serial, fork, pid, deadline));
                Ok(pid)
            }
            Ok(None) => Err(refusal(wire::ErrorKind::Internal, "fork", "no pid is left")),
        };
        if let (Ok(pid), Sabotage::EarlyKill) = (&forked, self.sabotage) {
            self.life.act_first(Action::Signal { pid: *pid, signal: 9 });
        }
        self.inputs.push_back(Input::Worker(serial, WorkerInput::Forked(forked)));
    }

    fn read_packet(&mut self, serial: Serial) {
        let lost = self.needs_descriptor("worker");
        let Self { workers, kernel, inputs, .. } = self;
        let end = Input::Worker(serial, WorkerInput::PacketsRead);
        let Some(worker) = workers.iter_mut().find(|worker| worker.serial == serial && worker.open) else {
            return inputs.push_back(end);
        };
        // A pidfd tells the process from others with its pid.
        let is_own = |kernel: &Kernel, pid: u32| kernel.made(serial) == Some(pid);
        let packet = worker.packets.pop_front();
        let has_fds = matches!(packet, Some(Packet::Made(_)));
        let input = match packet {
            Some(Packet::Streams(arrives)) => {
                let none = || refusal(wire::ErrorKind::Internal, "streams", "no descriptors");
                let outcome = if arrives { lost.clone() } else { Err(none()) };
                Input::Container(serial, ContainerInput::StreamsReceived(outcome))
            }
            Some(Packet::Warning) => Input::Worker(serial, WorkerInput::Warning("it is so".to_owned())),
            Some(Packet::Failed) => {
                let failure = refusal(wire::ErrorKind::Internal, "worker", "it failed");
                Input::Worker(serial, WorkerInput::Failed(failure))
            }
            Some(Packet::Made(pid)) => {
                kernel.reported(pid, serial);
                Input::Made { serial, pid, unreaped: is_own(kernel, pid) }
            }
            Some(Packet::Created(pid)) => {
                kernel.reported(pid, serial);
                let reply = Reply::Created { pid, user: user(), home: "/".to_owned() };
                Input::Created { serial, reply, pid, unreaped: is_own(kernel, pid) }
            }
            None if worker.closed || !worker.is_at_eof(kernel) => return inputs.push_back(end),
            None => {
                worker.closed = true;
                Input::Worker(serial, WorkerInput::Closed)
            }
        };
        inputs.push_back(input);
        if let (true, Err(failure)) = (has_fds, lost) {
            inputs.push_back(Input::Worker(serial, WorkerInput::Failed(failure)));
        }
        self.life.act_first(Action::ReadPackets(serial));
    }

    fn drop_worker(&mut self, serial: Serial) {
        for worker in self.workers.iter_mut().filter(|worker| worker.serial == serial) {
            worker.open = false;
            if let Some(pid) = worker.made {
                self.kernel.reported(pid, serial);
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
        let opened = if pid.is_some() { self.needs_descriptor("namespaces") } else { Ok(()) };
        if opened.is_err() || serial.0.is_multiple_of(7) {
            let failure = refusal(wire::ErrorKind::Internal, "namespaces", "they cannot be opened");
            self.inputs.push_back(Input::Adopted(serial, Err(failure)));
            return Ok(());
        }
        let made = self.workers.iter().find(|worker| worker.serial == serial).and_then(|worker| worker.made);
        if let Some((_, init)) = self.containers.get_mut(&serial.0) {
            *init = made.map(|pid| (pid, false));
        }
        self.inputs.push_back(Input::Adopted(serial, Ok(())));
        Ok(())
    }

    // Checks.

    fn init_state(&self, pid: u32) -> Option<InitState> {
        let process = self.kernel.processes.get(&pid).filter(|_| !self.kernel.out_of_descriptors)?;
        let stopped = match (process.traced, pid % 3) {
            (false, _) => Stopped::No,
            (true, 0) if process.code.is_none() => Stopped::BySignal,
            (true, 0 | 1) => Stopped::ByTracer,
            (true, _) if process.code.is_none() => Stopped::ByTracer,
            // It has ended, and is a zombie instead of stopped at PTRACE_EVENT_EXIT.
            (true, _) => Stopped::No,
        };
        Some(InitState { code: process.code, executed: process.executed, stopped })
    }

    fn check_cgroup(&mut self, serial: Serial, check: CgroupCheck) -> Checked {
        if let Some(pid) = check.init {
            self.child(pid, "check")?;
        }
        if self.kernel.out_of_descriptors {
            let state = CgroupState { strays: check.strays, ..CgroupState::default() };
            self.result(serial, ContainerInput::CgroupChecked(state));
            return Ok(());
        }
        let mut strays = false;
        if check.strays {
            let unknown = self.kernel.of(|process| {
                process.owner != Owner::Bystander && process.cgroup.is_none() && process.code.is_none()
            });
            for pid in unknown.into_iter().filter(|pid| !self.life.knows(*pid)) {
                strays = true;
                self.kernel.kill(pid);
            }
        }
        let state = CgroupState {
            empty: self.kernel.is_empty(serial, check.skip_unreapable),
            oom_killed: serial.0.is_multiple_of(5),
            strays,
            init_over: check.init.is_some_and(|pid| !self.kernel.runs(pid)),
        };
        self.result(serial, ContainerInput::CgroupChecked(state));
        Ok(())
    }

    fn kill_sessions(&mut self, container: Serial, sessions: &[Session]) -> Checked {
        for session in sessions {
            self.may_kill(session.exec, "the session")?;
            let members = self.kernel.of(|process| {
                let own = [Owner::Made(session.exec), Owner::Descendant(session.exec)];
                own.contains(&process.owner) && process.cgroup == Some(container) && process.code.is_none()
            });
            let mut count = u32::try_from(members.len()).unwrap();
            if self.kernel.out_of_descriptors {
                count = count.max(1);
                self.unchecked.push(session.exec);
            } else {
                members.into_iter().for_each(|pid| self.kernel.kill(pid));
            }
            let mut leader = None;
            if session.unreaped {
                self.child(session.pid, "kill")?;
                if self.owner(session.pid) != Some(Owner::Made(session.exec)) {
                    return Err(Violation::WrongKill(format!("{session:?}: {:?}", self.owner(session.pid))));
                }
                self.kernel.kill(session.pid);
                leader = self.code_if_over(session.pid);
            }
            self.inputs.push_back(Input::Exec(session.exec, ExecInput::SessionKilled { count, leader }));
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
