//! The connection: which streams there are, and what may still be sent on them.
//!
//! ```text
//!                 SYN_STREAM          accept            finish, data with FIN
//!   (no stream) ─────────────► opened ───────► replied ──────────────────────► finished
//!                     │          │                │                                │
//!                     │ full     └─── reset, release, by the caller ───────────────┘
//!                     ▼                           │
//!                RST_STREAM                       ▼
//!                                            (no stream)
//! ```
//!
//! A stream occupies its place until the caller releases it, not until the client resets it: the caller's work for it
//! (a socket, a process) may last longer. So a client that opens and resets streams in a loop gets no more work done
//! at a time than one that keeps them open.

use std::collections::HashMap;

use super::headers::{Blocks, Headers};
use super::reader::{Control, Error, Part, Reader};
use super::writer::{self, Leave, Reason, Replies};
use crate::output::{Head, MAX_PAYLOAD, Queue, SendError};

/// A stream of a connection; the client's are odd.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(u32);

impl StreamId {
    /// The number that is in frames.
    pub fn get(self) -> u32 {
        self.0
    }
}

/// What the client did.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'i> {
    /// It opened a stream, which the caller accepts or resets.
    Opened {
        /// The stream.
        id: StreamId,
        /// What it is for.
        headers: Headers,
        /// It will send nothing on it.
        ended: bool,
    },
    /// It sent bytes on a stream.
    Data {
        /// The stream.
        id: StreamId,
        /// Not empty.
        bytes: &'i mut [u8],
    },
    /// It will send nothing more on a stream.
    Ended {
        /// The stream.
        id: StreamId,
    },
    /// It reset a stream: both directions have ended. The stream occupies its place until [`Connection::release`].
    Reset {
        /// The stream.
        id: StreamId,
    },
    /// It opens no more streams, and usually closes the connection next.
    GoAway,
}

/// A stream, as long as the caller uses it.
#[derive(Debug)]
struct Stream {
    /// SYN_REPLY was sent.
    replied: bool,
    /// The client may send.
    incoming: bool,
    /// The caller may send.
    outgoing: bool,
    /// The client sent RST_STREAM.
    reset: bool,
}

/// The server's side of a SPDY/3.1 connection.
#[derive(Debug)]
pub struct Connection {
    reader: Reader,
    streams: Streams,
}

/// Everything but the reader, whose frames are borrowed while they are handled.
#[derive(Debug)]
struct Streams {
    blocks: Blocks,
    replies: Replies,
    open: HashMap<u32, Stream>,
    /// Maximum number of entries of `open`.
    limit: usize,
    /// Highest id of a SYN_STREAM.
    newest: u32,
    /// The client sent GOAWAY.
    client_left: bool,
    /// GOAWAY was sent: nothing is read any more.
    left: bool,
    output: Queue,
}

impl Connection {
    /// A connection right after the upgrade, on which at most `limit` streams are in use at a time; more are refused.
    pub fn new(limit: usize) -> Self {
        let streams = Streams {
            blocks: Blocks::default(),
            replies: Replies::default(),
            open: HashMap::new(),
            limit,
            newest: 0,
            client_left: false,
            left: false,
            output: Queue::default(),
        };
        Self { reader: Reader::new(), streams }
    }

