//! Hand-made frames; `model` has random sequences.

mod model;

use super::*;
use crate::output::{MAX_PAYLOAD, SendError};
use crate::testing::spdy::{Client, FIN, ONE_WAY, Sent, control, data, go_away, ping, plain, reset};

/// An event that outlives its input.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Got {
    Opened(StreamId, Headers, bool),
    Data(StreamId, Vec<u8>),
    Ended(StreamId),
    Reset(StreamId),
    GoAway,
}

/// Both sides, and what went between them.
#[derive(Debug)]
struct Pair {
    server: Connection,
    client: Client,
    output: Vec<u8>,
    got: Vec<Got>,
}

impl Pair {
    fn new(limit: usize) -> Self {
        Self { server: Connection::new(limit), client: Client::new(), output: Vec::new(), got: Vec::new() }
    }

    /// The server reads `bytes`, and writes when it must.
    fn feed(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let mut bytes = bytes.to_vec();
        let mut input = &mut bytes[..];
        loop {
            match self.server.receive(&mut input)? {
                Some(event) => self.got.push(owned(event)),
                None if input.is_empty() => return Ok(()),
                None => {
                    assert!(!self.server.output().is_empty(), "stuck without a reason");
                    self.flush();
                }
            }
        }
    }

    fn flush(&mut self) {
        self.output.extend_from_slice(self.server.output());
        self.server.written(self.server.output().len());
    }

    /// What the server sent since the last call.
    fn sent(&mut self) -> Vec<Sent> {
        self.flush();
        self.client.read(&std::mem::take(&mut self.output))
    }

    fn got(&mut self) -> Vec<Got> {
        std::mem::take(&mut self.got)
    }

    /// Opens a stream, with the server's consent.
    fn stream(&mut self) -> StreamId {
        let (number, frame) = self.client.open(0, &[("streamtype", "data")]);
        self.feed(&frame).unwrap();
        let Some(Got::Opened(id, ..)) = self.got.pop() else { panic!("no stream") };
        assert_eq!(id.get(), number);
        self.server.accept(id);
        assert_eq!(self.sent(), [Sent::Reply(number)]);
        id
    }
}

fn owned(event: Event<'_>) -> Got {
    match event {
        Event::Opened { id, headers, ended } => Got::Opened(id, headers, ended),
        Event::Data { id, bytes } => Got::Data(id, bytes.to_vec()),
        Event::Ended { id } => Got::Ended(id),
        Event::Reset { id } => Got::Reset(id),
        Event::GoAway => Got::GoAway,
    }
}

#[test]
fn dictionary_is_spdys() {
    // The identifier that every SPDY/3 stream begins with.
    let (a, b) = DICTIONARY.iter().fold((1u32, 0u32), |(a, b), byte| {
        let a = (a + u32::from(*byte)) % 65521;
        (a, (b + a) % 65521)
    });
    assert_eq!(b << 16 | a, 0xe3c6_a7c2);
    assert_eq!(DICTIONARY.len(), 1423);
}

#[test]
fn stream_from_opening_to_end() {
    let mut pair = Pair::new(4);
    let (_, frame) = pair.client.open(0, &[("streamtype", "stdin"), ("Port", "80\u{0}81")]);
    pair.feed(&frame).unwrap();
    let Some(Got::Opened(id, headers, false)) = pair.got.pop() else { panic!("no stream") };
    assert_eq!(headers.get("streamType"), Some("stdin"));
    assert_eq!(headers.get("port"), Some("80"), "the first of several values");
    assert_eq!(headers.get("requestid"), None);

    assert_eq!(pair.server.data(id, 1, false), Err(SendError::NotAccepted));
    pair.server.accept(id);
    pair.server.accept(id);
    assert_eq!(pair.sent(), [Sent::Reply(1)], "once");

    pair.feed(&[data(1, 0, b"in"), data(1, FIN, b""), data(1, 0, b"late")].concat()).unwrap();
    assert_eq!(pair.got(), [Got::Data(id, b"in".to_vec()), Got::Ended(id)]);

    let head = pair.server.data(id, 3, false).unwrap().unwrap();
    assert_eq!(*head, [0, 0, 0, 1, 0, 0, 0, 3]);
    pair.server.finish(id);
    pair.server.finish(id);
    assert_eq!(pair.sent(), [Sent::Data(1, true, vec![])], "once");
    assert_eq!(pair.server.data(id, 1, false), Err(SendError::Finished));
    pair.server.reset(id);
    assert_eq!(pair.sent(), [], "both directions had ended");
    assert_eq!(pair.server.data(id, 1, false), Err(SendError::Unknown));
}

