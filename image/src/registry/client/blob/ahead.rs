//! Further connections for one large blob, where each connection is slow.
//!
//! Many registries limit the rate of a connection. If a transfer waits for the network most of the time, pieces of the
//! blob are requested by ranges on further connections, and buffered until it is their turn:
//!
//! ```text
//! blob  |-- first connection --|-- piece --|-- piece --|-- piece --|   not requested yet   |
//!          offset ──►           streamed when the       buffered
//!                               first one arrives
//! ```
//! The first piece is a question: only when the host answers with exactly that range, more are requested. Whatever goes
//! wrong with a piece, it is dropped with all later ones, and the transfer goes on with one connection from where it is.
//! The pieces come from the host that already sends. The caller's digest covers them like all other bytes.

use super::super::fault::Fault;
use super::super::request::Get;
use super::super::{Endpoint, Registry};
use bytes::{Bytes, BytesMut};
use futures_util::stream::{self, BoxStream, StreamExt as _};
use hyper::body::Incoming;
use hyper::header::{CONTENT_RANGE, HeaderValue};
use hyper::{Response, StatusCode};
use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout};

/// Bytes of a piece. It is what a connection carries before the next request's round trip, and what is buffered.
pub(super) const PIECE: u64 = if cfg!(test) { 64 << 10 } else { 2 << 20 };
/// Maximum number of connections of one transfer.
pub(super) const CONNECTIONS: usize = 3;
/// Maximum number of pieces on the node, so that buffers have at most 16 MiB, whatever is pulled.
static ROOM: Semaphore = Semaphore::const_new(8);
/// Bytes that are handed on at once.
const PART: usize = 64 << 10;
/// After so many failed pieces of a blob no more are requested.
const MAX_FAILURES: usize = 3;
/// If the transfer has waited so long for the piece whose turn it is while all later ones are complete, this piece gets
/// another connection. Bytes that trickle in are no reason to wait longer.
const SLOW: Duration = Duration::from_millis(if cfg!(test) { 200 } else { 2000 });
/// Maximum number of times that a blob's piece gets another connection because it is slow.
const MAX_REPLACED: usize = 8;

/// The pieces of one blob that other connections bring.
#[derive(Debug)]
pub(super) struct Ahead<'a> {
    registry: &'a Registry,
    path: Arc<str>,
    size: u64,
    /// How many pieces more there may be.
    room: &'static Semaphore,
    /// In order, without gaps.
    pieces: VecDeque<Piece<'a>>,
    /// Where the next piece begins.
    next: u64,
    failures: usize,
    replaced: usize,
    /// How long the transfer has waited for the first piece while all later ones were complete.
    delayed: Duration,
}

/// A piece of a blob, on a connection of its own.
struct Piece<'a> {
    endpoint: &'a Endpoint,
    start: u64,
    end: u64,
    /// Where the next byte of `source` belongs.
    at: u64,
    /// Whether the host honours the range.
    confirmed: bool,
    /// What came before its turn.
    buffer: BytesMut,
    source: Source<'a>,
    _room: SemaphorePermit<'static>,
}

/// What a connection brings. The first item is empty: it tells that the host honours the range.
type Source<'a> = BoxStream<'a, Result<Bytes, Failure>>;

/// Why a piece cannot be had.
#[derive(Debug)]
struct Failure {
    reason: String,
    /// The host will not honour another range either.
    is_final: bool,
}

impl fmt::Debug for Piece<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Piece").field("start", &self.start).field("at", &self.at).finish_non_exhaustive()
    }
}

impl Piece<'_> {
    fn is_complete(&self) -> bool {
        self.at == self.end
    }

    /// Waits for the next bytes of the connection; `None` at its end.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Failure>> {
        match self.source.poll_next_unpin(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(None) => Poll::Ready(Ok(None)),
            Poll::Ready(Some(Err(failure))) => Poll::Ready(Err(failure)),
            Poll::Ready(Some(Ok(part))) => {
                self.confirmed = true;
                self.at += part.len() as u64;
                Poll::Ready(Ok(Some(part)))
            }
        }
    }

    /// Buffers what comes. `false` if the connection sends no more at present.
    fn buffer(&mut self, cx: &mut Context<'_>) -> Result<bool, Failure> {
        match self.poll(cx) {
            Poll::Pending | Poll::Ready(Ok(None)) => Ok(false),
            Poll::Ready(Err(failure)) => Err(failure),
            Poll::Ready(Ok(Some(part))) => {
                // Copied, because a part may keep a larger buffer of the connection. Reserved at once, because growing
                // would take twice the memory.
                if self.buffer.is_empty() {
                    self.buffer.reserve(usize::try_from(self.end - self.at).unwrap_or_default() + part.len());
                }
                self.buffer.extend_from_slice(&part);
                Ok(true)
            }
        }
    }
}

