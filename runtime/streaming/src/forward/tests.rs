//! Sessions over each protocol, as clients see them. Here: SPDY's pairs of streams.

mod model;
mod ports;
mod tunnel;

use std::borrow::Cow;

use super::*;
use crate::testing::spdy::{Client, FIN, Sent, data, go_away, reset};

const WAIT: Duration = Duration::from_secs(30);

fn feed(session: &mut Session, bytes: &[u8], now: Instant) -> Result<Vec<Event<'static>>, Error> {
    let mut bytes = bytes.to_vec();
    let mut input = Input::new(&mut bytes);
    let mut got = Vec::new();
    while let Some(event) = session.receive(&mut input, now)? {
        got.push(match event {
            Event::Opened { id, port } => Event::Opened { id, port },
            Event::Data { id, bytes } => Event::Data { id, bytes: Cow::Owned(bytes.into_owned()) },
            Event::Ended { id } => Event::Ended { id },
            Event::Reset { id } => Event::Reset { id },
            Event::Gone => Event::Gone,
        });
    }
    assert!(input.is_empty());
    Ok(got)
}

fn output(session: &mut Session) -> Vec<u8> {
    let output = session.output().to_vec();
    session.written(output.len());
    output
}

/// A session over SPDY, with its client.
struct Pair {
    session: Session,
    client: Client,
    now: Instant,
}

impl Pair {
    fn new() -> Self {
        let session = Session::new(Protocol::Spdy, &[], WAIT).unwrap();
        Self { session, client: Client::new(), now: Instant::now() }
    }

    fn feed(&mut self, frames: &[Vec<u8>]) -> Vec<Event<'static>> {
        feed(&mut self.session, &frames.concat(), self.now).unwrap()
    }

    fn sent(&mut self) -> Vec<Sent> {
        self.client.read(&output(&mut self.session))
    }

    /// Entries in the session's tables.
    fn held(&self) -> usize {
        let Wire::Pairs(pairs) = &self.session.0 else { panic!("no pairs") };
        pairs.held()
    }

    /// SYN_STREAM of one kind.
    fn open(&mut self, kind: &str, port: &str, request: &str) -> Vec<u8> {
        let headers = [("streamtype", kind), ("port", port), ("requestid", request)];
        self.client.open(0, &headers[..if request.is_empty() { 2 } else { 3 }]).1
    }

    /// A connection, opened as Go's client does it.
    fn connection(&mut self, port: u16, request: &str) -> Id {
        let port = port.to_string();
        let error = self.open("error", &port, request);
        assert_eq!(self.feed(&[error]), []);
        let data = self.open("data", &port, request);
        let [Event::Opened { id, .. }] = self.feed(&[data])[..] else { panic!("not opened") };
        self.sent();
        id
    }
}

fn bytes(id: Id, bytes: &[u8]) -> Event<'static> {
    Event::Data { id, bytes: Cow::Owned(bytes.to_vec()) }
}

#[test]
fn connection_from_opening_to_end() {
    let mut pair = Pair::new();
    let error = pair.open("error", "80", "0");
    assert_eq!(pair.feed(&[error, data(1, FIN, b"")]), []);
    assert_eq!(pair.session.deadline(), Some(pair.now + WAIT));
    let opened = pair.open("data", "80", "0");
    let id = Id(3);
    assert_eq!(pair.feed(&[opened]), [Event::Opened { id, port: 80 }]);
    assert_eq!(pair.session.deadline(), None);
    assert_eq!(pair.sent(), [Sent::Reply(1), Sent::Reply(3)]);

    assert_eq!(pair.feed(&[data(3, 0, b"GET"), data(3, FIN, b"")]), [bytes(id, b"GET"), Event::Ended { id }]);
    let frame = pair.session.frame(id, b"200").unwrap().unwrap();
    assert_eq!(
        pair.client.read(&[&*frame.head, &frame.body].concat()),
        [Sent::Data(3, false, b"200".to_vec())]
    );
    pair.session.finish(id);
    pair.session.close(id, None);
    let ends = [Sent::Data(3, true, vec![]), Sent::Data(1, true, vec![])];
    assert_eq!(pair.sent(), ends, "data first, no reset");
    assert_eq!(pair.session.frame(id, b"x").unwrap_err(), SendError::Unknown);
}

