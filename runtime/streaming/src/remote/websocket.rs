//! Channels of WebSocket for the channels of a session.

use super::incoming::Step;
use super::{Channel, Outcome, Version};
use crate::output::{Frame, SendError};
use crate::websocket::{self, ChannelEvent, Codec, Error};

/// The channels of a session.
#[derive(Debug)]
pub(super) struct Transport {
    channels: websocket::Channels,
    version: Version,
    wanted: super::Streams,
    /// [`Step::Ready`] was given.
    ready: bool,
}

impl Transport {
    /// Queues an empty message on the first channel that the client reads: some clients wait for it.
    pub(super) fn new(version: Version, codec: Codec, wanted: super::Streams) -> Self {
        let mut channels = websocket::Channels::new(codec, version >= Version::V5);
        let first = [Channel::Stdout, Channel::Stderr].into_iter().find(|channel| wanted.want(*channel));
        channels.queue(first.unwrap_or(Channel::Error) as u8, &[]);
        Self { channels, version, wanted, ready: false }
    }

    /// As [`super::Session::receive`]. There are no streams to wait for.
    pub(super) fn receive<'i>(&mut self, input: &mut &'i mut [u8]) -> Result<Option<Step<'i>>, Error> {
        if !std::mem::replace(&mut self.ready, true) {
            return Ok(Some(Step::Ready));
        }
        loop {
            let step = match self.channels.receive(input)? {
                None => return Ok(None),
                Some(ChannelEvent::Closed) => Some(Step::Gone),
                Some(ChannelEvent::Data { channel, bytes }) => {
                    numbered(channel).map(|channel| Step::Bytes(channel, bytes))
                }
                Some(ChannelEvent::Ended { channel }) => numbered(channel).map(Step::Ended),
            };
            if step.is_some() {
                return Ok(step);
            }
        }
    }

    pub(super) fn output(&self) -> &[u8] {
        self.channels.output()
    }

    pub(super) fn written(&mut self, count: usize) {
        self.channels.written(count);
    }

    /// As [`super::Session::frame`].
    pub(super) fn frame<'p>(&self, to: Channel, payload: &'p [u8]) -> Result<Option<Frame<'p>>, SendError> {
        if self.wanted.want(to) { self.channels.frame(to as u8, payload) } else { Ok(None) }
    }

    /// As [`super::Session::finish`]. The close frame ends all channels for the client.
    pub(super) fn end(&mut self, outcome: &Outcome) {
        let status =
            if self.version >= Version::V4 { Some(outcome.json()) } else { outcome.text().map(Into::into) };
        if let Some(status) = status {
            self.channels.queue(Channel::Error as u8, &status);
        }
        self.channels.close();
    }

    pub(super) fn ping(&mut self) {
        self.channels.ping();
    }

    /// Ends the connection without an outcome.
    pub(super) fn leave(&mut self) {
        self.channels.close();
    }
}

/// The channel with this number; others are ignored, as by Go's server.
fn numbered(number: u8) -> Option<Channel> {
    Channel::ALL.into_iter().find(|channel| *channel as u8 == number)
}
