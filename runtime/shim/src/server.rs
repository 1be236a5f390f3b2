//! What the daemon asks.

use std::os::fd::{AsFd as _, OwnedFd};

use model::{ContainerId, ExecId};
use wire::{ErrorKind, Hello, MAX_CONTAINERS, Message, PROTOCOL, Reply, Request, Snapshot, feature};

use crate::container;
use crate::create::Streams;
use crate::event_loop::Shim;
use crate::io::output::LogFile;
use crate::job::{self, Job, Kind, failure, refusal};
use crate::reaper::{KILLED_LOOK_MS, SIGKILL, START_LOOK_MS, begin_kill, kill, kill_cgroup};
use crate::table::{Asker, Container, Exec, Killing, MAX_EXECS, Phase};
use crate::{create, exec, pause};

/// How long a session may take to be killed.
pub(crate) const KILL_SESSION_MS: u64 = 10_000;
/// Longest deadline of a create that is taken at its word.
const MAX_DEADLINE_MS: u64 = 3_600_000;

type Refused = wire::Failure;

impl Shim {
    /// Says who this is and what it holds.
    pub(crate) fn greet(&mut self) {
        let hello = Hello {
            protocol: PROTOCOL,
            build: env!("CARGO_PKG_VERSION").to_owned(),
            pod: self.start.pod.clone(),
            pid: std::process::id(),
            features: feature::ALL.map(str::to_owned).to_vec(),
        };
        self.send(0, &Message::Hello(hello), Vec::new());
        if let Some(pause) = &self.pause {
            let entry = Snapshot::Pause { pid: pause.pid, exited: pause.exited };
            self.send(0, &Message::Snapshot(entry), Vec::new());
        }
        for place in 0..self.containers.len() {
            let Some(c) = self.containers.get(place) else { break };
            let entry = Snapshot::Container { container: c.id.clone(), state: c.state(), pid: c.pid };
            self.send(0, &Message::Snapshot(entry), Vec::new());
        }
        for place in 0..self.execs.len() {
            let Some(exec) = self.execs.get(place) else { break };
            let entry = Snapshot::Exec { exec: exec.id, container: exec.container.clone() };
            self.send(0, &Message::Snapshot(entry), Vec::new());
        }
        self.send(0, &Message::SnapshotEnd, Vec::new());
        for warning in std::mem::take(&mut self.start.warnings) {
            self.warn(None, warning);
        }
        // The daemon's stderr was for words before this: from here on there is a connection, and what is forked
        // later must not hold the daemon's log. Without a null device to put there it stays.
        if let Ok(null) = sys::fds::null() {
            let _ = rustix::stdio::dup2_stderr(&null);
        }
    }

    /// Does what is asked. Answers at once, or when a worker or a process is done.
    pub(crate) fn request(&mut self, asker: Asker, request: Request, fds: Vec<OwnedFd>) {
        let answer = match request {
            Request::StartPause => self.start_pause(asker, fds),
            Request::Create { container, deadline_ms, log, terminal, stdin } => {
                let streams = Streams { terminal, stdin };
                self.create(asker, container, deadline_ms, streams, log.map(|log| log.path), fds)
            }
            Request::Start { container } => self.start_container(asker, &container),
            Request::Kill { container, signal, all } => self.kill(&container, signal, all),
            Request::Exec { exec, container, deadline_ms } => {
                self.exec(asker, exec, container, deadline_ms, fds)
            }
            Request::KillExec { exec } => self.kill_exec(asker, exec),
            Request::ReopenLog { container } => self.reopen_log(&container),
            Request::Forget { container } => self.forget(&container),
            Request::StopPod => self.stop_pod(asker),
            Request::Shutdown => self.shutdown(),
            Request::Unknown => Err(refusal(
                ErrorKind::Unsupported,
                "request",
                "the request, or what comes with it, is not known to this shim: its pod must be made anew",
            )),
        };
        match answer {
            Ok(None) => {}
            Ok(Some(reply)) => self.reply(asker, reply, Vec::new()),
            Err(failure) => self.reply(asker, Reply::Failed(failure), Vec::new()),
        }
        if self.done {
            self.flush_and_leave();
        }
    }

    fn flush_and_leave(&mut self) {
        if let Some(conn) = &mut self.conn {
            // One answer of a few bytes: the socket takes it, or the daemon is stuck and sees the end.
            drop(conn.flush());
        }
    }

