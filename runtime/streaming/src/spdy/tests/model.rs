//! Random sequences: a client that knows the protocol, one that does not, and a model of what each side may do.

use proptest::collection::vec;
use proptest::prelude::*;
use std::collections::HashMap;

use super::*;
use crate::testing::split;

/// Streams of a connection in these tests.
const LIMIT: usize = 3;

/// What one side does; numbers choose among the streams that were opened.
#[derive(Debug, Clone)]
enum Step {
    Open(u8),
    Data(usize, u8, Vec<u8>),
    ClientReset(usize),
    Ping(u32),
    Accept(usize),
    Send(usize, usize, bool),
    Finish(usize),
    Reset(usize),
    Release(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let which = 0..12usize;
    prop_oneof![
        4 => (0..4u8).prop_map(Step::Open),
        6 => (which.clone(), 0..2u8, vec(any::<u8>(), 0..40)).prop_map(|(s, f, b)| Step::Data(s, f, b)),
        1 => which.clone().prop_map(Step::ClientReset),
        1 => any::<u32>().prop_map(Step::Ping),
        4 => which.clone().prop_map(Step::Accept),
        4 => (which.clone(), 0..9usize, any::<bool>()).prop_map(|(s, n, f)| Step::Send(s, n, f)),
        1 => which.clone().prop_map(Step::Finish),
        1 => which.clone().prop_map(Step::Reset),
        2 => which.prop_map(Step::Release),
    ]
}

/// A stream as the model sees it.
#[derive(Debug, Default)]
struct Stream {
    /// The server holds it.
    held: bool,
    client_may_send: bool,
    /// What the server's client saw of the answers.
    replied: bool,
    server_ended: bool,
    reset: bool,
    /// Bytes that must arrive, and those that did.
    expected: Vec<u8>,
    arrived: Vec<u8>,
}

#[derive(Debug)]
struct Model {
    pair: Pair,
    ids: Vec<u32>,
    streams: HashMap<u32, Stream>,
    pings: Vec<u32>,
}

impl Model {
    fn new() -> Self {
        Self { pair: Pair::new(LIMIT), ids: Vec::new(), streams: HashMap::new(), pings: Vec::new() }
    }

    fn run(&mut self, step: Step) {
        match step {
            Step::Open(flags) => self.open(flags),
            Step::Data(which, flags, bytes) => {
                let Some(id) = self.id(which) else { return };
                let stream = self.streams.entry(id).or_default();
                if stream.held && stream.client_may_send {
                    stream.expected.extend(&bytes);
                    stream.client_may_send = flags & FIN == 0;
                }
                self.pair.feed(&data(id, flags, &bytes)).unwrap();
            }
            Step::ClientReset(which) => {
                let Some(id) = self.id(which) else { return };
                let stream = self.streams.entry(id).or_default();
                (stream.client_may_send, stream.reset) = (false, true);
                self.pair.feed(&reset(id)).unwrap();
            }
            Step::Ping(id) => {
                self.pings.extend((id % 2 == 1).then_some(id));
                self.pair.feed(&ping(id)).unwrap();
            }
            Step::Accept(which) => self.with(which, Connection::accept),
            Step::Finish(which) => self.with(which, Connection::finish),
            Step::Send(which, length, fin) => {
                let Some(id) = self.stream_id(which) else { return };
                self.pair.flush();
                if let Ok(Some(head)) = self.pair.server.data(id, length, fin) {
                    self.pair.output.extend_from_slice(&head);
                    self.pair.output.extend(vec![7; length]);
                }
            }
            Step::Reset(which) => self.let_go(which, Connection::reset),
            Step::Release(which) => self.let_go(which, Connection::release),
        }
        self.check();
    }

    fn open(&mut self, flags: u8) {
        let held = self.streams.values().filter(|stream| stream.held).count();
        let (id, frame) = self.pair.client.open(flags, &[("streamtype", "data"), ("requestid", "1")]);
        self.ids.push(id);
        let held = held < LIMIT;
        let stream = Stream { held, client_may_send: held && flags & FIN == 0, ..Stream::default() };
        self.streams.insert(id, stream);
        self.pair.feed(&frame).unwrap();
        let opened = matches!(self.pair.got.last(), Some(Got::Opened(given, ..)) if given.get() == id);
        assert_eq!(opened, held, "stream {id}");
    }

    fn id(&self, which: usize) -> Option<u32> {
        (!self.ids.is_empty()).then(|| self.ids[which % self.ids.len()])
    }

    /// The server's id of a stream, if the server has reported it.
    fn stream_id(&self, which: usize) -> Option<StreamId> {
        let number = self.id(which)?;
        self.pair.got.iter().find_map(|got| match got {
            Got::Opened(id, ..) if id.get() == number => Some(*id),
            _ => None,
        })
    }

    fn with(&mut self, which: usize, command: impl Fn(&mut Connection, StreamId)) {
        if let Some(id) = self.stream_id(which) {
            command(&mut self.pair.server, id);
        }
    }

