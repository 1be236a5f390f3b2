//! Hand-made frames; `model` has random sequences.

mod model;

use std::borrow::Cow;

use super::*;
use crate::output::{MAX_PAYLOAD, SendError};
use crate::testing::websocket::{BINARY, CLOSE, PING, PONG, TEXT, frame, message, read};

/// An event that outlives its input.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Got {
    Piece(Kind, bool, bool, Vec<u8>),
    Closed(Option<u16>),
}

/// A server's frames: opcodes and payloads.
type Sent = Vec<(u8, Vec<u8>)>;

/// Feeds bytes, writing output away whenever it is full.
fn feed(server: &mut Connection, bytes: &[u8], output: &mut Vec<u8>) -> Result<Vec<Got>, Error> {
    let mut bytes = bytes.to_vec();
    let mut input = &mut bytes[..];
    let mut got = Vec::new();
    loop {
        match server.receive(&mut input) {
            Ok(Some(Event::Data(Piece { kind, first, last, bytes }))) => {
                got.push(Got::Piece(kind, first, last, bytes.to_vec()));
            }
            Ok(Some(Event::Closed(code))) => got.push(Got::Closed(code)),
            Ok(None) if input.is_empty() => {
                flush(server, output);
                return Ok(got);
            }
            Ok(None) => flush(server, output),
            Err(error) => {
                flush(server, output);
                return Err(error);
            }
        }
    }
}

fn flush(server: &mut Connection, output: &mut Vec<u8>) {
    output.extend_from_slice(server.output());
    server.written(server.output().len());
}

/// What a new server understands of `bytes`, and what it answers.
fn fresh(bytes: &[u8]) -> (Result<Vec<Got>, Error>, Sent) {
    let mut output = Vec::new();
    let got = feed(&mut Connection::new(), bytes, &mut output);
    (got, read(&output))
}

#[test]
fn examples_of_the_rfc() {
    // RFC 6455, 5.7: a masked text message and a masked pong; the ping's mask is left out there.
    let hello = b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58";
    let (got, sent) = fresh(hello);
    assert_eq!(got, Ok(vec![Got::Piece(Kind::Text, true, true, b"Hello".to_vec())]));
    assert_eq!(sent, []);
    assert_eq!(fresh(b"\x8a\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58"), (Ok(vec![]), vec![]));

    let mut server = Connection::new();
    let mut lengths = Vec::new();
    for length in [5, 125, 126, 256, 65_535, 65_536] {
        lengths.push(server.message(Kind::Binary, length).unwrap().to_vec());
    }
    assert_eq!(lengths[0], b"\x82\x05");
    assert_eq!(lengths[1], b"\x82\x7d");
    assert_eq!(lengths[2], b"\x82\x7e\x00\x7e");
    assert_eq!(lengths[3], b"\x82\x7e\x01\x00");
    assert_eq!(lengths[4], b"\x82\x7e\xff\xff");
    assert_eq!(lengths[5], b"\x82\x7f\x00\x00\x00\x00\x00\x01\x00\x00");
    server.ping();
    assert_eq!(server.output(), b"\x89\x00");
}

#[test]
fn fragments_with_a_ping_between_them() {
    let bytes = [frame(BINARY, b"ab"), message(PING, b"x"), frame(0, b""), frame(0x80, b"c")].concat();
    let (got, sent) = fresh(&bytes);
    let pieces = vec![
        Got::Piece(Kind::Binary, true, false, b"ab".to_vec()),
        Got::Piece(Kind::Binary, false, true, b"c".to_vec()),
    ];
    assert_eq!(got, Ok(pieces));
    assert_eq!(sent, [(PONG, b"x".to_vec())]);
    let (got, _) = fresh(&[frame(TEXT, b""), frame(0x80, b"")].concat());
    assert_eq!(got, Ok(vec![Got::Piece(Kind::Text, true, true, vec![])]), "an empty message has one piece");
}

#[test]
fn close_is_answered_and_ends_the_reading() {
    let (got, sent) = fresh(&[message(CLOSE, &[3, 232]), message(PING, b"")].concat());
    assert_eq!(got, Ok(vec![Got::Closed(Some(1000))]));
    assert_eq!(sent, [(CLOSE, vec![3, 232])]);
    let (got, sent) = fresh(&message(CLOSE, b""));
    assert_eq!(got, Ok(vec![Got::Closed(None)]));
    assert_eq!(sent, [(CLOSE, vec![])]);
}

