//! The event loop: one thread and one epoll set. It turns kernel events into inputs of the lifecycle and has its
//! actions performed. Memory that it allocates is freed when the shim is idle.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use model::PodId;
use sys::epoll::{Epoll, Interest, Ready};
use sys::signal::SignalFd;
use wire::Message;

use crate::conn::Lost;
use crate::descriptors::Descriptors;
use crate::io::output::Buffers;
use crate::lifecycle::{Action, ContainerInput, Input, Lifecycle, Requester, Serial, Time};
use crate::link::Link;
use crate::performer::{FromDaemon, Performer};
use crate::tokens::Watched;

/// Large buffers are returned to the kernel after this long without an event.
const IDLE_MS: u64 = 200;
/// Longest wait, whatever the timers say.
const MAX_WAIT_MS: u64 = 3_600_000;
/// Maximum number of children reaped in one iteration: any number may end at once, and logs and requests must be
/// served in between.
const MAX_REAPED: usize = 256;
/// Maximum number of entries that the queues keep allocated.
const KEEP: usize = 16;

/// What the loop needs in addition to its listening socket.
pub(crate) struct Start {
    pub(crate) pod: PodId,
    pub(crate) from_daemon: FromDaemon,
    pub(crate) signals: SignalFd,
    /// Warnings for the first daemon that connects.
    pub(crate) warnings: Vec<String>,
}

/// The resident shim.
pub(crate) struct Shim {
    lifecycle: Lifecycle,
    performer: Performer,
    signals: SignalFd,
    /// More children may be waiting than one iteration reaps.
    reap_again: bool,
    /// The lifecycle has ended, so the shim exits.
    done: bool,
}

impl Shim {
    pub(crate) fn new(listener: OwnedFd, start: Start) -> io::Result<Self> {
        let Start { pod, from_daemon, signals, warnings } = start;
        let epoll = Epoll::new()?;
        epoll.add(signals.as_fd(), Watched::Signals.token(), Interest::READ)?;
        let link = Link::new(pod, listener, warnings, &epoll)?;
        let performer = Performer {
            epoll,
            link,
            descriptors: Descriptors::default(),
            buffers: Buffers::new()?,
            incoming: Vec::new(),
            attach_fd: None,
            from_daemon,
            inputs: VecDeque::new(),
        };
        Ok(Self { lifecycle: Lifecycle::default(), performer, signals, reap_again: false, done: false })
    }

    /// Runs until the lifecycle ends.
    pub(crate) fn run(&mut self) -> io::Result<()> {
        let mut ready: Vec<Ready> = Vec::with_capacity(32);
        while !self.done {
            let timeout = self.timeout();
            ready.clear();
            self.performer.epoll.wait(timeout, |event| ready.push(event))?;
            if ready.is_empty() && self.performer.buffers.are_used() && timeout == Some(IDLE_MS) {
                self.performer.buffers.release();
                // glibc's heap begins with 132 KiB. Requests of different sizes would in time touch all of it.
                sys::malloc::trim();
            }
            let mut reap = std::mem::take(&mut self.reap_again);
            for event in &ready {
                reap |= self.dispatch(*event);
            }
            if reap {
                self.reap();
            }
            let now = sys::clock::monotonic_ms();
            self.performer.link.listen(now, &self.performer.epoll);
            if self.lifecycle.timer().is_some_and(|at| at <= now) {
                self.input(Input::TimerDue);
            }
        }
        Ok(())
    }

    fn timeout(&self) -> Option<u64> {
        if self.reap_again {
            return Some(0);
        }
        let next = self.lifecycle.timer().into_iter().chain(self.performer.link.timer()).min();
        let timer = next.map(|at| at.saturating_sub(sys::clock::monotonic_ms()).min(MAX_WAIT_MS));
        let idle = self.performer.buffers.are_used().then_some(IDLE_MS);
        timer.into_iter().chain(idle).min()
    }

    /// Passes an input to the lifecycle and performs all resulting actions.
    fn input(&mut self, input: Input) {
        self.performer.inputs.push_back(input);
        self.perform_all();
    }

