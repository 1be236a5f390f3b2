//! Finds the two streams of each connection.
//!
//! ```text
//!   SYN_STREAM          other stream of the pair          both directions ended, reset, failed
//!  ───────────► waiting ───────────────────────► open ────────────────────────────────────────► (gone)
//!                  └── time is up, or the client resets one: both are given up
//! ```

use std::borrow::Cow;
use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::transport::Transport;
use super::{Error, Event, Id, shorten};
use crate::input::Input;
use crate::output::{Frame, Head, SendError};
use crate::spdy::{self, Headers, StreamId};

/// Maximum number of connections of a session at a time; each has two streams. A browser opens some dozens; each
/// costs the daemon a socket.
pub const MAX_CONNECTIONS: usize = 512;
/// Longest request id; Go's clients count.
const MAX_REQUEST_ID: usize = 64;
/// Bytes of data, for all waiting connections together, that come before the error stream. Go's clients wait for the
/// reply to each stream and so send none.
const MAX_EARLY: usize = 64 * 1024;

/// What the two streams of a connection have in common.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    /// Header `requestID`.
    Given(String),
    /// Clients from before 2016 give none: id of the error stream, which the data stream follows.
    Order(u32),
}

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Error,
    Data,
}

/// A connection of which one stream has come.
#[derive(Debug)]
struct Waiting {
    since: Instant,
    error: Option<StreamId>,
    data: Option<(StreamId, u16)>,
    /// What came on the data stream.
    early: Vec<u8>,
    /// The data stream's end has come.
    ended: bool,
}

/// A connection whose streams are both there.
#[derive(Debug)]
struct Open {
    error: StreamId,
    data: StreamId,
}

/// All connections of a session.
#[derive(Debug)]
pub(super) struct Pairs {
    transport: Transport,
    /// Longest time between the two streams of a connection.
    wait: Duration,
    waiting: HashMap<Key, Waiting>,
    /// The streams in `waiting`.
    keys: HashMap<StreamId, Key>,
    /// By the number of the data stream.
    open: HashMap<u32, Open>,
    /// Bytes in `waiting`.
    early: usize,
    /// The connection that was opened last, with what had come on its data stream before: bytes, and whether its end.
    due: Option<(Id, Vec<u8>, bool)>,
}

impl Pairs {
    pub(super) fn new(tunnelled: bool, wait: Duration) -> Self {
        Self {
            transport: Transport::new(2 * MAX_CONNECTIONS, tunnelled),
            wait,
            waiting: HashMap::new(),
            keys: HashMap::new(),
            open: HashMap::new(),
            early: 0,
            due: None,
        }
    }

