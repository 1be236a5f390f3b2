//! The task of one connection to a shim, and its socket.

use super::error::ClientError;
use model::ExecId;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};
use wire::codec::{self, Decoder};
use wire::{Event, Message, Reply, Request};

/// Maximum number of requests that wait for their reply. With that many, no further one is sent.
const MAX_PENDING: usize = 256;
/// Bytes of one read.
const READ: usize = 16 * 1024;
/// Maximum number of received descriptors whose message is not complete yet. One read receives those of one message.
const MAX_FDS: usize = 2 * wire::MAX_FDS;

/// The reply to a request, with its descriptors.
pub(super) type Answer = Result<(Reply, Vec<OwnedFd>), ClientError>;

/// A request that is to be written.
pub(super) struct Outgoing {
    pub(super) request: Request,
    pub(super) fds: Vec<OwnedFd>,
    pub(super) reply: oneshot::Sender<Answer>,
    /// For an exec: where its exit code is sent. Registered before the request is sent, so that no exit is missed.
    pub(super) exec: Option<(ExecId, oneshot::Sender<i32>)>,
}

/// The socket, and what was received from it and is not handled yet.
pub(super) struct Link {
    stream: AsyncFd<UnixStream>,
    decoder: Decoder,
    fds: VecDeque<OwnedFd>,
}

impl Link {
    /// A link from which nothing was received yet.
    pub(super) fn new(stream: AsyncFd<UnixStream>) -> Self {
        Self { stream, decoder: Decoder::default(), fds: VecDeque::new() }
    }

    /// Reads the bytes that are available, without waiting. The end of the stream is an error.
    fn read(&mut self) -> Result<(), ClientError> {
        let mut buffer = [0; READ];
        let fds = &mut self.fds;
        // If nothing is available, try_io notes that, so that the next `readable` waits.
        let receive = |stream: &UnixStream| {
            sys::scm::recv_with_fds(stream.as_fd(), &mut buffer, |fd| fds.push_back(fd))
        };
        match self.stream.try_io(Interest::READABLE, receive) {
            Ok(0) => Err(ClientError::Lost),
            Ok(_) if self.fds.len() > MAX_FDS => {
                Err(ClientError::Protocol("it sent more descriptors than its messages have"))
            }
            Ok(count) => {
                self.decoder.feed(buffer.get(..count).unwrap_or_default());
                Ok(())
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {
                Ok(())
            }
            Err(source) => Err(ClientError::Socket { what: "read from the shim", source }),
        }
    }

    /// The next message of the handshake, none of which has descriptors.
    pub(super) async fn next(&mut self) -> Result<Message, ClientError> {
        loop {
            if let Some(frame) = self.decoder.next()? {
                return Ok(frame.message);
            }
            drop(self.stream.readable().await.map_err(waiting)?);
            self.read()?;
        }
    }
}

/// Owns the connection: writes requests one by one, and reads all the time.
pub(super) struct Task {
    link: Link,
    requests: mpsc::Receiver<Outgoing>,
    events: mpsc::Sender<Event>,
    /// Callers by request id; for an exec request also the exec's id.
    pending: HashMap<u64, (oneshot::Sender<Answer>, Option<ExecId>)>,
    /// Who gets the exit code of an exec.
    execs: HashMap<ExecId, oneshot::Sender<i32>>,
}

/// A frame that is being written; its descriptors are sent with the first byte.
struct Writing {
    bytes: Vec<u8>,
    sent: usize,
    fds: Vec<OwnedFd>,
}

impl Task {
    /// The task of a connection whose handshake is complete.
    pub(super) fn new(link: Link, requests: mpsc::Receiver<Outgoing>, events: mpsc::Sender<Event>) -> Self {
        Self { link, requests, events, pending: HashMap::new(), execs: HashMap::new() }
    }

