//! What workers answer.

use std::os::fd::{AsFd as _, OwnedFd};

use model::ContainerId;
use wire::{ErrorKind, Failure, Reply};

use crate::event_loop::Shim;
use crate::io::log::Stream;
use crate::io::output::Output;
use crate::job::{self, Job, Kind, Prepared, Word, failure, refusal};
use crate::reaper::{KILLED, SIGKILL, kill, was_oom_killed};
use crate::server::KILL_SESSION_MS;
use crate::table::{Container, Pause, Phase};

/// By kernel number, the same on all architectures: no such process.
const ESRCH: i32 = 3;
/// A memory limit under which any container can be made, bytes: what worker and init take, with room.
const LEAST_MEMORY: u64 = 8 << 20;

impl Shim {
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
                            let now = sys::clock::monotonic_ms();
                            if let Some(killing) = &mut exec.killing {
                                (killing.look_again, killing.until) = (now, now + KILL_SESSION_MS);
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
                Ok(Some(Word::Warning(text))) => {
                    let kind = job.kind.clone();
                    let container = self.container_of(&kind).map(|container| container.id.clone());
                    self.warn(container.as_ref(), text);
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
        let starved = code == KILLED
            && self.jobs.get(place).and_then(|job| self.container_of(&job.kind)).is_some_and(was_oom_killed);
        let Some(job) = self.jobs.get_mut(place) else { return };
        let left = || refusal(ErrorKind::Internal, "worker", why(code, starved));
        match job.kind {
            Kind::Create(_) => {
                job.failure.get_or_insert_with(left);
                self.created(place, Reply::Done);
            }
            // The process it made holds the socket until its execve; without one there is nothing to wait for.
            Kind::Pause | Kind::Exec(_) if job.made.is_none() => {
                job.failure.get_or_insert_with(left);
                if job.kind == Kind::Pause { self.pause_made(place) } else { self.exec_made(place) }
            }
            Kind::Pause | Kind::Exec(_) => {}
        }
    }

    /// The container that a worker makes, or makes a process in.
    fn container_of(&self, kind: &Kind) -> Option<&Container> {
        let id = match kind {
            Kind::Create(id) => Some(id),
            Kind::Exec(id) => self.execs.iter().find(|exec| exec.id == *id).map(|exec| &exec.container),
            Kind::Pause => None,
        }?;
        self.containers.iter().find(|container| container.id == *id)
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
                // It was not waited for, so the number is its own.
                let namespaces = match gone {
                    None => sys::namespace::Namespaces::of(pid),
                    Some(_) => Ok(sys::namespace::Namespaces::default()),
                };
                let namespaces = match namespaces {
                    Ok(namespaces) => namespaces,
                    Err(error) => {
                        kill(pid, SIGKILL);
                        let failure = failure(ErrorKind::Internal, "namespaces of pause", &error);
                        self.reply(job.asker, Reply::Failed(failure), Vec::new());
                        return;
                    }
                };
                self.pause = Some(Pause { pid, exited: gone, namespaces });
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
                // Overtaken by the container's end, which its init may show before it is reaped (ESRCH).
                let over = !self.containers.iter().any(|c| c.id == exec.container && c.alive && !c.killed);
                if over || failure.errno == ESRCH {
                    let message = format!("container {} has ended ({})", exec.container, failure.message);
                    failure = refusal(ErrorKind::WrongState, "exec", message);
                }
                // Init and exec become what they are by the same code, which knows of starting only.
                if failure.kind == ErrorKind::StartFailed {
                    failure.kind = ErrorKind::ExecFailed;
                }
                self.reply(job.asker, Reply::Failed(failure), Vec::new());
                if let Some(asker) = exec.killing.and_then(|killing| killing.asker) {
                    self.reply(asker, Reply::Done, Vec::new());
                }
            }
        }
        self.check_stopped();
    }

    /// Streams of a container that is being made.
    fn prepared(&mut self, id: &ContainerId, prepared: Prepared, fds: Vec<OwnedFd>) -> Result<(), Failure> {
        let at =
            |stage: &'static str| move |error: std::io::Error| failure(ErrorKind::Internal, stage, &error);
        let Some(container) = self.containers.iter_mut().find(|container| container.id == *id) else {
            return Ok(());
        };
        container.cgroups.unified = prepared.unified;
        container.cgroups.memory = prepared.memory;
        container.cgroups.freezer = prepared.freezer;
        container.cgroups.roams = prepared.roams;
        let mut fds = fds.into_iter();
        container.exec_error = fds.next();
        if let Some(fd) = &container.exec_error {
            sys::fds::set_nonblocking(fd.as_fd()).map_err(at("streams"))?;
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
            // It waits to be started, so these are those it was made with; it was not waited for, so the number
            // is its own.
            match sys::namespace::Namespaces::of(*pid) {
                Ok(namespaces) => container.namespaces = Some(namespaces),
                Err(error) => {
                    failure_of.get_or_insert(failure(ErrorKind::Internal, "namespaces of init", &error));
                }
            }
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
                self.init_ended(place, code, None);
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
        let mut failed =
            failure_of.unwrap_or_else(|| refusal(ErrorKind::Internal, "worker", "an answer of a wrong kind"));
        if failed.kind == ErrorKind::Internal && self.containers.get(place).is_some_and(was_oom_killed) {
            // The worker or init, which does not know why; what it left unsaid shows as something else.
            let message = format!(
                "too small for a container to be made in it, {LEAST_MEMORY} bytes are enough ({}: {})",
                failed.stage, failed.message
            );
            failed = refusal(ErrorKind::Invalid, "memory_limit_in_bytes", message);
        }
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
}

/// What the end of a worker that said nothing means. `starved`: the container, in whose cgroup it works, has lost a
/// process for memory.
fn why(code: i32, starved: bool) -> String {
    if starved {
        return "the kernel killed the worker for memory: the limit of the container, or of its pod, leaves too \
                little to start a process in it"
            .to_owned();
    }
    format!("the worker left with status {code}")
}

/// The master that libcontainer sent while it made the container.
fn take_terminal(container: &mut Container) -> Result<(), Failure> {
    let at = |error: std::io::Error| failure(ErrorKind::Internal, "terminal", &error);
    let Some(socket) = container.stdin.take() else { return Ok(()) };
    let mut master = None;
    sys::fds::set_nonblocking(socket.as_fd()).map_err(at)?;
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
