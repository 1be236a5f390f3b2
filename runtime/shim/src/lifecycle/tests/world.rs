//! A simulated pod: the lifecycle, a kernel, workers and a daemon.

mod view;

use std::collections::{BTreeMap, VecDeque};

use model::{ContainerId, ExecId};
use wire::{Event, LogPlan, Reply, Request};

use super::super::action::{Action, Fork};
use super::super::context::Time;
use super::super::id::{Requester, Serial};
use super::super::input::{ContainerInput, Input, Stopped, WorkerInput};
use super::super::pod::Lifecycle;
use super::super::worker::KILLED;
use super::Checked;
use super::check::{Checker, Violation};
use super::kernel::{Kernel, Owner, Process};
use super::op::{Op, Sabotage};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Packet {
    Streams(bool),
    Made(u32),
    Created(u32),
    Failed,
    Warning,
}

#[derive(Debug)]
pub(super) struct Worker {
    pub(super) serial: Serial,
    pub(super) fork: Fork,
    pub(super) pid: u32,
    pub(super) step: u8,
    pub(super) packets: VecDeque<Packet>,
    /// The process that it has created.
    pub(super) made: Option<u32>,
    /// Whether the shim has its end of the socket open.
    pub(super) open: bool,
    pub(super) closed: bool,
    pub(super) deadline: u64,
}

impl Worker {
    pub(super) fn new(serial: Serial, fork: Fork, pid: u32, deadline: u64) -> Self {
        let packets = VecDeque::new();
        Self { serial, fork, pid, step: 0, packets, made: None, open: true, closed: false, deadline }
    }

    /// Whether it is running; its pid may be that of another process by now.
    pub(super) fn runs(&self, kernel: &Kernel) -> bool {
        let own = Owner::Worker(self.serial);
        kernel.processes.get(&self.pid).is_some_and(|process| process.owner == own && process.code.is_none())
    }

    /// Whether every process with its socket has ended or called execve.
    pub(super) fn is_at_eof(&self, kernel: &Kernel) -> bool {
        let holds = self.made.and_then(|pid| kernel.processes.get(&pid)).is_some_and(|process| {
            process.owner == Owner::Made(self.serial) && process.code.is_none() && !process.executed
        });
        !holds && !self.runs(kernel)
    }
}

pub(super) struct World {
    pub(super) life: Lifecycle,
    pub(super) kernel: Kernel,
    pub(super) check: Checker,
    pub(super) ended: bool,
    pub(super) now: u64,
    pub(super) connection: Option<u32>,
    pub(super) replies: Vec<(u64, Reply)>,
    pub(super) events: Vec<Event>,
    generation: u32,
    last_request: u64,
    last_exec: u64,
    pub(super) workers: Vec<Worker>,
    /// Containers by serial: id, and the init that was adopted.
    pub(super) containers: BTreeMap<u32, (ContainerId, Option<(u32, bool)>)>,
    /// Execs by serial: the daemon's id, and when to kill its session.
    pub(super) execs: BTreeMap<u32, (u64, Option<u64>)>,
    /// What may be killed.
    pub(super) wanted_dead: Vec<Serial>,
    pub(super) told_to_start: Vec<Serial>,
    /// Containers and execs whose process could not be examined when that mattered.
    pub(super) unchecked: Vec<Serial>,
    /// Exit codes of reaped processes, by the serial of pause, the container or the exec.
    codes: BTreeMap<u32, i32>,
    pub(super) sabotage: Sabotage,
    late: Vec<Action>,
    due: Vec<Action>,
    pub(super) inputs: VecDeque<Input>,
}

pub(super) fn id(number: u8) -> ContainerId {
    ContainerId::from_random([number; 32])
}

impl World {
    pub(super) fn new(sabotage: Sabotage, pids: u32) -> Self {
        Self {
            life: Lifecycle::default(),
            kernel: Kernel::new(pids),
            check: Checker::default(),
            ended: false,
            now: 1000,
            connection: None,
            replies: Vec::new(),
            events: Vec::new(),
            generation: 0,
            last_request: 0,
            last_exec: 0,
            workers: Vec::new(),
            containers: BTreeMap::new(),
            execs: BTreeMap::new(),
            wanted_dead: Vec::new(),
            told_to_start: Vec::new(),
            unchecked: Vec::new(),
            codes: BTreeMap::new(),
            sabotage,
            late: Vec::new(),
            due: Vec::new(),
            inputs: VecDeque::new(),
        }
    }

