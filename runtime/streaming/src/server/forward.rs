//! A session of port-forward, between a socket and connections to ports.
//!
//! ```text
//!  socket ── input ──► session ── opened ──► connections: one task each
//!              └── data ── queue of a connection ──► port
//!  socket ◄── link ◄── session ◄──────────────────── port
//! ```
//!
//! Each direction of a connection ends by itself. A port that does not read stops the whole session once its queue is
//! full, as SPDY has no flow control; others of the session go on until then.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Semaphore, SetOnce, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::backend::Network;
use super::link::{self, End, Link};
use super::socket::{RecvHalf, Stream};
use super::{MAX_FORWARDED, Shared};
use crate::forward::{Event, Id, Session};
use crate::input::Input;

/// Bytes of one read from the client.
const READ: usize = 32 * 1024;
/// Bytes of one read from a port.
const CHUNK: usize = 32 * 1024;
/// Reads from the client that wait for a port that is being connected to, or does not read.
const QUEUE: usize = 2;
/// Connections that were opened and have no task yet.
const OPENED: usize = 16;
/// Time limit for connecting to a port.
const CONNECT: Duration = Duration::from_secs(10);
/// Waiting connections are looked at so many times until their time is over.
const LOOKS: u32 = 6;

/// All parts of a session.
struct Forwarding {
    link: Link<Session>,
    network: Arc<dyn Network>,
    places: Arc<Semaphore>,
    /// Connections whose task has not ended.
    connections: Mutex<HashMap<Id, Handle>>,
}

/// What the reader has of a connection.
struct Handle {
    /// What the client sends; `None` after its end.
    queue: Option<mpsc::Sender<Vec<u8>>>,
    /// The client gave the connection up.
    reset: Arc<SetOnce<()>>,
}

/// A connection whose task begins.
struct Opened {
    id: Id,
    port: u16,
    queue: mpsc::Receiver<Vec<u8>>,
    reset: Arc<SetOnce<()>>,
}

/// Serves a session to its end.
pub(super) async fn run(
    stream: Stream,
    early: &[u8],
    session: Session,
    network: Arc<dyn Network>,
    shared: &Shared,
) {
    let (mut read, write) = stream.into_split();
    let link = Link::new(session, write);
    let places = Arc::clone(&shared.forwarded);
    let all = Arc::new(Forwarding { link, network, places, connections: Mutex::default() });
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
        never = all.link.keep_pinging() => match never {},
        never = all.keep_expiring(shared.creation) => match never {},
    };
    tracing::debug!(%end, "a session of port-forward ended");
    drop(tasks);
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
                        let queue = self.connections().get(&id).and_then(|handle| handle.queue.clone());
                        let Some(queue) = queue else { continue };
                        // It fails if the port reads no more, or could not be connected to.
                        let sent = link::while_there(read, queue.send(bytes.into_owned())).await;
                        drop(sent.ok_or(End::Left)?);
                    }
                    Some(Event::Ended { id }) => {
                        if let Some(handle) = self.connections().get_mut(&id) {
                            handle.queue = None;
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
            link::share().await;
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
        let handle = Handle { queue: Some(sender), reset: Arc::clone(&reset) };
        self.connections().insert(id, handle);
        Opened { id, port, queue, reset }
    }

    /// Serves a connection to its end.
    async fn connection(self: Arc<Self>, opened: Opened) {
        let Opened { id, port, queue, reset } = opened;
        let place = self.places.try_acquire();
        let connect = async {
            if place.is_err() {
                return Err(format!(
                    "port {port}: {MAX_FORWARDED} connections are forwarded on this node already"
                ));
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
                let (read, write) = stream.into_split();
                let ((), down) = tokio::join!(upload(write, queue, &reset), self.download(id, read, &reset));
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
    async fn download(&self, id: Id, mut read: OwnedReadHalf, reset: &SetOnce<()>) -> io::Result<()> {
        // It is not initialized, so that its memory is used only once bytes have come.
        let mut buffer = Vec::with_capacity(CHUNK);
        loop {
            buffer.clear();
            // Only here: a frame must not be cut off.
            let count = tokio::select! {
                biased;
                count = read.read_buf(&mut buffer) => count,
                _ = reset.wait() => return Ok(()),
            };
            let bytes = match &count {
                Ok(0) | Err(_) => {
                    self.link.with(|session| session.finish(id));
                    return count.map(|_| ());
                }
                Ok(_) => &buffer[..],
            };
            self.link.send(|session| session.frame(id, bytes)).await?;
        }
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

/// Passes on what the client sends to a port.
async fn upload(mut write: OwnedWriteHalf, mut queue: mpsc::Receiver<Vec<u8>>, reset: &SetOnce<()>) {
    let moving = async {
        while let Some(bytes) = queue.recv().await {
            write.write_all(&bytes).await?;
        }
        write.shutdown().await
    };
    let ended = tokio::select! {
        ended = moving => ended,
        _ = reset.wait() => return,
    };
    if let Err(error) = ended {
        // The other direction goes on; what the client still sends is dropped.
        tracing::debug!(%error, "a port reads no more");
    }
}