    fn start_pause(&mut self, asker: Asker, fds: Vec<OwnedFd>) -> Result<Option<Reply>, Refused> {
        let started = self.jobs.iter().any(|job| job.kind == Kind::Pause);
        if started || self.pause.is_some() || self.stopping.is_some() || self.stopped {
            return Err(refusal(
                ErrorKind::WrongState,
                "pause",
                "pause was started, or the pod is being stopped",
            ));
        }
        let mut keep: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
        keep.push(self.start.pause_binary.as_fd());
        let forked = job::fork(&keep, |teller, mut fds| match fds.pop() {
            Some(binary) => pause::work(&teller, fds, binary.as_fd()),
            None => 1,
        });
        drop(keep);
        self.add_job(asker, Kind::Pause, job::DEADLINE_MS, forked)
    }

    fn create(
        &mut self,
        asker: Asker,
        id: ContainerId,
        deadline_ms: u64,
        streams: Streams,
        log: Option<String>,
        fds: Vec<OwnedFd>,
    ) -> Result<Option<Reply>, Refused> {
        let alive = self.pause.as_ref().filter(|pause| pause.exited.is_none());
        let Some(pause) = alive.filter(|_| self.stopping.is_none()) else {
            return Err(refusal(
                ErrorKind::WrongState,
                "create",
                "pause does not run, or the pod is being stopped",
            ));
        };
        if self.containers.iter().any(|container| container.id == id) {
            return Err(refusal(ErrorKind::WrongState, "create", format!("container {id} exists")));
        }
        if self.containers.len() >= MAX_CONTAINERS {
            return Err(refusal(
                ErrorKind::Exhausted,
                "create",
                format!("the pod has {MAX_CONTAINERS} containers, dead ones included: remove some first"),
            ));
        }
        // Before anything is made: a log that cannot be written is the most likely thing to fail.
        let log = match (log, &self.start.log_dir) {
            (None, _) => LogFile::none(),
            (Some(path), Some(dir)) => LogFile::open(dir.as_fd(), &path)
                .map_err(|error| failure(ErrorKind::Internal, &format!("log {path}"), &error))?,
            (Some(path), None) => {
                return Err(refusal(ErrorKind::Invalid, "log", format!("{path}: the pod has no log folder")));
            }
        };
        let mut keep: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
        let mut given = create::Given {
            requested: fds.len(),
            streams,
            pause: pause.namespaces.kinds(),
            targets: Vec::new(),
        };
        keep.extend(pause.namespaces.fds());
        // Which one it needs stands in the plan, which only the worker reads.
        for (id, theirs) in self.containers.iter().filter_map(|c| Some((&c.id, c.namespaces.as_ref()?))) {
            given.targets.push((id.clone(), theirs.kinds().only("pid")));
            keep.extend(theirs.get("pid"));
        }
        let forked = job::fork(&keep, move |teller, fds| create::work(teller, fds, given));
        drop(keep);
        let folders = fds.into_iter().skip(2).collect();
        let serial = self.next_serial();
        let answer =
            self.add_job(asker, Kind::Create(id.clone()), deadline_ms.min(MAX_DEADLINE_MS), forked)?;
        let mut container = Container::new(id, serial, folders);
        container.terminal = streams.terminal;
        container.log = log;
        self.containers.push(container);
        Ok(answer)
    }

    fn exec(
        &mut self,
        asker: Asker,
        id: ExecId,
        container: ContainerId,
        deadline_ms: Option<u64>,
        fds: Vec<OwnedFd>,
    ) -> Result<Option<Reply>, Refused> {
        if fds.len() != 1 && fds.len() != 4 {
            return Err(refusal(ErrorKind::Invalid, "exec", "a plan, and three streams or none, are wanted"));
        }
        if self.execs.iter().any(|exec| exec.id == id && exec.generation == asker.generation) {
            return Err(refusal(ErrorKind::WrongState, "exec", format!("exec {} exists", id.0)));
        }
        if self.execs.len() >= MAX_EXECS {
            return Err(refusal(
                ErrorKind::Exhausted,
                "exec",
                format!("{MAX_EXECS} execs run in the pod: some must end first"),
            ));
        }
        let target = self.find(&container)?;
        let Some(namespaces) = target.namespaces.as_ref().filter(|_| matches!(target.phase, Phase::Running))
        else {
            return Err(refusal(
                ErrorKind::WrongState,
                "exec",
                format!("container {container} does not run"),
            ));
        };
        let cgroups = &target.cgroups.folders;
        let given = exec::Given {
            requested: fds.len(),
            cgroups: cgroups.len(),
            namespaces: namespaces.kinds(),
            unified: target.cgroups.unified,
        };
        let mut keep: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
        keep.extend(cgroups.iter().map(|fd| fd.as_fd()));
        keep.extend(namespaces.fds());
        let forked = job::fork(&keep, move |teller, fds| exec::work(teller, fds, given));
        drop(keep);
        drop(fds);
        let answer = self.add_job(asker, Kind::Exec(id), job::DEADLINE_MS, forked)?;
        self.execs.push(Exec {
            id,
            generation: asker.generation,
            container,
            pid: 0,
            code: None,
            answered: false,
            deadline: deadline_ms.map(|after| sys::clock::monotonic_ms().saturating_add(after)),
            killing: None,
        });
        Ok(answer)
    }