#[test]
fn nothing_follows_a_close() {
    let mut server = Connection::new();
    server.close(Some(1000));
    server.close(Some(1001));
    server.ping();
    assert_eq!(server.message(Kind::Binary, 1), None);
    let mut output = Vec::new();
    let got = feed(&mut server, &[message(PING, b"late"), message(CLOSE, &[3, 232])].concat(), &mut output);
    assert_eq!(got, Ok(vec![Got::Closed(Some(1000))]));
    assert_eq!(read(&output), [(CLOSE, vec![3, 232])]);
}

#[test]
fn what_a_client_may_not_send_is_refused_with_a_code() {
    let unmasked = b"\x82\x01a".to_vec();
    let mut minus = frame(0x82, &[0; 70_000]);
    minus[2] = 0x80;
    let cases = [
        (unmasked, Error::Unmasked),
        (frame(0xc2, b"a"), Error::Reserved(0x40)),
        (frame(0x83, b"a"), Error::Opcode(3)),
        (frame(0x8b, b"a"), Error::Opcode(11)),
        (frame(0x09, b"a"), Error::Control),
        (message(PING, &[0; 126]), Error::Control),
        (frame(0x80, b"a"), Error::Order),
        (frame(0, b""), Error::Order),
        ([frame(BINARY, b"a"), message(BINARY, b"b")].concat(), Error::Order),
        (minus, Error::Length(1 << 63 | 70_000)),
        (message(CLOSE, &[3]), Error::Close),
        (message(CLOSE, &[3, 237]), Error::Close),
        (message(CLOSE, &[0, 0]), Error::Close),
        (message(CLOSE, b"\x03\xe8\xff"), Error::Close),
    ];
    for (bytes, error) in cases {
        let (got, sent) = fresh(&bytes);
        assert_eq!(got, Err(error), "{:02x?}", &bytes[..bytes.len().min(20)]);
        assert_eq!(sent, [(CLOSE, vec![3, 234])], "1002, protocol error");
    }
}

#[test]
fn a_header_is_judged_by_its_first_bytes() {
    let mut server = Connection::new();
    let mut head = *b"\x82\x7f";
    assert_eq!(server.receive(&mut &mut head[..]), Err(Error::Unmasked));
}

#[test]
fn payload_is_handed_out_before_its_frame_is_complete() {
    // 2^62 bytes are announced; three come.
    let head = b"\x82\xff\x40\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00abc";
    let (got, _) = fresh(head);
    assert_eq!(got, Ok(vec![Got::Piece(Kind::Binary, true, false, b"abc".to_vec())]));
}

#[test]
fn unread_answers_stop_the_reading() {
    let mut server = Connection::new();
    let mut flood = message(PING, &[1; 125]).repeat(10_000);
    let mut input = &mut flood[..];
    assert_eq!(server.receive(&mut input), Ok(None));
    assert!(input.len() > 1_000_000 && server.output().len() < 17 * 1024);
}

/// What channels understand of `bytes`.
fn channels(server: &mut Channels, bytes: &[u8]) -> Result<Vec<ChannelEvent<'static>>, Error> {
    let mut bytes = bytes.to_vec();
    let mut input = &mut bytes[..];
    let mut got = Vec::new();
    while let Some(event) = server.receive(&mut input)? {
        got.push(match event {
            ChannelEvent::Data { channel, bytes } => {
                ChannelEvent::Data { channel, bytes: Cow::Owned(bytes.into_owned()) }
            }
            ChannelEvent::Ended { channel } => ChannelEvent::Ended { channel },
            ChannelEvent::Closed => ChannelEvent::Closed,
        });
    }
    assert!(input.is_empty());
    Ok(got)
}

fn bytes(channel: u8, bytes: &[u8]) -> ChannelEvent<'static> {
    ChannelEvent::Data { channel, bytes: Cow::Owned(bytes.to_vec()) }
}