    // What happens.

    #[expect(clippy::too_many_lines, reason = "one match over all operations")]
    pub(super) fn step(&mut self, op: &Op) -> Checked {
        if self.ended {
            return Ok(());
        }
        match op {
            Op::Connect => {
                self.generation += 1;
                self.connection = Some(self.generation);
                self.input(Input::Connected(self.generation))
            }
            Op::Disconnect => match self.connection.take() {
                Some(generation) => self.input(Input::Disconnected(generation)),
                None => Ok(()),
            },
            Op::StartPause => self.ask(Request::StartPause, 1),
            Op::Create(number) => {
                let (log, deadline_ms) = (Some(LogPlan { path: "log".to_owned() }), 20_000);
                let container = id(number % 6);
                self.ask(Request::Create { container, deadline_ms, log, terminal: false, stdin: false }, 2)
            }
            Op::Start(number) => self.ask(Request::Start { container: id(number % 6) }, 0),
            Op::Kill(number, lethal, all) => {
                let signal = if *lethal { 9 } else { 15 };
                self.ask(Request::Kill { container: id(number % 6), signal, all: *all }, 0)
            }
            Op::Exec(number, deadline) => {
                self.last_exec += 1;
                let exec = ExecId(self.last_exec);
                let deadline_ms = deadline.map(u64::from);
                self.ask(Request::Exec { exec, container: id(number % 6), deadline_ms }, 4)
            }
            Op::KillExec(back) => {
                let exec = ExecId(self.last_exec.saturating_sub(u64::from(*back % 8)));
                self.ask(Request::KillExec { exec }, 0)
            }
            Op::ReopenLog(number) => self.ask(Request::ReopenLog { container: id(number % 6) }, 0),
            Op::Attach(number) => {
                let (stdout, stderr, tell_loss) = (true, true, true);
                self.ask(Request::Attach { container: id(number % 6), stdout, stderr, tell_loss }, 3)
            }
            Op::CloseStdin(number) => self.ask(Request::CloseStdin { container: id(number % 6) }, 0),
            Op::Forget(number) => self.ask(Request::Forget { container: id(number % 6) }, 0),
            Op::StopPod => self.ask(Request::StopPod, 0),
            Op::Shutdown => self.ask(Request::Shutdown, 0),
            Op::Unknown => self.ask(Request::Unknown, 0),
            Op::Work(which, how) => {
                let at_work: Vec<usize> = self.at_work();
                if let Some(place) = pick(&at_work, *which) {
                    self.work(*place, *how);
                }
                Ok(())
            }
            Op::Read(which) => match pick(&self.workers, *which).map(|worker| worker.serial) {
                Some(serial) => self.read(serial),
                None => Ok(()),
            },
            Op::Execve(which, works) => {
                self.execve(*which, *works);
                Ok(())
            }
            Op::Pipe(which) => {
                let serials = self.told_to_start.clone();
                pick(&serials, *which).map_or(Ok(()), |serial| self.pipe(*serial))
            }
            Op::Die(which, code) => {
                let living = self.kernel.of(|process| process.code.is_none());
                if let Some(pid) = pick(&living, *which) {
                    let frozen = self.kernel.processes.get(pid).and_then(|process| process.cgroup);
                    if !frozen.is_some_and(|cgroup| self.kernel.frozen.contains(&cgroup)) {
                        self.kernel.end(*pid, i32::from(*code));
                    }
                    if self.kernel.processes.get(pid).is_some_and(|p| p.owner == Owner::Bystander) {
                        self.kernel.processes.remove(pid);
                    }
                }
                Ok(())
            }
            Op::Reap(max, orderly) => self.reap(usize::from(*max), *orderly),
            Op::Trace(which) => {
                let made =
                    self.kernel.of(|process| matches!(process.owner, Owner::Made(_)) && !process.traced);
                if let Some(process) = pick(&made, *which).and_then(|pid| self.kernel.processes.get_mut(pid))
                {
                    process.traced = process.code.is_none();
                }
                Ok(())
            }
            Op::Freeze(which) => {
                // Only a running process of a container can freeze it.
                let runs = |p: &Process| p.executed && p.code.is_none() && !p.killed;
                let serials: Vec<u32> = self
                    .containers
                    .keys()
                    .filter(|serial| {
                        !self.kernel.of(|p| runs(p) && p.cgroup == Some(Serial(**serial))).is_empty()
                    })
                    .copied()
                    .collect();
                if let Some(serial) = pick(&serials, *which) {
                    self.kernel.frozen.push(Serial(*serial));
                }
                Ok(())
            }
            Op::Fork(which) => {
                let parents = self.kernel.of(|p| {
                    matches!(p.owner, Owner::Made(serial) if self.execs.contains_key(&serial.0))
                        && p.executed
                        && p.code.is_none()
                });
                if let Some(process) = pick(&parents, *which).and_then(|pid| self.kernel.processes.get(pid))
                    && let Owner::Made(serial) = process.owner
                {
                    let cgroup = process.cgroup;
                    self.kernel.spawn(Owner::Descendant(serial), cgroup);
                }
                Ok(())
            }
            Op::Bystander => {
                self.kernel.spawn(Owner::Bystander, None);
                Ok(())
            }
            Op::Descriptors(free) => {
                self.kernel.out_of_descriptors = !free;
                Ok(())
            }
            Op::DiskFull(full) => {
                self.kernel.disk_full = *full;
                Ok(())
            }
            Op::Pass(ms) => {
                self.now += u64::from(*ms);
                match self.life.timer() {
                    Some(at) if at <= self.now => self.input(Input::TimerDue),
                    _ => Ok(()),
                }
            }
            Op::Terminate => self.input(Input::Terminated),
        }
    }

