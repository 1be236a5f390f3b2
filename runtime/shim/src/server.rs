//! What the daemon asks, and what workers answer.

use std::os::fd::{AsFd as _, OwnedFd};

use model::{ContainerId, ExecId};
use wire::{ErrorKind, Hello, Message, PROTOCOL, Reply, Request, Snapshot};

use crate::container;
use crate::create::Streams;
use crate::event_loop::Shim;
use crate::io::log::Stream;
use crate::io::output::{LogFile, Output};
use crate::job::{self, Job, Kind, Prepared, Word, failure, refusal};
use crate::reaper::{SIGKILL, kill, kill_cgroup};
use crate::table::{Asker, Container, Exec, Killing, MAX_CONTAINERS, MAX_EXECS, Pause, Phase};
use crate::{create, exec, pause};

/// How long a session may take to be killed.
const KILL_SESSION_MS: u64 = 10_000;
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
            Request::Exec { exec, container } => self.exec(asker, exec, container, fds),
            Request::KillExec { exec } => self.kill_exec(asker, exec),
            Request::ReopenLog { container } => self.reopen_log(&container),
            Request::Forget { container } => self.forget(&container),
            Request::StopPod => self.stop_pod(asker),
            Request::Shutdown => self.shutdown(),
            Request::Unknown => Err(refusal(ErrorKind::Unsupported, "request", "not known to this shim")),
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
        let binary = self.start.pause_binary.as_fd();
        keep.push(binary);
        let forked = job::fork(&keep, |teller| match copies(&fds) {
            Ok(fds) => pause::work(&teller, fds, binary),
            Err(error) => fail(&teller, &error),
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
        let Some(pause_pid) = alive.map(|pause| pause.pid).filter(|_| self.stopping.is_none()) else {
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
            return Err(refusal(ErrorKind::Busy, "create", format!("{MAX_CONTAINERS} containers exist")));
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
        let keep: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
        let containers = &self.containers;
        let init_of = |id: &ContainerId| containers.iter().find(|c| c.id == *id && c.alive).map(|c| c.pid);
        let forked = job::fork(&keep, |teller| match copies(&fds) {
            Ok(fds) => create::work(&teller, fds, streams, Some(pause_pid), init_of),
            Err(error) => fail(&teller, &error),
        });
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
        fds: Vec<OwnedFd>,
    ) -> Result<Option<Reply>, Refused> {
        if fds.len() != 1 && fds.len() != 4 {
            return Err(refusal(ErrorKind::Invalid, "exec", "a plan, and three streams or none, are wanted"));
        }
        if self.execs.iter().any(|exec| exec.id == id && exec.generation == asker.generation) {
            return Err(refusal(ErrorKind::WrongState, "exec", format!("exec {} exists", id.0)));
        }
        if self.execs.len() >= MAX_EXECS {
            return Err(refusal(ErrorKind::Busy, "exec", format!("{MAX_EXECS} execs exist")));
        }
        let target = self.find(&container)?;
        if !(matches!(target.phase, Phase::Running) && target.alive) {
            return Err(refusal(
                ErrorKind::WrongState,
                "exec",
                format!("container {container} does not run"),
            ));
        }
        let into = exec::Into {
            init: target.pid,
            cgroups: &target.cgroups.folders,
            unified: target.cgroups.unified,
        };
        let mut keep: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
        keep.extend(into.cgroups.iter().map(|fd| fd.as_fd()));
        let forked = job::fork(&keep, |teller| match copies(&fds) {
            Ok(fds) => exec::work(teller, fds, &into),
            Err(error) => fail(&teller, &error),
        });
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
        let deadline = sys::proc::monotonic_ms().saturating_add(deadline_ms);
        let job = Job { serial, kind, asker, worker, socket, deadline, made: None, failure: None };
        if let Err(error) = self.watch_job(&job) {
            kill(worker, SIGKILL);
            return Err(failure(ErrorKind::Internal, "epoll", &error));
        }
        self.jobs.push(job);
        Ok(None)
    }

    /// Takes what a worker has said.
    pub(crate) fn hear(&mut self, serial: u32) {
        loop {
            let Some(place) = self.jobs.iter().position(|job| job.serial == serial) else { return };
            let Some(job) = self.jobs.get_mut(place) else { return };
            let mut fds = Vec::new();
            let buffer = self.buffers.reading();
            let buffer = buffer.get_mut(..job::MAX_PACKET).unwrap_or_default();
            match job::hear(job.socket.as_fd(), buffer, &mut fds) {
                Ok(None) => return,
                Ok(Some(Word::Made(pid))) => {
                    job.made = Some((pid, fds.pop()));
                    if let (Kind::Exec(id), generation) = (job.kind.clone(), job.asker.generation) {
                        let code = self.strangers.take(pid);
                        if let Some(exec) =
                            self.execs.iter_mut().find(|e| e.id == id && e.generation == generation)
                        {
                            exec.pid = pid;
                            exec.code = code;
                            let now = sys::proc::monotonic_ms();
                            if let Some(killing) = &mut exec.killing {
                                (killing.look_again, killing.until) = (now, now + KILL_SESSION_MS);
                                self.kill_session(id, generation, now);
                            }
                        }
                    }
                }
                Ok(Some(Word::Prepared(prepared))) => {
                    if let Kind::Create(id) = job.kind.clone()
                        && let Err(failure) = self.prepared(&id, prepared, fds)
                        && let Some(job) = self.jobs.get_mut(place)
                    {
                        // The container is made nevertheless, and undone when it is there.
                        job.failure.get_or_insert(failure);
                    }
                }
                Ok(Some(Word::Reply(reply))) => return self.created(place, reply),
                Ok(Some(Word::Failed(failure))) => {
                    job.failure.get_or_insert(failure);
                    if let Kind::Create(_) = job.kind {
                        return self.created(place, Reply::Done);
                    }
                }
                Ok(Some(Word::End)) => {
                    drop(self.epoll.remove(job.socket.as_fd()));
                    return match job.kind {
                        // The worker's end is waited for, since init may hold the socket as well.
                        Kind::Create(_) => {}
                        Kind::Pause => self.pause_made(place),
                        Kind::Exec(_) => self.exec_made(place),
                    };
                }
                Err(error) => {
                    job.failure.get_or_insert(failure(ErrorKind::Internal, "worker", &error));
                    drop(self.epoll.remove(job.socket.as_fd()));
                    return;
                }
            }
        }
    }

    /// A worker was reaped.
    pub(crate) fn worker_ended(&mut self, serial: u32, code: i32) {
        self.hear(serial);
        let Some(place) = self.jobs.iter().position(|job| job.serial == serial) else { return };
        let Some(job) = self.jobs.get_mut(place) else { return };
        match job.kind {
            Kind::Create(_) => {
                let left =
                    || refusal(ErrorKind::Internal, "worker", format!("the worker left with status {code}"));
                job.failure.get_or_insert_with(left);
                self.created(place, Reply::Done);
            }
            // The process it made holds the socket until its execve; without one there is nothing to wait for.
            Kind::Pause | Kind::Exec(_) if job.made.is_none() => {
                let left =
                    || refusal(ErrorKind::Internal, "worker", format!("the worker left with status {code}"));
                job.failure.get_or_insert_with(left);
                if job.kind == Kind::Pause { self.pause_made(place) } else { self.exec_made(place) }
            }
            Kind::Pause | Kind::Exec(_) => {}
        }
    }

    /// A worker's deadline has passed.
    pub(crate) fn late(&mut self, serial: u32, now: u64) {
        let Some(place) = self.jobs.iter().position(|job| job.serial == serial) else { return };
        let Some(job) = self.jobs.get_mut(place) else { return };
        let message = "the deadline has passed; the worker was killed";
        job.failure.get_or_insert(refusal(ErrorKind::Timeout, "worker", message));
        // Asked again, should a kill not suffice (D state).
        job.deadline = now + 1000;
        kill(job.worker, SIGKILL);
        if let Some((pid, _)) = job.made {
            kill(pid, SIGKILL);
        }
    }

    fn pause_made(&mut self, place: usize) {
        let job = self.take_job(place);
        let pid = job.made.as_ref().map(|(pid, _)| *pid);
        let gone = pid.and_then(|pid| self.strangers.take(pid));
        let (failure, pid) = match (job.failure, pid) {
            (None, Some(pid)) => {
                self.pause = Some(Pause { pid, exited: gone });
                let network = job.made.and_then(|(_, fd)| fd);
                self.reply(job.asker, Reply::PauseStarted { pid }, network.into_iter().collect());
                return;
            }
            (failure, pid) => (failure, pid),
        };
        if let (Some(pid), None) = (pid, gone) {
            kill(pid, SIGKILL);
        }
        let failure =
            failure.unwrap_or_else(|| refusal(ErrorKind::Internal, "pause", "the worker made nothing"));
        self.reply(job.asker, Reply::Failed(failure), Vec::new());
    }

    fn exec_made(&mut self, place: usize) {
        let job = self.take_job(place);
        let Kind::Exec(id) = job.kind else { return };
        let generation = job.asker.generation;
        let Some(place) = self.execs.iter().position(|e| e.id == id && e.generation == generation) else {
            return;
        };
        match (job.failure, job.made) {
            (None, Some((pid, master))) => {
                if let Some(exec) = self.execs.get_mut(place) {
                    exec.answered = true;
                }
                self.reply(job.asker, Reply::ExecStarted { pid }, master.into_iter().collect());
                self.exec_ended();
            }
            (failure, made) => {
                let exec = self.execs.swap_remove(place);
                if let (Some((pid, _)), None) = (made, exec.code) {
                    kill(pid, SIGKILL);
                }
                let mut failure = failure
                    .unwrap_or_else(|| refusal(ErrorKind::Internal, "exec", "the worker made nothing"));
                // Init and exec become what they are by the same code, which knows of starting only.
                if failure.kind == ErrorKind::StartFailed {
                    failure.kind = ErrorKind::ExecFailed;
                }
                self.reply(job.asker, Reply::Failed(failure), Vec::new());
                if let Some(killing) = exec.killing {
                    self.reply(killing.asker, Reply::Done, Vec::new());
                }
            }
        }
        self.check_stopped();
    }

    /// Streams of a container that is being made.
    fn prepared(&mut self, id: &ContainerId, prepared: Prepared, fds: Vec<OwnedFd>) -> Result<(), Refused> {
        let at =
            |stage: &'static str| move |error: std::io::Error| failure(ErrorKind::Internal, stage, &error);
        let Some(container) = self.containers.iter_mut().find(|container| container.id == *id) else {
            return Ok(());
        };
        container.cgroups.unified = prepared.unified;
        container.cgroups.memory = prepared.memory;
        container.cgroups.freezer = prepared.freezer;
        let mut fds = fds.into_iter();
        container.exec_error = fds.next();
        if let Some(fd) = &container.exec_error {
            sys::proc::set_nonblocking(fd.as_fd()).map_err(at("streams"))?;
        }
        if container.terminal {
            // The socket waits in the place of stdin for the terminal's master.
            container.stdin = fds.next();
        } else {
            let (stdout, stderr) = (fds.next(), fds.next());
            container.stdin = fds.next();
            for ((slot, fd), stream) in
                container.outputs.iter_mut().zip([stdout, stderr]).zip([Stream::Stdout, Stream::Stderr])
            {
                *slot = fd.map(|fd| Output::new(fd, stream, false)).transpose().map_err(at("streams"))?;
            }
        }
        Ok(())
    }

    /// The worker of a container is done, one way or the other.
    fn created(&mut self, place: usize, reply: Reply) {
        let job = self.take_job(place);
        let Kind::Create(id) = job.kind else { return };
        let Some(place) = self.containers.iter().position(|container| container.id == id) else { return };
        let Some(container) = self.containers.get_mut(place) else { return };
        let mut failure_of = job.failure;
        if let Reply::Created { pid, .. } = &reply {
            container.pid = *pid;
            container.alive = true;
            if container.terminal && failure_of.is_none() {
                failure_of = take_terminal(container).err();
            }
        }
        let stopping = self.stopping.is_some();
        let Some(container) = self.containers.get_mut(place) else { return };
        if let (Reply::Created { pid, .. }, None) = (&reply, &failure_of) {
            container.phase = Phase::Created;
            let pid = *pid;
            if let Some(container) = self.containers.get(place)
                && let Err(error) = self.watch_outputs(container)
            {
                self.warn(Some(&id), format!("streams: {error}"));
            }
            self.reply(job.asker, reply, Vec::new());
            if let Some(code) = self.strangers.take(pid) {
                self.init_ended(place, code);
            } else if stopping {
                kill(pid, SIGKILL);
            }
            return;
        }
        if job.worker != 0 {
            kill(job.worker, SIGKILL);
        }
        let pid = container.pid;
        if self.strangers.take(pid).is_some()
            && let Some(container) = self.containers.get_mut(place)
        {
            container.alive = false;
        }
        let failed =
            failure_of.unwrap_or_else(|| refusal(ErrorKind::Internal, "worker", "an answer of a wrong kind"));
        if let Some(container) = self.containers.get_mut(place) {
            container.phase = Phase::Undoing(Some((job.asker, failed)));
        }
        self.look_at(place);
    }

    fn take_job(&mut self, place: usize) -> Job {
        let job = self.jobs.swap_remove(place);
        // It may have been removed at its end.
        drop(self.epoll.remove(job.socket.as_fd()));
        job
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
        }
        Ok(None)
    }

    fn kill(&mut self, id: &ContainerId, signal: i32, all: bool) -> Result<Option<Reply>, Refused> {
        let container = self.find(id)?;
        if all {
            kill_cgroup(container);
        }
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
        }
        Ok(Some(Reply::Done))
    }

    fn kill_exec(&mut self, asker: Asker, id: ExecId) -> Result<Option<Reply>, Refused> {
        // Its own first; those of an earlier daemon are known to this one by the number in the snapshot.
        let own = self.execs.iter().position(|exec| exec.id == id && exec.generation == asker.generation);
        let place = own.or_else(|| self.execs.iter().position(|exec| exec.id == id));
        let Some(exec) = place.and_then(|place| self.execs.get_mut(place)) else {
            return Ok(Some(Reply::Done));
        };
        if exec.killing.is_some() {
            return Err(refusal(ErrorKind::Busy, "kill", format!("exec {} is being killed", id.0)));
        }
        let now = sys::proc::monotonic_ms();
        if exec.pid == 0 {
            // Killed as soon as its pid is known. Not its worker: what that has made and not told yet would be
            // known to nobody.
            exec.killing = Some(Killing { asker, look_again: u64::MAX, until: u64::MAX });
            return Ok(None);
        }
        exec.killing = Some(Killing { asker, look_again: now, until: now + KILL_SESSION_MS });
        let generation = exec.generation;
        self.kill_session(id, generation, now);
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
        for container in &self.containers {
            if container.is_over() {
                continue;
            }
            kill_cgroup(container);
            if container.alive {
                kill(container.pid, SIGKILL);
            }
        }
        for exec in self.execs.iter().filter(|exec| exec.code.is_none()) {
            kill(exec.pid, SIGKILL);
        }
        let now = sys::proc::monotonic_ms();
        for job in &mut self.jobs {
            job.deadline = now;
        }
        if let Some(pause) = self.pause.as_ref().filter(|pause| pause.exited.is_none()) {
            kill(pause.pid, SIGKILL);
        }
        self.check_stopped();
        Ok(None)
    }

    /// Whether a process of the pod lives.
    fn lives(&self) -> bool {
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

/// The master that libcontainer sent while it made the container.
fn take_terminal(container: &mut Container) -> Result<(), Refused> {
    let at = |error: std::io::Error| failure(ErrorKind::Internal, "terminal", &error);
    let Some(socket) = container.stdin.take() else { return Ok(()) };
    let mut master = None;
    sys::proc::set_nonblocking(socket.as_fd()).map_err(at)?;
    // A name comes along, which says nothing.
    sys::scm::recv_with_fds(socket.as_fd(), &mut [0; 256], |fd| master = master.take().or(Some(fd)))
        .map_err(at)?;
    let Some(master) = master else {
        return Err(refusal(ErrorKind::Internal, "terminal", "no master came"));
    };
    let output = Output::new(master, Stream::Stdout, true).map_err(at)?;
    if let Some(slot) = container.outputs.first_mut() {
        *slot = Some(output);
    }
    Ok(())
}

fn copies(fds: &[OwnedFd]) -> std::io::Result<Vec<OwnedFd>> {
    fds.iter().map(OwnedFd::try_clone).collect()
}

fn fail(teller: &job::Teller, error: &std::io::Error) -> i32 {
    teller.failed(&failure(ErrorKind::Internal, "descriptors", error));
    1
}
