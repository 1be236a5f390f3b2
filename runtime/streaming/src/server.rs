//! The HTTP server of exec, attach and port-forward.
//!
//! ```text
//!  RPC ── Urls ──► token ──► tokens ◄── redeem ── http ◄── accept ◄── client
//!                                                  │ upgrade
//!                                                  ▼
//!  Command, Network ◄──────────────── remote, forward ── link ──► client
//! ```
//!
//! An RPC issues a URL with a token that can be used once, within a minute. A client must present one when it connects,
//! and then has a session until it ends, the client leaves or nothing, not even a ping or its answer, has been transferred
//! for some time. What a URL stands for is an object of the caller ([`Command`], [`Network`]): this crate knows neither pods nor containers.
//!
//! Limits: `MAX_TOKENS` unused tokens and `MAX_SESSIONS` sessions, of which one owner can have a part (`places`). Also
//! `MAX_HANDSHAKES` connections that have presented no token yet, or were refused and are still open: one more closes the
//! oldest, so that a client without a token cannot keep out one that has one. A session's memory is its buffers (160 KiB
//! for exec, up to 128 KiB for each connection of port-forward, of which there are at most `MAX_FORWARDED`) and what its
//! protocol keeps. What a port sends in large pieces moves through a pipe in the kernel instead (`conduit`): two
//! descriptors, and at most 64 KiB that are on their way.

mod backend;
mod conduit;
mod forward;
mod http;
mod link;
mod places;
mod remote;
mod socket;
#[cfg(test)]
mod tests;
mod tls;
mod tokens;
mod watch;

pub use backend::{Command, Network, Pending, Process, Sink, Source};
pub use places::Full;
pub use tls::{Certificate, TlsError};
pub use tokens::IssueError;

use std::collections::VecDeque;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::SetOnce;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;

use crate::remote::Streams;
use places::Places;
use tls::Tls;
use tokens::{TOKEN_LIFE, Target, Tokens};

/// Maximum number of sessions at a time, of all clients. kubelet opens one for each `kubectl exec`, `attach` and
/// `port-forward`.
const MAX_SESSIONS: usize = if cfg!(test) { 64 } else { 1024 };
/// Maximum number of connections at a time that have presented no token yet, or were refused. A client does so in its
/// first packet.
const MAX_HANDSHAKES: usize = 128;
/// Maximum number of forwarded connections at a time, of all sessions; one session has up to 512
/// ([`crate::forward::MAX_CONNECTIONS`]). Each costs the daemon descriptors and memory.
const MAX_FORWARDED: usize = 2048;
/// How long a server that stops waits for its clients to receive the reason.
const FAREWELL: Duration = Duration::from_secs(1);
/// Pause after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Settings of the server.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where to listen; port 0 is any free one. The address is part of the URLs, so it must be one that clients reach.
    pub address: SocketAddr,
    /// A session without traffic is ended after this time; `None` is never.
    pub idle: Option<Duration>,
    /// Time for a client to create the streams of its session.
    pub creation: Duration,
    /// The certificate for TLS; `None` is plain HTTP. Its files are read again every minute, for new connections.
    pub tls: Option<Certificate>,
    /// Called when a connection has ended, with or without a session, and when URLs have expired: their memory was freed.
    pub freed: fn(),
}

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The address would be in the URLs.
    #[error(
        "{0} is every address of this host, and no client can connect to it; name one, for example 127.0.0.1"
    )]
    Wildcard(SocketAddr),
    /// The kernel refuses.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// The certificate is not usable.
    #[error("TLS cannot be used")]
    Tls(#[from] TlsError),
    /// No thread could be started that reads the certificate.
    #[error("the certificate cannot be read")]
    Thread(#[from] pool::Error),
}

/// What all connections share.
#[derive(Debug)]
struct Shared {
    tokens: Arc<Tokens>,
    idle: Option<Duration>,
    creation: Duration,
    handshakes: Handshakes,
    sessions: Arc<Places>,
    forwarded: Arc<Places>,
    tls: Option<Arc<Tls>>,
    freed: fn(),
    stopping: SetOnce<()>,
}

impl Shared {
    /// Returns when the server stops.
    async fn stopping(&self) {
        self.stopping.wait().await;
    }
}

/// The server, which listens.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    urls: Urls,
    shared: Arc<Shared>,
}

/// Issues URLs. `owner` is the id of the pod that a URL is for: one pod can have only a part of the unused URLs, of the
/// sessions and of the forwarded connections.
#[derive(Debug, Clone)]
pub struct Urls {
    scheme: &'static str,
    address: SocketAddr,
    tokens: Arc<Tokens>,
    sessions: Arc<Places>,
}

impl Urls {
    /// A URL that runs a process.
    ///
    /// # Errors
    /// [`IssueError`].
    pub fn exec(
        &self,
        owner: &str,
        streams: Streams,
        command: Box<dyn Command>,
    ) -> Result<String, IssueError> {
        self.issue(owner, Target::Exec(streams, command))
    }

    /// A URL that attaches to a process.
    ///
    /// # Errors
    /// [`IssueError`].
    pub fn attach(
        &self,
        owner: &str,
        streams: Streams,
        command: Box<dyn Command>,
    ) -> Result<String, IssueError> {
        self.issue(owner, Target::Attach(streams, command))
    }

