//! The connection to the daemon: accepting it and sending messages.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use model::{ContainerId, PodId};
use sys::epoll::{Epoll, Interest};
use wire::{Event, Hello, Message, PROTOCOL, Reply, Snapshot, feature};

use crate::conn::{Conn, Lost};
use crate::lifecycle::Requester;
use crate::tokens::Watched;

/// How long nothing is accepted after a failed accept.
const ACCEPT_AGAIN_MS: u64 = 1000;
/// Maximum number of warnings that wait for a daemon.
const MAX_WARNINGS: usize = 16;

/// The listening socket and the current connection.
pub(crate) struct Link {
    pod: PodId,
    listener: OwnedFd,
    conn: Option<Conn>,
    generation: u32,
    /// When to accept again (monotonic ms), after a failed accept.
    listen_again: Option<u64>,
    /// Warnings for the next daemon that connects.
    warnings: Vec<String>,
}

impl Link {
    /// Starts listening. `warnings` are for the first daemon that connects.
    ///
    /// # Errors
    /// The errors of epoll.
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

    /// Accepts a daemon, which replaces an earlier one. Returns the connection's number.
    pub(crate) fn accept(&mut self, epoll: &Epoll) -> Option<u32> {
        let fd = match sys::scm::accept(self.listener.as_fd()) {
            Ok(fd) => fd?,
            // Out of descriptors or memory. The connection stays in the queue and would wake the loop at
            // once.
            Err(_) => {
                if epoll.remove(self.listener.as_fd()).is_ok() {
                    self.listen_again = Some(sys::clock::monotonic_ms() + ACCEPT_AGAIN_MS);
                }
                return None;
            }
        };
        // Only root can reach the socket, because of its folder's mode. This is a second check.
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

    /// When to call [`Self::listen`] (monotonic ms).
    pub(crate) fn timer(&self) -> Option<u64> {
        self.listen_again
    }

    /// Accepts connections again once [`Self::timer`] is due after a failed accept.
    pub(crate) fn listen(&mut self, now: u64, epoll: &Epoll) {
        if self.listen_again.is_some_and(|at| at <= now) {
            let added = epoll.add(self.listener.as_fd(), Watched::Listener.token(), Interest::READ);
            self.listen_again = added.is_err().then_some(now + ACCEPT_AGAIN_MS);
        }
    }

    /// The connection, if it has this number.
    pub(crate) fn conn(&mut self, generation: u32) -> Option<&mut Conn> {
        self.conn.as_mut().filter(|conn| conn.generation == generation)
    }

    /// Closes the connection and returns its number. Work continues, and its replies are dropped. The next daemon is told
    /// why, unless this one has ended.
    pub(crate) fn hang_up(&mut self, lost: &Lost, epoll: &Epoll) -> Option<u32> {
        let conn = self.conn.take()?;
        drop(epoll.remove(conn.fd()));
        if lost.is_unexpected() && self.warnings.len() < MAX_WARNINGS {
            self.warnings.push(format!("the shim closed its earlier connection to the daemon: {lost}"));
        }
        Some(conn.generation)
    }

    /// Lets epoll report that the socket is writable only while data is queued.
    pub(crate) fn watch(&self, epoll: &Epoll) {
        if let Some(conn) = &self.conn {
            let interest = if conn.wants_to_write() { Interest::BOTH } else { Interest::READ };
            drop(epoll.modify(conn.fd(), Watched::Connection(conn.generation).token(), interest));
        }
    }

    /// Sends hello and the snapshot.
    ///
    /// # Errors
    /// The connection must be closed.
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
        // Until now the shim's stderr was the daemon's, for errors before there was a connection. Processes that are
        // forked from here on must not be able to write to the daemon's log. If /dev/null cannot be opened, stderr
        // stays as it is.
        if let Ok(null) = sys::fds::null() {
            let _ = rustix::stdio::dup2_stderr(&null);
        }
        Ok(())
    }

    /// Replies to a request, if its connection still exists.
    ///
    /// # Errors
    /// The connection must be closed.
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

    /// Sends an event to the daemon, if one is connected.
    ///
    /// # Errors
    /// The connection must be closed.
    pub(crate) fn event(&mut self, event: Event, epoll: &Epoll) -> Result<(), Lost> {
        self.send(0, &Message::Event(event), Vec::new(), epoll)
    }

    /// Sends a warning to the daemon, if one is connected.
    ///
    /// # Errors
    /// The connection must be closed.
    pub(crate) fn warn(&mut self, container: &ContainerId, text: String, epoll: &Epoll) -> Result<(), Lost> {
        self.event(Event::Warning { container: Some(container.clone()), message: text }, epoll)
    }

    /// Tries to send queued data before the shim exits: a reply of a few bytes. If the socket is full, the daemon
    /// hangs, and it will see that the connection was closed.
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::{UnixListener, UnixStream};

    #[test]
    fn the_next_daemon_is_told_why_a_connection_was_closed() {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("socket")).unwrap();
        let epoll = Epoll::new().unwrap();
        let pod = PodId::from_random([1; 32]);
        let mut link = Link::new(pod, listener.into(), Vec::new(), &epoll).unwrap();
        let ended = Lost::Io(io::ErrorKind::BrokenPipe.into());
        for (lost, warnings) in [(Lost::Closed, 0), (Lost::Stuck(7), 1), (ended, 1)] {
            let (shim, _daemon) = UnixStream::pair().unwrap();
            link.conn = Some(Conn::new(shim.into(), 1));
            assert_eq!((link.hang_up(&lost, &epoll), link.warnings.len()), (Some(1), warnings), "{lost:?}");
        }
        assert!(link.warnings[0].contains("7 bytes"), "{:?}", link.warnings);
    }
}
