//! What a connection sends: small control bytes, which are queued with a bound, and payloads, which are not copied.

use std::borrow::Cow;

/// Control bytes that may wait for the client to read. A connection that has more reads no further input, so a client
/// that sends pings or streams and never reads the answers is stopped by TCP.
const QUEUE_LIMIT: usize = 16 * 1024;

/// Maximum number of bytes of one payload: the capacity of a pipe. Go's clients keep a whole SPDY frame in memory, and
/// frames of other streams wait behind it.
pub const MAX_PAYLOAD: usize = 64 * 1024;

/// Why a payload cannot be sent. Each is a mistake of the caller, not of the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// There is no such stream, or it was given up.
    #[error("no such stream")]
    Unknown,
    /// The stream was not accepted yet: clients drop data that arrives before the reply.
    #[error("data before the stream was accepted")]
    NotAccepted,
    /// The stream's end was sent before.
    #[error("data after the end of the stream")]
    Finished,
    /// More than [`MAX_PAYLOAD`].
    #[error("a payload of {0} bytes, at most {MAX_PAYLOAD} are allowed")]
    TooLong(usize),
}

/// What precedes a payload on the wire, in each layer's form: at most a WebSocket header (10 bytes), a channel's number
/// (1) or a SPDY data header (8).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Head {
    bytes: [u8; Self::MAX],
    len: usize,
}

impl Head {
    const MAX: usize = 18;

    /// An empty one.
    pub(crate) fn new() -> Self {
        Self { bytes: [0; Self::MAX], len: 0 }
    }

    /// This head followed by `more`. What does not fit is a bug of this crate; it is cut off, and found by tests.
    pub(crate) fn with(mut self, more: &[u8]) -> Self {
        for (place, byte) in self.bytes.iter_mut().skip(self.len).zip(more) {
            *place = *byte;
        }
        debug_assert!(self.len + more.len() <= Self::MAX);
        self.len = (self.len + more.len()).min(Self::MAX);
        self
    }
}

impl std::ops::Deref for Head {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

impl std::fmt::Debug for Head {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Head({:02x?})", &**self)
    }
}

/// A frame for the client: write what the connection has queued, then the head, then the body, and nothing between.
#[derive(Debug)]
pub struct Frame<'p> {
    /// Header of the protocols below.
    pub head: Head,
    /// The payload itself, or its base64 form.
    pub body: Cow<'p, [u8]>,
}

/// Control bytes on their way to the client.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    bytes: Vec<u8>,
    sent: usize,
}

impl Queue {
    /// Appends. The caller checks [`Queue::is_full`] before it reads what makes it append.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Whether input must wait.
    pub(crate) fn is_full(&self) -> bool {
        self.pending().len() >= QUEUE_LIMIT
    }

    /// What was not sent yet.
    pub(crate) fn pending(&self) -> &[u8] {
        self.bytes.get(self.sent..).unwrap_or_default()
    }

    /// The first `count` bytes of [`Queue::pending`] were written.
    pub(crate) fn advance(&mut self, count: usize) {
        self.sent = self.sent.saturating_add(count).min(self.bytes.len());
        if self.sent == self.bytes.len() {
            self.bytes.clear();
            self.bytes.shrink_to(QUEUE_LIMIT);
            self.sent = 0;
        } else if self.sent >= QUEUE_LIMIT {
            self.bytes.drain(..self.sent);
            self.sent = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn head_joins_layers() {
        let head = Head::new().with(&[1, 2]).with(&[3]);
        assert_eq!(*head, [1, 2, 3]);
        assert_eq!(format!("{head:?}"), "Head([01, 02, 03])");
    }

    #[test]
    fn queue_is_full_until_bytes_are_written() {
        let mut queue = Queue::default();
        queue.push(&vec![7; QUEUE_LIMIT - 1]);
        assert!(!queue.is_full());
        queue.push(&[8]);
        assert!(queue.is_full());
        queue.advance(QUEUE_LIMIT - 1);
        assert_eq!(queue.pending(), [8]);
        queue.advance(5);
        assert!(queue.pending().is_empty());
        assert_eq!(queue.sent, 0);
    }
}
