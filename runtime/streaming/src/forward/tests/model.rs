//! Random connections, over SPDY and in a tunnel.

use proptest::collection::vec;
use proptest::prelude::*;
use std::collections::BTreeMap;

use super::tunnel::{octets, tunnelled};
use super::*;
use crate::testing::split;
use crate::testing::websocket::{BINARY, message};

/// What the client or the caller does; numbers choose among the connections.
#[derive(Debug, Clone)]
enum Step {
    /// Which stream comes first, and whether the second comes at once.
    Connect(bool, bool),
    /// The second stream of one that waits.
    Complete,
    Data(usize, Vec<u8>),
    End(usize),
    Reset(usize),
    Close(usize, bool),
    Later(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (any::<bool>(), any::<bool>()).prop_map(|(first, both)| Step::Connect(first, both)),
        2 => Just(Step::Complete),
        8 => (0..9usize, vec(any::<u8>(), 1..100)).prop_map(|(which, bytes)| Step::Data(which, bytes)),
        1 => (0..9usize).prop_map(Step::End),
        1 => (0..9usize).prop_map(Step::Reset),
        2 => (0..9usize, any::<bool>()).prop_map(|(which, failed)| Step::Close(which, failed)),
        1 => (0..25u64).prop_map(Step::Later),
    ]
}

/// A connection as the model sees it.
#[derive(Debug, Default)]
struct Expected {
    bytes: Vec<u8>,
    ended: bool,
    closed: bool,
}

struct Model {
    session: Session,
    tunnelled: bool,
    client: Client,
    now: Instant,
    requests: usize,
    /// Streams that wait: kind that is missing, request, since.
    waiting: Vec<(&'static str, usize, Instant)>,
    expected: BTreeMap<Id, Expected>,
    received: BTreeMap<Id, Vec<u8>>,
}

impl Model {
    fn new(tunnelled: bool) -> Self {
        let protocol = if tunnelled { Protocol::Tunnel } else { Protocol::Spdy };
        Self {
            session: Session::new(protocol, &[], WAIT).unwrap(),
            tunnelled,
            client: Client::new(),
            now: Instant::now(),
            requests: 0,
            waiting: Vec::new(),
            expected: BTreeMap::new(),
            received: BTreeMap::new(),
        }
    }

    fn open(&mut self, kind: &'static str, request: usize) -> Vec<u8> {
        let request = request.to_string();
        self.client.open(0, &[("streamtype", kind), ("port", "80"), ("requestid", &request)]).1
    }

    fn id(&self, which: usize) -> Option<Id> {
        let ids: Vec<Id> = self.expected.keys().copied().collect();
        (!ids.is_empty()).then(|| ids[which % ids.len()])
    }

    fn run(&mut self, step: Step, cuts: &[usize]) {
        let mut bytes = Vec::new();
        match step {
            Step::Connect(error_first, both) => {
                let (first, second) = if error_first { ("error", "data") } else { ("data", "error") };
                let request = self.requests;
                self.requests += 1;
                bytes = self.open(first, request);
                if both {
                    bytes.extend(self.open(second, request));
                } else {
                    self.waiting.push((second, request, self.now));
                }
            }
            Step::Complete => {
                if let Some((kind, request, _)) = self.waiting.pop() {
                    bytes = self.open(kind, request);
                }
            }
            Step::Data(which, payload) => {
                let Some(id) = self.id(which) else { return };
                bytes = data(id.0, 0, &payload);
                let connection = self.expected.get_mut(&id).unwrap();
                if !connection.ended && !connection.closed {
                    connection.bytes.extend(payload);
                }
            }
            Step::End(which) | Step::Reset(which) => {
                let Some(id) = self.id(which) else { return };
                bytes = if matches!(step, Step::End(_)) { data(id.0, FIN, b"") } else { reset(id.0) };
                self.expected.get_mut(&id).unwrap().ended = true;
            }
            Step::Close(which, failed) => {
                let Some(id) = self.id(which) else { return };
                self.session.close(id, failed.then_some("failed"));
                self.expected.get_mut(&id).unwrap().closed = true;
            }
            Step::Later(seconds) => {
                self.now += Duration::from_secs(seconds);
                self.session.expire(self.now);
                self.waiting.retain(|(.., since)| *since + WAIT > self.now);
                assert_eq!(
                    self.session.deadline(),
                    self.waiting.iter().map(|(.., since)| *since + WAIT).min()
                );
            }
        }
        self.feed(&bytes, cuts);
    }

    fn feed(&mut self, bytes: &[u8], cuts: &[usize]) {
        let bytes = if self.tunnelled { tunnelled(bytes, 37) } else { bytes.to_vec() };
        let mut events = Vec::new();
        split(&bytes, cuts, |part| events.extend(feed(&mut self.session, part, self.now).unwrap()));
        for event in events {
            match event {
                Event::Opened { id, port: 80 } => {
                    assert!(self.expected.insert(id, Expected::default()).is_none());
                }
                Event::Data { id, bytes } => {
                    assert!(!self.expected[&id].closed);
                    self.received.entry(id).or_default().extend_from_slice(&bytes);
                }
                Event::Ended { id } | Event::Reset { id } => assert!(self.expected[&id].ended),
                other => panic!("{other:?}"),
            }
        }
        let sent = output(&mut self.session);
        self.client.read(&if self.tunnelled { octets(&sent).0 } else { sent });
    }
}

proptest! {
    #[test]
    fn every_byte_reaches_its_connection(
        tunnelled in any::<bool>(),
        steps in vec(step(), 0..60),
        cuts in vec(any::<usize>(), 0..4),
    ) {
        let mut model = Model::new(tunnelled);
        for step in steps {
            model.run(step, &cuts);
        }
        for (id, Expected { bytes, .. }) in &model.expected {
            prop_assert_eq!(model.received.get(id).map_or(&[][..], |got| got), &bytes[..]);
        }
    }

    #[test]
    fn any_bytes_are_survived(
        protocol in prop_oneof![
            Just(Protocol::Spdy),
            Just(Protocol::Tunnel),
            Just(Protocol::Channels(Codec::Binary)),
            Just(Protocol::Channels(Codec::Base64)),
        ],
        payloads in vec((0..8u8, vec(any::<u8>(), 0..60)), 0..6),
        tail in vec(any::<u8>(), 0..300),
    ) {
        let mut session = Session::new(protocol, &[80, 81], WAIT).unwrap();
        let mut client = Client::new();
        let mut bytes = Vec::new();
        for (id, payload) in payloads {
            let open = client.open(0, &[("streamtype", "data"), ("port", "80")]).1;
            let frames = [open, data(u32::from(id) + 1, 0, &payload)].concat();
            bytes.extend(if protocol == Protocol::Spdy { frames } else { message(BINARY, &frames) });
        }
        bytes.extend(tail);
        let mut input = Input::new(&mut bytes);
        let mut errors = 0;
        loop {
            match session.receive(&mut input, Instant::now()) {
                Ok(None) if input.is_empty() => break,
                Ok(_) => drop(output(&mut session)),
                Err(_) => errors += 1,
            }
        }
        prop_assert!(errors <= 1);
    }
}