impl<'a> Ahead<'a> {
    /// For a blob of `size` bytes at `path`.
    pub(super) fn new(registry: &'a Registry, path: Arc<str>, size: u64) -> Self {
        let pieces = VecDeque::new();
        let (next, failures, replaced, delayed) = (0, 0, 0, Duration::ZERO);
        Self { registry, path, size, room: &ROOM, pieces, next, failures, replaced, delayed }
    }

    #[cfg(test)]
    pub(super) fn set_room(&mut self, room: &'static Semaphore) {
        self.room = room;
    }

    /// Bytes that wait for their turn.
    #[cfg(test)]
    pub(super) fn buffered(&self) -> usize {
        self.pieces.iter().map(|piece| piece.buffer.len()).sum()
    }

    /// Requests the first piece, from about `from` on, of the host that sends, if it is worth it and none was requested.
    pub(super) fn start(&mut self, from: u64, endpoint: &'a Endpoint) {
        let is_large = self.size.saturating_sub(from) >= 3 * PIECE;
        if is_large && self.pieces.is_empty() && self.failures < MAX_FAILURES {
            self.next = from.next_multiple_of(PIECE);
            self.request(endpoint);
        }
    }

    /// Where the pieces begin, and whether the first one will come.
    pub(super) fn first(&self) -> Option<(u64, bool)> {
        self.pieces.front().map(|piece| (piece.start, piece.confirmed))
    }

    /// Gives up the pieces, because the first connection has overtaken them.
    pub(super) fn give_up(&mut self) {
        self.pieces.clear();
        self.failures += 1;
    }

    /// Requests the next piece, unless the node has no room for it.
    fn request(&mut self, endpoint: &'a Endpoint) -> bool {
        let Ok(room) = self.room.try_acquire() else { return false };
        let (start, end) = (self.next, (self.next + PIECE).min(self.size));
        self.next = end;
        let source = source(self.registry, endpoint, self.path.clone(), (start, end, self.size));
        let (confirmed, buffer) = (false, BytesMut::new());
        self.pieces.push_back(Piece {
            endpoint,
            start,
            end,
            at: start,
            confirmed,
            buffer,
            source,
            _room: room,
        });
        true
    }

    /// Requests pieces until so many connections are used, once the first one is confirmed, and unless too many have
    /// failed.
    fn fill(&mut self, connections: usize) {
        while let Some(last) = self.pieces.back()
            && last.confirmed
            && self.failures < MAX_FAILURES
            && self.pieces.len() < connections
            && self.next < self.size
        {
            let endpoint = last.endpoint;
            if !self.request(endpoint) {
                return;
            }
        }
    }

    /// Buffers what has come of all pieces but the first `skipped` ones.
    pub(super) fn drive(&mut self, cx: &mut Context<'_>, skipped: usize) {
        for at in skipped..self.pieces.len() {
            loop {
                match self.pieces[at].buffer(cx) {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(failure) => return self.fail(at, &failure),
                }
            }
        }
        // The first connection is in use while no piece is skipped.
        let before = self.pieces.len();
        self.fill(CONNECTIONS - 1 + skipped.min(1));
        if self.pieces.len() > before {
            cx.waker().wake_by_ref();
        }
    }

    /// Drops the piece at this place, and all later ones.
    fn fail(&mut self, at: usize, failure: &Failure) {
        tracing::debug!(blob = %self.path, reason = failure.reason, "no further connection for a layer");
        self.failures = if failure.is_final { MAX_FAILURES } else { self.failures + 1 };
        if let Some(piece) = self.pieces.get(at) {
            self.next = piece.start;
        }
        self.pieces.truncate(at);
    }