#[test]
fn binary_channels() {
    let mut server = Channels::new(Codec::Binary, false);
    let input = [
        message(BINARY, b""),
        message(BINARY, b"\x00"),
        message(BINARY, b"\x00ls\n"),
        // Python's client sends text.
        message(TEXT, b"\x00id\n"),
        // Gorilla cuts at its buffer's size.
        frame(BINARY, b"\x04"),
        frame(0, b"{}"),
        frame(0x80, b"{}"),
        message(BINARY, &[255, 0]),
        message(CLOSE, b""),
    ];
    let got = channels(&mut server, &input.concat()).unwrap();
    let expected = [
        bytes(0, b"ls\n"),
        bytes(0, b"id\n"),
        bytes(4, b"{}"),
        bytes(4, b"{}"),
        bytes(255, b"\0"),
        ChannelEvent::Closed,
    ];
    assert_eq!(got, expected);
}

#[test]
fn channels_are_closed_by_v5_only_with_a_whole_message() {
    let mut server = Channels::new(Codec::Binary, true);
    let whole = [message(BINARY, &[255, 0]), frame(BINARY, &[255]), frame(0, &[]), frame(0x80, &[4])];
    let got = channels(&mut server, &whole.concat());
    assert_eq!(got, Ok(vec![ChannelEvent::Ended { channel: 0 }, ChannelEvent::Ended { channel: 4 }]));
    for malformed in [
        message(BINARY, &[255]),
        message(BINARY, &[255, 0, 0]),
        [frame(BINARY, &[255, 0]), frame(0x80, &[0])].concat(),
    ] {
        let mut server = Channels::new(Codec::Binary, true);
        assert_eq!(channels(&mut server, &malformed), Err(Error::CloseSignal));
        assert_eq!(read(server.output()), [(CLOSE, vec![3, 234])]);
    }
}

#[test]
fn base64_channels() {
    let mut server = Channels::new(Codec::Base64, false);
    let input = [
        message(TEXT, b"0Zm9vCgo="),
        message(TEXT, b"0"),
        message(BINARY, b"4e30="),
        message(TEXT, b"0Zh=="),
        frame(TEXT, b"0Zm"),
        frame(0, b"9"),
        frame(0x80, b"v\r\n"),
    ];
    let got = channels(&mut server, &input.concat()).unwrap();
    assert_eq!(got, [bytes(0, b"foo\n\n"), bytes(4, b"{}"), bytes(0, b"f"), bytes(0, b"foo")]);
    for malformed in [&b"0Zg"[..], b"0Zg=", b"0Zg==Zg==", b"0Z===", b"0Zm9\xff"] {
        let mut server = Channels::new(Codec::Base64, false);
        assert_eq!(channels(&mut server, &message(TEXT, malformed)), Err(Error::Base64), "{malformed:?}");
        assert_eq!(read(server.output()), [(CLOSE, vec![3, 239])], "1007, invalid payload");
    }
    let padded_twice = [frame(TEXT, b"0Zg=="), frame(0x80, b"Zg==")].concat();
    let mut server = Channels::new(Codec::Base64, false);
    assert_eq!(channels(&mut server, &padded_twice), Err(Error::Base64));
}

#[test]
fn frames_of_channels() {
    let sent = |codec, channel, payload: &[u8]| {
        let frame = Channels::new(codec, false).frame(channel, payload).unwrap().unwrap();
        read(&[&*frame.head, &frame.body].concat())
    };
    assert_eq!(sent(Codec::Binary, 1, b"\n"), [(BINARY, b"\x01\n".to_vec())]);
    assert_eq!(sent(Codec::Base64, 1, b"\n"), [(TEXT, b"1Cg==".to_vec())]);
    let large = vec![7; MAX_PAYLOAD];
    assert_eq!(sent(Codec::Binary, 2, &large)[0].1.len(), MAX_PAYLOAD + 1);
    let mut server = Channels::new(Codec::Binary, false);
    let too_long = vec![7; MAX_PAYLOAD + 1];
    assert_eq!(server.frame(1, &too_long).unwrap_err(), SendError::TooLong(MAX_PAYLOAD + 1));
    server.close();
    assert!(server.frame(1, b"late").unwrap().is_none());
}
