//! The daemon's side: who dials, what is sent to it.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use model::{ContainerId, PodId};
use sys::epoll::{Epoll, Interest};
use wire::{Event, Hello, Message, PROTOCOL, Reply, Snapshot, feature};

use crate::conn::{Conn, Lost};
use crate::lifecycle::Requester;
use crate::tokens::Watched;

/// Pause after a connection that could not be taken.
const ACCEPT_AGAIN_MS: u64 = 1000;

/// The socket that daemons dial, and the daemon that did so last.
pub(crate) struct Link {
    pod: PodId,
    listener: OwnedFd,
    conn: Option<Conn>,
    generation: u32,
    /// When to take connections again (monotonic ms), after one could not be taken.
    listen_again: Option<u64>,
    /// For the first daemon that connects.
    warnings: Vec<String>,
}

impl Link {
    /// Listens. `warnings` are for the first daemon.
    ///
    /// # Errors
    /// Those of epoll.
    pub(crate) fn new(
        pod: PodId,
        listener: OwnedFd,
        warnings: Vec<String>,
        epoll: &Epoll,
    ) -> io::Result<Self> {
        sys::fds::set_nonblocking(listener.as_fd())?;
        epoll.add(listener.as_fd(), Watched::Listener.token(), Interest::READ)?;
        Ok(Self { pod, listener, conn: None, generation: 0, listen_again: None, warnings })
    }

    /// A daemon has dialled. It replaces the one before. Returns its connection's number.
    pub(crate) fn accept(&mut self, epoll: &Epoll) -> Option<u32> {
        let fd = match sys::scm::accept(self.listener.as_fd()) {
            Ok(fd) => fd?,
            // Out of descriptors or memory. Who waits stays in the queue and would wake the loop at once.
            Err(_) => {
                if epoll.remove(self.listener.as_fd()).is_ok() {
                    self.listen_again = Some(sys::clock::monotonic_ms() + ACCEPT_AGAIN_MS);
                }
                return None;
            }
        };
        // The socket's folder is root's alone; this is a second lock.
        if !sys::peer::uid(fd.as_fd()).is_ok_and(|uid| uid == 0) {
            return None;
        }
        let conn = Conn::new(fd, self.generation.wrapping_add(1));
        epoll.add(conn.fd(), Watched::Connection(conn.generation).token(), Interest::READ).ok()?;
        self.generation = conn.generation;
        if let Some(old) = self.conn.replace(conn) {
            drop(epoll.remove(old.fd()));
        }
        Some(self.generation)
    }

    /// When [`Self::listen`] is wanted (monotonic ms).
    pub(crate) fn timer(&self) -> Option<u64> {
        self.listen_again
    }

    /// Takes connections again, after a pause.
    pub(crate) fn listen(&mut self, now: u64, epoll: &Epoll) {
        if self.listen_again.is_some_and(|at| at <= now) {
            let added = epoll.add(self.listener.as_fd(), Watched::Listener.token(), Interest::READ);
            self.listen_again = added.is_err().then_some(now + ACCEPT_AGAIN_MS);
        }
    }

    /// The connection, if it is that one.
    pub(crate) fn conn(&mut self, generation: u32) -> Option<&mut Conn> {
        self.conn.as_mut().filter(|conn| conn.generation == generation)
    }

    /// Ends the connection. Work goes on; its answers have nobody to go to. Returns its number.
    pub(crate) fn hang_up(&mut self, epoll: &Epoll) -> Option<u32> {
        let conn = self.conn.take()?;
        drop(epoll.remove(conn.fd()));
        Some(conn.generation)
    }

    /// Asks for writability only while something waits to be written.
    pub(crate) fn watch(&self, epoll: &Epoll) {
        if let Some(conn) = &self.conn {
            let interest = if conn.wants_to_write() { Interest::BOTH } else { Interest::READ };
            drop(epoll.modify(conn.fd(), Watched::Connection(conn.generation).token(), interest));
        }
    }

    /// Says who this is and what it holds.
    ///
    /// # Errors
    /// The connection is of no use any more.
    pub(crate) fn greet(
        &mut self,
        snapshot: impl Iterator<Item = Snapshot>,
        epoll: &Epoll,
    ) -> Result<(), Lost> {
        let hello = Hello {
            protocol: PROTOCOL,
            build: env!("CARGO_PKG_VERSION").to_owned(),
            pod: self.pod.clone(),
            pid: std::process::id(),
            features: feature::ALL.map(str::to_owned).to_vec(),
        };
        self.send(0, &Message::Hello(hello), Vec::new(), epoll)?;
        for entry in snapshot {
            self.send(0, &Message::Snapshot(entry), Vec::new(), epoll)?;
        }
        self.send(0, &Message::SnapshotEnd, Vec::new(), epoll)?;
        for message in std::mem::take(&mut self.warnings) {
            self.event(Event::Warning { container: None, message }, epoll)?;
        }
        // The daemon's stderr was for words before this: from here on there is a connection, and what is forked
        // later must not hold the daemon's log. Without a null device to put there it stays.
        if let Ok(null) = sys::fds::null() {
            let _ = rustix::stdio::dup2_stderr(&null);
        }
        Ok(())
    }

    /// Answers a request, if the connection it came on is still there.
    ///
    /// # Errors
    /// The connection is of no use any more.
    pub(crate) fn reply(
        &mut self,
        to: Requester,
        reply: Reply,
        fd: Option<OwnedFd>,
        epoll: &Epoll,
    ) -> Result<(), Lost> {
        if self.conn(to.generation).is_none() {
            return Ok(());
        }
        self.send(to.id, &Message::Reply(reply), fd.into_iter().collect(), epoll)
    }

    /// Tells the daemon, if there is one.
    ///
    /// # Errors
    /// The connection is of no use any more.
    pub(crate) fn event(&mut self, event: Event, epoll: &Epoll) -> Result<(), Lost> {
        self.send(0, &Message::Event(event), Vec::new(), epoll)
    }

    /// Warns the daemon, if there is one.
    ///
    /// # Errors
    /// The connection is of no use any more.
    pub(crate) fn warn(&mut self, container: &ContainerId, text: String, epoll: &Epoll) -> Result<(), Lost> {
        self.event(Event::Warning { container: Some(container.clone()), message: text }, epoll)
    }

    /// Before the shim leaves: one answer of a few bytes may wait. The socket takes it, or the daemon is stuck and
    /// sees the end.
    pub(crate) fn flush(&mut self) {
        if let Some(conn) = &mut self.conn {
            drop(conn.flush());
        }
    }

    fn send(&mut self, id: u64, message: &Message, fds: Vec<OwnedFd>, epoll: &Epoll) -> Result<(), Lost> {
        let Some(conn) = &mut self.conn else { return Ok(()) };
        conn.send(id, message, fds)?;
        self.watch(epoll);
        Ok(())
    }
}
