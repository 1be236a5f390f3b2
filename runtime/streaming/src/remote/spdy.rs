//! Streams of SPDY for the channels of a session.

use std::borrow::Cow;

use super::incoming::Step;
use super::{Channel, Outcome, Version};
use crate::output::{Frame, SendError};
use crate::spdy::{Connection, Error, Event, Headers, StreamId};

/// Streams that a client may have at a time: five are used, and a refused one frees its place at once.
const MAX_STREAMS: usize = 8;

/// The streams of a session.
#[derive(Debug)]
pub(super) struct Transport {
    connection: Connection,
    version: Version,
    wanted: super::Streams,
    /// By channel.
    ids: [Option<StreamId>; Channel::ALL.len()],
    /// [`Step::Ready`] was given.
    ready: bool,
}

impl Transport {
    pub(super) fn new(version: Version, wanted: super::Streams) -> Self {
        let connection = Connection::new(MAX_STREAMS);
        Self { connection, version, wanted, ids: [None; Channel::ALL.len()], ready: false }
    }

    /// As [`super::Session::receive`].
    pub(super) fn receive<'i>(&mut self, input: &mut &'i mut [u8]) -> Result<Option<Step<'i>>, Error> {
        loop {
            if !self.ready && self.is_complete() {
                self.ready = true;
                self.begin_status();
                return Ok(Some(Step::Ready));
            }
            let Some(event) = self.connection.receive(input)? else { return Ok(None) };
            let step = match event {
                Event::Opened { id, headers, ended } => self.opened(id, &headers, ended),
                Event::Data { id, bytes } => {
                    self.channel(id).map(|channel| Step::Bytes(channel, Cow::Borrowed(bytes)))
                }
                Event::Ended { id } | Event::Reset { id } => self.channel(id).map(Step::Ended),
                Event::GoAway => Some(Step::Gone),
            };
            if step.is_some() {
                return Ok(step);
            }
        }
    }

    /// Begins the status with white space, which JSON allows before a value. Go's client takes an error stream that ends
    /// empty for success, also when the connection was lost because this process was killed; white space alone is an
    /// error to it (<https://github.com/kubernetes/kubernetes/issues/73056>). Before version 4, success is an empty stream.
    fn begin_status(&mut self) {
        if self.version >= Version::V4
            && let Some(id) = self.id(Channel::Error)
        {
            // It fails only if the session was ended before.
            let _told = self.connection.text(id, b" ");
        }
    }

    /// A stream that was not requested, or exists already, is refused, so that a client that needs it fails at once.
    fn opened<'i>(&mut self, id: StreamId, headers: &Headers, ended: bool) -> Option<Step<'i>> {
        let channel = match headers.get("streamtype") {
            Some("stdin") => Some(Channel::Stdin),
            Some("stdout") => Some(Channel::Stdout),
            Some("stderr") => Some(Channel::Stderr),
            Some("error") => Some(Channel::Error),
            Some("resize") => Some(Channel::Resize),
            _ => None,
        };
        let channel = channel.filter(|channel| self.wants(*channel) && self.id(*channel).is_none());
        let place = channel.and_then(|channel| self.ids.get_mut(channel as usize));
        let (Some(channel), Some(place)) = (channel, place) else {
            self.connection.reset(id);
            return None;
        };
        *place = Some(id);
        self.connection.accept(id);
        ended.then_some(Step::Ended(channel))
    }

    fn wants(&self, channel: Channel) -> bool {
        self.wanted.want(channel) && (channel != Channel::Resize || self.version >= Version::V3)
    }

    fn is_complete(&self) -> bool {
        Channel::ALL.into_iter().all(|channel| !self.wants(channel) || self.id(channel).is_some())
    }

    fn id(&self, channel: Channel) -> Option<StreamId> {
        self.ids.get(channel as usize).copied().flatten()
    }

    fn channel(&self, id: StreamId) -> Option<Channel> {
        Channel::ALL.into_iter().find(|channel| self.id(*channel) == Some(id))
    }

    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }

    pub(super) fn written(&mut self, count: usize) {
        self.connection.written(count);
    }

    /// As [`super::Session::frame`].
    pub(super) fn frame<'p>(
        &mut self,
        to: Channel,
        payload: &'p [u8],
    ) -> Result<Option<Frame<'p>>, SendError> {
        let Some(id) = self.id(to) else { return Ok(None) };
        let head = self.connection.data(id, payload.len(), false)?;
        Ok(head.map(|head| Frame { head, body: Cow::Borrowed(payload) }))
    }

    /// Ends this side of a channel.
    pub(super) fn finish(&mut self, channel: Channel) {
        if let Some(id) = self.id(channel) {
            self.connection.finish(id);
        }
    }

    /// As [`super::Session::finish`]. Clients wait for the end of the output before they read the status, and read
    /// nothing after GOAWAY.
    pub(super) fn end(&mut self, outcome: &Outcome) {
        for channel in [Channel::Stdout, Channel::Stderr, Channel::Stdin] {
            self.finish(channel);
        }
        let status = match outcome {
            _ if self.version >= Version::V4 => Some(outcome.json()),
            // Its client would drop the output that it has not read yet.
            Outcome::Exit(_) if self.version == Version::V1 => None,
            _ => outcome.text().map(Into::into),
        };
        if let (Some(status), Some(id)) = (status, self.id(Channel::Error)) {
            // It fails only if the session was ended before.
            let _told = self.connection.text(id, &status);
        }
        self.finish(Channel::Error);
        self.connection.go_away();
    }

    /// Ends the connection without an outcome.
    pub(super) fn leave(&mut self) {
        self.connection.go_away();
    }
}
