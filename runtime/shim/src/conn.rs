//! The connection to the daemon: reads and writes frames; its queues are bounded.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use wire::codec::{self, Decoder, Frame};
use wire::session::{Session, Side, descriptors};
use wire::{MAX_FDS, Message, Request};

/// Maximum number of bytes that are queued for a daemon that does not read: a snapshot of full tables fits. With more,
/// the connection is closed. The next one starts with a snapshot, so no state is lost; but queued replies, exit codes of
/// execs and warnings are.
const MAX_QUEUED: usize = 512 * 1024;
const _: () = assert!(MAX_FDS <= sys::scm::MAX, "a frame's descriptors are passed by one call");
/// Bytes of one read. Requests are short.
const READ: usize = 4096;

/// Why a connection must be closed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Lost {
    /// The daemon closed it.
    #[error("closed")]
    Closed,
    /// The daemon does not read.
    #[error("the daemon does not read, {0} bytes are queued")]
    Stuck(usize),
    /// A system call failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Invalid data.
    #[error(transparent)]
    Codec(#[from] codec::CodecError),
    /// A message in the wrong order.
    #[error(transparent)]
    Order(#[from] wire::session::OutOfOrder),
    /// Fewer descriptors arrived than the frame's header says.
    #[error("descriptors of frame {0} are missing")]
    Descriptors(u64),
    /// More descriptors arrived than two frames may have, without the frames.
    #[error("{0} descriptors arrived without a frame")]
    Surplus(usize),
}

impl Lost {
    /// Whether an operator must be told. If the daemon ends, the connection is closed or fails.
    pub(crate) fn is_unexpected(&self) -> bool {
        !matches!(self, Self::Closed | Self::Io(_))
    }
}

struct Outgoing {
    bytes: Vec<u8>,
    sent: usize,
    fds: Vec<OwnedFd>,
}

/// A connection.
pub(crate) struct Conn {
    fd: OwnedFd,
    /// Number of the connection: a reply is only sent on the connection of its request.
    pub(crate) generation: u32,
    decoder: Decoder,
    /// Received descriptors that do not belong to a frame yet, in order.
    fds: VecDeque<OwnedFd>,
    out: VecDeque<Outgoing>,
    queued: usize,
    session: Session,
}

impl Conn {
    pub(crate) fn new(fd: OwnedFd, generation: u32) -> Self {
        Self {
            fd,
            generation,
            decoder: Decoder::new(),
            fds: VecDeque::new(),
            out: VecDeque::new(),
            queued: 0,
            session: Session::new(),
        }
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Whether data waits until the socket is writable.
    pub(crate) fn wants_to_write(&self) -> bool {
        !self.out.is_empty()
    }

    /// Sends a message; queues what the socket does not accept.
    pub(crate) fn send(&mut self, id: u64, message: &Message, fds: Vec<OwnedFd>) -> Result<(), Lost> {
        self.session.note(Side::Shim, message)?;
        let mut bytes = Vec::new();
        codec::encode(id, u8::try_from(fds.len()).unwrap_or(u8::MAX), message, &mut bytes)?;
        self.queued += bytes.len();
        self.out.push_back(Outgoing { bytes, sent: 0, fds });
        self.flush()?;
        if self.queued > MAX_QUEUED { Err(Lost::Stuck(self.queued)) } else { Ok(()) }
    }

    /// Writes queued data as far as the socket accepts it.
    pub(crate) fn flush(&mut self) -> Result<(), Lost> {
        while let Some(first) = self.out.front_mut() {
            let fds: Vec<_> = first.fds.iter().map(|fd| fd.as_fd()).collect();
            let rest = first.bytes.get(first.sent..).unwrap_or_default();
            match sys::scm::send_with_fds(self.fd.as_fd(), rest, &fds) {
                Ok(sent) => {
                    first.sent += sent;
                    // The descriptors were sent with the first byte.
                    first.fds = Vec::new();
                    self.queued = self.queued.saturating_sub(sent);
                    if first.sent == first.bytes.len() {
                        self.out.pop_front();
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.out = VecDeque::new();
        Ok(())
    }

    /// Reads once. Returns false if nothing was available.
    pub(crate) fn fill(&mut self) -> Result<bool, Lost> {
        let mut buffer = [0; READ];
        let fds = &mut self.fds;
        let got = match sys::scm::recv_with_fds(self.fd.as_fd(), &mut buffer, |fd| fds.push_back(fd)) {
            Ok(0) => return Err(Lost::Closed),
            Ok(got) => got,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                return Ok(false);
            }
            Err(error) => return Err(error.into()),
        };
        self.decoder.feed(buffer.get(..got).unwrap_or_default());
        Ok(true)
    }

    /// The next complete frame with its descriptors.
    pub(crate) fn next(&mut self) -> Result<Option<(Frame, Vec<OwnedFd>)>, Lost> {
        let Some(mut frame) = self.decoder.next()? else {
            // recvmsg stops after the first message with descriptors, so at most two frames' worth can be
            // pending.
            if self.fds.len() > 2 * MAX_FDS {
                return Err(Lost::Surplus(self.fds.len()));
            }
            return Ok(None);
        };
        self.session.note(Side::Daemon, &frame.message)?;
        let count = usize::from(frame.nfds);
        if count > self.fds.len() {
            return Err(Lost::Descriptors(frame.id));
        }
        let mut fds: Vec<OwnedFd> = self.fds.drain(..count).collect();
        if !descriptors(&frame.message).contains(&count) {
            // A later version's number of descriptors: refused like an unknown request.
            fds = Vec::new();
            frame.message = Message::Request(Request::Unknown);
        }
        if self.fds.is_empty() {
            self.fds = VecDeque::new();
        }
        Ok(Some((frame, fds)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lifecycle::{MAX_EXECS, MAX_START_ERROR, cut_start_error};
    use model::{ContainerId, ExecId};
    use proptest::prelude::*;
    use wire::MAX_CONTAINERS;
    use wire::{ContainerState, ExitFacts, Snapshot};

    fn size(entry: Snapshot) -> usize {
        let mut bytes = Vec::new();
        codec::encode(0, 0, &Message::Snapshot(entry), &mut bytes).unwrap();
        bytes.len()
    }

    #[test]
    fn a_snapshot_of_full_tables_fits_the_queue() {
        let container = || ContainerId::from_random([0xff; 32]);
        for error in ["x", "\"", "\u{1}", "\u{7f}", "ß", "\u{10ffff}"] {
            let facts = ExitFacts {
                code: i32::MIN,
                started_at: i64::MIN,
                finished_at: i64::MIN,
                oom_killed: false,
                start_error: Some(cut_start_error(&error.repeat(10_000))),
            };
            let entry = Snapshot::Container {
                container: container(),
                state: ContainerState::Exited(facts),
                pid: u32::MAX,
            };
            let containers = MAX_CONTAINERS * size(entry);
            let execs = MAX_EXECS * size(Snapshot::Exec { exec: ExecId(u64::MAX), container: container() });
            let pause = size(Snapshot::Pause { pid: u32::MAX, exited: Some(i32::MIN) });
            let all = containers + execs + pause;
            assert!(all < MAX_QUEUED, "{all} bytes with start errors of {error:?}");
        }
    }

    #[test]
    fn descriptors_of_a_later_version_are_refused_and_the_connection_stays() {
        let (daemon, shim) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut conn = Conn::new(shim.into(), 1);
        let mut bytes = Vec::new();
        for (id, nfds) in [(1, 1), (2, 0)] {
            codec::encode(id, nfds, &Message::Request(Request::StopPod), &mut bytes).unwrap();
        }
        let null = sys::fds::null().unwrap();
        sys::scm::send_with_fds(daemon.as_fd(), &bytes, &[null.as_fd()]).unwrap();
        assert!(conn.fill().unwrap());
        for (id, request) in [(1, Request::Unknown), (2, Request::StopPod)] {
            let (frame, fds) = conn.next().unwrap().unwrap();
            assert_eq!((frame.id, frame.message, fds.len()), (id, Message::Request(request), 0));
        }
    }

    proptest! {
        #[test]
        fn a_start_error_is_cut_as_json_writes_it(text in any::<String>(), times in 1usize..200) {
            let long = text.repeat(times);
            let cut = cut_start_error(&long);
            prop_assert!(long.starts_with(&cut));
            let json = serde_json::to_string(&cut).unwrap().len() - 2;
            prop_assert!(json <= MAX_START_ERROR);
            // Errors are not cut more than necessary.
            prop_assert!(cut == long || json + 6 > MAX_START_ERROR);
        }
    }
}