    fn add_job(
        &mut self,
        asker: Asker,
        kind: Kind,
        deadline_ms: u64,
        forked: std::io::Result<(u32, OwnedFd)>,
    ) -> Result<Option<Reply>, Refused> {
        let (worker, socket) = forked.map_err(|error| failure(ErrorKind::Internal, "fork", &error))?;
        let serial = self.next_serial();
        let deadline = sys::clock::monotonic_ms().saturating_add(deadline_ms);
        let job = Job { serial, kind, asker, worker, socket, deadline, made: None, failure: None };
        if let Err(error) = self.watch_job(&job) {
            kill(worker, SIGKILL);
            return Err(failure(ErrorKind::Internal, "epoll", &error));
        }
        self.jobs.push(job);
        Ok(None)
    }

    fn find(&self, id: &ContainerId) -> Result<&Container, Refused> {
        self.containers
            .iter()
            .find(|container| container.id == *id)
            .ok_or_else(|| refusal(ErrorKind::NotFound, "container", format!("no container {id}")))
    }

    fn start_container(&mut self, asker: Asker, id: &ContainerId) -> Result<Option<Reply>, Refused> {
        let container = self.find(id)?;
        if !matches!(container.phase, Phase::Created) {
            return Err(refusal(
                ErrorKind::WrongState,
                "start",
                format!("container {id} is not waiting to start"),
            ));
        }
        container::start(id).map_err(|error| failure(ErrorKind::Internal, "start", &error))?;
        self.watch_exec_error(container).map_err(|error| failure(ErrorKind::Internal, "epoll", &error))?;
        if let Some(container) = self.containers.iter_mut().find(|container| container.id == *id) {
            container.phase = Phase::Starting(asker);
            container.looks = 0;
            container.look_again = Some(sys::clock::monotonic_ms() + START_LOOK_MS);
        }
        Ok(None)
    }

    fn kill(&mut self, id: &ContainerId, signal: i32, all: bool) -> Result<Option<Reply>, Refused> {
        let container = self.find(id)?;
        if all {
            kill_cgroup(container);
        }
        if all && matches!(container.phase, Phase::Creating) {
            // Its worker is at work, and would make it nevertheless.
            self.give_up(&Kind::Create(id.clone()), "the container was killed while it was created");
            return Ok(Some(Reply::Done));
        }
        let lethal = all || signal == SIGKILL;
        if container.alive {
            let signal = if all { SIGKILL } else { signal };
            let sent =
                sys::pidfd::open(container.pid).and_then(|fd| sys::pidfd::send_signal(fd.as_fd(), signal));
            match sent {
                Err(error) if error.kind() == std::io::ErrorKind::InvalidInput => {
                    return Err(failure(ErrorKind::Invalid, &format!("signal {signal}"), &error));
                }
                // ESRCH: it has ended and is about to be reaped.
                Err(error) if error.raw_os_error() != Some(3) => {
                    return Err(failure(ErrorKind::Internal, "kill", &error));
                }
                _ => {}
            }
            if lethal && let Some(container) = self.containers.iter_mut().find(|c| c.id == *id) {
                container.was_killed();
            }
        }
        Ok(Some(Reply::Done))
    }

    /// Kills the workers of this kind at the next tick; who asked for them is told why.
    fn give_up(&mut self, kind: &Kind, why: &str) {
        let now = sys::clock::monotonic_ms();
        for job in self.jobs.iter_mut().filter(|job| job.kind == *kind) {
            job.failure.get_or_insert_with(|| refusal(ErrorKind::WrongState, "worker", why));
            job.deadline = now;
        }
    }

