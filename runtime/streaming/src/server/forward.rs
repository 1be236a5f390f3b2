//! A session of port-forward, between a socket and connections to ports.
//!
//! ```text
//!  socket ── input ──► session ── opened ──► connections: one task each
//!              └── data ── queue of a connection ──► port      (without the queue while the port takes all)
//!  socket ◄── link ◄── session ◄──────────────────── port
//! ```
//!
//! Each direction of a connection ends by itself. A port that does not read stops the whole session once its queue is
//! full, as SPDY has no flow control; others of the session go on until then.

use std::borrow::Cow;
use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, Interest};
use tokio::sync::{SetOnce, mpsc};
use tokio::task::JoinSet;
use tokio::task::coop::consume_budget;
use tokio::time::{Instant, sleep, timeout};

use super::Shared;
use super::backend::Network;
use super::conduit::{BULK, Conduit};
use super::link::{self, End, Link};
use super::places::Places;
use super::socket::{RecvHalf, Socket, Stream};
use super::watch::Watch;
use crate::forward::{Event, Id, Session};
use crate::input::Input;

/// Bytes of one read from the client.
const READ: usize = 32 * 1024;
/// Bytes of one read from a port.
const CHUNK: usize = 32 * 1024;
/// Number of reads from the client that are queued for a port that is being connected to, or does not read.
const QUEUE: usize = 2;
/// Maximum number of connections that were opened and have no task yet.
const OPENED: usize = 16;
/// Time limit for connecting to a port.
const CONNECT: Duration = Duration::from_secs(10);
/// Number of checks for incomplete connections within their time limit.
const LOOKS: u32 = 6;

/// All parts of a session.
struct Forwarding {
    link: Link<Session>,
    network: Arc<dyn Network>,
    owner: Arc<str>,
    places: Arc<Places>,
    /// Connections whose task has not ended.
    connections: Mutex<HashMap<Id, Handle>>,
}

/// A connection, for the reader of the client's socket.
struct Handle {
    /// Where what the client sends goes; `None` after its end.
    upload: Option<Upload>,
    /// The client gave the connection up.
    reset: Arc<SetOnce<()>>,
}

/// Where what the client sends goes.
#[derive(Clone)]
struct Upload {
    /// What could not be written at once.
    queue: mpsc::Sender<Vec<u8>>,
    shared: Arc<Port>,
}

/// What both ends of the queue share.
#[derive(Default)]
struct Port {
    /// The connection, once there is one.
    socket: OnceLock<Socket>,
    /// Entries of the queue that are not written completely.
    queued: AtomicUsize,
}

/// A connection whose task begins.
struct Opened {
    id: Id,
    port: u16,
    shared: Arc<Port>,
    queue: mpsc::Receiver<Vec<u8>>,
    reset: Arc<SetOnce<()>>,
}

/// Serves a session to its end, with the pod's network and the owner of the session's places.
pub(super) async fn run(
    stream: Stream,
    watch: Watch,
    early: &[u8],
    session: Session,
    (network, owner): (Arc<dyn Network>, &Arc<str>),
    shared: &Shared,
) {
    let (mut read, write) = stream.into_split();
    let link = Link::new(session, write, watch);
    let (owner, places) = (Arc::clone(owner), Arc::clone(&shared.forwarded));
    let all = Arc::new(Forwarding { link, network, owner, places, connections: Mutex::default() });
    let (opened, mut to_open) = mpsc::channel(OPENED);
    let mut tasks = JoinSet::new();
    let connections = async {
        loop {
            tokio::select! {
                Some(opened) = to_open.recv() => {
                    tasks.spawn(Arc::clone(&all).connection(opened));
                }
                Some(ended) = tasks.join_next() => {
                    if let Err(error) = ended && error.is_panic() {
                        tracing::error!(%error, "a forwarded connection failed");
                    }
                }
                else => return std::future::pending::<Infallible>().await,
            }
        }
    };
    let end = tokio::select! {
        Err(end) = all.input(&mut read, early, &opened) => end,
        never = connections => match never {},
        Err(error) = all.link.keep_writing() => End::Io(error),
        end = all.link.idle(shared.idle) => end,
        () = shared.stopping() => End::Stopping,
        end = all.link.vanished() => end,
        never = all.keep_expiring(shared.creation) => match never {},
    };
    tracing::debug!(%end, "a session of port-forward ended");
    drop(tasks);
    // Each holds the socket of a port, which is closed now, not once the client has closed.
    all.connections().clear();
    all.link.with(Session::leave);
    all.link.finish(&mut read, Some(link::LINGER)).await;
}