    /// Takes bytes from the front of `input` up to the next event. `None` means that the input is used up or, if bytes
    /// are left, that [`Connection::output`] must be written first.
    ///
    /// # Errors
    /// [`Error`] if the bytes are not SPDY. GOAWAY is in the output then, and all further input is dropped.
    pub fn receive<'i>(&mut self, input: &mut &'i mut [u8]) -> Result<Option<Event<'i>>, Error> {
        while !self.streams.output.is_full() {
            if self.streams.left {
                *input = &mut [];
                return Ok(None);
            }
            let event = match self.reader.next(input) {
                Ok(Some(part)) => self.streams.handle(part),
                Ok(None) => return Ok(None),
                Err(error) => Err(error),
            };
            match event {
                Ok(Some(event)) => return Ok(Some(event)),
                Ok(None) => {}
                Err(error) => {
                    self.streams.leave(Leave::Protocol);
                    return Err(error);
                }
            }
        }
        Ok(None)
    }

    /// Control frames for the client, to be written before any payload whose head was made later.
    pub fn output(&self) -> &[u8] {
        self.streams.output.pending()
    }

    /// The first `count` bytes of [`Connection::output`] were written.
    pub fn written(&mut self, count: usize) {
        self.streams.output.advance(count);
    }

    /// Accepts a stream: only now the client takes data on it. Nothing happens if it was accepted or given up before.
    pub fn accept(&mut self, id: StreamId) {
        let Streams { open, replies, output, .. } = &mut self.streams;
        if let Some(stream) = open.get_mut(&id.0)
            && !stream.replied
        {
            stream.replied = true;
            output.push(&replies.reply(id.0));
        }
    }

    /// The head of a data frame with a payload of `length` bytes, which the caller writes after it. `fin` ends this
    /// direction of the stream. `None` if the client has reset the stream: the payload is to be dropped.
    ///
    /// # Errors
    /// [`SendError`]; nothing changes.
    pub fn data(&mut self, id: StreamId, length: usize, fin: bool) -> Result<Option<Head>, SendError> {
        let stream = self.streams.open.get_mut(&id.0).ok_or(SendError::Unknown)?;
        let short = u32::try_from(length).ok().filter(|_| length <= MAX_PAYLOAD);
        let short = short.ok_or(SendError::TooLong(length))?;
        if stream.reset {
            return Ok(None);
        }
        if !stream.replied {
            return Err(SendError::NotAccepted);
        }
        if !stream.outgoing {
            return Err(SendError::Finished);
        }
        stream.outgoing = !fin;
        Ok(Some(writer::data(id.0, short, fin)))
    }

    /// Queues a short payload, for example an error's text.
    ///
    /// # Errors
    /// As [`Connection::data`].
    pub(crate) fn text(&mut self, id: StreamId, text: &[u8]) -> Result<(), SendError> {
        if let Some(head) = self.data(id, text.len(), false)? {
            self.streams.output.push(&head);
            self.streams.output.push(text);
        }
        Ok(())
    }

    /// Ends this direction of a stream, unless it has ended. The client may go on sending.
    pub fn finish(&mut self, id: StreamId) {
        if let Ok(Some(head)) = self.data(id, 0, true) {
            self.streams.output.push(&head);
        }
    }

    /// Releases a stream, and sends the client a reset unless both directions had ended.
    pub fn reset(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.open.remove(&id.0)
            && !stream.reset
            && (stream.incoming || stream.outgoing)
        {
            let reason = if stream.replied { Reason::Cancel } else { Reason::Refused };
            self.streams.output.push(&writer::reset(id.0, reason));
        }
    }

    /// Releases a stream and sends the client nothing. What the client still sends on it is dropped.
    pub fn release(&mut self, id: StreamId) {
        self.streams.open.remove(&id.0);
    }

    /// Bytes and streams that are kept now.
    #[cfg(test)]
    pub(super) fn held(&self) -> (usize, usize) {
        (self.reader.held() + self.output().len(), self.streams.open.len())
    }

    /// Ends the connection: the client reads what was sent before this, and nothing later.
    pub fn go_away(&mut self) {
        self.streams.leave(Leave::Done);
    }
}

impl Streams {
    /// What a part of the input means. An error ends the connection.
    fn handle<'i>(&mut self, part: Part<'_, 'i>) -> Result<Option<Event<'i>>, Error> {
        Ok(match part {
            Part::Control(Control::Open { id, one_way, fin, block }) => {
                let block = self.blocks.read(block)?;
                self.open(id, &block, Stream::new(!fin, !one_way))
            }
            Part::Control(Control::Headers { id, fin, block }) => {
                // Read for the state of the compression; nobody sends headers on open streams.
                self.blocks.read(block)?;
                if fin { self.end(id) } else { None }
            }
            Part::Control(Control::Reset { id }) => self.reset(id),
            Part::Control(Control::Ping { id }) => {
                // Even ones would be answers to pings of this side.
                if id % 2 == 1 {
                    self.output.push(&writer::ping(id));
                }
                None
            }
            Part::Control(Control::GoAway) => {
                (!std::mem::replace(&mut self.client_left, true)).then_some(Event::GoAway)
            }
            Part::Payload { id, bytes } => {
                let wanted = self.open.get(&id).is_some_and(|stream| stream.incoming);
                wanted.then_some(Event::Data { id: StreamId(id), bytes })
            }
            Part::Fin { id } => self.end(id),
        })
    }

    /// A new stream, if the client may open it.
    fn open<'i>(&mut self, id: u32, block: &[u8], stream: Stream) -> Option<Event<'i>> {
        if self.client_left {
            return None;
        }
        // Ids out of order are a fault of one stream: old spdystream sends them when two are opened at once.
        let rising = id > self.newest && id % 2 == 1;
        self.newest = self.newest.max(id);
        let Some(headers) = Headers::parse(block).filter(|_| rising) else {
            self.output.push(&writer::reset(id, Reason::Protocol));
            return None;
        };
        if self.open.len() >= self.limit {
            self.output.push(&writer::reset(id, Reason::Refused));
            return None;
        }
        let ended = !stream.incoming;
        self.open.insert(id, stream);
        Some(Event::Opened { id: StreamId(id), headers, ended })
    }

    /// The client sends nothing more on a stream.
    fn end<'i>(&mut self, id: u32) -> Option<Event<'i>> {
        let stream = self.open.get_mut(&id)?;
        std::mem::replace(&mut stream.incoming, false).then_some(Event::Ended { id: StreamId(id) })
    }

    /// The client gave a stream up.
    fn reset<'i>(&mut self, id: u32) -> Option<Event<'i>> {
        let stream = self.open.get_mut(&id)?;
        (stream.incoming, stream.outgoing) = (false, false);
        (!std::mem::replace(&mut stream.reset, true)).then_some(Event::Reset { id: StreamId(id) })
    }

    /// Sends GOAWAY, once.
    fn leave(&mut self, why: Leave) {
        if !std::mem::replace(&mut self.left, true) {
            self.output.push(&writer::go_away(self.newest, why));
        }
    }
}

impl Stream {
    /// One that the client has just opened.
    fn new(incoming: bool, outgoing: bool) -> Self {
        Self { replied: false, incoming, outgoing, reset: false }
    }
}
