//! SPDY over TCP, or in the messages of a WebSocket connection.

use super::Error;
use crate::input::Input;
use crate::output::{Frame, Head, SendError};
use crate::spdy::{Connection, Event, StreamId};
use crate::websocket::{self, Kind};
use std::borrow::Cow;

/// Close code of a tunnel that is done.
const NORMAL: u16 = 1000;
/// Close code of a tunnel in which the client did not speak SPDY.
const PROTOCOL_ERROR: u16 = 1002;

/// What carries the streams.
#[derive(Debug)]
pub(super) struct Transport {
    connection: Connection,
    /// All output goes through it: `connection` has none between two calls.
    tunnel: Option<websocket::Connection>,
}

impl Transport {
    /// A connection right after the upgrade, on which at most `streams` are in use.
    pub(super) fn new(streams: usize, tunnelled: bool) -> Self {
        Self { connection: Connection::new(streams), tunnel: tunnelled.then(websocket::Connection::new) }
    }

    /// The next event of SPDY; a closed tunnel is a client that leaves.
    pub(super) fn receive<'i>(&mut self, input: &mut Input<'i>) -> Result<Option<Event<'i>>, Error> {
        let Some(tunnel) = &mut self.tunnel else { return Ok(self.connection.receive(&mut input.raw)?) };
        loop {
            if input.inner.is_empty() {
                match tunnel.receive(&mut input.raw)? {
                    None => return Ok(None),
                    Some(websocket::Event::Closed(_)) => return Ok(Some(Event::GoAway)),
                    Some(websocket::Event::Data(piece)) if piece.kind == Kind::Text => {
                        tunnel.fail(websocket::Error::Text);
                        return Err(websocket::Error::Text.into());
                    }
                    // Where messages begin and end means nothing.
                    Some(websocket::Event::Data(piece)) => input.inner = piece.bytes,
                }
            }
            if tunnel.is_full() {
                return Ok(None);
            }
            let event = self.connection.receive(&mut input.inner);
            settle(&mut self.connection, tunnel);
            match event {
                Ok(None) => {}
                Ok(event) => return Ok(event),
                Err(error) => {
                    tunnel.stop(PROTOCOL_ERROR);
                    return Err(error.into());
                }
            }
        }
    }

    /// Gives `connection` commands.
    pub(super) fn command<R>(&mut self, command: impl FnOnce(&mut Connection) -> R) -> R {
        let result = command(&mut self.connection);
        if let Some(tunnel) = &mut self.tunnel {
            settle(&mut self.connection, tunnel);
        }
        result
    }

    /// A data frame of a stream.
    pub(super) fn frame<'p>(
        &mut self,
        id: StreamId,
        payload: &'p [u8],
    ) -> Result<Option<Frame<'p>>, SendError> {
        Ok(self.head(id, payload.len())?.map(|head| Frame { head, body: Cow::Borrowed(payload) }))
    }

    /// The head of a data frame, whose payload of `length` bytes the caller writes after it.
    pub(super) fn head(&mut self, id: StreamId, length: usize) -> Result<Option<Head>, SendError> {
        let Some(inner) = self.connection.data(id, length, false)? else { return Ok(None) };
        let outer = match &self.tunnel {
            None => Some(Head::new()),
            Some(tunnel) => tunnel.message(Kind::Binary, inner.len() + length),
        };
        Ok(outer.map(|outer| outer.with(&inner)))
    }

    pub(super) fn output(&self) -> &[u8] {
        match &self.tunnel {
            None => self.connection.output(),
            Some(tunnel) => tunnel.output(),
        }
    }

    pub(super) fn written(&mut self, count: usize) {
        match &mut self.tunnel {
            None => self.connection.written(count),
            Some(tunnel) => tunnel.written(count),
        }
    }

    pub(super) fn ping(&mut self) {
        if let Some(tunnel) = &mut self.tunnel {
            tunnel.ping();
        }
    }

    /// Ends the connection.
    pub(super) fn leave(&mut self) {
        self.command(Connection::go_away);
        if let Some(tunnel) = &mut self.tunnel {
            tunnel.close(Some(NORMAL));
        }
    }
}

/// Moves what SPDY sends into the tunnel.
fn settle(connection: &mut Connection, tunnel: &mut websocket::Connection) {
    let output = connection.output();
    if !output.is_empty() {
        tunnel.queue(Kind::Binary, [output, &[]]);
        let moved = output.len();
        connection.written(moved);
    }
}