    /// Waits for the next bytes of the first piece; `None` if there is no piece any more.
    pub(super) async fn next(&mut self) -> Option<Bytes> {
        loop {
            // Also if all pieces are complete, and so nothing waits for the network: there must be a next one.
            self.fill(CONNECTIONS);
            let first = self.pieces.front_mut()?;
            if !first.buffer.is_empty() {
                return Some(first.buffer.split_to(first.buffer.len().min(PART)).freeze());
            }
            if first.is_complete() {
                self.pieces.pop_front();
                self.delayed = Duration::ZERO;
                continue;
            }
            if self.delayed >= SLOW {
                self.replace();
            }
            let began = Instant::now();
            let part = poll_fn(|cx| {
                self.drive(cx, 1);
                self.pieces.front_mut().map_or(Poll::Ready(Ok(None)), |first| first.poll(cx))
            });
            let result = timeout(SLOW, part).await;
            if self.others_wait() {
                self.delayed += began.elapsed();
            }
            match result {
                Ok(Ok(Some(part))) if part.is_empty() => {}
                Ok(Ok(Some(part))) => return Some(part),
                // It cannot be at its end here.
                Ok(Ok(None)) => return None,
                Ok(Err(failure)) => self.fail(0, &failure),
                Err(_) => {}
            }
        }
    }

    /// Whether the first piece delays all others.
    fn others_wait(&self) -> bool {
        self.pieces.len() > 1 && self.pieces.iter().skip(1).all(Piece::is_complete)
    }

    /// Gives the first piece another connection.
    fn replace(&mut self) {
        self.delayed = Duration::ZERO;
        if self.replaced == MAX_REPLACED {
            return;
        }
        if let Some(first) = self.pieces.front_mut() {
            self.replaced += 1;
            let range = (first.at, first.end, self.size);
            first.source = source(self.registry, first.endpoint, self.path.clone(), range);
        }
    }
}

/// Requests bytes `start` to `end` of a blob of `size` bytes, and returns what comes.
fn source<'a>(
    registry: &'a Registry,
    endpoint: &'a Endpoint,
    path: Arc<str>,
    (start, end, size): (u64, u64, u64),
) -> Source<'a> {
    let broke = |reason: &str| Failure { reason: reason.to_owned(), is_final: false };
    let parts = stream::try_unfold((None::<Incoming>, end - start), move |(body, left)| {
        let path = path.clone();
        async move {
            let Some(mut body) = body else {
                let range = Some((start, Some(end - 1)));
                let get = Get { path: &path, accept: "*/*", range, verified: true, head: false };
                let response = registry.get(endpoint, &get).await.map_err(Failure::from)?;
                check(&response, (start, end, size))?;
                return Ok(Some((Bytes::new(), (Some(response.into_body()), left))));
            };
            if left == 0 {
                return Ok(None);
            }
            let part = registry.next_part(&mut body).await.map_err(Failure::from)?;
            let part = part.ok_or_else(|| broke("connection closed early"))?;
            let left =
                left.checked_sub(part.len() as u64).ok_or_else(|| broke("more bytes than requested"))?;
            Ok::<_, Failure>(Some((part, (Some(body), left))))
        }
    });
    parts.boxed()
}

/// Fails unless a response has exactly the bytes `start` to `end` of a blob of `size` bytes.
fn check(response: &Response<Incoming>, (start, end, size): (u64, u64, u64)) -> Result<(), Failure> {
    let wanted = format!("bytes {start}-{}/{size}", end - 1);
    let range = response.headers().get(CONTENT_RANGE).map(HeaderValue::as_bytes);
    if response.status() == StatusCode::PARTIAL_CONTENT && range == Some(wanted.as_bytes()) {
        return Ok(());
    }
    Err(Failure { reason: "the host does not honour ranges".to_owned(), is_final: true })
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Transient { reason, .. } => Self { reason, is_final: false },
            Fault::NotFound(reason)
            | Fault::Unauthorized(reason)
            | Fault::Corrupt(reason)
            | Fault::Final(reason) => Self { reason, is_final: true },
        }
    }
}
