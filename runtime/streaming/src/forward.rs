//! Port-forward: connections of the client to ports of a pod, over SPDY or WebSocket.
//!
//! ```text
//!            ┌ pairs: two SPDY streams for each connection ┌ over TCP
//!  session ──┤                                             └ over WebSocket, whose messages are an octet stream
//!            └ ports: two WebSocket channels for each port of the request (old)
//! ```
//!
//! A connection is a data stream, and an error stream on which the server says why it failed. Each direction of the
//! data stream ends by itself; the old form cannot say so, and has one connection for each port.

mod pairs;
mod ports;
#[cfg(test)]
mod tests;
mod transport;

pub use pairs::MAX_CONNECTIONS;
pub use ports::{MAX_PORTS, TooManyPorts};

use std::borrow::Cow;
use std::time::{Duration, Instant};

use crate::input::Input;
use crate::output::{Frame, Head, SendError};
use crate::websocket::Codec;
use crate::{spdy, websocket};

/// What client and server agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// `portforward.k8s.io` over SPDY/3.1.
    Spdy,
    /// The same in the messages of a WebSocket connection.
    Tunnel,
    /// Two channels for each port.
    Channels(Codec),
}

/// A forwarded connection; no later one of the session gets its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(u32);

/// What the client did.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'i> {
    /// It opened a connection. The caller connects to the port and, in the end, calls [`Session::close`].
    Opened {
        /// The connection.
        id: Id,
        /// Where it goes.
        port: u16,
    },
    /// It sent bytes.
    Data {
        /// On which connection.
        id: Id,
        /// Not empty.
        bytes: Cow<'i, [u8]>,
    },
    /// It sends nothing more; the other direction goes on.
    Ended {
        /// On which connection.
        id: Id,
    },
    /// It gave the connection up, in both directions.
    Reset {
        /// Which one.
        id: Id,
    },
    /// It has left, and with it all connections.
    Gone,
}

/// Why a session fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The streams.
    #[error("SPDY: {0}")]
    Spdy(#[from] spdy::Error),
    /// The connection below.
    #[error("WebSocket: {0}")]
    WebSocket(#[from] websocket::Error),
}

/// One client's port-forward; the caller's loop is that of [`crate::remote::Session`].
#[derive(Debug)]
pub struct Session(Wire);

/// What is below.
#[derive(Debug)]
enum Wire {
    Pairs(Box<pairs::Pairs>),
    Ports(ports::Ports),
}

impl Session {
    /// A session right after the upgrade. `ports` are the request's (CRI's PortForwardRequest); only the old form uses
    /// them, as with SPDY each connection names its port. `wait`: longest time between the two streams of a connection.
    ///
    /// # Errors
    /// More ports than the old form has channels for.
    pub fn new(protocol: Protocol, ports: &[u16], wait: Duration) -> Result<Self, TooManyPorts> {
        Ok(Self(match protocol {
            Protocol::Spdy => Wire::Pairs(Box::new(pairs::Pairs::new(false, wait))),
            Protocol::Tunnel => Wire::Pairs(Box::new(pairs::Pairs::new(true, wait))),
            Protocol::Channels(codec) => Wire::Ports(ports::Ports::new(codec, ports)?),
        }))
    }

    /// Takes bytes from the front of `input` up to the next event. `None` means that the input is used up or, if bytes
    /// are left, that [`Session::output`] must be written first. In the old form the first events need no input.
    ///
    /// # Errors
    /// [`Error`]: the client broke the protocol; the output says so to it, and all further input is dropped. What
    /// concerns one connection only is never an error.
    pub fn receive<'i>(&mut self, input: &mut Input<'i>, now: Instant) -> Result<Option<Event<'i>>, Error> {
        match &mut self.0 {
            Wire::Pairs(pairs) => pairs.receive(input, now),
            Wire::Ports(ports) => Ok(ports.receive(&mut input.raw)?),
        }
    }

    /// When [`Session::expire`] has something to do.
    pub fn deadline(&self) -> Option<Instant> {
        match &self.0 {
            Wire::Pairs(pairs) => pairs.deadline(),
            Wire::Ports(_) => None,
        }
    }

    /// Gives up connections whose second stream has not come in time.
    pub fn expire(&mut self, now: Instant) {
        if let Wire::Pairs(pairs) = &mut self.0 {
            pairs.expire(now);
        }
    }

    /// Bytes for the client, to be written before any frame that is made later.
    pub fn output(&self) -> &[u8] {
        match &self.0 {
            Wire::Pairs(pairs) => pairs.output(),
            Wire::Ports(ports) => ports.output(),
        }
    }

    /// The first `count` bytes of [`Session::output`] were written.
    pub fn written(&mut self, count: usize) {
        match &mut self.0 {
            Wire::Pairs(pairs) => pairs.written(count),
            Wire::Ports(ports) => ports.written(count),
        }
    }

    /// A frame of what the port sent, at most [`crate::MAX_PAYLOAD`] bytes; `None` if the client does not want it.
    ///
    /// # Errors
    /// [`SendError`].
    pub fn frame<'p>(&mut self, id: Id, payload: &'p [u8]) -> Result<Option<Frame<'p>>, SendError> {
        match &mut self.0 {
            Wire::Pairs(pairs) => pairs.frame(id, payload),
            Wire::Ports(ports) => ports.frame(id, payload),
        }
    }

    /// Whether payloads are sent as they are, so that [`Session::head`] may be used. Base64 is not.
    pub fn is_plain(&self) -> bool {
        match &self.0 {
            Wire::Pairs(_) => true,
            Wire::Ports(ports) => ports.is_plain(),
        }
    }

    /// As [`Session::frame`], for a payload of `length` bytes that the caller has elsewhere and writes after the head.
    ///
    /// # Errors
    /// [`SendError`].
    pub fn head(&mut self, id: Id, length: usize) -> Result<Option<Head>, SendError> {
        match &mut self.0 {
            Wire::Pairs(pairs) => pairs.head(id, length),
            Wire::Ports(ports) => ports.head(id, length),
        }
    }

    /// The port sends nothing more. Clients of Go answer this with a reset if they have not ended their direction.
    pub fn finish(&mut self, id: Id) {
        if let Wire::Pairs(pairs) = &mut self.0 {
            pairs.finish(id);
        }
    }

    /// Ends a connection in both directions and frees its place: after both have ended, after [`Event::Reset`], or
    /// with the reason why it failed. At a reason, Go's clients give up the whole session.
    pub fn close(&mut self, id: Id, failure: Option<&str>) {
        match &mut self.0 {
            Wire::Pairs(pairs) => pairs.close(id, failure),
            Wire::Ports(ports) => ports.close(id, failure),
        }
    }

    /// Queues a ping, so that proxies keep an idle connection; only WebSocket has one.
    pub fn ping(&mut self) {
        match &mut self.0 {
            Wire::Pairs(pairs) => pairs.ping(),
            Wire::Ports(ports) => ports.ping(),
        }
    }

    /// Ends the session.
    pub fn leave(&mut self) {
        match &mut self.0 {
            Wire::Pairs(pairs) => pairs.leave(),
            Wire::Ports(ports) => ports.leave(),
        }
    }
}

/// The beginning of a failure's text: all connections of a session may fail at once, and their texts are queued.
fn shorten(text: &str) -> &str {
    text.get(..text.floor_char_boundary(1024)).unwrap_or(text)
}
