//! A session and its socket: who writes what, and when a client is given up.

use std::convert::Infallible;
use std::future::{Future, pending};
use std::io::{self, IoSlice};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, Interest};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::conduit::{Conduit, send_head};
use super::socket::{RecvHalf, SendHalf, Stream};
use super::watch::Watch;
use crate::output::{Frame, Head, SendError};
use crate::{forward, remote};

/// How long a client may take to close after this side has, and how long the last bytes of a client that has closed may
/// wait for a process that does not read.
pub(super) const LINGER: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 10 });
/// Pause between pings, and between checks whether the client has vanished.
const PING: Duration = Duration::from_secs(30);
/// Size of a read whose bytes are dropped.
const DISCARD: usize = 4096;

/// Why a session ends before its work is done.
#[derive(Debug, thiserror::Error)]
pub(super) enum End {
    /// The client ended the session, or closed the connection.
    #[error("the client has left")]
    Left,
    /// The socket failed.
    #[error("the connection to the client failed")]
    Io(#[from] io::Error),
    /// The client broke the protocol.
    #[error("exec or attach: {0}")]
    Remote(#[from] remote::Error),
    /// The client broke the protocol.
    #[error("port-forward: {0}")]
    Forward(#[from] forward::Error),
    /// Its host no longer answers ([`super::watch`]).
    #[error("the client has vanished: its host has acknowledged nothing for {0:?}")]
    Vanished(Duration),
    /// Nothing was transferred.
    #[error("no traffic for {0:?}")]
    Idle(Duration),
    /// The server stops, as for its restart.
    #[error("the streaming server has stopped: what becomes of the command is not known")]
    Stopping,
}

/// What the sessions have in common: bytes for the client.
pub(super) trait Outgoing: Send {
    fn output(&self) -> &[u8];
    fn written(&mut self, count: usize);
    fn ping(&mut self);
}

macro_rules! outgoing {
    ($($session:ty),*) => {$(
        impl Outgoing for $session {
            fn output(&self) -> &[u8] {
                self.output()
            }

            fn written(&mut self, count: usize) {
                self.written(count);
            }

            fn ping(&mut self) {
                self.ping();
            }
        }
    )*};
}

outgoing!(remote::Session, forward::Session);

/// A session and the sending half of its socket. Its users are the parts of one session: the reader of the socket, and
/// those that have output. The session is locked for moments, the socket for a whole frame.
#[derive(Debug)]
pub(super) struct Link<S> {
    session: Mutex<S>,
    writer: tokio::sync::Mutex<Writer>,
    watch: Watch,
    plain: bool,
    /// The session has output that nobody writes yet.
    waiting: Notify,
    /// When the session began, and how many milliseconds later there was traffic.
    began: Instant,
    traffic: AtomicU64,
}

/// The sending half of the socket.
#[derive(Debug)]
struct Writer {
    socket: SendHalf,
    /// The session's output, and the head of a frame.
    bytes: Vec<u8>,
    sent: usize,
    /// A frame was begun and not ended: nothing can be sent any more.
    cut: bool,
}

impl<S: Outgoing> Link<S> {
    pub(super) fn new(session: S, socket: SendHalf, watch: Watch) -> Self {
        let plain = socket.plain().is_some();
        let writer = Writer { socket, bytes: Vec::new(), sent: 0, cut: false };
        Self {
            session: Mutex::new(session),
            writer: tokio::sync::Mutex::new(writer),
            watch,
            plain,
            waiting: Notify::new(),
            began: Instant::now(),
            traffic: AtomicU64::new(0),
        }
    }

    /// Runs `work` on the session. Output that it then has is written by [`Link::keep_writing`].
    pub(super) fn with<R>(&self, work: impl FnOnce(&mut S) -> R) -> R {
        let mut session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        let result = work(&mut session);
        if !session.output().is_empty() {
            self.waiting.notify_one();
        }
        result
    }

    /// Writes the session's output and then the frame that `make` makes. If it is dropped before it is done, nothing is
    /// written any more: the client would take what follows for the rest of the frame.
    pub(super) async fn send<'p>(
        &self,
        make: impl FnOnce(&mut S) -> Result<Option<Frame<'p>>, SendError>,
    ) -> io::Result<()> {
        let mut writer = self.writer.lock().await;
        let Some(Frame { head, body }) = self.take(&mut writer, make) else {
            return writer.write(&[]).await;
        };
        writer.bytes.extend_from_slice(&head);
        writer.write(&body).await?;
        self.touch();
        Ok(())
    }

    /// As [`Link::send`], for a payload of `count` bytes in `conduit`, where they stay if no head is made; `false` then.
    /// Only where [`Link::is_plain`].
    pub(super) async fn send_through(
        &self,
        conduit: &Conduit,
        count: usize,
        make: impl FnOnce(&mut S) -> Result<Option<Head>, SendError>,
    ) -> io::Result<bool> {
        let mut writer = self.writer.lock().await;
        let Some(head) = self.take(&mut writer, make) else {
            writer.write(&[]).await?;
            return Ok(false);
        };
        writer.bytes.extend_from_slice(&head);
        writer.write_through(conduit, count).await?;
        self.touch();
        Ok(true)
    }

    /// Takes the session's output over, and then makes a frame, which follows it. An error is logged.
    fn take<T>(
        &self,
        writer: &mut Writer,
        make: impl FnOnce(&mut S) -> Result<Option<T>, SendError>,
    ) -> Option<T> {
        let mut session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        writer.take(&mut *session);
        make(&mut session).unwrap_or_else(|error| {
            tracing::error!(%error, "a frame of a streaming session was not sent");
            None
        })
    }

    /// Whether the client's socket gets bytes as they are: the connection is not TLS.
    pub(super) fn is_plain(&self) -> bool {
        self.plain
    }

    /// Writes the session's output. The future may be dropped at any time; the next writer writes the rest.
    pub(super) async fn flush(&self) -> io::Result<()> {
        let mut writer = self.writer.lock().await;
        {
            let mut session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
            writer.take(&mut *session);
        }
        writer.write(&[]).await
    }

    /// Writes the session's output whenever there is any.
    pub(super) async fn keep_writing(&self) -> io::Result<Infallible> {
        loop {
            self.waiting.notified().await;
            self.flush().await?;
        }
    }

    /// Pings the client every 30 seconds, if the protocol has pings. Returns when the client has vanished.
    pub(super) async fn vanished(&self) -> End {
        loop {
            sleep(PING).await;
            if let Some(silent) = self.watch.vanished() {
                return End::Vanished(silent);
            }
            self.with(S::ping);
        }
    }

    /// There was traffic.
    pub(super) fn touch(&self) {
        let since = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.traffic.store(since, Ordering::Relaxed);
    }

    /// Returns when there was no traffic for `limit`.
    pub(super) async fn idle(&self, limit: Option<Duration>) -> End {
        let Some(limit) = limit else { return pending().await };
        loop {
            let due = self.began + Duration::from_millis(self.traffic.load(Ordering::Relaxed)) + limit;
            if due <= Instant::now() {
                return End::Idle(limit);
            }
            sleep_until(due).await;
        }
    }

    /// Ends the connection: writes what is left, at most for `limit`, closes this direction, and waits for the client to
    /// close the other.
    pub(super) async fn finish(&self, read: &mut RecvHalf, limit: Option<Duration>) {
        // The limit counts from now on, whatever ended the session.
        self.touch();
        let close = async {
            self.flush().await?;
            self.writer.lock().await.socket.shutdown().await
        };
        let closed = tokio::select! {
            closed = close => closed.is_ok(),
            () = discard(read) => false,
            _ = self.idle(limit) => false,
            _ = self.vanished() => false,
        };
        if closed {
            // To close with bytes unread would reset the connection, and the client might lose the end of the output.
            drop(timeout(LINGER, discard(read)).await);
        }
    }
}

impl Writer {
    /// Takes over the session's output.
    fn take(&mut self, session: &mut impl Outgoing) {
        let output = session.output();
        let count = output.len();
        self.bytes.extend_from_slice(output);
        session.written(count);
    }

    /// Writes what was taken over, and then `count` bytes of `conduit`.
    async fn write_through(&mut self, conduit: &Conduit, count: usize) -> io::Result<()> {
        if std::mem::replace(&mut self.cut, true) {
            return Err(io::Error::other("a frame was cut off"));
        }
        let socket = self.socket.plain().ok_or(io::ErrorKind::Unsupported)?;
        while let Some(head) = self.bytes.get(self.sent..).filter(|head| !head.is_empty()) {
            self.sent += socket.async_io(Interest::WRITABLE, || send_head(socket, head)).await?;
        }
        self.bytes.clear();
        self.sent = 0;
        let mut left = count;
        while left > 0 {
            match socket.async_io(Interest::WRITABLE, || conduit.drain(socket, left)).await? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                moved => left -= moved,
            }
        }
        self.cut = false;
        Ok(())
    }

    /// Writes what was taken over, and then `body`.
    async fn write(&mut self, mut body: &[u8]) -> io::Result<()> {
        if self.cut {
            return Err(io::Error::other("a frame was cut off"));
        }
        self.cut = !body.is_empty();
        loop {
            let head = self.bytes.get(self.sent..).unwrap_or_default();
            if head.is_empty() && body.is_empty() {
                self.socket.flush().await?;
                self.cut = false;
                return Ok(());
            }
            let count = self.socket.write_vectored(&[IoSlice::new(head), IoSlice::new(body)]).await?;
            if count == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            let of_head = count.min(head.len());
            body = body.get(count - of_head..).unwrap_or_default();
            self.sent += of_head;
            if self.sent == self.bytes.len() {
                self.bytes.clear();
                self.sent = 0;
            }
        }
    }
}

/// Lets other tasks run before the next read. What a client sends may cost much more than its transfer (a block of headers of
/// 40 bytes becomes 8 KiB), and tokio by itself lets a task read 128 times first. Calls of CRI run on the same threads.
pub(super) async fn yield_to_others() {
    tokio::task::yield_now().await;
}

/// Waits for `work`, which takes what a client sent; `None` if the client has closed its direction and `work` has not
/// ended [`LINGER`] later. Meanwhile nothing is read, so the end of the client's bytes would not be seen otherwise.
pub(super) async fn while_there<T>(read: &RecvHalf, work: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        result = work => Some(result),
        () = gone(read) => None,
    }
}

/// Returns [`LINGER`] after the client has closed its direction, whatever is still unread.
async fn gone(read: &RecvHalf) {
    // tokio reports this interest for urgent data, which nobody sends, and when the client has closed its direction.
    // The interest in readability would be reported for bytes that are still unread.
    match read.ready(Interest::PRIORITY).await {
        Ok(ready) if ready.is_read_closed() => sleep(LINGER).await,
        _ => pending().await,
    }
}

/// Reads to the end, or to an error, and drops all bytes.
async fn discard(read: &mut RecvHalf) {
    let mut buffer = vec![0; DISCARD];
    while matches!(read.read(&mut buffer).await, Ok(1..)) {}
}

/// Ends a connection that has no session.
pub(super) async fn close(stream: Stream) {
    let (mut read, mut write) = stream.into_split();
    if write.shutdown().await.is_ok() {
        drop(timeout(LINGER, discard(&mut read)).await);
    }
}