    /// As [`super::Session::receive`].
    pub(super) fn receive<'i>(
        &mut self,
        input: &mut Input<'i>,
        now: Instant,
    ) -> Result<Option<Event<'i>>, Error> {
        loop {
            if let Some(event) = self.due() {
                return Ok(Some(event));
            }
            let Some(event) = self.transport.receive(input)? else { return Ok(None) };
            let event = match event {
                spdy::Event::Opened { id, headers, ended } => self.opened(id, &headers, ended, now),
                spdy::Event::Data { id, bytes } => self.data(id, bytes),
                spdy::Event::Ended { id } => self.ended(id),
                spdy::Event::Reset { id } => self.reset(id),
                spdy::Event::GoAway => Some(Event::Gone),
            };
            if event.is_some() {
                return Ok(event);
            }
        }
    }

    /// What came on a data stream before both streams of its connection were there.
    fn due<'i>(&mut self) -> Option<Event<'i>> {
        let (id, bytes, ended) = self.due.take()?;
        if bytes.is_empty() {
            return ended.then_some(Event::Ended { id });
        }
        self.due = Some((id, Vec::new(), ended));
        Some(Event::Data { id, bytes: Cow::Owned(bytes) })
    }

    fn opened<'i>(
        &mut self,
        id: StreamId,
        headers: &Headers,
        ended: bool,
        now: Instant,
    ) -> Option<Event<'i>> {
        let Some((kind, port, key)) = request(id, headers) else {
            self.transport.command(|spdy| spdy.reset(id));
            return None;
        };
        let waiting = self.waiting.entry(key.clone()).or_insert_with(|| Waiting::new(now));
        let taken = match kind {
            Kind::Error => waiting.error.is_some(),
            Kind::Data => waiting.data.is_some(),
        };
        if taken {
            let error = waiting.error;
            self.transport.command(|spdy| {
                spdy.reset(id);
                if let Some(error) = error {
                    // It fails only after this side's end, which is not sent while the pair waits.
                    let _told = spdy.text(error, b"a second stream of the same type for this connection");
                }
            });
            return None;
        }
        self.transport.command(|spdy| spdy.accept(id));
        match kind {
            Kind::Error => waiting.error = Some(id),
            Kind::Data => {
                waiting.data = Some((id, port));
                waiting.ended = ended;
            }
        }
        if let (Some(error), Some((data, port))) = (waiting.error, waiting.data) {
            return self.complete(&key, error, data, port);
        }
        self.keys.insert(id, key);
        None
    }

    /// Both streams are there.
    fn complete<'i>(&mut self, key: &Key, error: StreamId, data: StreamId, port: u16) -> Option<Event<'i>> {
        let waiting = self.forget(key)?;
        self.open.insert(data.get(), Open { error, data });
        let id = Id(data.get());
        self.due = Some((id, waiting.early, waiting.ended));
        Some(Event::Opened { id, port })
    }

    fn data<'i>(&mut self, id: StreamId, bytes: &'i [u8]) -> Option<Event<'i>> {
        if self.open.contains_key(&id.get()) {
            return Some(Event::Data { id: Id(id.get()), bytes: Cow::Borrowed(bytes) });
        }
        let key = self.keys.get(&id)?;
        let waiting = self.waiting.get_mut(key).filter(|waiting| waiting.is_data(id))?;
        if self.early + bytes.len() > MAX_EARLY {
            let key = key.clone();
            self.give_up(&key, "data before the error stream was created");
            return None;
        }
        self.early += bytes.len();
        waiting.early.extend_from_slice(bytes);
        None
    }

    fn ended<'i>(&mut self, id: StreamId) -> Option<Event<'i>> {
        if self.open.contains_key(&id.get()) {
            return Some(Event::Ended { id: Id(id.get()) });
        }
        let waiting = self.waiting.get_mut(self.keys.get(&id)?)?;
        waiting.ended |= waiting.is_data(id);
        None
    }

    /// A reset of the error stream does not end an open connection; its error text is not sent any more.
    fn reset<'i>(&mut self, id: StreamId) -> Option<Event<'i>> {
        if self.open.contains_key(&id.get()) {
            return Some(Event::Reset { id: Id(id.get()) });
        }
        if let Some(key) = self.keys.get(&id).cloned() {
            self.give_up(&key, "the other stream of this connection was reset");
        }
        None
    }

    /// Takes a connection out of those that wait.
    fn forget(&mut self, key: &Key) -> Option<Waiting> {
        let waiting = self.waiting.remove(key)?;
        let streams = waiting.error.into_iter().chain(waiting.data.map(|(id, _)| id));
        streams.for_each(|id| drop(self.keys.remove(&id)));
        self.early -= waiting.early.len();
        Some(waiting)
    }

    /// Ends a connection that waits.
    fn give_up(&mut self, key: &Key, why: &str) {
        let Some(Waiting { error, data, .. }) = self.forget(key) else { return };
        self.transport.command(|spdy| {
            if let Some(error) = error {
                end_error(spdy, error, Some(why));
            }
            if let Some((data, _)) = data {
                spdy.reset(data);
            }
        });
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.waiting.values().map(|waiting| waiting.since + self.wait).min()
    }

    pub(super) fn expire(&mut self, now: Instant) {
        let late = |waiting: &Waiting| waiting.since + self.wait <= now;
        let keys: Vec<Key> =
            self.waiting.iter().filter(|(_, waiting)| late(waiting)).map(|(key, _)| key.clone()).collect();
        for key in keys {
            self.give_up(&key, "the other stream of this connection was not created in time");
        }
    }

    pub(super) fn output(&self) -> &[u8] {
        self.transport.output()
    }

    pub(super) fn written(&mut self, count: usize) {
        self.transport.written(count);
    }

    pub(super) fn frame<'p>(&mut self, id: Id, payload: &'p [u8]) -> Result<Option<Frame<'p>>, SendError> {
        let Open { data, .. } = self.open.get(&id.0).ok_or(SendError::Unknown)?;
        self.transport.frame(*data, payload)
    }

    pub(super) fn head(&mut self, id: Id, length: usize) -> Result<Option<Head>, SendError> {
        let Open { data, .. } = self.open.get(&id.0).ok_or(SendError::Unknown)?;
        self.transport.head(*data, length)
    }

    pub(super) fn finish(&mut self, id: Id) {
        if let Some(Open { data, .. }) = self.open.get(&id.0) {
            self.transport.command(|spdy| spdy.finish(*data));
        }
    }

    /// As [`super::Session::close`]. Go's client reads the data stream to its end or reset, and then the error stream.
    pub(super) fn close(&mut self, id: Id, failure: Option<&str>) {
        let Some(Open { error, data }) = self.open.remove(&id.0) else { return };
        if self.due.as_ref().is_some_and(|(due, ..)| *due == id) {
            self.due = None;
        }
        self.transport.command(|spdy| {
            end_error(spdy, error, failure);
            if failure.is_none() {
                spdy.finish(data);
            }
            spdy.reset(data);
        });
    }

    /// Entries in all tables.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.waiting.len() + self.keys.len() + self.open.len()
    }

    pub(super) fn ping(&mut self) {
        self.transport.ping();
    }

    pub(super) fn leave(&mut self) {
        self.transport.leave();
    }
}

impl Waiting {
    fn new(since: Instant) -> Self {
        Self { since, error: None, data: None, early: Vec::new(), ended: false }
    }

    fn is_data(&self, id: StreamId) -> bool {
        self.data.is_some_and(|(data, _)| data == id)
    }
}

/// Says why a connection failed, if it did, and ends its error stream.
fn end_error(spdy: &mut spdy::Connection, error: StreamId, failure: Option<&str>) {
    if let Some(text) = failure {
        // It fails only if this side's end was sent, which happens here alone.
        let _told = spdy.text(error, shorten(text).as_bytes());
    }
    spdy.finish(error);
    spdy.release(error);
}

/// What a stream is for; `None` if its headers do not say.
fn request(id: StreamId, headers: &Headers) -> Option<(Kind, u16, Key)> {
    let kind = match headers.get("streamtype")? {
        "error" => Kind::Error,
        "data" => Kind::Data,
        _ => return None,
    };
    let digits = headers.get("port")?;
    let port = digits.parse::<u16>().ok().filter(|port| *port > 0 && !digits.starts_with('+'))?;
    let key = match headers.get("requestid").filter(|request| !request.is_empty()) {
        Some(request) if request.len() > MAX_REQUEST_ID => return None,
        Some(request) => Key::Given(request.to_owned()),
        None if kind == Kind::Error => Key::Order(id.get()),
        None => Key::Order(id.get().wrapping_sub(2)),
    };
    Some((kind, port, key))
}