#[test]
fn port_that_ends_first_leaves_the_other_direction_open() {
    let mut pair = Pair::new();
    let id = pair.connection(80, "0");
    pair.session.finish(id);
    assert_eq!(pair.sent(), [Sent::Data(3, true, vec![])]);
    assert_eq!(pair.feed(&[data(3, 0, b"upload")]), [bytes(id, b"upload")]);
    // Go's client resets now; others may go on until they end.
    assert_eq!(pair.feed(&[reset(3)]), [Event::Reset { id }]);
    pair.session.close(id, None);
    assert_eq!(pair.sent(), [Sent::Data(1, true, vec![])]);
}

#[test]
fn failure_is_told_and_costs_one_connection() {
    let mut pair = Pair::new();
    let (one, two) = (pair.connection(80, "0"), pair.connection(81, "1"));
    pair.session.close(one, Some("connection refused"));
    let expected = [
        Sent::Data(1, false, b"connection refused".to_vec()),
        Sent::Data(1, true, vec![]),
        Sent::Reset(3, 5),
    ];
    assert_eq!(pair.sent(), expected);
    assert_eq!(pair.feed(&[data(3, 0, b"in flight"), data(7, 0, b"x")]), [bytes(two, b"x")]);
    assert_eq!(pair.feed(&[go_away()]), [Event::Gone]);
}

#[test]
fn streams_find_each_other() {
    let mut pair = Pair::new();
    // Data before error; two connections interleaved; the same request id again, after it was used.
    let frames = [
        pair.open("data", "80", "a"),
        pair.open("error", "81", "b"),
        pair.open("data", "81", "b"),
        pair.open("error", "80", "a"),
        pair.open("error", "82", "a"),
        pair.open("data", "82", "a"),
    ];
    let opened = [(5, 81), (1, 80), (11, 82)].map(|(id, port)| Event::Opened { id: Id(id), port });
    assert_eq!(pair.feed(&frames), opened);
    // Without request ids, by order.
    let frames = [pair.open("error", "83", ""), pair.open("data", "83", "")];
    assert_eq!(pair.feed(&frames), [Event::Opened { id: Id(15), port: 83 }]);
}

#[test]
fn streams_without_a_purpose_are_refused() {
    let mut pair = Pair::new();
    let long = "1".repeat(65);
    let frames = [
        pair.open("data", "0", "1"),
        pair.open("data", "65536", "1"),
        pair.open("data", "+1", "1"),
        pair.open("data", "http", "1"),
        pair.open("stdin", "80", "1"),
        pair.open("error", "80", &long),
        pair.client.open(0, &[("port", "80")]).1,
        pair.client.open(0, &[("streamtype", "data")]).1,
    ];
    assert_eq!(pair.feed(&frames), []);
    let refused: Vec<Sent> = (0..8).map(|i| Sent::Reset(2 * i + 1, 3)).collect();
    assert_eq!(pair.sent(), refused);
    pair.connection(80, "1");
}

#[test]
fn second_stream_of_a_type_is_refused_with_a_text() {
    let mut pair = Pair::new();
    let frames = [pair.open("error", "80", "1"), pair.open("error", "80", "1"), pair.open("data", "80", "1")];
    assert_eq!(pair.feed(&frames), [Event::Opened { id: Id(5), port: 80 }]);
    let sent = pair.sent();
    assert!(matches!(
        &sent[..],
        [Sent::Reply(1), Sent::Reset(3, 3), Sent::Data(1, false, _), Sent::Reply(5)]
    ));
}

