//! The daemon's half of the protocol. One task per connection writes requests, passes replies to their callers, and
//! events to the driver.
//!
//! ```text
//!  Client ──request──► outgoing (bounded) ──► task ──► socket
//!     ▲──────reply (oneshot)──────────────────┤  ◄──── frames, descriptors
//!  driver ◄──events (bounded)─────────────────┘
//! ```
//! The event channel ends when the connection does.

mod error;
mod task;
#[cfg(test)]
mod tests;

pub(crate) use error::ClientError;

use error::ADVICE;
use model::{ExecId, PodId};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use task::{Answer, Link, Outgoing, Task};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use wire::{Event, Message, Reply, Request, Snapshot};

/// Maximum number of requests that wait to be written.
const MAX_OUTGOING: usize = 32;
/// Maximum number of events that the driver has not received. With that many, nothing is read from the socket.
const MAX_EVENTS: usize = 128;
/// Maximum number of entries of a snapshot: containers and execs of one pod.
const MAX_SNAPSHOT: usize = 65_536;

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
    let mut link = Link::new(stream);
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
    let task = Task::new(link, requests, event_sender);
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
    pub(crate) fn unconnected() -> std::io::Result<Self> {
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
