//! Several byte streams in the messages of one connection: `channel.k8s.io` and its later versions.
//!
//! ```text
//! binary:  message = channel | bytes
//! base64:  message = digit   | base64 with padding       (a text message; channel 10 is ':')
//! v5:      message = 255     | channel                   the sender sends nothing more on this channel
//! ```

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::general_purpose::{GeneralPurpose, PAD};
use std::borrow::Cow;

use super::connection::{Connection, Event};
use super::reader::{Error, Kind, Piece};
use crate::output::{Frame, Head, MAX_PAYLOAD, SendError};

/// First byte of a message that closes a channel.
const CLOSE_SIGNAL: u8 = 255;
/// Close code of a session that is done.
const NORMAL: u16 = 1000;

/// As Go decodes: padding is required, bits that mean nothing may be set.
const BASE64: GeneralPurpose = GeneralPurpose::new(&STANDARD, PAD.with_decode_allow_trailing_bits(true));

/// How messages carry bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    /// As they are.
    Binary,
    /// Encoded, for clients that have text only.
    Base64,
}

/// What the client did.
#[derive(Debug, PartialEq, Eq)]
pub enum ChannelEvent<'i> {
    /// It sent bytes on a channel, which may not exist.
    Data {
        /// Number of the channel.
        channel: u8,
        /// Not empty.
        bytes: Cow<'i, [u8]>,
    },
    /// It sends nothing more on a channel; only v5 can say so.
    Ended {
        /// Number of the channel.
        channel: u8,
    },
    /// It closed the connection.
    Closed,
}

/// What the next piece of a message belongs to.
#[derive(Debug, Clone, Copy)]
enum State {
    /// The bytes of this channel.
    Channel(u8),
    /// A signal to close a channel, whose number is known once it has come.
    Signal(Option<u8>),
}

/// The server's side of a connection with channels.
#[derive(Debug)]
pub struct Channels {
    connection: Connection,
    codec: Codec,
    /// Channels can be closed one by one.
    closable: bool,
    state: State,
    text: Decoder,
}

impl Channels {
    /// A connection right after the upgrade; `closable` for v5.
    pub fn new(codec: Codec, closable: bool) -> Self {
        let connection = Connection::new();
        Self { connection, codec, closable, state: State::Channel(0), text: Decoder::default() }
    }

