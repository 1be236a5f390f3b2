//! The daemon's half of the protocol. One task per connection writes requests, passes replies to their callers, and
//! events to the driver.
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

/// Maximum number of requests that wait to be written.
const MAX_OUTGOING: usize = 32;
/// Maximum number of requests that wait for their reply. With that many, no further one is sent.
const MAX_PENDING: usize = 256;
/// Maximum number of events that the driver has not received. With that many, nothing is read from the socket.
const MAX_EVENTS: usize = 128;
/// Maximum number of entries of a snapshot: containers and execs of one pod.
const MAX_SNAPSHOT: usize = 65_536;
/// What an operator can do about a shim that does not reply.
const ADVICE: &str = "the pod's shim does not reply: it may be stopped, or hang on the disk of the pod's logs \
                      (`ps -eo pid,stat,wchan,args`, state T or D); StopPodSandbox ends the pod without it";
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
    /// No reply within the time limit.
    #[error("the shim did not reply to {what} within {after:?}; {}", ADVICE)]
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
    Protocol(&'static str),
    /// Another pod's shim listens on the socket.
    #[error("the socket is that of the shim of pod {0}")]
    OtherPod(PodId),
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
                ShimErrorKind::ImageVolume => ErrorKind::ImageVolume,
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
        Error::converted(kind, error)
    }
}

type Answer = Result<(Reply, Vec<OwnedFd>), ClientError>;

struct Outgoing {
    request: Request,
    fds: Vec<OwnedFd>,
    reply: oneshot::Sender<Answer>,
    /// For an exec: where its exit code is sent. Registered before the request is sent, so that no exit is missed.
    exec: Option<(ExecId, oneshot::Sender<i32>)>,
}

/// A client of one shim. Clones share the connection.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    outgoing: mpsc::Sender<Outgoing>,
    /// The shim's pidfd: readable once it has ended.
    process: Arc<AsyncFd<OwnedFd>>,
    pid: u32,
    sets_terminal_size: bool,
    applies_apparmor: bool,
}

/// An exec that was started.
#[derive(Debug)]
pub(crate) struct Started {
    /// Gets its exit code, or an error if the connection ends before.
    pub(crate) exit: oneshot::Receiver<i32>,
    /// The master of its terminal, if it has one.
    pub(crate) terminal: Option<OwnedFd>,
}

/// A new connection.
#[derive(Debug)]
pub(crate) struct Connection {
    /// Client for requests.
    pub(crate) client: Client,
    /// The shim's snapshot.
    pub(crate) snapshot: Vec<Snapshot>,
    /// Events after the snapshot, except exits of execs. The channel ends with the connection.
    pub(crate) events: mpsc::Receiver<Event>,
}

/// Connects to the socket and receives hello and snapshot, within `limit`.
///
/// # Errors
/// `Silent` after the time limit; `Failed` with the reason if the shim could not start.
pub(crate) async fn dial(path: &Path, pod: &PodId, limit: Duration) -> Result<Connection, ClientError> {
    let _step = progress::enter("the shim's greeting", ADVICE);
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
        Message::Hello(hello) => return Err(ClientError::OtherPod(hello.pod)),
        // The shim failed to start and reports why.
        Message::Reply(Reply::Failed(failure)) => return Err(ClientError::Failed(failure)),
        _ => return Err(ClientError::Protocol("its first message is not a hello")),
    };
    let mut snapshot = Vec::new();
    loop {
        match link.next().await? {
            Message::Snapshot(entry) if snapshot.len() < MAX_SNAPSHOT => snapshot.push(entry),
            Message::SnapshotEnd => break,
            // A snapshot entry of a kind that this build does not know is decoded as this event (`codec::decode`).
            Message::Event(Event::Unknown) => {}
            Message::Snapshot(_) => return Err(ClientError::Protocol("its snapshot has too many entries")),
            _ => return Err(ClientError::Protocol("its snapshot contains another message")),
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
    let sets_terminal_size = hello.has(wire::feature::TERMINAL_SIZE);
    let applies_apparmor = hello.has(wire::feature::APPARMOR);
    let (process, pid) = (Arc::new(process), hello.pid);
    let client = Client { outgoing, process, pid, sets_terminal_size, applies_apparmor };
    if !hello.has(wire::feature::STRICT_PLANS) {
        tracing::warn!(
            pod = %pod, build = hello.build,
            "this shim is of an earlier build, which ignores unknown fields in the plan of a container; recreate the pod"
        );
    }
    tracing::debug!(pod = %pod, pid = hello.pid, build = hello.build, protocol = hello.protocol, features = ?hello.features, "connected to the shim");
    Ok(Connection { client, snapshot, events })
}

impl Client {
    /// A client whose connection has ended. This process stands for the shim's.
    #[cfg(test)]
    pub(crate) fn unconnected() -> io::Result<Self> {
        let pid = std::process::id();
        let process = super::watched(sys::pidfd::open(pid)?, Interest::READABLE)?;
        let (outgoing, process) = (mpsc::channel(1).0, Arc::new(process));
        Ok(Self { outgoing, process, pid, sets_terminal_size: false, applies_apparmor: false })
    }

    /// The shim's pid.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether the shim takes the size of a terminal with the exec ([`wire::ExecPlan::size`]).
    pub(crate) fn sets_terminal_size(&self) -> bool {
        self.sets_terminal_size
    }

    /// Whether the shim applies AppArmor profiles ([`wire::ProcessPlan::apparmor`]).
    pub(crate) fn applies_apparmor(&self) -> bool {
        self.applies_apparmor
    }

    /// Resolves when the shim's process has ended.
    pub(crate) async fn ended(&self) {
        // A pidfd stays readable. An error means that tokio is shutting down.
        drop(self.process.readable().await);
    }

    /// Sends a request and waits for its reply, at most `limit`. `what` names it in errors. After a time-out the shim may
    /// still do what was requested.
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

    /// Like `request`, for requests whose reply is [`Reply::Done`].
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

    /// Starts an exec.
    pub(crate) async fn exec(
        &self,
        exec: ExecId,
        request: Request,
        fds: Vec<OwnedFd>,
        limit: Duration,
    ) -> Result<Started, ClientError> {
        let (reply, answer) = oneshot::channel();
        let (told, exit) = oneshot::channel();
        let outgoing = Outgoing { request, fds, reply, exec: Some((exec, told)) };
        match self.exchange("exec", outgoing, answer, limit).await? {
            (Reply::ExecStarted { .. }, fds) => Ok(Started { exit, terminal: fds.into_iter().next() }),
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
        let _step = progress::enter(("the shim's reply to ", what), ADVICE);
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

/// An id that no exec of this daemon or of an earlier one has had: the first is the time in microseconds, and each further
/// one is higher by one.
pub(crate) fn next_exec() -> ExecId {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    if NEXT.load(Ordering::Relaxed) == 0 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let start = u64::try_from(since.as_micros()).unwrap_or(1).max(1);
        // If another caller was faster, its value is used.
        let _ = NEXT.compare_exchange(0, start, Ordering::Relaxed, Ordering::Relaxed);
    }
    ExecId(NEXT.fetch_add(1, Ordering::Relaxed))
}

fn waiting(source: io::Error) -> ClientError {
    ClientError::Socket { what: "wait for the shim", source }
}

/// The socket, and what was received from it and is not handled yet.
struct Link {
    stream: AsyncFd<UnixStream>,
    decoder: Decoder,
    fds: VecDeque<OwnedFd>,
}

impl Link {
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
    async fn run(mut self) -> Result<(), ClientError> {
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

#[cfg(test)]
mod tests;
