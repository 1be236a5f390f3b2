//! What the targets share: sessions that are fed as a whole and in pieces, must understand and answer the same, and may
//! send only what a client can read.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use streaming::remote::{Outcome, Output, Protocol, Streams, Version};
use streaming::websocket::Codec;
use streaming::{Frame, Input, forward, remote};

mod answers;
pub mod client;
pub mod seeds;

use answers::Wire;

/// Most bytes that a session may have for a client that reads nothing: the limit above which it reads no more, and what
/// one event adds.
const MAX_OUTPUT: usize = 17 * 1024;

/// Every protocol of exec.
pub const EXEC: [Protocol; 9] = [
    Protocol::Spdy(Version::V1),
    Protocol::Spdy(Version::V2),
    Protocol::Spdy(Version::V3),
    Protocol::Spdy(Version::V4),
    Protocol::WebSocket(Version::V1, Codec::Binary),
    Protocol::WebSocket(Version::V1, Codec::Base64),
    Protocol::WebSocket(Version::V4, Codec::Binary),
    Protocol::WebSocket(Version::V4, Codec::Base64),
    Protocol::WebSocket(Version::V5, Codec::Binary),
];

/// Every protocol of port-forward.
pub const FORWARD: [forward::Protocol; 4] = [
    forward::Protocol::Spdy,
    forward::Protocol::Tunnel,
    forward::Protocol::Channels(Codec::Binary),
    forward::Protocol::Channels(Codec::Base64),
];

/// Ports of the old form of port-forward.
const PORTS: [u16; 2] = [80, 443];
/// Time for a client to create the second stream of a connection.
const WAIT: Duration = Duration::from_secs(30);

/// What a session has understood; bytes of one stream are joined.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Ready,
    Bytes(u32, Vec<u8>),
    Ended(u32),
    Resized,
    Opened(u16),
    Reset(u32),
    Gone,
    Failed(String),
}

