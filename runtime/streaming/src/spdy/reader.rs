//! Splits bytes into SPDY/3.1 frames.
//!
//! ```text
//! control: 1 | version:15 | type:16 | flags:8 | length:24 | content
//! data:    0 | stream id:31         | flags:8 | length:24 | payload
//! ```
//!
//! Only control frames are collected, up to [`MAX_CONTROL`]. Payloads of data frames are handed out as they arrive, so
//! that a frame of 16 MiB needs no memory; content that means nothing here (SETTINGS, WINDOW_UPDATE, unknown types) is
//! skipped and never kept, whatever length it says.

use super::FLAG_FIN;
use crate::input::{fill, take};

/// Maximum size of a control frame's content in bytes. Clients of Kubernetes send less than 200.
pub const MAX_CONTROL: usize = 8 * 1024;

/// The version in control frames. "3.1" has the same frames, and only adds flow control.
const VERSION: u16 = 3;
/// On SYN_STREAM: the other side cannot send.
const FLAG_UNIDIRECTIONAL: u8 = 0x02;

/// Why bytes are not SPDY. The connection is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A control frame of another version.
    #[error("a control frame of SPDY version {0}, not 3")]
    Version(u16),
    /// A control frame that is too short or too long for its type.
    #[error("a frame of type {kind} with {length} bytes of content")]
    Length {
        /// SPDY's number of the type.
        kind: u16,
        /// What its header says.
        length: usize,
    },
    /// Id 0 is no stream.
    #[error("a frame for stream 0")]
    StreamZero,
    /// A header block that does not continue the connection's compressed stream.
    #[error("a header block that is not compressed with the connection's state and SPDY's dictionary")]
    Compression,
    /// A header block that becomes too large.
    #[error("a header block of more than {0} bytes")]
    HeadersTooLarge(usize),
}

/// Part of what a client sent.
#[derive(Debug)]
pub(super) enum Part<'r, 'i> {
    /// A complete control frame.
    Control(Control<'r>),
    /// Some bytes of a stream.
    Payload {
        /// Which stream.
        id: u32,
        /// Not empty.
        bytes: &'i mut [u8],
    },
    /// A stream's last data frame is complete.
    Fin {
        /// Which stream.
        id: u32,
    },
}

/// A control frame that means something to a server.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Control<'r> {
    /// SYN_STREAM.
    Open {
        /// The new stream.
        id: u32,
        /// The server cannot send on it.
        one_way: bool,
        /// The client will send nothing.
        fin: bool,
        /// Compressed.
        block: &'r [u8],
    },
    /// HEADERS, or SYN_REPLY, which is an answer to streams that servers here never open.
    Headers {
        /// Which stream.
        id: u32,
        /// The client sends nothing more.
        fin: bool,
        /// Compressed: it must be read even if nobody wants it, because the state of the compression is shared.
        block: &'r [u8],
    },
    /// RST_STREAM.
    Reset {
        /// Which stream.
        id: u32,
    },
    /// PING.
    Ping {
        /// Odd ones are the client's and are returned.
        id: u32,
    },
    /// GOAWAY: the client opens no more streams.
    GoAway,
}

/// Types of control frames.
mod kind {
    pub(super) const SYN_STREAM: u16 = 1;
    pub(super) const SYN_REPLY: u16 = 2;
    pub(super) const RST_STREAM: u16 = 3;
    pub(super) const PING: u16 = 6;
    pub(super) const GOAWAY: u16 = 7;
    pub(super) const HEADERS: u16 = 8;
}

/// What the next byte belongs to.
#[derive(Debug)]
enum State {
    /// A frame's header, of which this many bytes have come.
    Head(usize),
    /// The content of a control frame, which has this length.
    Control { kind: u16, flags: u8, length: usize },
    /// Content that is skipped, of which this many bytes are missing.
    Skip(usize),
    /// The payload of a data frame, of which `left` bytes are missing.
    Payload { id: u32, left: usize, fin: bool },
}

/// Splits what was read; between two reads it keeps what is incomplete.
#[derive(Debug)]
pub(super) struct Reader {
    state: State,
    head: [u8; 8],
    /// Content of the control frame that is not complete yet, or was handed out last.
    content: Vec<u8>,
}

impl Reader {
    /// At the first byte after the upgrade.
    pub(super) fn new() -> Self {
        Self { state: State::Head(0), head: [0; 8], content: Vec::new() }
    }