    fn kill_exec(&mut self, asker: Asker, id: ExecId) -> Result<Option<Reply>, Refused> {
        // Its own first; those of an earlier daemon are known to this one by the number in the snapshot.
        let own = self.execs.iter().position(|exec| exec.id == id && exec.generation == asker.generation);
        let place = own.or_else(|| self.execs.iter().position(|exec| exec.id == id));
        let Some(exec) = place.and_then(|place| self.execs.get_mut(place)) else {
            return Ok(Some(Reply::Done));
        };
        match &mut exec.killing {
            Some(Killing { asker: slot @ None, .. }) => *slot = Some(asker),
            Some(_) => {
                return Err(refusal(ErrorKind::Busy, "kill", format!("exec {} is being killed", id.0)));
            }
            None => begin_kill(exec, Some(asker), sys::clock::monotonic_ms()),
        }
        Ok(None)
    }

    fn reopen_log(&mut self, id: &ContainerId) -> Result<Option<Reply>, Refused> {
        let container = self.find(id)?;
        if !matches!(container.phase, Phase::Running) {
            return Err(refusal(ErrorKind::WrongState, "log", format!("container {id} does not run")));
        }
        let (Some(dir), Some(container)) =
            (&self.start.log_dir, self.containers.iter_mut().find(|container| container.id == *id))
        else {
            return Ok(Some(Reply::Done));
        };
        match container.log.reopen(dir.as_fd()) {
            Ok(()) => Ok(Some(Reply::Done)),
            Err(error) => Err(failure(ErrorKind::Internal, "log", &error)),
        }
    }

    fn forget(&mut self, id: &ContainerId) -> Result<Option<Reply>, Refused> {
        if let Some(place) = self.containers.iter().position(|container| container.id == *id) {
            if !self.containers.get(place).is_some_and(Container::is_over) {
                return Err(refusal(
                    ErrorKind::WrongState,
                    "forget",
                    format!("container {id} has not exited"),
                ));
            }
            drop(self.containers.swap_remove(place));
            self.containers.shrink_to_fit();
        }
        match self.start.records.remove(id) {
            Ok(()) => Ok(Some(Reply::Done)),
            Err(error) => Err(refusal(ErrorKind::Internal, "exit record", error.to_string())),
        }
    }

    fn stop_pod(&mut self, asker: Asker) -> Result<Option<Reply>, Refused> {
        // A second one takes the place of the first, whose daemon is gone or has given up.
        self.stopping = Some(asker);
        for container in &mut self.containers {
            if container.is_over() {
                continue;
            }
            kill_cgroup(container);
            if container.alive {
                kill(container.pid, SIGKILL);
                container.was_killed();
            }
        }
        self.stop_look = Some(sys::clock::monotonic_ms() + KILLED_LOOK_MS);
        for exec in self.execs.iter().filter(|exec| exec.code.is_none()) {
            kill(exec.pid, SIGKILL);
        }
        let now = sys::clock::monotonic_ms();
        for job in &mut self.jobs {
            let why = || refusal(ErrorKind::WrongState, "worker", "the pod is being stopped");
            job.failure.get_or_insert_with(why);
            job.deadline = now;
        }
        if let Some(pause) = self.pause.as_ref().filter(|pause| pause.exited.is_none()) {
            kill(pause.pid, SIGKILL);
        }
        self.check_stopped();
        Ok(None)
    }

    /// Whether a process of the pod lives.
    pub(crate) fn lives(&self) -> bool {
        !self.jobs.is_empty()
            || self.pause.as_ref().is_some_and(|pause| pause.exited.is_none())
            || self.containers.iter().any(|container| !container.is_over())
            || self.execs.iter().any(|exec| exec.code.is_none())
    }

    /// Answers who waits for the pod's end, once it has come.
    pub(crate) fn check_stopped(&mut self) {
        if self.stopping.is_some() && !self.lives() {
            self.stopped = true;
            if let Some(asker) = self.stopping.take() {
                self.reply(asker, Reply::Done, Vec::new());
            }
        }
    }

    fn shutdown(&mut self) -> Result<Option<Reply>, Refused> {
        if self.lives() {
            return Err(refusal(ErrorKind::Busy, "shutdown", "processes of the pod live"));
        }
        self.done = true;
        Ok(Some(Reply::Done))
    }
}
