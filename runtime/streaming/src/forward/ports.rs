//! The old form: the ports of the request, each with two channels of a WebSocket connection.
//!
//! Port n has data on channel 2n and errors on channel 2n + 1. The first message on each is the port, two bytes in
//! little endian. No channel can be closed: the connection closes when all ports are done.

use super::{Event, Id, shorten};
use crate::output::{Frame, Head, SendError};
use crate::websocket::{ChannelEvent, Channels, Codec, Error};

/// Maximum number of ports of a request. With base64, the channel's number is one character.
pub const MAX_PORTS: usize = 32;

/// A request with more than [`MAX_PORTS`] ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} ports to forward, at most {MAX_PORTS} are possible without SPDY")]
pub struct TooManyPorts(usize);

/// The ports of a session.
#[derive(Debug)]
pub(super) struct Ports {
    channels: Channels,
    /// In the request's order; `None` when done.
    ports: Vec<Option<u16>>,
    /// How many were given as [`Event::Opened`].
    opened: usize,
}

impl Ports {
    /// Queues the first message of each channel.
    pub(super) fn new(codec: Codec, ports: &[u16]) -> Result<Self, TooManyPorts> {
        if ports.len() > MAX_PORTS {
            return Err(TooManyPorts(ports.len()));
        }
        let mut channels = Channels::new(codec, false);
        for (channel, port) in (0u8..).zip(ports.iter().flat_map(|port| [port, port])) {
            channels.queue(channel, &port.to_le_bytes());
        }
        Ok(Self { channels, ports: ports.iter().copied().map(Some).collect(), opened: 0 })
    }

    /// As [`super::Session::receive`].
    pub(super) fn receive<'i>(&mut self, input: &mut &'i mut [u8]) -> Result<Option<Event<'i>>, Error> {
        while let Some(port) = self.ports.get(self.opened).copied() {
            let id = u32::try_from(self.opened).map(Id).ok();
            self.opened += 1;
            if let (Some(id), Some(port)) = (id, port) {
                return Ok(Some(Event::Opened { id, port }));
            }
        }
        loop {
            match self.channels.receive(input)? {
                None => return Ok(None),
                Some(ChannelEvent::Closed) => return Ok(Some(Event::Gone)),
                Some(ChannelEvent::Data { channel, bytes }) if channel % 2 == 0 => {
                    let id = Id(u32::from(channel / 2));
                    if self.is_open(id) {
                        return Ok(Some(Event::Data { id, bytes }));
                    }
                }
                // Errors are the server's to send.
                Some(ChannelEvent::Data { .. } | ChannelEvent::Ended { .. }) => {}
            }
        }
    }

    fn place(&mut self, id: Id) -> Option<&mut Option<u16>> {
        self.ports.get_mut(usize::try_from(id.0).ok()?)
    }

    fn is_open(&mut self, id: Id) -> bool {
        self.place(id).is_some_and(|port| port.is_some())
    }

    pub(super) fn output(&self) -> &[u8] {
        self.channels.output()
    }

    pub(super) fn written(&mut self, count: usize) {
        self.channels.written(count);
    }

    pub(super) fn frame<'p>(&mut self, id: Id, payload: &'p [u8]) -> Result<Option<Frame<'p>>, SendError> {
        match channel(id, 0).filter(|_| self.is_open(id)) {
            Some(channel) => self.channels.frame(channel, payload),
            None => Err(SendError::Unknown),
        }
    }

    pub(super) fn is_plain(&self) -> bool {
        self.channels.is_plain()
    }

    pub(super) fn head(&mut self, id: Id, length: usize) -> Result<Option<Head>, SendError> {
        match channel(id, 0).filter(|_| self.is_open(id)) {
            Some(channel) => self.channels.head(channel, length),
            None => Err(SendError::Unknown),
        }
    }

    /// As [`super::Session::close`].
    pub(super) fn close(&mut self, id: Id, failure: Option<&str>) {
        if !self.is_open(id) {
            return;
        }
        if let (Some(text), Some(channel)) = (failure, channel(id, 1)) {
            self.channels.queue(channel, shorten(text).as_bytes());
        }
        if let Some(port) = self.place(id) {
            *port = None;
        }
        if self.ports.iter().all(Option::is_none) {
            self.channels.close();
        }
    }

    pub(super) fn ping(&mut self) {
        self.channels.ping();
    }

    pub(super) fn leave(&mut self) {
        self.channels.close();
    }
}

/// Number of a port's channel: `which` is 0 for data, 1 for errors.
fn channel(id: Id, which: u32) -> Option<u8> {
    id.0.checked_mul(2).and_then(|first| u8::try_from(first + which).ok())
}
