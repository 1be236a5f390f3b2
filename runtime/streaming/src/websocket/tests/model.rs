//! Random messages, cut anywhere, and bytes that are no messages.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::testing::split;

/// A message of a client, in fragments, with pings between them.
fn fragments(kind: u8, payload: &[u8], cuts: &[usize], ping: bool) -> Vec<u8> {
    let mut parts = Vec::new();
    split(payload, cuts, |part| parts.push(part.to_vec()));
    let count = parts.len();
    let mut bytes = Vec::new();
    for (at, part) in parts.iter().enumerate() {
        let opcode = if at == 0 { kind } else { 0 };
        let fin = if at + 1 == count { 0x80 } else { 0 };
        bytes.extend(frame(fin | opcode, part));
        if ping {
            bytes.extend(message(PING, b"?"));
        }
    }
    bytes
}

/// What was received on each channel.
#[derive(Debug, Default, PartialEq, Eq)]
struct Received {
    stdin: Vec<u8>,
    resize: Vec<u8>,
    ended: bool,
}

impl Received {
    fn take(&mut self, server: &mut Channels, part: &[u8]) {
        for event in channels(server, part).unwrap() {
            match event {
                ChannelEvent::Data { channel: 0, bytes } => self.stdin.extend_from_slice(&bytes),
                ChannelEvent::Data { bytes, .. } => self.resize.extend_from_slice(&bytes),
                ChannelEvent::Ended { channel: 0 } => self.ended = true,
                other => panic!("{other:?}"),
            }
            server.written(usize::MAX);
        }
        server.written(usize::MAX);
    }
}

proptest! {
    #[test]
    fn where_messages_and_input_are_cut_does_not_matter(
        base64 in any::<bool>(),
        messages in vec((any::<bool>(), vec(any::<u8>(), 0..200), vec(any::<usize>(), 0..4), any::<bool>()), 0..12),
        cuts in vec(any::<usize>(), 0..40),
    ) {
        let mut expected = Received { ended: !base64, ..Received::default() };
        let mut bytes = Vec::new();
        for (stdin, payload, cuts, ping) in &messages {
            let channel = if *stdin { 0 } else { 4 };
            let place = if *stdin { &mut expected.stdin } else { &mut expected.resize };
            place.extend(payload);
            let content = if base64 {
                format!("{channel}{}", STANDARD.encode(payload)).into_bytes()
            } else {
                [&[channel][..], payload].concat()
            };
            bytes.extend(fragments(if base64 { TEXT } else { BINARY }, &content, cuts, *ping));
        }
        let (codec, end) =
            if base64 { (Codec::Base64, vec![]) } else { (Codec::Binary, message(BINARY, &[255, 0])) };
        bytes.extend(end);
        let mut server = Channels::new(codec, !base64);
        let mut received = Received::default();
        split(&bytes, &cuts, |part| received.take(&mut server, part));
        prop_assert_eq!(received, expected);
    }

    #[test]
    fn any_bytes_are_survived(
        base64 in any::<bool>(),
        start in vec((any::<u8>(), vec(any::<u8>(), 0..140)), 0..6),
        tail in vec(any::<u8>(), 0..300),
        cuts in vec(any::<usize>(), 0..10),
    ) {
        let mut bytes: Vec<u8> = start.iter().flat_map(|(first, payload)| frame(*first, payload)).collect();
        bytes.extend(tail);
        let mut server = Channels::new(if base64 { Codec::Base64 } else { Codec::Binary }, true);
        let mut output = Vec::new();
        let mut failed = false;
        split(&bytes, &cuts, |part| {
            let mut input = &mut part[..];
            loop {
                match server.receive(&mut input) {
                    Ok(Some(ChannelEvent::Data { bytes, .. })) => assert!(!bytes.is_empty()),
                    Ok(Some(_)) => {}
                    Ok(None) if input.is_empty() => break,
                    Ok(None) => assert!(server.output().len() > 16_000, "stuck without a reason"),
                    Err(_) => {
                        assert!(!failed, "an error is told once");
                        failed = true;
                    }
                }
                assert!(server.output().len() <= 17 * 1024);
                output.extend_from_slice(server.output());
                server.written(usize::MAX);
            }
        });
        output.extend_from_slice(server.output());
        let sent = read(&output);
        let closes = sent.iter().filter(|(opcode, _)| *opcode == CLOSE).count();
        prop_assert!(closes <= 1 && (closes == 1 || !failed));
        prop_assert_eq!(sent.iter().position(|(opcode, _)| *opcode == CLOSE).unwrap_or(sent.len()), sent.len() - closes);
    }

    #[test]
    fn frames_are_read_as_they_were_made(
        base64 in any::<bool>(),
        channel in 0..64u8,
        payload in vec(any::<u8>(), 0..1000),
    ) {
        let server = Channels::new(if base64 { Codec::Base64 } else { Codec::Binary }, false);
        let frame = server.frame(channel, &payload).unwrap().unwrap();
        let sent = read(&[&*frame.head, &frame.body].concat());
        let [(kind, content)] = &sent[..] else { panic!("{sent:?}") };
        let (first, rest) = content.split_first().unwrap();
        if base64 {
            prop_assert_eq!((*kind, first - b'0'), (TEXT, channel));
            prop_assert_eq!(STANDARD.decode(rest).unwrap(), payload);
        } else {
            prop_assert_eq!((*kind, *first), (BINARY, channel));
            prop_assert_eq!(rest, &payload[..]);
        }
    }
}