/// A session of either kind.
trait Session {
    /// What the next bytes mean; `Ok(None)` as the session's own `receive`.
    fn receive(&mut self, input: &mut Input<'_>) -> Result<Option<Seen>, String>;
    /// Bytes for the client.
    fn output(&self) -> &[u8];
    /// They were written.
    fn written(&mut self, count: usize);
    /// Does what the server may do after an event, and appends what is sent for it. Bytes and sizes cause nothing: how many
    /// such events there are depends on the pieces.
    fn react(&mut self, to: &Seen, sent: &mut Vec<u8>);
    /// Ends what the session does as the server does, and appends what is sent meanwhile.
    fn end(&mut self, sent: &mut Vec<u8>);
    /// Ends the session, and appends what is sent meanwhile, in any order.
    fn leave(&mut self, sent: &mut Vec<u8>);
}

/// Feeds a session of exec; whatever the bytes, it understands the same in pieces of any size.
pub fn exec(protocol: Protocol, streams: Streams, bytes: &[u8], piece: usize) {
    let wire = match protocol {
        Protocol::Spdy(_) => Wire::Spdy,
        Protocol::WebSocket(_, codec) => Wire::Channels(codec, 1..4),
    };
    twice(&wire, bytes, piece, || remote::Session::new(protocol, streams));
}

/// As [`exec`], for port-forward.
pub fn forward(protocol: forward::Protocol, bytes: &[u8], piece: usize) {
    let wire = match protocol {
        forward::Protocol::Spdy => Wire::Spdy,
        forward::Protocol::Tunnel => Wire::Tunnel,
        forward::Protocol::Channels(codec) => Wire::Channels(codec, 0..4),
    };
    let now = Instant::now();
    twice(&wire, bytes, piece, || Forwarding {
        session: forward::Session::new(protocol, &PORTS, WAIT).expect("few ports"),
        now,
        opened: Vec::new(),
        open: HashSet::new(),
    });
}

/// Feeds one session with `bytes` as a whole, and another one piece by piece.
fn twice<S: Session>(wire: &Wire, bytes: &[u8], piece: usize, make: impl Fn() -> S) {
    let of_size = |piece| run(make(), wire, bytes, piece);
    assert_eq!(of_size(bytes.len().max(1)), of_size(piece.max(1)), "in pieces of {piece}");
}

/// A session from its beginning to its end: what it understood, and what it said.
fn run(mut session: impl Session, wire: &Wire, bytes: &[u8], piece: usize) -> (Vec<Seen>, Vec<u8>) {
    let (mut seen, mut sent) = (Vec::new(), Vec::new());
    feed(&mut session, bytes, piece, &mut seen, &mut sent);
    session.end(&mut sent);
    let said = wire.check(&sent);
    session.leave(&mut sent);
    wire.check(&sent);
    // A message that is not base64 to its end is passed on as far as it came before. Where that message began is not known.
    while matches!(wire, Wire::Channels(Codec::Base64, _))
        && let [.., Seen::Bytes(..), Seen::Failed(_)] = &seen[..]
    {
        seen.remove(seen.len() - 2);
    }
    (seen, said)
}

/// Feeds bytes as the server does, until they or the session have ended.
fn feed(session: &mut impl Session, bytes: &[u8], piece: usize, seen: &mut Vec<Seen>, sent: &mut Vec<u8>) {
    for piece in bytes.chunks(piece) {
        let mut piece = piece.to_vec();
        let mut input = Input::new(&mut piece);
        loop {
            let event = session.receive(&mut input);
            assert!(session.output().len() <= MAX_OUTPUT, "too much output");
            match event {
                Ok(Some(Seen::Gone)) => return seen.push(Seen::Gone),
                Ok(Some(event)) => {
                    session.react(&event, sent);
                    push(seen, event);
                }
                Ok(None) if input.is_empty() => break,
                Ok(None) => {
                    assert!(
                        !session.output().is_empty(),
                        "bytes are left, without an event and without output"
                    );
                    flush(session, sent);
                }
                Err(error) => return seen.push(Seen::Failed(error)),
            }
        }
    }
}

fn push(seen: &mut Vec<Seen>, event: Seen) {
    // Of sizes that come together only the last counts, and a malformed one takes them with it.
    if event == Seen::Resized {
        return;
    }
    if let (Some(Seen::Bytes(of, bytes)), Seen::Bytes(to, more)) = (seen.last_mut(), &event)
        && of == to
    {
        return bytes.extend_from_slice(more);
    }
    seen.push(event);
}

/// Writes a session's output.
fn flush(session: &mut impl Session, sent: &mut Vec<u8>) {
    sent.extend_from_slice(session.output());
    session.written(session.output().len());
    assert!(session.output().is_empty());
}

/// Writes a frame, if there is one.
fn write<E>(frame: Result<Option<Frame<'_>>, E>, sent: &mut Vec<u8>) {
    if let Ok(Some(Frame { head, body })) = frame {
        sent.extend_from_slice(&head);
        sent.extend_from_slice(&body);
    }
}

impl Session for remote::Session {
    fn receive(&mut self, input: &mut Input<'_>) -> Result<Option<Seen>, String> {
        let event = self.receive(input).map_err(|error| error.to_string())?;
        Ok(event.map(|event| match event {
            remote::Event::Ready => Seen::Ready,
            remote::Event::Stdin(bytes) => Seen::Bytes(0, bytes.into_owned()),
            remote::Event::StdinEnd => Seen::Ended(0),
            remote::Event::Resize(size) => {
                assert!(size.width > 0 && size.height > 0, "a size of 0");
                Seen::Resized
            }
            remote::Event::Gone => Seen::Gone,
        }))
    }

    fn output(&self) -> &[u8] {
        self.output()
    }

    fn written(&mut self, count: usize) {
        self.written(count);
    }

