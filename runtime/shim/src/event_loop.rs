//! The loop: one thread, one epoll set, no allocation that stays.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use model::{ContainerId, PodId};
use sys::epoll::{Epoll, Interest, Ready};
use sys::signal::SignalFd;
use wire::{ErrorKind, Event, Message, Reply};

use crate::conn::{Conn, Lost};
use crate::exit_record::Records;
use crate::io::output::{After, Buffers};
use crate::job::{self, Job};
use crate::reaper::Strangers;
use crate::table::{Asker, Container, Exec, Pause, Phase, cut_start_error};

/// After this long without anything to do, large buffers are given back.
const IDLE_MS: u64 = 200;
/// The most that is waited for, whatever the timers say.
const LONGEST_WAIT_MS: u64 = 3_600_000;

/// By kernel number, the same on all architectures.
const SIGTERM: u32 = 15;
/// Pause after a connection that could not be taken.
const ACCEPT_AGAIN_MS: u64 = 1000;

/// Kinds of descriptors in the epoll set; a token is a kind and a number.
mod kind {
    pub(super) const LISTENER: u64 = 0;
    pub(super) const SIGNAL: u64 = 1;
    pub(super) const CONN: u64 = 2;
    pub(super) const JOB: u64 = 3;
    pub(super) const STDOUT: u64 = 4;
    pub(super) const STDERR: u64 = 5;
    pub(super) const EXEC_ERROR: u64 = 6;
}

fn token(kind: u64, number: u32) -> u64 {
    kind << 32 | u64::from(number)
}

/// What the shim was started with.
pub(crate) struct Start {
    pub(crate) pod: PodId,
    pub(crate) listener: OwnedFd,
    pub(crate) pause_binary: OwnedFd,
    pub(crate) records: Records,
    pub(crate) log_dir: Option<OwnedFd>,
    pub(crate) signals: SignalFd,
    /// For the first daemon that connects.
    pub(crate) warnings: Vec<String>,
}

/// Everything the shim knows.
pub(crate) struct Shim {
    pub(crate) start: Start,
    pub(crate) epoll: Epoll,
    /// When to take connections again (monotonic ms), after one could not be taken.
    listen_again: Option<u64>,
    pub(crate) conn: Option<Conn>,
    pub(crate) generation: u32,
    /// Numbers for tokens of jobs and containers.
    pub(crate) serial: u32,
    pub(crate) pause: Option<Pause>,
    pub(crate) containers: Vec<Container>,
    pub(crate) execs: Vec<Exec>,
    pub(crate) jobs: Vec<Job>,
    pub(crate) strangers: Strangers,
    pub(crate) buffers: Buffers,
    /// Who waits for the pod to be gone.
    pub(crate) stopping: Option<Asker>,
    /// When to look at processes of a stopped pod that were not reaped (monotonic ms).
    pub(crate) stop_look: Option<u64>,
    /// The pod was stopped: leave when the daemon does.
    pub(crate) stopped: bool,
    /// SIGTERM came: leave as soon as nothing of the pod lives. A shutdown of the host sends it to all processes.
    terminated: bool,
    /// Leave.
    pub(crate) done: bool,
}