#[test]
fn bytes_of_a_reply() {
    // By hand from the specification: SYN_REPLY, flags 0, 24 bytes, stream 1, then zlib with the dictionary.
    let mut pair = Pair::new(4);
    let (_, frame) = pair.client.open(0, &[]);
    pair.feed(&frame).unwrap();
    let Some(Got::Opened(id, ..)) = pair.got.pop() else { panic!("no stream") };
    pair.server.accept(id);
    let reply =
        b"\x80\x03\x00\x02\x00\x00\x00\x18\x00\x00\x00\x01\x78\x20\xe3\xc6\xa7\xc2\x00\x04\x00\xfb\xff\
        \x00\x00\x00\x00\x00\x00\x00\xff\xff";
    assert_eq!(pair.server.output(), reply);
}

#[test]
fn payload_is_handed_out_before_its_frame_is_complete() {
    let mut pair = Pair::new(4);
    let id = pair.stream();
    // A frame that says 16 MiB - 1, of which three bytes come.
    pair.feed(b"\x00\x00\x00\x01\x01\xff\xff\xffabc").unwrap();
    assert_eq!(pair.got(), [Got::Data(id, b"abc".to_vec())]);
    assert!(pair.server.held().0 < 200, "nothing is kept of a payload");
}

#[test]
fn pings_of_the_client_are_returned() {
    let mut pair = Pair::new(4);
    pair.feed(&[ping(1), ping(2), ping(0xffff_ffff)].concat()).unwrap();
    assert_eq!(pair.sent(), [Sent::Ping(1), Sent::Ping(0xffff_ffff)]);
}

#[test]
fn unread_answers_stop_the_reading() {
    let mut pair = Pair::new(4);
    let mut flood = ping(1).repeat(100_000);
    let mut input = &mut flood[..];
    assert_eq!(pair.server.receive(&mut input), Ok(None));
    let left = input.len();
    assert!(left > 1_000_000 && pair.server.output().len() < 17 * 1024);
    assert_eq!(pair.server.receive(&mut input), Ok(None));
    assert_eq!(input.len(), left, "not a byte more");
    let answers = pair.server.output().len();
    pair.server.written(answers / 2);
    assert_eq!(pair.server.receive(&mut input), Ok(None));
    assert!(input.len() < left, "the half that was read makes room");
}

#[test]
fn what_means_nothing_here_is_counted_off() {
    let mut pair = Pair::new(4);
    let id = pair.stream();
    let window = control(9, 0, &[&1u32.to_be_bytes(), &u32::MAX.to_be_bytes()]);
    // SETTINGS that promise 2^32 - 1 entries made Go's server allocate them (CVE-2026-35469).
    let settings = control(4, 0, &[&u32::MAX.to_be_bytes(), &[0; 16]]);
    let unknown = control(77, 0xff, &[&vec![1; 100_000]]);
    pair.feed(&[window, settings, unknown, data(1, 0, b"x")].concat()).unwrap();
    assert_eq!(pair.got(), [Got::Data(id, b"x".to_vec())]);
    assert_eq!(pair.sent(), []);
    assert!(pair.server.held().0 <= 200);
}

#[test]
fn headers_on_an_open_stream_keep_the_compression() {
    let mut pair = Pair::new(4);
    let id = pair.stream();
    let frames = [
        pair.client.headers(1, 0, &[("a", "b")]),
        pair.client.headers(9, FIN, &[("unknown", "stream")]),
        pair.client.headers(1, FIN, &[]),
        pair.client.open(FIN, &[("streamtype", "error")]).1,
    ];
    pair.feed(&frames.concat()).unwrap();
    let got = pair.got();
    assert_eq!(got.first(), Some(&Got::Ended(id)));
    assert!(
        matches!(&got[1..], [Got::Opened(_, headers, true)] if headers.get("streamtype") == Some("error"))
    );
}