    fn react(&mut self, to: &Seen, sent: &mut Vec<u8>) {
        if *to == Seen::Ready {
            flush(self, sent);
            write(self.frame(Output::Stdout, b"begun"), sent);
        }
    }

    fn end(&mut self, sent: &mut Vec<u8>) {
        self.ping();
        flush(self, sent);
        write(self.frame(Output::Stdout, b"out"), sent);
        write(self.frame(Output::Stderr, b"err"), sent);
        self.drop_stdin();
        self.finish(&Outcome::Failed("over".to_owned()));
        flush(self, sent);
        let late = self.frame(Output::Stdout, b"late");
        assert!(!matches!(late, Ok(Some(_))), "output after the end");
    }

    fn leave(&mut self, sent: &mut Vec<u8>) {
        self.finish(&Outcome::Success);
        flush(self, sent);
    }
}

/// A session of port-forward, with its clock.
struct Forwarding {
    session: forward::Session,
    now: Instant,
    /// Connections, in the order in which they were opened. Their places are what is compared.
    opened: Vec<forward::Id>,
    /// Those of them that are not closed.
    open: HashSet<forward::Id>,
}

impl Forwarding {
    fn place(&self, id: forward::Id) -> u32 {
        assert!(self.open.contains(&id), "an event of a connection that is not open");
        self.opened.iter().position(|other| *other == id).expect("it was opened") as u32
    }

    /// As the port's last bytes and its end, or its failure.
    fn close(&mut self, place: u32, sent: &mut Vec<u8>) {
        let id = self.opened[place as usize];
        if !self.open.remove(&id) {
            return;
        }
        flush(self, sent);
        write(self.session.frame(id, b"down"), sent);
        self.session.finish(id);
        self.session.close(id, (place % 2 == 0).then_some("over"));
        flush(self, sent);
        let late = self.session.frame(id, b"late");
        assert!(!matches!(late, Ok(Some(_))), "output after the end");
    }
}

impl Session for Forwarding {
    fn receive(&mut self, input: &mut Input<'_>) -> Result<Option<Seen>, String> {
        let event = self.session.receive(input, self.now).map_err(|error| error.to_string())?;
        Ok(event.map(|event| match event {
            forward::Event::Opened { id, port } => {
                assert!(!self.opened.contains(&id), "an id is used twice");
                self.opened.push(id);
                self.open.insert(id);
                Seen::Opened(port)
            }
            forward::Event::Data { id, bytes } => Seen::Bytes(self.place(id), bytes.into_owned()),
            forward::Event::Ended { id } => Seen::Ended(self.place(id)),
            forward::Event::Reset { id } => Seen::Reset(self.place(id)),
            forward::Event::Gone => Seen::Gone,
        }))
    }

    fn output(&self) -> &[u8] {
        self.session.output()
    }

    fn written(&mut self, count: usize) {
        self.session.written(count);
    }

    fn react(&mut self, to: &Seen, sent: &mut Vec<u8>) {
        match to {
            // A port that refuses, and one that ends at once.
            Seen::Opened(80) if self.opened.len() % 4 == 0 => self.close(self.opened.len() as u32 - 1, sent),
            Seen::Opened(443) => self.session.finish(*self.opened.last().expect("it was opened")),
            Seen::Ended(place) | Seen::Reset(place) => self.close(*place, sent),
            _ => {}
        }
    }

    fn end(&mut self, sent: &mut Vec<u8>) {
        self.session.ping();
        flush(self, sent);
        (0..self.opened.len() as u32).for_each(|place| self.close(place, sent));
    }

    fn leave(&mut self, sent: &mut Vec<u8>) {
        let due = self.now + WAIT;
        assert!(self.session.deadline().is_none_or(|deadline| deadline == due), "another time limit");
        self.session.expire(due);
        assert!(self.session.deadline().is_none(), "a connection waits for ever");
        self.session.leave();
        flush(self, sent);
    }
}
