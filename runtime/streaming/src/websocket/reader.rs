//! Splits bytes into a client's frames.
//!
//! ```text
//! fin:1 | reserved:3 | opcode:4 | masked:1 | length:7 [:16 | :64] | mask:32 | payload, masked
//! ```

use crate::input::{fill, take};

/// Why bytes are not what a WebSocket client may send. The connection is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Reserved bits without an extension that uses them.
    #[error("a frame with reserved bits {0:#x}")]
    Reserved(u8),
    /// An opcode without a meaning.
    #[error("a frame with opcode {0:#x}")]
    Opcode(u8),
    /// Clients must mask.
    #[error("a frame that is not masked")]
    Unmasked,
    /// Control frames are short and in one piece.
    #[error("a control frame in fragments or of more than 125 bytes")]
    Control,
    /// A length with the highest bit set.
    #[error("a frame of {0:#x} bytes")]
    Length(u64),
    /// A continuation without a beginning, or a beginning inside a message.
    #[error("fragments of messages out of order")]
    Order,
    /// A close frame of one byte, with a code that may not be sent, or with a reason that is no UTF-8.
    #[error("a malformed close frame")]
    Close,
    /// A message of `v5.channel.k8s.io` that begins with 255 and does not have exactly two bytes.
    #[error("a malformed message that closes a channel")]
    CloseSignal,
    /// A text message where only binary ones have a meaning.
    #[error("a text message in a tunnel")]
    Text,
    /// A message of a base64 protocol that is not base64 with padding.
    #[error("a message that is not base64")]
    Base64,
}

impl Error {
    /// The code that the close frame gives (RFC 6455, 7.4.1).
    pub(super) fn code(self) -> u16 {
        match self {
            Self::Text => 1003,
            Self::Base64 => 1007,
            _ => 1002,
        }
    }
}

/// What a message says it contains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Text; not checked.
    Text,
    /// Bytes.
    Binary,
}

/// Part of a message. Only the last one can be empty.
#[derive(Debug, PartialEq, Eq)]
pub struct Piece<'i> {
    /// What the message is.
    pub kind: Kind,
    /// It begins the message.
    pub first: bool,
    /// It ends the message.
    pub last: bool,
    /// Unmasked.
    pub bytes: &'i mut [u8],
}

/// Part of what a client sent.
#[derive(Debug)]
pub(super) enum Part<'r, 'i> {
    /// Part of a message.
    Data(Piece<'i>),
    /// To be answered with the same content.
    Ping(&'r [u8]),
    /// The answer to a ping.
    Pong,
    /// The client closes; the code it gives, if any.
    Close(Option<u16>),
}

/// Kinds of frames.
mod opcode {
    pub(super) const CONTINUATION: u8 = 0;
    pub(super) const TEXT: u8 = 1;
    pub(super) const BINARY: u8 = 2;
    pub(super) const CLOSE: u8 = 8;
    pub(super) const PING: u8 = 9;
    pub(super) const PONG: u8 = 10;
}

/// Longest payload of a control frame.
const MAX_CONTROL: usize = 125;

/// What the next byte belongs to.
#[derive(Debug)]
enum State {
    /// A frame's header, of which this many bytes have come.
    Head(usize),
    /// A frame of a message, of which `left` bytes are missing.
    Data { left: u64, fin: bool },
    /// A control frame, of which `left` bytes are missing.
    Control { opcode: u8, left: usize },
}

/// Splits what was read; between two reads it keeps what is incomplete.
#[derive(Debug)]
pub(super) struct Reader {
    state: State,
    head: [u8; 14],
    /// Key for the next byte of the payload first.
    mask: [u8; 4],
    control: Vec<u8>,
    /// Kind of the message that has begun.
    message: Option<Kind>,
    /// No piece of that message was handed out yet.
    first: bool,
}

impl Reader {
    /// At the first byte after the upgrade.
    pub(super) fn new() -> Self {
        Self {
            state: State::Head(0),
            head: [0; 14],
            mask: [0; 4],
            control: Vec::new(),
            message: None,
            first: false,
        }
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
                State::Data { left: 0, fin: false } => self.state = State::Head(0),
                State::Data { left, fin } => {
                    let bytes = take(input, usize::try_from(left).unwrap_or(usize::MAX));
                    if bytes.is_empty() && left > 0 {
                        return Ok(None);
                    }
                    return Ok(Some(Part::Data(self.piece(bytes, left, fin)?)));
                }
                State::Control { opcode, left } => {
                    let bytes = take(input, left);
                    unmask(bytes, &mut self.mask);
                    self.control.extend_from_slice(bytes);
                    let left = left - bytes.len();
                    if left > 0 {
                        self.state = State::Control { opcode, left };
                        return Ok(None);
                    }
                    self.state = State::Head(0);
                    return Ok(Some(match opcode {
                        opcode::PING => Part::Ping(&self.control),
                        opcode::PONG => Part::Pong,
                        _ => Part::Close(close_code(&self.control)?),
                    }));
                }
            }
        }
    }