impl Forwarding {
    fn connections(&self) -> MutexGuard<'_, HashMap<Id, Handle>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads from the client, and passes on what it sends.
    async fn input(
        &self,
        read: &mut RecvHalf,
        early: &[u8],
        opened: &mpsc::Sender<Opened>,
    ) -> Result<Infallible, End> {
        let mut buffer = early.to_vec();
        let mut count = buffer.len();
        buffer.resize(count.max(READ), 0);
        loop {
            let mut input = Input::new(buffer.get_mut(..count).unwrap_or_default());
            loop {
                let now = Instant::now().into_std();
                match self.link.with(|session| session.receive(&mut input, now))? {
                    Some(Event::Opened { id, port }) => {
                        // It fails only if the session ends.
                        drop(opened.send(self.open(id, port)).await);
                    }
                    Some(Event::Data { id, bytes }) => {
                        let upload = self.connections().get(&id).and_then(|handle| handle.upload.clone());
                        let Some(upload) = upload else { continue };
                        link::while_there(read, upload.send(bytes)).await.ok_or(End::Left)?;
                    }
                    Some(Event::Ended { id }) => {
                        if let Some(handle) = self.connections().get_mut(&id) {
                            handle.upload = None;
                        }
                    }
                    Some(Event::Reset { id }) => {
                        if let Some(handle) = self.connections().remove(&id) {
                            let _first = handle.reset.set(());
                        }
                    }
                    Some(Event::Gone) => return Err(End::Left),
                    None if input.is_empty() => break,
                    None => self.link.flush().await?,
                }
            }
            link::yield_to_others().await;
            count = read.read(&mut buffer).await?;
            if count == 0 {
                return Err(End::Left);
            }
            self.link.touch();
        }
    }

    /// A new entry of the table.
    fn open(&self, id: Id, port: u16) -> Opened {
        let (sender, queue) = mpsc::channel(QUEUE);
        let reset = Arc::new(SetOnce::new());
        let shared = Arc::<Port>::default();
        let upload = Some(Upload { queue: sender, shared: Arc::clone(&shared) });
        self.connections().insert(id, Handle { upload, reset: Arc::clone(&reset) });
        Opened { id, port, shared, queue, reset }
    }

    /// Serves a connection to its end.
    async fn connection(self: Arc<Self>, opened: Opened) {
        let Opened { id, port, shared, queue, reset } = opened;
        let place = self.places.take(&self.owner);
        let connect = async {
            if let Err(full) = &place {
                return Err(format!("port {port}: forwarded connections: {full}"));
            }
            let connected = timeout(CONNECT, self.network.connect(port)).await;
            connected.unwrap_or_else(|_| Err(format!("port {port}: no answer within {CONNECT:?}")))
        };
        let connected = tokio::select! {
            connected = connect => Some(connected),
            _ = reset.wait() => None,
        };
        let failure = match connected {
            Some(Ok(stream)) => {
                let socket = Socket::new(stream);
                let _first = shared.socket.set(socket.clone());
                let up = upload(socket.clone(), queue, &shared.queued, &reset);
                let ((), down) = tokio::join!(up, self.download(id, socket, &reset));
                if let Err(error) = down {
                    tracing::debug!(%error, port, "a forwarded connection ended early");
                }
                None
            }
            Some(Err(why)) => Some(why),
            None => None,
        };
        self.connections().remove(&id);
        self.link.with(|session| session.close(id, failure.as_deref()));
    }