#[test]
fn streams_are_refused_above_the_limit_until_the_caller_lets_go() {
    let mut pair = Pair::new(2);
    let (one, _two) = (pair.stream(), pair.stream());
    let third = pair.client.open(0, &[]).1;
    pair.feed(&third).unwrap();
    assert_eq!(pair.sent(), [Sent::Reset(5, 3)], "REFUSED_STREAM");
    // The client's reset does not make room: what was begun for the stream still runs.
    let fourth = pair.client.open(0, &[]).1;
    pair.feed(&[reset(1), reset(1), fourth].concat()).unwrap();
    assert_eq!(pair.got(), [Got::Reset(one)]);
    assert_eq!(pair.sent(), [Sent::Reset(7, 3)]);
    assert_eq!(pair.server.data(one, 1, false), Ok(None), "dropped");
    pair.server.release(one);
    pair.stream();
}

#[test]
fn flood_of_opened_and_reset_streams_keeps_nothing() {
    let mut pair = Pair::new(8);
    for _ in 0..10_000 {
        let (id, open) = pair.client.open(0, &[("streamtype", "data")]);
        pair.feed(&[open, reset(id)].concat()).unwrap();
    }
    assert_eq!(pair.got().len(), 16, "eight streams, opened and reset");
    assert!(pair.sent().len() >= 9_992);
    assert_eq!(pair.server.held().1, 8);
}

#[test]
fn ids_must_rise_and_be_odd() {
    let mut pair = Pair::new(8);
    pair.stream();
    let frames = [
        pair.client.open_as(6, 0, &[]),
        pair.client.open_as(1, 0, &[]),
        pair.client.open_as(5, 0, &[]),
        pair.client.open_as(7, 0, &[]),
    ];
    pair.feed(&frames.concat()).unwrap();
    assert!(matches!(&pair.got()[..], [Got::Opened(id, ..)] if id.get() == 7));
    assert_eq!(pair.sent(), [Sent::Reset(6, 1), Sent::Reset(1, 1), Sent::Reset(5, 1)], "PROTOCOL_ERROR");
    pair.feed(&data(1, 0, b"still open")).unwrap();
    assert_eq!(pair.got().len(), 1);
}

#[test]
fn malformed_headers_cost_one_stream() {
    let many: Vec<(String, String)> = (0..=MAX_HEADERS).map(|i| (i.to_string(), String::new())).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|(name, value)| (&name[..], &value[..])).collect();
    let trailing = [plain(&[("a", "b")]), vec![0]].concat();
    let short = plain(&[("a", "b")])[..10].to_vec();
    let blocks = [vec![], vec![0xff; 4], plain(&many), trailing, short, plain(&[("", "no name")])];
    let mut pair = Pair::new(8);
    for block in blocks {
        let id = 2 * u32::try_from(pair.output.len()).unwrap() + 1;
        let frame = pair.client.open_raw(id, 0, &block);
        pair.feed(&frame).unwrap();
        assert_eq!(pair.got(), [], "{block:?}");
        pair.flush();
    }
    assert_eq!(pair.sent().len(), 6);
    let frame = pair.client.open_as(10_001, 0, &[]);
    pair.feed(&frame).unwrap();
    assert_eq!(pair.got().len(), 1, "the connection lives");
}

#[test]
fn header_bomb_is_stopped_while_it_inflates() {
    let mut pair = Pair::new(8);
    // 4 MiB in some 4 KiB.
    let block = vec![b'a'; 4 << 20];
    let frame = pair.client.open_raw(1, 0, &block);
    assert!(frame.len() < MAX_CONTROL);
    assert_eq!(pair.feed(&frame), Err(Error::HeadersTooLarge(MAX_BLOCK)));
    assert_eq!(pair.sent(), [Sent::GoAway(0, 1)]);
    pair.feed(&ping(1)).unwrap();
    assert_eq!((pair.sent(), pair.got()), (vec![], vec![]), "nothing more is read");
}