    /// Handles inputs and performs actions until there are none. A result of an action is handled before the next
    /// action.
    fn perform_all(&mut self) {
        loop {
            if let Some(input) = self.performer.inputs.pop_front() {
                let time = Time { ms: sys::clock::monotonic_ms(), wall: sys::clock::now() };
                self.lifecycle.input(time, input);
            } else if let Some(action) = self.lifecycle.next_action() {
                self.done |= action == Action::End;
                if let Some(again) = self.performer.perform(action, &self.lifecycle) {
                    self.lifecycle.act_first(again);
                }
            } else {
                break;
            }
        }
        if self.performer.inputs.capacity() > KEEP {
            self.performer.inputs.shrink_to(KEEP);
        }
        self.lifecycle.shrink(KEEP);
    }

    /// Handles one event. Returns true if children must be reaped.
    fn dispatch(&mut self, event: Ready) -> bool {
        match Watched::of(event.token) {
            Some(Watched::Signals) => {
                while let Ok(Some(number)) = self.signals.next() {
                    if number == sys::signal::TERM {
                        self.input(Input::Terminated);
                    }
                }
                return true;
            }
            Some(Watched::Listener) => {
                if let Some(generation) = self.performer.link.accept(&self.performer.epoll) {
                    self.input(Input::Connected(generation));
                }
            }
            Some(Watched::Connection(generation)) => {
                let served = self.serve(generation, event.interest);
                self.performer.close_if_lost(served);
                self.perform_all();
            }
            Some(Watched::Worker(serial)) => self.read_packets(serial),
            Some(Watched::Stdout(serial)) => self.copy(serial, 0),
            Some(Watched::Stderr(serial)) => self.copy(serial, 1),
            Some(Watched::StartPipe(serial)) => self.read_start_pipe(serial),
            None => {}
        }
        false
    }

    fn serve(&mut self, generation: u32, interest: Interest) -> Result<(), Lost> {
        let Some(conn) = self.performer.link.conn(generation) else { return Ok(()) };
        if interest.write {
            conn.flush()?;
        }
        if interest.read && conn.fill()? {
            // Handles complete frames; a request may end its own connection.
            while let Some(conn) = self.performer.link.conn(generation) {
                let Some((frame, fds)) = conn.next()? else { break };
                if let Message::Request(request) = frame.message {
                    let requester = Requester { generation, id: frame.id };
                    let count = fds.len();
                    self.performer.incoming = fds;
                    self.input(Input::Request { requester, request, fds: count });
                    self.performer.incoming = Vec::new();
                    self.performer.attach_fd = None;
                }
            }
        }
        self.performer.link.watch(&self.performer.epoll);
        Ok(())
    }

    fn read_packets(&mut self, serial: Serial) {
        self.lifecycle.act_first(Action::ReadPackets(serial));
        self.perform_all();
    }

    fn copy(&mut self, serial: Serial, which: usize) {
        let Performer { epoll, descriptors, buffers, .. } = &mut self.performer;
        let Some(container) = descriptors.container_mut(serial) else { return };
        let warning = container.streams.copy(which, epoll, buffers);
        self.performer.warn(serial, warning, &self.lifecycle);
        self.perform_all();
    }

    fn read_start_pipe(&mut self, serial: Serial) {
        let Performer { epoll, descriptors, .. } = &mut self.performer;
        let Some(container) = descriptors.container_mut(serial) else { return };
        let read = container.streams.read_start_pipe(epoll, false);
        if read.closed {
            let input = ContainerInput::StartPipe { error: read.error, closed: true };
            self.input(Input::Container(serial, input));
        }
    }

    /// Reaps all ended children, not only known ones: as subreaper the shim gets orphans of containers that
    /// use the host's PID namespace, and libcontainer's intermediate processes.
    fn reap(&mut self) {
        // Read workers' packets first, so that fewer processes are reaped before they are known.
        let workers: Vec<Serial> = self.performer.descriptors.workers.iter().map(|of| of.serial).collect();
        for serial in workers {
            self.read_packets(serial);
        }
        for _ in 0..MAX_REAPED {
            let mut executed = None;
            let lifecycle = &self.lifecycle;
            let ended = sys::wait::reap(|pid| {
                if lifecycle.is_starting(pid) {
                    executed = sys::proc::stat(pid).ok().map(|stat| stat.has_executed());
                }
            });
            let Ok(Some(ended)) = ended else { return };
            self.input(Input::Reaped { pid: ended.pid, code: ended.code, executed });
        }
        self.reap_again = true;
    }
}