#[test]
fn what_comes_before_the_error_stream_waits_for_it() {
    let mut pair = Pair::new();
    let opened = pair.open("data", "80", "1");
    assert_eq!(pair.feed(&[opened, data(1, 0, b"ea"), data(1, FIN, b"rly")]), []);
    let error = pair.open("error", "80", "1");
    let id = Id(1);
    let expected = [Event::Opened { id, port: 80 }, bytes(id, b"early"), Event::Ended { id }];
    assert_eq!(pair.feed(&[error]), expected);

    // One that the client ends at once.
    let headers = [("streamtype", "data"), ("port", "80"), ("requestid", "1")];
    let opened = pair.client.open(FIN, &headers).1;
    let error = pair.open("error", "80", "1");
    let id = Id(5);
    assert_eq!(pair.feed(&[opened, error]), [Event::Opened { id, port: 80 }, Event::Ended { id }]);
}

#[test]
fn what_waits_is_bounded() {
    let mut pair = Pair::new();
    // Each alone is allowed, one after another.
    for request in 0..3u32 {
        let opened = pair.open("data", "80", "1");
        let error = pair.open("error", "80", "1");
        let id = 4 * request + 1;
        let got = pair.feed(&[opened, data(id, 0, &[0; 40_000]), error]);
        assert!(
            matches!(&got[..], [Event::Opened { .. }, Event::Data { bytes, .. }] if bytes.len() == 40_000)
        );
    }
    let (one, two) = (pair.open("data", "80", "2"), pair.open("data", "80", "3"));
    let early = [one, data(13, 0, &[0; 40_000]), two, data(15, 0, &[0; 40_000])];
    assert_eq!(pair.feed(&early), []);
    assert_eq!(pair.sent().last(), Some(&Sent::Reset(15, 5)), "too much at a time");
    let error = pair.open("error", "80", "3");
    assert_eq!(pair.feed(&[error]), [], "waits for another data stream");
}

#[test]
fn pair_that_stays_incomplete_is_given_up() {
    let mut pair = Pair::new();
    let error = pair.open("error", "80", "1");
    pair.feed(&[error]);
    let begun = pair.now;
    pair.now += Duration::from_secs(20);
    let data_stream = pair.open("data", "81", "2");
    pair.feed(&[data_stream]);
    pair.sent();
    pair.session.expire(begun + WAIT - Duration::from_millis(1));
    assert_eq!(pair.sent(), []);
    pair.session.expire(begun + WAIT);
    assert!(matches!(&pair.sent()[..], [Sent::Data(1, false, _), Sent::Data(1, true, _)]));
    assert_eq!(pair.session.deadline(), Some(pair.now + WAIT));
    pair.session.expire(pair.now + WAIT);
    assert_eq!(pair.sent(), [Sent::Reset(3, 5)]);
    assert_eq!(pair.session.deadline(), None);
}

#[test]
fn reset_of_a_waiting_stream_gives_up_the_pair() {
    let mut pair = Pair::new();
    let (one, two) = (pair.open("error", "80", "1"), pair.open("data", "80", "2"));
    assert_eq!(pair.feed(&[one, two, reset(1), reset(3)]), []);
    assert_eq!(pair.sent(), [Sent::Reply(1), Sent::Reply(3)]);
    assert_eq!(pair.session.deadline(), None);
    // The error stream of an open connection is not needed to go on.
    let id = pair.connection(80, "3");
    assert_eq!(pair.feed(&[reset(5), data(7, 0, b"x")]), [bytes(id, b"x")]);
    pair.session.close(id, Some("lost"));
    assert_eq!(pair.sent(), [Sent::Reset(7, 5)]);
}

#[test]
fn connections_are_bounded() {
    let mut pair = Pair::new();
    let mut ids = Vec::new();
    for request in 0..MAX_CONNECTIONS {
        ids.push(pair.connection(80, &request.to_string()));
    }
    let more = pair.open("error", "80", "more");
    assert_eq!(pair.feed(&[more]), []);
    assert!(matches!(pair.sent()[..], [Sent::Reset(_, 3)]));
    let held = pair.held();
    assert_eq!(held, MAX_CONNECTIONS);
    // A thousand opened and closed after another leave nothing.
    for request in 0..1000 {
        let id = ids.pop().unwrap();
        pair.session.close(id, None);
        pair.sent();
        ids.push(pair.connection(80, &request.to_string()));
    }
    assert_eq!(pair.held(), held);
}
