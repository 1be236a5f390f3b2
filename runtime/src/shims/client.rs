//! The daemon's half of the protocol: one task per connection writes requests, matches replies to them, and
//! forwards events.
//!
//! ```text
//!  Client ──request──► outgoing (bounded) ──► task ──► socket
//!     ▲──────reply (oneshot)──────────────────┤  ◄──── frames, descriptors
//!  driver ◄──events (bounded)─────────────────┘
//! ```
//! The event channel ends when the connection does.

use crate::error::{Error, ErrorKind};
use model::{ExecId, PodId};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use wire::codec::{self, CodecError, Decoder};
use wire::{ErrorKind as ShimErrorKind, Event, Failure, Message, Reply, Request, Snapshot};

/// Most requests that wait to be written.
const MAX_OUTGOING: usize = 32;
/// Most requests without a reply; further ones are not sent until there are fewer.
const MAX_PENDING: usize = 256;
/// Most events that the driver has not received; then reading pauses.
const MAX_EVENTS: usize = 128;
/// Most entries of a snapshot: containers and execs of one pod.
const MAX_SNAPSHOT: usize = 65_536;
/// Bytes of one read.
const READ: usize = 16 * 1024;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// The shim refused it.
    #[error("{}{}", if .0.stage.is_empty() { String::new() } else { format!("{}: ", .0.stage) }, .0.message)]
    Failed(Failure),
    /// The connection was lost.
    #[error("the connection to the shim was lost")]
    Lost,
    /// The time limit passed.
    #[error("the shim did not reply to {what} within {after:?}")]
    Silent {
        /// The request.
        what: &'static str,
        /// The time limit.
        after: Duration,
    },
    /// The reply has another type.
    #[error("unexpected reply of the shim to {0}")]
    UnexpectedReply(&'static str),
    /// The socket failed.
    #[error("{what}: {source}")]
    Socket {
        /// The failed step.
        what: &'static str,
        /// The error of the system call.
        source: io::Error,
    },
    /// The shim sent invalid data.
    #[error("the shim sent an invalid message: {0}")]
    Codec(#[from] CodecError),
    /// The shim sent a message that is not allowed at this point.
    #[error("the shim violated the protocol: {0}")]
    Protocol(String),
}

impl From<ClientError> for Error {
    fn from(error: ClientError) -> Self {
        let kind = match &error {
            ClientError::Failed(failure) => match failure.kind {
                ShimErrorKind::NotFound => ErrorKind::NotFound,
                ShimErrorKind::WrongState => ErrorKind::FailedPrecondition,
                ShimErrorKind::Invalid => ErrorKind::InvalidArgument,
                ShimErrorKind::Timeout => ErrorKind::DeadlineExceeded,
                ShimErrorKind::Busy => ErrorKind::Unavailable,
                ShimErrorKind::Unsupported => ErrorKind::Unimplemented,
                ShimErrorKind::Exhausted => ErrorKind::ResourceExhausted,
                ShimErrorKind::StartFailed | ShimErrorKind::ExecFailed | ShimErrorKind::Internal => {
                    ErrorKind::Internal
                }
            },
            ClientError::Lost => ErrorKind::Unavailable,
            ClientError::Silent { .. } => ErrorKind::DeadlineExceeded,
            _ => ErrorKind::Internal,
        };
        Error::new(kind, error.to_string())
    }
}

type Answer = Result<(Reply, Vec<OwnedFd>), ClientError>;

struct Outgoing {
    request: Request,
    fds: Vec<OwnedFd>,
    reply: oneshot::Sender<Answer>,
    /// Notified when this exec ends; registered before the request is sent.
    exec: Option<(ExecId, oneshot::Sender<i32>)>,
}

/// A client of one shim. Clones share the connection.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    outgoing: mpsc::Sender<Outgoing>,
    process: Arc<AsyncFd<OwnedFd>>,
    pid: u32,
}

/// A new connection.
#[derive(Debug)]
pub(crate) struct Connection {
    /// Client for requests.
    pub(crate) client: Client,
    /// The shim's snapshot.
    pub(crate) snapshot: Vec<Snapshot>,
    /// Events from now on; ends with the connection. Exits of execs are not included.
    pub(crate) events: mpsc::Receiver<Event>,
}