    /// A URL that connects to ports. `ports` are those of the request, for the old WebSocket form.
    ///
    /// # Errors
    /// [`IssueError`].
    pub fn forward(
        &self,
        owner: &str,
        ports: Vec<u16>,
        network: Arc<dyn Network>,
    ) -> Result<String, IssueError> {
        self.issue(owner, Target::Forward(ports, network))
    }

    fn issue(&self, owner: &str, target: Target) -> Result<String, IssueError> {
        let kind = target.kind();
        // A client could not use it. That is asked again when it connects, but a caller of CRI can say more than HTTP can.
        self.sessions.check(owner).map_err(IssueError::Sessions)?;
        let token = self.tokens.issue(owner, target, Instant::now())?;
        Ok(format!("{}://{}/{}/{token}", self.scheme, self.address, kind.name()))
    }
}

impl Server {
    /// The lane that reads the certificate: a daemon that cannot start threads lets it work on the caller's
    /// ([`pool::Lane::allow_inline`]).
    pub fn lane() -> &'static pool::Lane {
        tls::lane()
    }

    /// Listens. Must be called inside a runtime.
    ///
    /// # Errors
    /// [`BindError`].
    pub async fn bind(options: Options) -> Result<Self, BindError> {
        let Options { address, idle, creation, tls, freed } = options;
        if address.ip().is_unspecified() {
            return Err(BindError::Wildcard(address));
        }
        let failed = |source| BindError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let tokens = Arc::new(Tokens::default());
        let tls = match tls {
            None => None,
            Some(files) => Some(Arc::new(Self::lane().run(|| Tls::new(files)).await??)),
        };
        let scheme = if tls.is_some() { "https" } else { "http" };
        let sessions = Places::new(MAX_SESSIONS);
        let urls = Urls { scheme, address, tokens: Arc::clone(&tokens), sessions: Arc::clone(&sessions) };
        let shared = Arc::new(Shared {
            tokens,
            idle,
            creation,
            handshakes: Handshakes::default(),
            sessions,
            forwarded: Places::new(MAX_FORWARDED),
            tls,
            freed,
            stopping: SetOnce::new(),
        });
        Ok(Self { listener, urls, shared })
    }

    /// Issues URLs of this server, also before it serves.
    pub fn urls(&self) -> Urls {
        self.urls.clone()
    }

    /// Serves until `stopping`, and then ends all sessions. Clients of exec and attach are told so, within a second: Go's
    /// SPDY client takes a connection that ends without a status for the success of the command.
    pub async fn serve(self, stopping: impl Future<Output = ()>) {
        let Self { listener, shared, .. } = self;
        let mut stopping = pin!(stopping);
        let mut sweep = tokio::time::interval(TOKEN_LIFE);
        let mut connections = JoinSet::new();
        let mut refresh: Option<AbortHandle> = None;
        loop {
            tokio::select! {
                () = &mut stopping => break,
                _ = sweep.tick() => {
                    if shared.tokens.sweep(Instant::now()) {
                        (shared.freed)();
                    }
                    // Not waited for: the disk may hang. There is one at a time, and it logs its errors itself.
                    if let Some(tls) = shared.tls.clone()
                        && refresh.as_ref().is_none_or(AbortHandle::is_finished)
                    {
                        refresh = Some(tokio::spawn(tls.refresh()).abort_handle());
                    }
                }
                Some(ended) = connections.join_next() => {
                    (shared.freed)();
                    if let Err(error) = ended && error.is_panic() {
                        tracing::error!(%error, "a streaming session failed");
                    }
                }
                stream = accept(&listener) => {
                    shared.handshakes.begin(|place| {
                        connections.spawn(http::connection(Arc::clone(&shared), stream, place))
                    });
                }
            }
        }
        drop(listener);
        let _first = shared.stopping.set(());
        let ended = async { while connections.join_next().await.is_some() {} };
        // What is left then is a client that does not read, or that has no session.
        drop(timeout(FAREWELL, ended).await);
    }
}

/// The next connection.
async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            // Most likely no descriptor is free.
            Err(error) => {
                tracing::warn!(%error, "cannot accept a streaming connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Connections that have presented no token yet, the oldest first.
#[derive(Debug, Default)]
struct Handshakes(Mutex<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    queue: VecDeque<(u64, AbortHandle)>,
    next: u64,
}

impl Handshakes {
    /// Starts a connection, which calls [`Handshakes::end`] with its place before it has a session.
    fn begin(&self, spawn: impl FnOnce(u64) -> AbortHandle) {
        // Locked until the entry is added: the connection may call `end` at once.
        let mut waiting = self.lock();
        let place = waiting.next;
        waiting.next += 1;
        let task = spawn(place);
        waiting.queue.push_back((place, task));
        if waiting.queue.len() > MAX_HANDSHAKES
            && let Some((_, oldest)) = waiting.queue.pop_front()
        {
            oldest.abort();
        }
    }

    /// A connection has presented a token, or has ended.
    fn end(&self, place: u64) {
        self.lock().queue.retain(|(other, _)| *other != place);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
