//! What a client sends, in the order in which the process can use it.

use std::borrow::Cow;

use super::resize::{Resizes, Size};
use super::{Channel, Streams};
use crate::{spdy, websocket};

/// Maximum number of bytes of stdin that are kept until all streams are there. Go's clients send none so early.
const MAX_EARLY: usize = 16 * 1024;

/// What the client did.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'i> {
    /// All streams are there: the process may start. Comes first, and once.
    Ready,
    /// Bytes for the process.
    Stdin(Cow<'i, [u8]>),
    /// No bytes follow. Exec closes the process's stdin; attach only with `stdin_once`.
    StdinEnd,
    /// The terminal's new size.
    Resize(Size),
    /// The client has left and reads no more output.
    Gone,
}

/// Why a session fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The connection below.
    #[error("SPDY: {0}")]
    Spdy(#[from] spdy::Error),
    /// The connection below.
    #[error("WebSocket: {0}")]
    WebSocket(#[from] websocket::Error),
    /// More than 16 KiB for the process before its streams were there.
    #[error("more than {MAX_EARLY} bytes of stdin before all streams were created")]
    EarlyStdin,
}

/// What a connection passes to its session.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step<'i> {
    /// All streams are there.
    Ready,
    /// Bytes from the client, in any channel.
    Bytes(Channel, Cow<'i, [u8]>),
    /// The client ended a channel.
    Ended(Channel),
    /// The client left.
    Gone,
}

/// What the process's stdin may still get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stdin {
    /// More may come.
    Open,
    /// Its end has come, before the session was ready.
    EndDue,
    /// Nothing: its end was passed on, or nobody reads it.
    Closed,
}

/// Holds back what comes before [`Event::Ready`].
#[derive(Debug)]
pub(super) struct Incoming {
    ready: bool,
    stdin: Stdin,
    early: Vec<u8>,
    /// `None` without a terminal.
    sizes: Option<Resizes>,
    /// The last size, which was not passed on yet.
    size: Option<Size>,
}

impl Incoming {
    pub(super) fn new(streams: Streams) -> Self {
        Self {
            ready: false,
            stdin: if streams.stdin { Stdin::Open } else { Stdin::Closed },
            early: Vec::new(),
            sizes: streams.tty.then(Resizes::default),
            size: None,
        }
    }

    pub(super) fn is_ready(&self) -> bool {
        self.ready
    }

    /// The next event that needs no input.
    pub(super) fn due<'i>(&mut self) -> Option<Event<'i>> {
        if !self.ready {
            return None;
        }
        if !self.early.is_empty() {
            return Some(Event::Stdin(Cow::Owned(std::mem::take(&mut self.early))));
        }
        if self.stdin == Stdin::EndDue {
            self.stdin = Stdin::Closed;
            return Some(Event::StdinEnd);
        }
        self.size.take().map(Event::Resize)
    }

    /// The event that a step is, unless it is held back: then [`Incoming::due`] returns it later.
    pub(super) fn take<'i>(&mut self, step: Step<'i>) -> Result<Option<Event<'i>>, Error> {
        Ok(match step {
            Step::Ready => {
                self.ready = true;
                Some(Event::Ready)
            }
            Step::Gone => Some(Event::Gone),
            Step::Bytes(Channel::Stdin, bytes) if self.stdin == Stdin::Open => {
                if self.ready {
                    return Ok(Some(Event::Stdin(bytes)));
                }
                if self.early.len() + bytes.len() > MAX_EARLY {
                    return Err(Error::EarlyStdin);
                }
                self.early.extend_from_slice(&bytes);
                None
            }
            Step::Ended(Channel::Stdin) if self.stdin == Stdin::Open => {
                self.stdin = Stdin::EndDue;
                None
            }
            Step::Bytes(Channel::Resize, bytes) => {
                if let Some(size) = self.sizes.as_mut().and_then(|sizes| sizes.last(&bytes)) {
                    self.size = Some(size);
                }
                None
            }
            Step::Bytes(..) | Step::Ended(_) => None,
        })
    }

    /// Nobody reads stdin any more.
    pub(super) fn drop_stdin(&mut self) {
        self.stdin = Stdin::Closed;
        self.early = Vec::new();
    }
}