    /// Runs until the last client is dropped or the connection is lost.
    pub(super) async fn run(mut self) -> Result<(), ClientError> {
        let mut next_id: u64 = 1;
        let mut writing: Option<Writing> = None;
        loop {
            // The handshake's last read may have received more frames.
            while let Some(frame) = self.link.decoder.next()? {
                let count = usize::from(frame.nfds);
                if count > self.link.fds.len() {
                    return Err(ClientError::Protocol("a message came without its descriptors"));
                }
                let fds = self.link.fds.drain(..count).collect();
                self.dispatch(frame.id, frame.message, fds).await?;
            }
            let idle = writing.is_none();
            let may_send = idle && self.pending.len() < MAX_PENDING;
            let write = async {
                match &writing {
                    Some(_) => self.link.stream.writable().await.map(drop),
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                ready = write => {
                    ready.map_err(waiting)?;
                    writing = self.write(writing.take())?;
                }
                request = self.requests.recv(), if may_send => {
                    let Some(request) = request else { return Ok(()) };
                    let id = next_id;
                    next_id += 1;
                    let Outgoing { request, fds, reply, exec } = request;
                    let mut bytes = Vec::with_capacity(256);
                    let count = u8::try_from(fds.len()).unwrap_or(u8::MAX);
                    match codec::encode(id, count, &Message::Request(request), &mut bytes) {
                        // A caller that has gone needs no reply.
                        Err(error) => drop(reply.send(Err(error.into()))),
                        Ok(()) => {
                            self.pending.insert(id, (reply, exec.as_ref().map(|(exec, _)| *exec)));
                            self.execs.extend(exec);
                            writing = self.write(Some(Writing { bytes, sent: 0, fds }))?;
                        }
                    }
                }
                ready = self.link.stream.readable() => {
                    drop(ready.map_err(waiting)?);
                    self.link.read()?;
                }
            }
        }
    }

    /// Writes as much as the socket accepts, and returns the rest.
    fn write(&self, writing: Option<Writing>) -> Result<Option<Writing>, ClientError> {
        let Some(mut writing) = writing else { return Ok(None) };
        loop {
            let rest = writing.bytes.get(writing.sent..).unwrap_or_default();
            if rest.is_empty() {
                return Ok(None);
            }
            let fds: Vec<BorrowedFd<'_>> = if writing.sent == 0 {
                writing.fds.iter().map(|fd| fd.as_fd()).collect()
            } else {
                Vec::new()
            };
            // If the socket is full, try_io notes that, so that the next `writable` waits.
            let sent = self
                .link
                .stream
                .try_io(Interest::WRITABLE, |stream| sys::scm::send_with_fds(stream.as_fd(), rest, &fds));
            match sent {
                Ok(count) => writing.sent += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Some(writing)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(ClientError::Socket { what: "write to the shim", source }),
            }
        }
    }

    /// Passes a message to its receiver.
    async fn dispatch(&mut self, id: u64, message: Message, fds: Vec<OwnedFd>) -> Result<(), ClientError> {
        match message {
            Message::Reply(reply) => {
                if let Some((waiting, exec)) = self.pending.remove(&id) {
                    if let (Some(exec), Reply::Failed(_)) = (exec, &reply) {
                        self.execs.remove(&exec);
                    }
                    // A caller whose time limit passed has gone.
                    drop(waiting.send(Ok((reply, fds))));
                }
            }
            Message::Event(Event::ExecExited { exec, code }) => {
                if let Some(waiting) = self.execs.remove(&exec) {
                    let _ = waiting.send(code);
                }
            }
            Message::Event(event) => {
                if self.events.send(event).await.is_err() {
                    return Err(ClientError::Lost);
                }
            }
            Message::Hello(_) | Message::Snapshot(_) | Message::SnapshotEnd | Message::Request(_) => {
                return Err(ClientError::Protocol("a message is neither a reply nor an event"));
            }
        }
        Ok(())
    }
}

fn waiting(source: io::Error) -> ClientError {
    ClientError::Socket { what: "wait for the shim", source }
}