    /// The next part, or `None` when `input` is used up.
    ///
    /// # Errors
    /// [`Error`]; the reader must not be used after it.
    pub(super) fn next<'i>(&mut self, input: &mut &'i mut [u8]) -> Result<Option<Part<'_, 'i>>, Error> {
        loop {
            match self.state {
                State::Head(have) => {
                    if !self.head(have, input)? {
                        return Ok(None);
                    }
                }
                State::Skip(left) => {
                    let left = left - take(input, left).len();
                    if left > 0 {
                        self.state = State::Skip(left);
                        return Ok(None);
                    }
                    self.state = State::Head(0);
                }
                State::Payload { id, left: 0, fin } => {
                    self.state = State::Head(0);
                    if fin {
                        return Ok(Some(Part::Fin { id }));
                    }
                }
                State::Payload { id, left, fin } => {
                    let bytes = take(input, left);
                    if bytes.is_empty() {
                        return Ok(None);
                    }
                    self.state = State::Payload { id, left: left - bytes.len(), fin };
                    return Ok(Some(Part::Payload { id, bytes }));
                }
                State::Control { kind, flags, length } => {
                    let missing = length - self.content.len();
                    self.content.extend_from_slice(take(input, missing));
                    if self.content.len() < length {
                        return Ok(None);
                    }
                    self.state = State::Head(0);
                    return control(kind, flags, &self.content).map(|control| Some(Part::Control(control)));
                }
            }
        }
    }

    /// Bytes of content that are kept now.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.content.capacity()
    }

    /// Reads a frame's header, of which `have` bytes have come; `false` if it is not complete.
    fn head(&mut self, have: usize, input: &mut &mut [u8]) -> Result<bool, Error> {
        let have = fill(&mut self.head, have, input);
        self.state = State::Head(have);
        if have < self.head.len() {
            return Ok(false);
        }
        let [a, b, c, d, flags, x, y, z] = self.head;
        let length = u32::from_be_bytes([0, x, y, z]) as usize;
        self.state = if a & 0x80 == 0 {
            match u32::from_be_bytes([a, b, c, d]) {
                0 => return Err(Error::StreamZero),
                id => State::Payload { id, left: length, fin: flags & FLAG_FIN != 0 },
            }
        } else {
            let version = u16::from_be_bytes([a & 0x7f, b]);
            if version != VERSION {
                return Err(Error::Version(version));
            }
            self.control_head(u16::from_be_bytes([c, d]), flags, length)?
        };
        Ok(true)
    }

    /// What to do with a control frame that has this header.
    fn control_head(&mut self, kind: u16, flags: u8, length: usize) -> Result<State, Error> {
        let least = match kind {
            kind::SYN_STREAM => 10,
            kind::RST_STREAM | kind::GOAWAY => 8,
            kind::SYN_REPLY | kind::HEADERS | kind::PING => 4,
            // Go's side neither sends nor obeys flow control, and its settings say nothing about streams.
            _ => return Ok(State::Skip(length)),
        };
        let most = match kind {
            kind::RST_STREAM | kind::GOAWAY | kind::PING => least,
            _ => MAX_CONTROL,
        };
        if !(least..=most).contains(&length) {
            return Err(Error::Length { kind, length });
        }
        self.content.clear();
        self.content.reserve_exact(length);
        Ok(State::Control { kind, flags, length })
    }
}

/// Reads the content of a complete control frame, whose length was checked against its type.
fn control(kind: u16, flags: u8, content: &[u8]) -> Result<Control<'_>, Error> {
    let short = Error::Length { kind, length: content.len() };
    let (first, rest) = content.split_first_chunk::<4>().ok_or(short)?;
    let first = u32::from_be_bytes(*first);
    let stream = || match first & 0x7fff_ffff {
        0 => Err(Error::StreamZero),
        id => Ok(id),
    };
    let fin = flags & FLAG_FIN != 0;
    Ok(match kind {
        kind::SYN_STREAM => Control::Open {
            id: stream()?,
            one_way: flags & FLAG_UNIDIRECTIONAL != 0,
            fin,
            // Associated stream, priority and slot mean nothing to Kubernetes.
            block: rest.get(6..).ok_or(short)?,
        },
        kind::RST_STREAM => Control::Reset { id: stream()? },
        kind::PING => Control::Ping { id: first },
        kind::GOAWAY => Control::GoAway,
        _ => Control::Headers { id: stream()?, fin, block: rest },
    })
}