    fn let_go(&mut self, which: usize, command: impl Fn(&mut Connection, StreamId)) {
        if let Some(id) = self.stream_id(which) {
            command(&mut self.pair.server, id);
            let stream = self.streams.get_mut(&id.get()).unwrap();
            (stream.held, stream.client_may_send) = (false, false);
        }
    }

    /// The rules of the protocol, for what has gone to the client since the last time.
    fn check(&mut self) {
        for frame in self.pair.sent() {
            match frame {
                Sent::Reply(id) => {
                    let stream = self.streams.get_mut(&id).unwrap();
                    assert!(!stream.replied, "{id} is answered once");
                    stream.replied = true;
                }
                Sent::Data(id, fin, _) => {
                    let stream = self.streams.get_mut(&id).unwrap();
                    assert!(stream.replied, "{id}: no data before the reply");
                    assert!(!stream.server_ended, "{id}: no data after the end");
                    stream.server_ended = fin;
                }
                Sent::Reset(id, _) => {
                    let stream = self.streams.get_mut(&id).unwrap();
                    assert!(!stream.server_ended || !stream.held, "{id}: reset after its end");
                    stream.server_ended = true;
                }
                Sent::Ping(id) => assert_eq!(self.pings.remove(0), id),
                Sent::GoAway(..) => panic!("nobody left"),
            }
        }
        let (bytes, streams) = self.pair.server.held();
        assert!(bytes <= 1024 && streams <= LIMIT);
    }

    /// Every byte has arrived where it should, in order.
    fn finish(mut self) {
        assert_eq!(self.pings, [0u32; 0]);
        for got in self.pair.got() {
            match got {
                Got::Data(id, bytes) => self.streams.get_mut(&id.get()).unwrap().arrived.extend(bytes),
                Got::Ended(id) => assert!(!self.streams[&id.get()].client_may_send),
                Got::Reset(id) => assert!(self.streams[&id.get()].reset),
                Got::Opened(..) | Got::GoAway => {}
            }
        }
        for (id, stream) in &self.streams {
            assert_eq!(stream.arrived, stream.expected, "stream {id}");
        }
    }
}

/// The bytes of a client that does `steps`.
fn recording(steps: &[Step]) -> Vec<u8> {
    let mut client = Client::new();
    let mut ids = vec![1];
    let mut bytes = client.open(0, &[("streamtype", "error")]).1;
    for step in steps {
        let id = |which: &usize| ids[which % ids.len()];
        bytes.extend(match step {
            Step::Open(flags) => {
                let (id, frame) = client.open(*flags, &[("streamtype", "data"), ("port", "80")]);
                ids.push(id);
                frame
            }
            Step::Data(which, flags, payload) => data(id(which), *flags, payload),
            Step::ClientReset(which) => reset(id(which)),
            Step::Ping(id) => ping(*id),
            Step::Finish(which) => client.headers(id(which), 0, &[("a", "b")]),
            _ => control(9, 0, &[&[0; 8]]),
        });
    }
    bytes
}

/// Events with the data of a stream joined where it was cut.
fn joined(got: Vec<Got>) -> Vec<Got> {
    let mut all: Vec<Got> = Vec::new();
    for event in got {
        match (all.last_mut(), event) {
            (Some(Got::Data(last, before)), Got::Data(id, bytes)) if *last == id => before.extend(bytes),
            (_, event) => all.push(event),
        }
    }
    all
}

proptest! {
    #[test]
    fn both_sides_keep_the_rules(steps in vec(step(), 0..60)) {
        let mut model = Model::new();
        for step in steps {
            model.run(step);
        }
        model.finish();
    }

    #[test]
    fn where_the_input_is_cut_does_not_matter(
        steps in vec(step(), 0..30),
        cuts in vec(any::<usize>(), 0..40),
    ) {
        let bytes = recording(&steps);
        let mut whole = Pair::new(LIMIT);
        whole.feed(&bytes).unwrap();
        let mut parts = Pair::new(LIMIT);
        split(&bytes, &cuts, |part| parts.feed(part).unwrap());
        prop_assert_eq!(joined(parts.got()), joined(whole.got()));
        prop_assert_eq!(parts.sent(), whole.sent());
    }

    #[test]
    fn any_bytes_are_survived(
        steps in vec(step(), 0..10),
        changes in vec((any::<usize>(), any::<u8>()), 0..6),
        tail in vec(any::<u8>(), 0..300),
        cuts in vec(any::<usize>(), 0..10),
    ) {
        let mut bytes = recording(&steps);
        for (place, byte) in changes {
            let place = place % bytes.len();
            bytes[place] = byte;
        }
        bytes.extend(tail);
        let mut pair = Pair::new(LIMIT);
        let mut failed = false;
        split(&bytes, &cuts, |part| {
            let result = pair.feed(part);
            assert!(!failed || result.is_ok(), "an error is told once");
            failed |= result.is_err();
            let (bytes, streams) = pair.server.held();
            assert!(bytes <= MAX_CONTROL + 17 * 1024 && streams <= LIMIT);
        });
        prop_assert_eq!(failed, pair.sent().iter().any(|frame| matches!(frame, Sent::GoAway(_, 1))));
    }
}
