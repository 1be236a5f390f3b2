//! Exec and attach: stdin, stdout, stderr, a status and terminal sizes, over SPDY or WebSocket.
//!
//! ```text
//!            ┌ spdy:      a stream for each, named by its header `streamType`
//!  session ──┤                                                              ──► Ready, Stdin, Resize, …
//!            └ websocket: a channel for each, numbered                          ◄── stdout, stderr, outcome
//! ```
//!
//! The versions of the protocol, named `channel.k8s.io`, `v2.channel.k8s.io` and so on:
//!
//! | version | over | status of the process | terminal sizes | end of stdin |
//! | --- | --- | --- | --- | --- |
//! | 1 | SPDY | text, only if it could not be started | – | FIN |
//! | 2 | SPDY | text, on failure only | – | FIN |
//! | 3 | SPDY | text, on failure only | yes | FIN |
//! | 4 | SPDY | JSON, always | yes | FIN |
//! | none, 1 | WebSocket | text, on failure only | yes | cannot be sent |
//! | 4 | WebSocket | JSON, always | yes | cannot be sent |
//! | 5 | WebSocket | JSON, always | yes | a message |
//!
//! Go's server resets version 1's error stream before the process starts, so that its clients never learn why one
//! failed. Here they get the reason why a process could not be started. They do not get an exit code either: at a text,
//! client-go's version 1 ends, and drops the output that it has not read yet.

mod incoming;
mod resize;
mod spdy;
mod status;
#[cfg(test)]
mod tests;
mod websocket;

pub use incoming::{Error, Event};
pub use resize::Size;
pub use status::Outcome;

use crate::input::Input;
use crate::output::{Frame, SendError};
use crate::websocket::Codec;
use incoming::Incoming;

/// What a request asked for (CRI's ExecRequest and AttachRequest).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Streams {
    /// The client sends stdin.
    pub stdin: bool,
    /// It wants stdout, which is all output of a terminal.
    pub stdout: bool,
    /// It wants stderr, which does not exist with a terminal.
    pub stderr: bool,
    /// The process has a terminal, whose size the client may set.
    pub tty: bool,
}

impl Streams {
    /// Whether a channel is used.
    fn want(self, channel: Channel) -> bool {
        match channel {
            Channel::Stdin => self.stdin,
            Channel::Stdout => self.stdout,
            Channel::Stderr => self.stderr && !self.tty,
            Channel::Error => true,
            Channel::Resize => self.tty,
        }
    }
}

/// Version of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// The first, without a number in its name.
    V1,
    /// With the exit code, as text.
    V2,
    /// With terminal sizes.
    V3,
    /// With the status as JSON.
    V4,
    /// With the end of stdin; WebSocket only.
    V5,
}

/// What client and server agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Streams of SPDY/3.1.
    Spdy(Version),
    /// Channels of WebSocket.
    WebSocket(Version, Codec),
}

/// Where output goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// Standard output, or the terminal's.
    Stdout,
    /// Standard error.
    Stderr,
}

/// The byte streams of a session, with WebSocket's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Channel {
    Stdin = 0,
    Stdout = 1,
    Stderr = 2,
    Error = 3,
    Resize = 4,
}

impl Channel {
    const ALL: [Self; 5] = [Self::Stdin, Self::Stdout, Self::Stderr, Self::Error, Self::Resize];
}

impl From<Output> for Channel {
    fn from(to: Output) -> Self {
        match to {
            Output::Stdout => Self::Stdout,
            Output::Stderr => Self::Stderr,
        }
    }
}

/// One client's exec or attach.
///
/// The caller repeats: call [`Session::receive`] until there is no event, and handle each before the next call; write
/// [`Session::output`]; read. On an error or [`Event::Gone`] it writes the output once more and closes.
#[derive(Debug)]
pub struct Session {
    wire: Wire,
    incoming: Incoming,
}

/// What is below.
#[derive(Debug)]
enum Wire {
    Spdy(spdy::Transport),
    WebSocket(websocket::Transport),
}

