//! The connection: answers pings and closes.

use super::reader::{Error, Kind, Part, Piece, Reader};
use crate::output::{Head, Queue};

/// What the client did.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'i> {
    /// It sent part of a message.
    Data(Piece<'i>),
    /// It closed, with this code if it gave one. The answer is in the output.
    Closed(Option<u16>),
}

/// The server's side of a WebSocket connection.
#[derive(Debug)]
pub struct Connection {
    reader: Reader,
    /// The client's close frame has come, or its bytes are no WebSocket: nothing is read any more.
    received_close: bool,
    /// A close frame was sent: nothing may follow it.
    sent_close: bool,
    output: Queue,
}

impl Connection {
    /// A connection right after the upgrade.
    pub fn new() -> Self {
        Self { reader: Reader::new(), received_close: false, sent_close: false, output: Queue::default() }
    }

    /// Takes bytes from the front of `input` up to the next event. `None` means that the input is used up or, if bytes
    /// are left, that [`Connection::output`] must be written first.
    ///
    /// # Errors
    /// [`Error`] if a client may not send that. A close frame with the code is in the output then, and all further
    /// input is dropped.
    pub fn receive<'i>(&mut self, input: &mut &'i mut [u8]) -> Result<Option<Event<'i>>, Error> {
        while !self.output.is_full() {
            if self.received_close {
                *input = &mut [];
                return Ok(None);
            }
            match self.reader.next(input) {
                Ok(None) => return Ok(None),
                Ok(Some(Part::Data(piece))) => return Ok(Some(Event::Data(piece))),
                Ok(Some(Part::Pong)) => {}
                Ok(Some(Part::Ping(content))) => {
                    if !self.sent_close {
                        self.output.push(&head(PONG, content.len()));
                        self.output.push(content);
                    }
                }
                Ok(Some(Part::Close(code))) => {
                    self.close(code);
                    self.received_close = true;
                    return Ok(Some(Event::Closed(code)));
                }
                Err(error) => {
                    self.fail(error);
                    return Err(error);
                }
            }
        }
        Ok(None)
    }

    /// Control frames for the client.
    pub fn output(&self) -> &[u8] {
        self.output.pending()
    }

    /// The first `count` bytes of [`Connection::output`] were written.
    pub fn written(&mut self, count: usize) {
        self.output.advance(count);
    }

    /// Whether input must wait until output was written.
    pub(crate) fn is_full(&self) -> bool {
        self.output.is_full()
    }

    /// The head of a message with a payload of `length` bytes, which the caller writes after it; `None` after a close.
    pub(crate) fn message(&self, kind: Kind, length: usize) -> Option<Head> {
        let opcode = match kind {
            Kind::Text => TEXT,
            Kind::Binary => BINARY,
        };
        (!self.sent_close).then(|| head(opcode, length))
    }

    /// Queues a short message.
    pub(crate) fn queue(&mut self, kind: Kind, parts: [&[u8]; 2]) {
        let length = parts.iter().map(|part| part.len()).sum();
        if let Some(head) = self.message(kind, length) {
            self.output.push(&head);
            parts.iter().for_each(|part| self.output.push(part));
        }
    }

    /// Queues a ping. The client's answer is no event; that bytes arrive shows that it lives.
    pub fn ping(&mut self) {
        if !self.sent_close {
            self.output.push(&head(PING, 0));
        }
    }

    /// Queues a close frame, once. The client answers with one, which is an event; the caller limits the wait.
    pub fn close(&mut self, code: Option<u16>) {
        if std::mem::replace(&mut self.sent_close, true) {
            return;
        }
        let code = code.map(u16::to_be_bytes);
        let payload: &[u8] = code.as_ref().map_or(&[], |bytes| bytes);
        self.output.push(&head(CLOSE, payload.len()));
        self.output.push(payload);
    }

    /// The client broke the protocol: says so, and reads no more.
    pub(crate) fn fail(&mut self, error: Error) {
        self.stop(error.code());
    }

    /// Queues a close frame, and reads no more.
    pub(crate) fn stop(&mut self, code: u16) {
        self.close(Some(code));
        self.received_close = true;
    }
}

impl Default for Connection {
    fn default() -> Self {
        Self::new()
    }
}

const TEXT: u8 = 0x81;
const BINARY: u8 = 0x82;
const CLOSE: u8 = 0x88;
const PING: u8 = 0x89;
const PONG: u8 = 0x8a;

/// Header of a whole message or control frame; a server does not mask.
fn head(opcode: u8, length: usize) -> Head {
    match (u8::try_from(length), u16::try_from(length)) {
        (Ok(short @ ..=125), _) => Head::new().with(&[opcode, short]),
        (_, Ok(medium)) => Head::new().with(&[opcode, 126]).with(&medium.to_be_bytes()),
        _ => Head::new().with(&[opcode, 127]).with(&(length as u64).to_be_bytes()),
    }
}