    /// Passes on what a port sends.
    async fn download(&self, id: Id, mut read: Socket, reset: &SetOnce<()>) -> io::Result<()> {
        // It is not initialized, so that its memory is used only once bytes have come.
        let mut buffer = Vec::with_capacity(CHUNK);
        let plain = self.link.with(|session| session.is_plain()) && self.link.is_plain();
        loop {
            buffer.clear();
            // Only here: a frame must not be cut off. The reset comes first: a port that always has bytes would hide it.
            let count = tokio::select! {
                biased;
                _ = reset.wait() => return Ok(()),
                count = read.read_buf(&mut buffer) => count,
            };
            let bytes = match &count {
                Ok(0) | Err(_) => {
                    self.link.with(|session| session.finish(id));
                    return count.map(|_| ());
                }
                Ok(_) => &buffer[..],
            };
            let bulk = plain && bytes.len() >= BULK;
            self.link.send(|session| session.frame(id, bytes)).await?;
            if bulk {
                self.pour(id, &read, reset).await?;
            }
        }
    }

    /// Passes on what a port has sent, without copying it; returns when there is nothing more at the moment.
    async fn pour(&self, id: Id, port: &Socket, reset: &SetOnce<()>) -> io::Result<()> {
        let socket = port.socket();
        // Without a descriptor for it the bytes are copied.
        let Ok(conduit) = Conduit::new() else { return Ok(()) };
        while !reset.initialized() {
            let count = match socket.try_io(Interest::READABLE, || conduit.fill(socket)) {
                Ok(count @ 1..) => count,
                // The caller's next read sees the end, also after an error, which the kernel reports only once.
                Ok(0) | Err(_) => return Ok(()),
            };
            if !self.link.send_through(&conduit, count, |session| session.head(id, count)).await? {
                return Ok(());
            }
            consume_budget().await;
        }
        Ok(())
    }

    /// Gives up connections that are not complete in time.
    async fn keep_expiring(&self, creation: Duration) -> Infallible {
        loop {
            sleep(creation / LOOKS).await;
            let now = Instant::now().into_std();
            self.link.with(|session| {
                if session.deadline().is_some_and(|deadline| deadline <= now) {
                    session.expire(now);
                }
            });
        }
    }
}

impl Upload {
    /// Passes bytes on: what the port takes now is written, and the rest waits in the queue, if it has room.
    async fn send(&self, bytes: Cow<'_, [u8]>) {
        let rest = self.write(&bytes);
        if rest.is_empty() {
            return;
        }
        let rest = rest.to_vec();
        self.shared.queued.fetch_add(1, Ordering::Relaxed);
        // It fails if the port reads no more, or could not be connected to.
        drop(self.queue.send(rest).await);
    }

    /// Writes what the port takes now, unless something is before it; returns the rest. What fails here fails again for
    /// the task that writes the queue.
    fn write<'b>(&self, mut bytes: &'b [u8]) -> &'b [u8] {
        // Pairs with the Release of the task that has written the last entry. Only the caller adds entries.
        if self.shared.queued.load(Ordering::Acquire) > 0 {
            return bytes;
        }
        let Some(port) = self.shared.socket.get() else { return bytes };
        while !bytes.is_empty()
            && let Ok(count @ 1..) = port.socket().try_write(bytes)
        {
            bytes = bytes.get(count..).unwrap_or_default();
        }
        bytes
    }
}

/// Passes on what waits in the queue to a port, and then the end.
async fn upload(
    mut write: Socket,
    mut queue: mpsc::Receiver<Vec<u8>>,
    queued: &AtomicUsize,
    reset: &SetOnce<()>,
) {
    let moving = async {
        while let Some(bytes) = queue.recv().await {
            write.write_all(&bytes).await?;
            queued.fetch_sub(1, Ordering::Release);
        }
        Ok::<_, io::Error>(())
    };
    let ended = tokio::select! {
        ended = moving => ended,
        _ = reset.wait() => return,
    };
    // After a failure the other direction goes on; what the client still sends is dropped.
    if let Err(error) = ended.and(write.shutdown().await) {
        tracing::debug!(%error, "a port reads no more");
    }
}