    pub(super) fn ask(&mut self, request: Request, fds: usize) -> Checked {
        let Some(generation) = self.connection else { return Ok(()) };
        self.last_request += 1;
        let requester = Requester { generation, id: self.last_request };
        self.check.asked(requester, &request);
        self.note_wanted(&request);
        self.input(Input::Request { requester, request, fds })
    }

    /// The objects that a request allows to be killed.
    fn note_wanted(&mut self, request: &Request) {
        match request {
            Request::Kill { container, signal, all } if *all || *signal == 9 => {
                let of_it = self.containers.iter().filter(|(_, (id, _))| id == container);
                self.wanted_dead.extend(of_it.map(|(serial, _)| Serial(*serial)));
            }
            Request::KillExec { exec } => {
                let of_it = self.execs.iter().filter(|(_, (id, _))| *id == exec.0);
                self.wanted_dead.extend(of_it.map(|(serial, _)| Serial(*serial)));
            }
            Request::StopPod => self.want_all_dead(),
            _ => {}
        }
    }

    fn want_all_dead(&mut self) {
        let all = self.containers.keys().chain(self.execs.keys()).map(|serial| Serial(*serial));
        self.wanted_dead.extend(all);
        self.wanted_dead.extend(self.workers.iter().map(|worker| worker.serial));
        self.wanted_dead.extend(self.life.pause.serial());
    }

    /// Reads an init's start pipe, which its execve or its exit closes.
    fn pipe(&mut self, serial: Serial) -> Checked {
        let Some((_, Some((pid, executed)))) = self.containers.get(&serial.0) else { return Ok(()) };
        if !executed && self.kernel.runs(*pid) {
            return Ok(());
        }
        let killed = self.kernel.processes.get(pid).is_some_and(|process| process.code == Some(KILLED));
        let error = (!executed && !killed && pid % 3 == 0).then(|| "no such program".to_owned());
        self.told_to_start.retain(|known| *known != serial);
        self.input(Input::Container(serial, ContainerInput::StartPipe { error, closed: true }))
    }

    pub(super) fn read(&mut self, serial: Serial) -> Checked {
        self.life.act_first(Action::ReadPackets(serial));
        self.settle()
    }