#[test]
fn largest_headers_are_read() {
    let mut pair = Pair::new(8);
    let frame = pair.client.open(0, &[("a", &"b".repeat(MAX_BLOCK - 100))]).1;
    pair.feed(&frame).unwrap();
    assert_eq!(pair.got().len(), 1);
}

#[test]
fn what_is_no_spdy_ends_the_connection() {
    let syn = |content: &[u8]| control(1, 0, &[content]);
    let cases = [
        (b"GET / HTTP/1.1\r\n".to_vec(), None),
        (b"\x80\x02\x00\x01\x00\x00\x00\x00".to_vec(), Some(Error::Version(2))),
        (data(0, 0, b"x"), Some(Error::StreamZero)),
        (syn(&[0; 20]), Some(Error::StreamZero)),
        (syn(&[0; 9]), Some(Error::Length { kind: 1, length: 9 })),
        (
            control(1, 0, &[&vec![0; MAX_CONTROL + 1]]),
            Some(Error::Length { kind: 1, length: MAX_CONTROL + 1 }),
        ),
        (control(3, 0, &[&[0; 12]]), Some(Error::Length { kind: 3, length: 12 })),
        (control(6, 0, &[&[0; 3]]), Some(Error::Length { kind: 6, length: 3 })),
        (control(7, 0, &[&[0; 4]]), Some(Error::Length { kind: 7, length: 4 })),
        (syn(b"\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00no zlib"), Some(Error::Compression)),
        // A zlib stream with another dictionary.
        (syn(b"\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x78\x20\x00\x00\x00\x01"), Some(Error::Compression)),
        // One without a dictionary that ends at once.
        (
            syn(b"\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x78\x9c\x03\x00\x00\x00\x00\x01"),
            Some(Error::Compression),
        ),
    ];
    for (bytes, error) in cases {
        let mut pair = Pair::new(8);
        // The first is a data frame for stream 0x47455420, which nobody knows, with 2 MiB to come.
        let expected = error.map_or(Ok(()), Err);
        assert_eq!(pair.feed(&bytes), expected, "{bytes:02x?}");
        let told = if error.is_some() { vec![Sent::GoAway(0, 1)] } else { vec![] };
        assert_eq!(pair.sent(), told);
    }
}

#[test]
fn one_way_stream_takes_no_data() {
    let mut pair = Pair::new(8);
    let frame = pair.client.open(ONE_WAY, &[]).1;
    pair.feed(&frame).unwrap();
    let Some(Got::Opened(id, ..)) = pair.got.pop() else { panic!("no stream") };
    pair.server.accept(id);
    assert_eq!(pair.server.data(id, 1, false), Err(SendError::Finished));
}

#[test]
fn client_that_leaves_opens_nothing_more() {
    let mut pair = Pair::new(8);
    let id = pair.stream();
    let open = pair.client.open(0, &[]).1;
    pair.feed(&[go_away(), go_away(), open, data(1, 0, b"rest")].concat()).unwrap();
    assert_eq!(pair.got(), [Got::GoAway, Got::Data(id, b"rest".to_vec())]);
    pair.server.go_away();
    pair.server.go_away();
    assert_eq!(pair.sent(), [Sent::GoAway(1, 0)], "once");
}

#[test]
fn resets_tell_why() {
    let mut pair = Pair::new(8);
    let accepted = pair.stream();
    let open = pair.client.open(0, &[]).1;
    pair.feed(&open).unwrap();
    let Some(Got::Opened(fresh, ..)) = pair.got.pop() else { panic!("no stream") };
    pair.server.reset(accepted);
    pair.server.reset(fresh);
    assert_eq!(pair.sent(), [Sent::Reset(1, 5), Sent::Reset(3, 3)], "CANCEL, REFUSED_STREAM");
    assert_eq!(pair.server.data(accepted, 1, false), Err(SendError::Unknown));
    let long = pair.stream();
    let length = MAX_PAYLOAD + 1;
    assert_eq!(pair.server.data(long, length, false), Err(SendError::TooLong(length)));
}