/// Connects to the socket and receives hello and snapshot, within `limit`.
pub(crate) async fn dial(path: &Path, pod: &PodId, limit: Duration) -> Result<Connection, ClientError> {
    match timeout(limit, greet(path, pod)).await {
        Ok(connection) => connection,
        Err(_) => Err(ClientError::Silent { what: "the greeting", after: limit }),
    }
}

async fn greet(path: &Path, pod: &PodId) -> Result<Connection, ClientError> {
    let socket = |what| move |source| ClientError::Socket { what, source };
    let stream = tokio::net::UnixStream::connect(path).await.map_err(socket("connect to the shim"))?;
    let stream = stream.into_std().map_err(socket("take the shim's socket"))?;
    let stream = super::watched(stream, Interest::READABLE | Interest::WRITABLE)
        .map_err(socket("watch the shim's socket"))?;
    let mut link = Link { stream, decoder: Decoder::default(), fds: VecDeque::new() };
    let hello = match link.next().await? {
        Message::Hello(hello) if hello.pod == *pod => hello,
        Message::Hello(hello) => {
            return Err(ClientError::Protocol(format!("its hello is of pod {}", hello.pod)));
        }
        // The shim failed to start and reports why.
        Message::Reply(Reply::Failed(failure)) => return Err(ClientError::Failed(failure)),
        _ => return Err(ClientError::Protocol("its first message is not a hello".to_owned())),
    };
    let mut snapshot = Vec::new();
    loop {
        match link.next().await? {
            Message::Snapshot(entry) if snapshot.len() < MAX_SNAPSHOT => snapshot.push(entry),
            Message::SnapshotEnd => break,
            // A snapshot entry of a later version.
            Message::Event(Event::Unknown) => {}
            Message::Snapshot(_) => return Err(ClientError::Protocol("its snapshot is too long".to_owned())),
            _ => return Err(ClientError::Protocol("its snapshot contains another message".to_owned())),
        }
    }
    let process = sys::pidfd::open(hello.pid).map_err(socket("open the shim's process"))?;
    let process = super::watched(process, Interest::READABLE).map_err(socket("watch the shim's process"))?;
    let (outgoing, requests) = mpsc::channel(MAX_OUTGOING);
    let (event_sender, events) = mpsc::channel(MAX_EVENTS);
    let task = Task { link, requests, events: event_sender, pending: HashMap::new(), execs: HashMap::new() };
    let id = pod.clone();
    tokio::spawn(async move {
        match task.run().await {
            Ok(()) => tracing::debug!(pod = %id, "connection to the shim closed"),
            Err(error) => tracing::info!(pod = %id, %error, "connection to the shim lost"),
        }
    });
    let client = Client { outgoing, process: Arc::new(process), pid: hello.pid };
    if !hello.has(wire::feature::STRICT_PLANS) {
        tracing::warn!(
            pod = %pod, build = hello.build,
            "this shim is of an earlier build, which ignores unknown fields in the plan of a container; recreate the pod"
        );
    }
    tracing::debug!(pod = %pod, pid = hello.pid, build = hello.build, protocol = hello.protocol, features = ?hello.features, "shim");
    Ok(Connection { client, snapshot, events })
}

impl Client {
    /// A client whose connection has ended, and whose shim is this process.
    #[cfg(test)]
    pub(crate) fn unconnected() -> io::Result<Self> {
        let pid = std::process::id();
        let process = super::watched(sys::pidfd::open(pid)?, Interest::READABLE)?;
        Ok(Self { outgoing: mpsc::channel(1).0, process: Arc::new(process), pid })
    }

    /// The shim's pid.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Resolves when the shim's process has ended.
    pub(crate) async fn ended(&self) {
        // A pidfd stays readable; an error means that the runtime ends.
        drop(self.process.readable().await);
    }

    /// Sends a request and waits for its reply, at most `limit`. After a time-out the shim may still carry it
    /// out; the caller decides what to do.
    pub(crate) async fn request(
        &self,
        what: &'static str,
        request: Request,
        fds: Vec<OwnedFd>,
        limit: Duration,
    ) -> Answer {
        let (reply, answer) = oneshot::channel();
        let outgoing = Outgoing { request, fds, reply, exec: None };
        self.exchange(what, outgoing, answer, limit).await
    }

