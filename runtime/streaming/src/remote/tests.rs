//! Sessions over both protocols, as clients see them.

mod model;

use std::borrow::Cow;

use super::*;
use crate::testing::spdy::{Client, FIN, Sent, data, go_away, reset};
use crate::testing::websocket::{BINARY, CLOSE, TEXT, frame, message, read};

const ALL: Streams = Streams { stdin: true, stdout: true, stderr: true, tty: false };
const TERMINAL: Streams = Streams { stdin: true, stdout: true, stderr: false, tty: true };

/// An event that outlives its input.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Got {
    Ready,
    Stdin(Vec<u8>),
    StdinEnd,
    Resize(u16, u16),
    Gone,
}

fn feed(session: &mut Session, bytes: &[u8]) -> Result<Vec<Got>, Error> {
    let mut bytes = bytes.to_vec();
    let mut input = Input::new(&mut bytes);
    let mut got = Vec::new();
    while let Some(event) = session.receive(&mut input)? {
        got.push(match event {
            Event::Ready => Got::Ready,
            Event::Stdin(bytes) => Got::Stdin(bytes.into_owned()),
            Event::StdinEnd => Got::StdinEnd,
            Event::Resize(Size { width, height }) => Got::Resize(width, height),
            Event::Gone => Got::Gone,
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

/// Streams 1, 3, 5 … with these types.
fn open(client: &mut Client, types: &[&str]) -> Vec<u8> {
    types.iter().flat_map(|kind| client.open(0, &[("streamtype", kind)]).1).collect()
}

fn spdy(version: Version, streams: Streams) -> (Session, Client) {
    (Session::new(Protocol::Spdy(version), streams), Client::new())
}

fn websocket(version: Version, codec: Codec, streams: Streams) -> Session {
    let mut session = Session::new(Protocol::WebSocket(version, codec), streams);
    assert_eq!(feed(&mut session, b""), Ok(vec![Got::Ready]), "without input");
    session
}

#[test]
fn exec_over_spdy() {
    let (mut session, mut client) = spdy(Version::V4, ALL);
    let opened = open(&mut client, &["error", "stdin", "stdout"]);
    assert_eq!(feed(&mut session, &opened), Ok(vec![]));
    assert!(!session.is_ready());
    assert_eq!(client.read(&output(&mut session)), [Sent::Reply(1), Sent::Reply(3), Sent::Reply(5)]);
    let last = open(&mut client, &["stderr"]);
    assert_eq!(feed(&mut session, &last), Ok(vec![Got::Ready]));

    let input = [data(3, 0, b"in"), data(3, FIN, b""), data(5, 0, b"to stdout"), data(1, FIN, b"")];
    assert_eq!(feed(&mut session, &input.concat()), Ok(vec![Got::Stdin(b"in".to_vec()), Got::StdinEnd]));

    let mut sent = output(&mut session);
    for (to, text) in [(Output::Stdout, b"out"), (Output::Stderr, b"err")] {
        let frame = session.frame(to, text).unwrap().unwrap();
        sent.extend([&*frame.head, &frame.body].concat());
    }
    session.finish(&Outcome::Exit(3));
    sent.extend(output(&mut session));
    let expected = [
        Sent::Reply(7),
        Sent::Data(1, false, b" ".to_vec()),
        Sent::Data(5, false, b"out".to_vec()),
        Sent::Data(7, false, b"err".to_vec()),
        Sent::Data(5, true, vec![]),
        Sent::Data(7, true, vec![]),
        Sent::Data(3, true, vec![]),
        Sent::Data(1, false, Outcome::Exit(3).json()),
        Sent::Data(1, true, vec![]),
        Sent::GoAway(7, 0),
    ];
    assert_eq!(client.read(&sent), expected);
    assert_eq!(feed(&mut session, &data(3, 0, b"late")), Ok(vec![]));
}

#[test]
fn versions_over_spdy() {
    let all = ["error", "stdin", "stdout", "resize"];
    for (version, streams, status) in [
        (Version::V1, &all[..3], &b"no"[..]),
        (Version::V2, &all[..3], b"no"),
        (Version::V3, &all, b"no"),
        (Version::V4, &all, br#"{"status":"Failure","message":"no","reason":"InternalError","code":500}"#),
    ] {
        let (mut session, mut client) = spdy(version, TERMINAL);
        let opened = open(&mut client, streams);
        assert_eq!(feed(&mut session, &opened), Ok(vec![Got::Ready]), "{version:?}");
        session.finish(&Outcome::Failed("no".into()));
        let sent = client.read(&output(&mut session));
        assert!(sent.contains(&Sent::Data(1, false, status.to_vec())), "{version:?}: {sent:?}");

        let (mut session, mut client) = spdy(version, TERMINAL);
        let opened = open(&mut client, streams);
        feed(&mut session, &opened).unwrap();
        session.finish(&Outcome::Success);
        let sent = client.read(&output(&mut session));
        let told = sent.iter().any(|frame| matches!(frame, Sent::Data(1, false, _)));
        assert_eq!(told, version == Version::V4, "{version:?} says nothing on success");

        let (mut session, mut client) = spdy(version, TERMINAL);
        let opened = open(&mut client, streams);
        feed(&mut session, &opened).unwrap();
        session.finish(&Outcome::Exit(3));
        let sent = client.read(&output(&mut session));
        let told = sent.iter().any(|frame| matches!(frame, Sent::Data(1, false, _)));
        assert_eq!(told, version != Version::V1, "{version:?}: a text makes version 1's client drop output");
    }
}

#[test]
fn streams_that_were_not_asked_for_are_refused() {
    let (mut session, mut client) = spdy(Version::V2, TERMINAL);
    // Unknown, none, of a later version, not of a terminal, twice.
    let kinds = ["bogus", "", "resize", "stderr", "error", "error", "stdin", "stdout"];
    let opened = open(&mut client, &kinds);
    assert_eq!(feed(&mut session, &opened), Ok(vec![Got::Ready]));
    let refused = |id| Sent::Reset(id, 3);
    let expected = [
        refused(1),
        refused(3),
        refused(5),
        refused(7),
        Sent::Reply(9),
        refused(11),
        Sent::Reply(13),
        Sent::Reply(15),
    ];
    assert_eq!(client.read(&output(&mut session)), expected);
}

#[test]
fn what_comes_before_all_streams_waits_for_them() {
    let (mut session, mut client) = spdy(Version::V4, TERMINAL);
    let early = [
        open(&mut client, &["error", "stdin", "resize"]),
        data(3, 0, b"ab"),
        data(3, 0, b"c"),
        data(5, 0, br#"{"Width":80,"Height":24}"#),
        data(5, 0, br#"{"Width":81,"Height":24}"#),
        data(3, FIN, b""),
    ];
    assert_eq!(feed(&mut session, &early.concat()), Ok(vec![]));
    let last = open(&mut client, &["stdout"]);
    let got = feed(&mut session, &last);
    let expected = vec![Got::Ready, Got::Stdin(b"abc".to_vec()), Got::StdinEnd, Got::Resize(81, 24)];
    assert_eq!(got, Ok(expected));
}

#[test]
fn too_much_before_all_streams_ends_the_session() {
    let (mut session, mut client) = spdy(Version::V4, ALL);
    let early = [open(&mut client, &["error", "stdin"]), data(3, 0, &[7; 10_000]), data(3, 0, &[7; 10_000])];
    assert_eq!(feed(&mut session, &early.concat()), Err(Error::EarlyStdin));
    assert!(client.read(&output(&mut session)).contains(&Sent::GoAway(3, 0)));
}

#[test]
fn session_that_never_became_ready_says_why_if_it_can() {
    let (mut session, mut client) = spdy(Version::V4, ALL);
    let opened = open(&mut client, &["error"]);
    feed(&mut session, &opened).unwrap();
    let failed = Outcome::Failed("the client did not create all streams".into());
    session.finish(&failed);
    session.finish(&failed);
    let sent = client.read(&output(&mut session));
    let expected = [
        Sent::Reply(1),
        Sent::Data(1, false, failed.json()),
        Sent::Data(1, true, vec![]),
        Sent::GoAway(1, 0),
    ];
    assert_eq!(sent, expected);
    assert!(session.frame(Output::Stdout, b"x").unwrap().is_none());
}

#[test]
fn reset_streams_are_ended_or_dropped() {
    let (mut session, mut client) = spdy(Version::V4, ALL);
    let opened = open(&mut client, &["error", "stdin", "stdout", "stderr"]);
    feed(&mut session, &opened).unwrap();
    assert_eq!(feed(&mut session, &[reset(3), reset(5)].concat()), Ok(vec![Got::StdinEnd]));
    assert!(session.frame(Output::Stdout, b"x").unwrap().is_none());
    assert!(session.frame(Output::Stderr, b"x").unwrap().is_some());
    assert_eq!(feed(&mut session, &go_away()), Ok(vec![Got::Gone]));
}

#[test]
fn stdin_that_nobody_reads_is_dropped() {
    let (mut session, mut client) = spdy(Version::V4, ALL);
    let opened = open(&mut client, &["error", "stdin", "stdout", "stderr"]);
    feed(&mut session, &opened).unwrap();
    output(&mut session);
    session.drop_stdin();
    session.drop_stdin();
    let mut parser = Client::new();
    assert_eq!(parser.read(&output(&mut session)), [Sent::Data(3, true, vec![])]);
    assert_eq!(feed(&mut session, &[data(3, 0, b"x"), data(3, FIN, b"")].concat()), Ok(vec![]));

    let mut session = websocket(Version::V5, Codec::Binary, ALL);
    session.drop_stdin();
    assert_eq!(feed(&mut session, &message(BINARY, b"\0x")), Ok(vec![]));
}

#[test]
fn exec_over_websocket() {
    let mut session = websocket(Version::V5, Codec::Binary, TERMINAL);
    assert_eq!(read(&output(&mut session)), [(BINARY, vec![1])], "the first message unlocks some clients");
    let input = [
        message(BINARY, b"\x00in"),
        message(BINARY, b"\x04{\"Width\":80,\"Height\":24}\n"),
        message(BINARY, b"\x01to stdout"),
        message(BINARY, b"\x07nowhere"),
        message(BINARY, &[255, 0]),
        message(BINARY, b"\x00late"),
    ];
    let expected = vec![Got::Stdin(b"in".to_vec()), Got::Resize(80, 24), Got::StdinEnd];
    assert_eq!(feed(&mut session, &input.concat()), Ok(expected));
    let frame = session.frame(Output::Stdout, b"out").unwrap().unwrap();
    assert_eq!(read(&[&*frame.head, &frame.body].concat()), [(BINARY, b"\x01out".to_vec())]);
    assert!(session.frame(Output::Stderr, b"not of a terminal").unwrap().is_none());
    session.finish(&Outcome::Exit(3));
    let status = [&b"\x03"[..], &Outcome::Exit(3).json()].concat();
    assert_eq!(read(&output(&mut session)), [(BINARY, status), (CLOSE, vec![3, 232])]);
    assert_eq!(feed(&mut session, &message(CLOSE, &[3, 232])), Ok(vec![Got::Gone]));
}

#[test]
fn versions_over_websocket() {
    for (version, codec, status) in [
        (Version::V1, Codec::Binary, &b"\x03no"[..]),
        (Version::V1, Codec::Base64, b"3bm8="),
        (
            Version::V4,
            Codec::Binary,
            b"\x03{\"status\":\"Failure\",\"message\":\"no\",\"reason\":\"InternalError\",\"code\":500}",
        ),
    ] {
        let mut session = websocket(version, codec, ALL);
        output(&mut session);
        if codec == Codec::Binary {
            let close = message(BINARY, &[255, 0]);
            assert_eq!(feed(&mut session, &close), Ok(vec![]), "no such message before v5");
        }
        session.finish(&Outcome::Failed("no".into()));
        assert_eq!(read(&output(&mut session))[0].1, status, "{version:?}");
        let mut session = websocket(version, codec, ALL);
        output(&mut session);
        session.finish(&Outcome::Success);
        assert_eq!(read(&output(&mut session)).len(), if version == Version::V4 { 2 } else { 1 });
    }
}

#[test]
fn base64_session() {
    let streams = Streams { stdout: false, ..ALL };
    let mut session = websocket(Version::V4, Codec::Base64, streams);
    assert_eq!(read(&output(&mut session)), [(TEXT, b"2".to_vec())]);
    let got =
        feed(&mut session, &[message(TEXT, b"0aQ=="), frame(TEXT, b"0"), frame(0x80, b"bg==")].concat());
    assert_eq!(got, Ok(vec![Got::Stdin(b"i".to_vec()), Got::Stdin(b"n".to_vec())]));
    let frame = session.frame(Output::Stderr, b"err").unwrap().unwrap();
    assert_eq!(read(&[&*frame.head, &frame.body].concat()), [(TEXT, b"2ZXJy".to_vec())]);
    assert!(matches!(frame.body, Cow::Owned(_)));
}

#[test]
fn nothing_is_taken_that_was_not_asked_for() {
    let none = Streams { stdin: false, stdout: true, stderr: false, tty: false };
    let mut session = websocket(Version::V5, Codec::Binary, none);
    let input = [
        message(BINARY, b"\0x"),
        message(BINARY, &[255, 0]),
        message(BINARY, b"\x04{\"Width\":1,\"Height\":1}"),
    ];
    assert_eq!(feed(&mut session, &input.concat()), Ok(vec![]));
}

#[test]
fn sizes() {
    let cases: [(&[&[u8]], Vec<Got>); 10] = [
        (&[br#"{"Width":80,"Height":24}"#], vec![Got::Resize(80, 24)]),
        (&[br#"{"width":80,"height":24}"#], vec![Got::Resize(80, 24)]),
        (&[br#"{"Width":8"#, br#"0,"Height":24}"#], vec![Got::Resize(80, 24)]),
        (&[b"{\"Width\":1,\"Height\":1}\n{\"Width\":2,\"Height\":2} {\"Wi"], vec![Got::Resize(2, 2)]),
        (&[br#"{"Width":0,"Height":24}"#, br#"{"Width":80}"#], vec![]),
        // Malformed ones are dropped with what came with them.
        (&[br#"{"Width":70000,"Height":1}"#, br#"{"Width":3,"Height":3}"#], vec![Got::Resize(3, 3)]),
        (&[b"nonsense", br#"{"Width":4,"Height":4}"#], vec![Got::Resize(4, 4)]),
        (&[br#"{"Width":-1,"Height":1}"#, br#"[[[["#, br#"{"Width":5,"Height":5}"#], vec![Got::Resize(5, 5)]),
        (&[br#"{"Width":6,"Height":6,"Depth":{"a":[1]}}"#], vec![Got::Resize(6, 6)]),
        // An object that never ends.
        (&[&[b'{'; 1], &[b' '; 2000], br#"{"Width":7,"Height":7}"#], vec![Got::Resize(7, 7)]),
    ];
    for (parts, expected) in cases {
        let mut session = websocket(Version::V4, Codec::Binary, TERMINAL);
        let input: Vec<u8> =
            parts.iter().flat_map(|part| message(BINARY, &[&b"\x04"[..], part].concat())).collect();
        assert_eq!(feed(&mut session, &input), Ok(expected), "{parts:?}");
    }
}