    /// `bytes` were next in a frame of which `left` were missing.
    fn piece<'i>(&mut self, bytes: &'i mut [u8], left: u64, fin: bool) -> Result<Piece<'i>, Error> {
        let kind = self.message.ok_or(Error::Order)?;
        unmask(bytes, &mut self.mask);
        let left = left.saturating_sub(bytes.len() as u64);
        let last = fin && left == 0;
        self.state = if left == 0 { State::Head(0) } else { State::Data { left, fin } };
        let first = std::mem::replace(&mut self.first, false);
        if last {
            self.message = None;
        }
        Ok(Piece { kind, first, last, bytes })
    }

    /// Reads a frame's header, of which `have` bytes have come; `false` if it is not complete.
    fn head(&mut self, have: usize, input: &mut &mut [u8]) -> Result<bool, Error> {
        // The first two bytes say how long the header is, and are judged before more is waited for.
        let mut have = have;
        loop {
            let needed = if have < 2 { 2 } else { self.head_length()? };
            have = fill(self.head.get_mut(..needed).unwrap_or_default(), have, input);
            if have < needed {
                self.state = State::Head(have);
                return Ok(false);
            }
            if needed > 2 {
                break;
            }
        }
        self.begin()?;
        Ok(true)
    }

    /// Judges the first two bytes of a header and returns its length.
    fn head_length(&self) -> Result<usize, Error> {
        let [first, second, ..] = self.head;
        let (fin, reserved, opcode, length) = (first & 0x80 != 0, first & 0x70, first & 0x0f, second & 0x7f);
        if reserved != 0 {
            return Err(Error::Reserved(reserved));
        }
        match opcode {
            opcode::CONTINUATION if self.message.is_none() => return Err(Error::Order),
            opcode::TEXT | opcode::BINARY if self.message.is_some() => return Err(Error::Order),
            opcode::CONTINUATION | opcode::TEXT | opcode::BINARY => {}
            opcode::CLOSE | opcode::PING | opcode::PONG => {
                if !fin || usize::from(length) > MAX_CONTROL {
                    return Err(Error::Control);
                }
            }
            other => return Err(Error::Opcode(other)),
        }
        if second & 0x80 == 0 {
            return Err(Error::Unmasked);
        }
        Ok(match length {
            126 => 8,
            127 => 14,
            _ => 6,
        })
    }

    /// Begins the frame whose header is complete.
    fn begin(&mut self) -> Result<(), Error> {
        let [first, second, rest @ ..] = self.head;
        let (length, mask) = match (second & 0x7f, rest) {
            (126, [a, b, m, n, o, p, ..]) => (u64::from(u16::from_be_bytes([a, b])), [m, n, o, p]),
            (127, [a, b, c, d, e, f, g, h, m, n, o, p]) => {
                (u64::from_be_bytes([a, b, c, d, e, f, g, h]), [m, n, o, p])
            }
            (short, [m, n, o, p, ..]) => (u64::from(short), [m, n, o, p]),
        };
        if length >> 63 != 0 {
            return Err(Error::Length(length));
        }
        self.mask = mask;
        let opcode = first & 0x0f;
        let kind = match opcode {
            opcode::CONTINUATION => self.message,
            opcode::TEXT => Some(Kind::Text),
            opcode::BINARY => Some(Kind::Binary),
            _ => {
                self.control.clear();
                self.state = State::Control { opcode, left: usize::from(second & 0x7f) };
                return Ok(());
            }
        };
        self.first |= self.message.is_none();
        self.message = kind;
        self.state = State::Data { left: length, fin: first & 0x80 != 0 };
        Ok(())
    }
}

/// Removes the mask from the next bytes of a payload, and turns `mask` so that it fits what follows.
fn unmask(bytes: &mut [u8], mask: &mut [u8; 4]) {
    let [a, b, c, d] = *mask;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (words, rest) = bytes.as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ wide).to_ne_bytes();
    }
    for (byte, key) in rest.iter_mut().zip([a, b, c, d, a, b, c]) {
        *byte ^= key;
    }
    mask.rotate_left(rest.len() % 4);
}

/// The code in a close frame's payload, which may be empty.
fn close_code(payload: &[u8]) -> Result<Option<u16>, Error> {
    if payload.is_empty() {
        return Ok(None);
    }
    let (code, reason) = payload.split_first_chunk::<2>().ok_or(Error::Close)?;
    let code = u16::from_be_bytes(*code);
    // Others mean that no code was sent (1005, 1006, 1015), or nothing.
    let valid = matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999);
    if valid && std::str::from_utf8(reason).is_ok() { Ok(Some(code)) } else { Err(Error::Close) }
}