    /// Like `request`, for requests whose only reply is "done".
    pub(crate) async fn done(
        &self,
        what: &'static str,
        request: Request,
        limit: Duration,
    ) -> Result<(), ClientError> {
        match self.request(what, request, Vec::new(), limit).await? {
            (Reply::Done, _) => Ok(()),
            _ => Err(ClientError::UnexpectedReply(what)),
        }
    }

    /// Starts an exec; the receiver gets its exit code, or an error if the connection ends first.
    pub(crate) async fn exec(
        &self,
        exec: ExecId,
        request: Request,
        fds: Vec<OwnedFd>,
        limit: Duration,
    ) -> Result<oneshot::Receiver<i32>, ClientError> {
        let (reply, answer) = oneshot::channel();
        let (told, exit) = oneshot::channel();
        let outgoing = Outgoing { request, fds, reply, exec: Some((exec, told)) };
        match self.exchange("exec", outgoing, answer, limit).await? {
            (Reply::ExecStarted { .. }, _) => Ok(exit),
            _ => Err(ClientError::UnexpectedReply("exec")),
        }
    }

    async fn exchange(
        &self,
        what: &'static str,
        outgoing: Outgoing,
        answer: oneshot::Receiver<Answer>,
        limit: Duration,
    ) -> Answer {
        let both = async {
            self.outgoing.send(outgoing).await.map_err(|_| ClientError::Lost)?;
            answer.await.map_err(|_| ClientError::Lost)?
        };
        match timeout(limit, both).await.map_err(|_| ClientError::Silent { what, after: limit })?? {
            (Reply::Failed(failure), _) => Err(ClientError::Failed(failure)),
            answer => Ok(answer),
        }
    }
}

/// An id that no exec of this shim has had, of this daemon or an earlier one.
pub(crate) fn next_exec() -> ExecId {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    if NEXT.load(Ordering::Relaxed) == 0 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let start = u64::try_from(since.as_micros()).unwrap_or(1).max(1);
        // A second caller finds it initialised.
        let _ = NEXT.compare_exchange(0, start, Ordering::Relaxed, Ordering::Relaxed);
    }
    ExecId(NEXT.fetch_add(1, Ordering::Relaxed))
}

fn waiting(source: io::Error) -> ClientError {
    ClientError::Socket { what: "wait for the shim", source }
}

/// The socket, and what was received but not handled.
struct Link {
    stream: AsyncFd<UnixStream>,
    decoder: Decoder,
    fds: VecDeque<OwnedFd>,
}

impl Link {
    /// Reads available bytes without waiting; the end of the stream is an error.
    fn read(&mut self) -> Result<(), ClientError> {
        let mut buffer = [0; READ];
        let fds = &mut self.fds;
        // try_io clears readiness if nothing is available, so that the next wait really waits.
        let receive = |stream: &UnixStream| {
            sys::scm::recv_with_fds(stream.as_fd(), &mut buffer, |fd| fds.push_back(fd))
        };
        match self.stream.try_io(Interest::READABLE, receive) {
            Ok(0) => Err(ClientError::Lost),
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

    /// The next message of the handshake; its frames carry no descriptors.
    async fn next(&mut self) -> Result<Message, ClientError> {
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
struct Task {
    link: Link,
    requests: mpsc::Receiver<Outgoing>,
    events: mpsc::Sender<Event>,
    /// Callers by request id; for the start of an exec with its id.
    pending: HashMap<u64, (oneshot::Sender<Answer>, Option<ExecId>)>,
    /// Who waits for the exit of an exec.
    execs: HashMap<ExecId, oneshot::Sender<i32>>,
}

/// A frame that is being written; its descriptors are sent with the first byte.
struct Writing {
    bytes: Vec<u8>,
    sent: usize,
    fds: Vec<OwnedFd>,
}

impl Task {
    async fn run(mut self) -> Result<(), ClientError> {
        let mut next_id: u64 = 1;
        let mut writing: Option<Writing> = None;
        loop {
            // The handshake's last read may have received more frames.
            while let Some(frame) = self.link.decoder.next()? {
                let count = usize::from(frame.nfds);
                if count > self.link.fds.len() {
                    return Err(ClientError::Protocol("a message came without its descriptors".to_owned()));
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

    /// Writes as much as the socket accepts; returns the rest.
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
            // try_io clears readiness if the socket is full, so that the next wait really waits.
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

    /// Passes a message to whom it is for.
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
                return Err(ClientError::Protocol("neither a reply nor an event".to_owned()));
            }
        }
        Ok(())
    }
}