impl Shim {
    pub(crate) fn new(start: Start) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        sys::fds::set_nonblocking(start.listener.as_fd())?;
        epoll.add(start.listener.as_fd(), token(kind::LISTENER, 0), Interest::READ)?;
        epoll.add(start.signals.as_fd(), token(kind::SIGNAL, 0), Interest::READ)?;
        Ok(Self {
            start,
            epoll,
            listen_again: None,
            conn: None,
            generation: 0,
            serial: 0,
            pause: None,
            containers: Vec::new(),
            execs: Vec::new(),
            jobs: Vec::new(),
            strangers: Strangers::default(),
            buffers: Buffers::new()?,
            stopping: None,
            stop_look: None,
            stopped: false,
            terminated: false,
            done: false,
        })
    }

    /// Runs until the pod is stopped and the daemon says so.
    pub(crate) fn run(&mut self) -> io::Result<()> {
        let mut ready: Vec<Ready> = Vec::with_capacity(32);
        while !self.done {
            let timeout = self.timeout();
            ready.clear();
            self.epoll.wait(timeout, |event| ready.push(event))?;
            if ready.is_empty() && self.buffers.are_used() && timeout == Some(IDLE_MS) {
                self.buffers.release();
                // Requests of different sizes walk through all of the heap's first 132 KiB otherwise.
                sys::malloc::trim();
            }
            let mut reap = false;
            for event in &ready {
                reap |= self.dispatch(*event);
            }
            if reap {
                self.reap();
            }
            self.tick();
            self.done |= self.terminated && !self.lives();
        }
        Ok(())
    }

    fn timeout(&self) -> Option<u64> {
        let now = sys::clock::monotonic_ms();
        let timers = self
            .containers
            .iter()
            .filter_map(|container| container.look_again)
            .chain(self.listen_again)
            .chain(self.stop_look)
            .chain(self.jobs.iter().map(|job| job.deadline))
            .chain(self.execs.iter().filter_map(|exec| exec.killing.map(|killing| killing.look_again)))
            .chain(self.execs.iter().filter_map(|exec| exec.deadline));
        let next = timers.min().map(|at| at.saturating_sub(now).min(LONGEST_WAIT_MS));
        match next {
            None if self.buffers.are_used() => Some(IDLE_MS),
            next => next,
        }
    }

    /// Handles one event. True when children are to be reaped.
    fn dispatch(&mut self, event: Ready) -> bool {
        let number = u32::try_from(event.token & u64::from(u32::MAX)).unwrap_or(u32::MAX);
        match event.token >> 32 {
            kind::LISTENER => self.accept(),
            kind::SIGNAL => {
                while let Ok(Some(number)) = self.start.signals.next() {
                    self.terminated |= number == SIGTERM;
                }
                return true;
            }
            kind::CONN => self.serve(number, event.interest),
            kind::JOB => self.hear(number),
            kind::STDOUT => self.copy(number, 0),
            kind::STDERR => self.copy(number, 1),
            kind::EXEC_ERROR => self.exec_error(number),
            _ => {}
        }
        false
    }

    /// A daemon has dialled. It replaces the one before.
    fn accept(&mut self) {
        let fd = match sys::scm::accept(self.start.listener.as_fd()) {
            Ok(Some(fd)) => fd,
            Ok(None) => return,
            // Out of descriptors or memory. Who waits stays in the queue and would wake the loop at once.
            Err(_) => {
                if self.epoll.remove(self.start.listener.as_fd()).is_ok() {
                    self.listen_again = Some(sys::clock::monotonic_ms() + ACCEPT_AGAIN_MS);
                }
                return;
            }
        };
        // The socket's folder is root's alone; this is a second lock.
        if !sys::peer::uid(fd.as_fd()).is_ok_and(|uid| uid == 0) {
            return;
        }
        if let Some(old) = self.conn.take() {
            drop(self.epoll.remove(old.fd()));
        }
        self.generation = self.generation.wrapping_add(1);
        let conn = Conn::new(fd, self.generation);
        if self.epoll.add(conn.fd(), token(kind::CONN, self.generation), Interest::READ).is_err() {
            return;
        }
        self.conn = Some(conn);
        self.greet();
    }

    /// Takes connections again, after a pause.
    pub(crate) fn listen(&mut self, now: u64) {
        if self.listen_again.is_none_or(|at| at > now) {
            return;
        }
        let added = self.epoll.add(self.start.listener.as_fd(), token(kind::LISTENER, 0), Interest::READ);
        self.listen_again = added.is_err().then_some(now + ACCEPT_AGAIN_MS);
    }

    /// Ends the connection. Work goes on; its answers have nobody to go to.
    pub(crate) fn hang_up(&mut self) {
        if let Some(conn) = self.conn.take() {
            drop(self.epoll.remove(conn.fd()));
            if self.stopped {
                self.done = true;
            }
        }
    }

    fn serve(&mut self, generation: u32, interest: Interest) {
        if let Err(_lost) = self.try_serve(generation, interest) {
            self.hang_up();
        }
    }

    fn try_serve(&mut self, generation: u32, interest: Interest) -> Result<(), Lost> {
        let Some(conn) = self.conn.as_mut().filter(|conn| conn.generation == generation) else {
            return Ok(());
        };
        if interest.write {
            conn.flush()?;
        }
        if interest.read && conn.fill()? {
            self.take_requests(generation)?;
        }
        self.watch_conn();
        Ok(())
    }

    /// Does what has come whole; a request may end the connection that it came on.
    fn take_requests(&mut self, generation: u32) -> Result<(), Lost> {
        loop {
            let Some(conn) = self.conn.as_mut().filter(|conn| conn.generation == generation) else {
                return Ok(());
            };
            let Some((frame, fds)) = conn.next()? else { return Ok(()) };
            if let Message::Request(request) = frame.message {
                self.request(Asker { generation, id: frame.id }, request, fds);
            }
        }
    }

    /// Asks for writability only while something waits to be written.
    fn watch_conn(&mut self) {
        if let Some(conn) = &self.conn {
            let interest = if conn.wants_to_write() { Interest::BOTH } else { Interest::READ };
            drop(self.epoll.modify(conn.fd(), token(kind::CONN, conn.generation), interest));
        }
    }

    /// Sends to the daemon, if there is one; one that does not read is dropped.
    pub(crate) fn send(&mut self, id: u64, message: &Message, fds: Vec<OwnedFd>) {
        let Some(conn) = &mut self.conn else { return };
        match conn.send(id, message, fds) {
            Ok(()) => self.watch_conn(),
            Err(_lost) => self.hang_up(),
        }
    }

    pub(crate) fn event(&mut self, event: Event) {
        self.send(0, &Message::Event(event), Vec::new());
    }

    /// Answers a request, if the connection it came on is still there.
    pub(crate) fn reply(&mut self, asker: Asker, reply: Reply, fds: Vec<OwnedFd>) {
        if self.conn.as_ref().is_some_and(|conn| conn.generation == asker.generation) {
            self.send(asker.id, &Message::Reply(reply), fds);
        }
    }

    pub(crate) fn warn(&mut self, container: Option<&ContainerId>, message: String) {
        if self.conn.is_some() {
            self.event(Event::Warning { container: container.cloned(), message });
        }
    }

    pub(crate) fn next_serial(&mut self) -> u32 {
        self.serial = self.serial.wrapping_add(1);
        self.serial
    }

    pub(crate) fn watch_job(&self, job: &Job) -> io::Result<()> {
        self.epoll.add(job.socket.as_fd(), token(kind::JOB, job.serial), Interest::READ)
    }

    /// Watches the streams of a container.
    pub(crate) fn watch_outputs(&self, container: &Container) -> io::Result<()> {
        for (output, kind) in container.outputs.iter().zip([kind::STDOUT, kind::STDERR]) {
            if let Some(output) = output {
                self.epoll.add(output.fd(), token(kind, container.serial), Interest::READ)?;
            }
        }
        Ok(())
    }

    pub(crate) fn watch_exec_error(&self, container: &Container) -> io::Result<()> {
        match &container.exec_error {
            Some(fd) => self.epoll.add(fd.as_fd(), token(kind::EXEC_ERROR, container.serial), Interest::READ),
            None => Ok(()),
        }
    }

    /// Copies output into the log.
    fn copy(&mut self, serial: u32, which: usize) {
        let Some(container) = self.containers.iter_mut().find(|c| c.serial == serial) else { return };
        let Container { outputs, log, id, .. } = container;
        let Some(slot) = outputs.get_mut(which) else { return };
        let Some(output) = slot else { return };
        let mut warning = None;
        if output.read(log, &mut self.buffers, &mut |text| warning = Some(text)) == After::Ended {
            drop(self.epoll.remove(output.fd()));
            if let Some(output) = slot.take() {
                output.finish(log, &mut self.buffers, &mut |text| warning = Some(text));
            }
        }
        if let Some(text) = warning {
            let id = id.clone();
            self.warn(Some(&id), text);
        }
    }

    /// Writes out what is left of a container's output and closes its streams.
    pub(crate) fn finish_outputs(&mut self, place: usize) {
        let Some(container) = self.containers.get_mut(place) else { return };
        let Container { outputs, log, id, stdin, .. } = container;
        let mut warning = None;
        for slot in outputs {
            if let Some(output) = slot.take() {
                drop(self.epoll.remove(output.fd()));
                output.finish(log, &mut self.buffers, &mut |text| warning = Some(text));
            }
        }
        *stdin = None;
        log.finish();
        if let Some(text) = warning {
            let id = id.clone();
            self.warn(Some(&id), text);
        }
    }

    /// The pipe that init's execve closes: its end means running, bytes mean failure.
    fn exec_error(&mut self, serial: u32) {
        let Some(place) = self.containers.iter().position(|c| c.serial == serial) else { return };
        self.hear_exec_error(place, None);
    }

    /// Takes what init has said on that pipe. `executed`: whether init has called execve, when that is known; it is
    /// looked up otherwise, since the pipe also ends when init is killed before.
    pub(crate) fn hear_exec_error(&mut self, place: usize, executed: Option<bool>) {
        /// More than any failure takes.
        const LONGEST: usize = 8192;
        let Some(container) = self.containers.get_mut(place) else { return };
        let Some(fd) = &container.exec_error else { return };
        let mut buffer = [0; 1024];
        loop {
            match sys::fds::read(fd.as_fd(), &mut buffer) {
                Ok(0) => break,
                Ok(bytes) if container.error_bytes.len() < LONGEST => {
                    container.error_bytes.extend_from_slice(buffer.get(..bytes).unwrap_or_default());
                }
                // Not init: whoever may look into it can write there too, and for ever.
                Ok(_) => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => break,
            }
        }
        self.drop_exec_error(place);
        let Some(container) = self.containers.get_mut(place) else { return };
        if container.error_bytes.is_empty() {
            // Not reaped, or the caller knows: the number is its own.
            let executed = executed
                .or_else(|| Some(sys::proc::stat(container.pid).ok()?.has_executed()))
                .unwrap_or(container.alive);
            if executed {
                self.started(place);
            }
        } else {
            // Init leaves by itself; the answer waits until it is reaped.
            take_start_error(container);
        }
    }

    /// Nothing more is expected on that pipe.
    pub(crate) fn drop_exec_error(&mut self, place: usize) {
        let pipe = self.containers.get_mut(place).and_then(|container| container.exec_error.take());
        if let Some(pipe) = pipe {
            drop(self.epoll.remove(pipe.as_fd()));
        }
    }

    /// Init has called execve. Nothing to do when that is known already.
    pub(crate) fn started(&mut self, place: usize) {
        let Some(container) = self.containers.get_mut(place) else { return };
        let Phase::Starting(asker) = container.phase else { return };
        container.phase = Phase::Running;
        if !container.killed {
            container.look_again = None;
        }
        container.facts.started_at = sys::clock::now();
        // Whatever came by the pipe was not init's.
        container.facts.start_error = None;
        let (id, started_at) = (container.id.clone(), container.facts.started_at);
        // Also to the daemon that asked: it may have given up waiting for the reply.
        self.event(Event::Started { container: id, started_at });
        self.reply(asker, Reply::Started { started_at }, Vec::new());
    }
}

/// Keeps what init said on why it could not start, if it did.
pub(crate) fn take_start_error(container: &mut Container) {
    let bytes = std::mem::take(&mut container.error_bytes);
    if bytes.is_empty() {
        return;
    }
    let failure = serde_json::from_slice(&bytes)
        .unwrap_or_else(|_| job::refusal(ErrorKind::StartFailed, "execve", String::from_utf8_lossy(&bytes)));
    container.facts.start_error = Some(cut_start_error(&failure.message));
}