    /// Takes bytes from the front of `input` up to the next event; `None` as in [`Connection::receive`].
    ///
    /// # Errors
    /// As [`Connection::receive`], and for messages that are not what the channels' protocol allows.
    pub fn receive<'i>(&mut self, input: &mut &'i mut [u8]) -> Result<Option<ChannelEvent<'i>>, Error> {
        loop {
            let piece = match self.connection.receive(input)? {
                None => return Ok(None),
                Some(Event::Closed(_)) => return Ok(Some(ChannelEvent::Closed)),
                Some(Event::Data(piece)) => piece,
            };
            match self.piece(piece) {
                Ok(None) => {}
                Ok(event) => return Ok(event),
                Err(error) => {
                    self.connection.fail(error);
                    return Err(error);
                }
            }
        }
    }

    /// What a piece of a message means.
    fn piece<'i>(&mut self, piece: Piece<'i>) -> Result<Option<ChannelEvent<'i>>, Error> {
        let (last, mut bytes): (bool, &'i [u8]) = (piece.last, piece.bytes);
        if piece.first {
            // A message without even a channel means nothing.
            let Some((first, rest)) = bytes.split_first() else { return Ok(None) };
            self.start(*first);
            bytes = rest;
        }
        let (channel, bytes) = match self.state {
            State::Signal(channel) => {
                let channel = self.signal(channel, bytes, last)?;
                return Ok(channel.map(|channel| ChannelEvent::Ended { channel }));
            }
            State::Channel(channel) => match self.codec {
                Codec::Binary => (channel, Cow::Borrowed(bytes)),
                Codec::Base64 => (channel, Cow::Owned(self.text.decode(bytes, last)?)),
            },
        };
        Ok((!bytes.is_empty()).then_some(ChannelEvent::Data { channel, bytes }))
    }

    /// A message begins with this byte.
    fn start(&mut self, first: u8) {
        self.text = Decoder::default();
        self.state = match self.codec {
            Codec::Binary if first == CLOSE_SIGNAL && self.closable => State::Signal(None),
            Codec::Binary => State::Channel(first),
            Codec::Base64 => State::Channel(first.wrapping_sub(b'0')),
        };
    }

    /// More of a message that closes a channel: the channel, once the message is complete.
    fn signal(&mut self, channel: Option<u8>, bytes: &[u8], last: bool) -> Result<Option<u8>, Error> {
        let channel = match (channel, bytes) {
            (channel, []) => channel,
            (None, [channel]) => Some(*channel),
            _ => return Err(Error::CloseSignal),
        };
        self.state = State::Signal(channel);
        match channel {
            None if last => Err(Error::CloseSignal),
            channel => Ok(channel.filter(|_| last)),
        }
    }

    /// Control frames and short messages for the client.
    pub fn output(&self) -> &[u8] {
        self.connection.output()
    }

    /// The first `count` bytes of [`Channels::output`] were written.
    pub fn written(&mut self, count: usize) {
        self.connection.written(count);
    }

    /// A message for a channel; `None` after a close.
    ///
    /// # Errors
    /// [`SendError::TooLong`].
    pub fn frame<'p>(&self, channel: u8, payload: &'p [u8]) -> Result<Option<Frame<'p>>, SendError> {
        Ok(match self.codec {
            Codec::Binary => {
                self.head(channel, payload.len())?.map(|head| Frame { head, body: Cow::Borrowed(payload) })
            }
            Codec::Base64 if payload.len() > MAX_PAYLOAD => return Err(SendError::TooLong(payload.len())),
            Codec::Base64 => {
                let body = encode(channel, payload);
                self.connection
                    .message(Kind::Text, body.len())
                    .map(|head| Frame { head, body: Cow::Owned(body) })
            }
        })
    }

    /// Whether messages carry bytes as they are.
    pub(crate) fn is_plain(&self) -> bool {
        self.codec == Codec::Binary
    }

    /// The head of a binary message of `length` bytes for a channel, which the caller writes after it; `None` after a close.
    ///
    /// # Errors
    /// [`SendError::TooLong`].
    pub(crate) fn head(&self, channel: u8, length: usize) -> Result<Option<Head>, SendError> {
        if length > MAX_PAYLOAD {
            return Err(SendError::TooLong(length));
        }
        Ok(self.connection.message(Kind::Binary, length + 1).map(|head| head.with(&[channel])))
    }

    /// Queues a short message for a channel.
    pub(crate) fn queue(&mut self, channel: u8, payload: &[u8]) {
        match self.codec {
            Codec::Binary => self.connection.queue(Kind::Binary, [&[channel], payload]),
            Codec::Base64 => self.connection.queue(Kind::Text, [&encode(channel, payload), &[]]),
        }
    }

    /// Queues a ping.
    pub fn ping(&mut self) {
        self.connection.ping();
    }

    /// Ends the session as done.
    pub fn close(&mut self) {
        self.connection.close(Some(NORMAL));
    }
}

/// A message of the base64 protocols.
fn encode(channel: u8, payload: &[u8]) -> Vec<u8> {
    let mut text = String::from(char::from(b'0'.wrapping_add(channel)));
    BASE64.encode_string(payload, &mut text);
    text.into_bytes()
}

/// Decodes one message, piece by piece.
#[derive(Debug, Default)]
struct Decoder {
    /// Characters that are not decoded yet: less than four.
    chars: Vec<u8>,
    /// Padding has come, which ends the message.
    padded: bool,
}

impl Decoder {
    /// What the next piece decodes to.
    fn decode(&mut self, piece: &[u8], last: bool) -> Result<Vec<u8>, Error> {
        let before = self.chars.len();
        // Go's decoder skips line ends, and so some clients send them.
        self.chars.extend(piece.iter().filter(|byte| !matches!(byte, b'\r' | b'\n')));
        if self.padded && self.chars.len() > before {
            return Err(Error::Base64);
        }
        let chars = std::mem::take(&mut self.chars);
        let (quads, rest) = chars.split_at(chars.len() - chars.len() % 4);
        if last && !rest.is_empty() {
            return Err(Error::Base64);
        }
        self.padded |= quads.ends_with(b"=");
        self.chars = rest.to_vec();
        BASE64.decode(quads).map_err(|_| Error::Base64)
    }
}