impl Session {
    /// A session right after the upgrade.
    pub fn new(protocol: Protocol, streams: Streams) -> Self {
        let wire = match protocol {
            Protocol::Spdy(version) => Wire::Spdy(spdy::Transport::new(version, streams)),
            Protocol::WebSocket(version, codec) => {
                Wire::WebSocket(websocket::Transport::new(version, codec, streams))
            }
        };
        Self { wire, incoming: Incoming::new(streams) }
    }

    /// Takes bytes from the front of `input` up to the next event. `None` means that the input is used up or, if bytes
    /// are left, that [`Session::output`] must be written first. With WebSocket the first event needs no input.
    ///
    /// # Errors
    /// [`Error`]: the client broke the protocol; the output says so to it, and all further input is dropped.
    pub fn receive<'i>(&mut self, input: &mut Input<'i>) -> Result<Option<Event<'i>>, Error> {
        loop {
            if let Some(event) = self.incoming.due() {
                return Ok(Some(event));
            }
            let step = match &mut self.wire {
                Wire::Spdy(spdy) => spdy.receive(&mut input.raw)?,
                Wire::WebSocket(websocket) => websocket.receive(&mut input.raw)?,
            };
            let Some(step) = step else { return Ok(None) };
            match self.incoming.take(step) {
                Ok(None) => {}
                Ok(event) => return Ok(event),
                Err(error) => {
                    self.leave();
                    return Err(error);
                }
            }
        }
    }

    /// Whether all streams are there: [`Event::Ready`] was given. The caller limits the wait.
    pub fn is_ready(&self) -> bool {
        self.incoming.is_ready()
    }

    /// Bytes for the client, to be written before any frame that is made later.
    pub fn output(&self) -> &[u8] {
        match &self.wire {
            Wire::Spdy(spdy) => spdy.connection().output(),
            Wire::WebSocket(websocket) => websocket.output(),
        }
    }

    /// The first `count` bytes of [`Session::output`] were written.
    pub fn written(&mut self, count: usize) {
        match &mut self.wire {
            Wire::Spdy(spdy) => spdy.written(count),
            Wire::WebSocket(websocket) => websocket.written(count),
        }
    }

    /// A frame of output, at most [`crate::MAX_PAYLOAD`] bytes; `None` if the client does not want it: it did not ask
    /// for this stream, has reset it, or closes.
    ///
    /// # Errors
    /// [`SendError`].
    pub fn frame<'p>(&mut self, to: Output, payload: &'p [u8]) -> Result<Option<Frame<'p>>, SendError> {
        match &mut self.wire {
            Wire::Spdy(spdy) => spdy.frame(to.into(), payload),
            Wire::WebSocket(websocket) => websocket.frame(to.into(), payload),
        }
    }

    /// The process reads no more: drops what the client still sends to its stdin, and tells it where that is possible.
    pub fn drop_stdin(&mut self) {
        self.incoming.drop_stdin();
        if let Wire::Spdy(spdy) = &mut self.wire {
            spdy.finish(Channel::Stdin);
        }
    }

    /// Ends the session, after all output was written: ends stdout and stderr, sends the outcome, and closes. It may
    /// be called before the session is ready; the client gets the outcome if there is a stream for it.
    pub fn finish(&mut self, outcome: &Outcome) {
        match &mut self.wire {
            Wire::Spdy(spdy) => spdy.end(outcome),
            Wire::WebSocket(websocket) => websocket.end(outcome),
        }
    }

    /// Queues a ping, so that proxies keep an idle connection; SPDY has none here, as in Go's server.
    pub fn ping(&mut self) {
        if let Wire::WebSocket(websocket) = &mut self.wire {
            websocket.ping();
        }
    }

    fn leave(&mut self) {
        match &mut self.wire {
            Wire::Spdy(spdy) => spdy.leave(),
            Wire::WebSocket(websocket) => websocket.leave(),
        }
    }
}