    pub(super) fn reap(&mut self, max: usize, orderly: bool) -> Checked {
        if orderly && !self.kernel.zombies().is_empty() {
            for serial in self.workers.iter().map(|worker| worker.serial).collect::<Vec<_>>() {
                self.read(serial)?;
            }
        }
        for pid in self.kernel.zombies().into_iter().take(max) {
            let Some(process) = self.kernel.processes.get(&pid) else { continue };
            let executed = self.life.is_starting(pid).then_some(process.executed);
            let code = process.code.unwrap_or(0);
            if let Owner::Made(serial) | Owner::Worker(serial) = process.owner {
                // The exit of a process allows to kill its remaining processes.
                self.wanted_dead.push(serial);
            }
            if let Owner::Made(serial) = process.owner {
                self.codes.insert(serial.0, code);
            }
            let executed = executed.filter(|_| !self.kernel.out_of_descriptors);
            if let (None, Owner::Made(serial)) = (executed, process.owner) {
                self.unchecked.push(serial);
            }
            self.kernel.processes.remove(&pid);
            self.input(Input::Reaped { pid, code, executed })?;
        }
        Ok(())
    }

    // The actions.

    pub(super) fn input(&mut self, input: Input) -> Checked {
        self.inputs.push_back(input);
        self.settle()
    }

    fn settle(&mut self) -> Checked {
        for _ in 0..100_000 {
            if let Some(input) = self.inputs.pop_front() {
                self.note_reasons(&input);
                let time = Time { ms: self.now, wall: 1 + i64::try_from(self.now).unwrap() };
                self.life.input(time, input);
            } else if let Some(action) = self.life.next_action() {
                for action in self.sabotaged(action) {
                    self.perform(action)?;
                }
            } else {
                // Delayed signals of the previous input.
                let (due, late) = (std::mem::take(&mut self.due), std::mem::take(&mut self.late));
                self.due = late;
                return due.into_iter().try_for_each(|action| self.perform(action));
            }
        }
        Err(Violation::Restless(format!("{:?}", self.life)))
    }

    fn note_reasons(&mut self, input: &Input) {
        let reason = match input {
            Input::Worker(
                serial,
                WorkerInput::Failed(_)
                | WorkerInput::Reaped(_)
                | WorkerInput::Closed
                | WorkerInput::PacketsRead,
            )
            | Input::Adopted(serial, Err(_))
            | Input::Container(serial, ContainerInput::StreamsReceived(Err(_))) => Some(*serial),
            Input::Container(serial, ContainerInput::InitChecked(Some(state)))
                if state.stopped != Stopped::No || state.code.is_some() =>
            {
                Some(*serial)
            }
            _ => None,
        };
        // The end of a worker's packets allows a kill only once the worker has ended.
        let gone = |serial: Serial| {
            self.workers.iter().any(|worker| worker.serial == serial && !worker.runs(&self.kernel))
        };
        if let Some(serial) = reason.filter(|serial| match input {
            Input::Worker(_, WorkerInput::PacketsRead | WorkerInput::Closed) => gone(*serial),
            _ => true,
        }) {
            self.wanted_dead.push(serial);
        }
    }

    fn sabotaged(&mut self, action: Action) -> Vec<Action> {
        match (self.sabotage, &action) {
            (Sabotage::LostReply, Action::Reply { to, .. }) if to.id % 5 == 0 => Vec::new(),
            (Sabotage::DoubleExit, Action::Event(Event::Exited { .. })) => vec![action.clone(), action],
            (Sabotage::StuckName, Action::CheckCgroup(..)) => Vec::new(),
            (Sabotage::LateKill, Action::Signal { .. }) => {
                self.late.push(action);
                Vec::new()
            }
            (Sabotage::Unrecorded, Action::WriteRecord(serial, ..)) => {
                self.inputs.push_back(Input::Container(*serial, ContainerInput::Recorded(Ok(()))));
                Vec::new()
            }
            _ => vec![action],
        }
    }
}

pub(super) fn pick<T>(list: &[T], which: u8) -> Option<&T> {
    list.get(usize::from(which) % list.len().max(1))
}
