//! Random clients, over each protocol: whatever they send, the process gets the bytes of its stdin, in order.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::testing::split;

/// What a client does.
#[derive(Debug, Clone)]
enum Step {
    Stdin(Vec<u8>),
    Resize(u16, u16),
    Output(bool, Vec<u8>),
    Noise(u8, Vec<u8>),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => vec(any::<u8>(), 1..200).prop_map(Step::Stdin),
        1 => (1..200u16, 1..200u16).prop_map(|(width, height)| Step::Resize(width, height)),
        2 => (any::<bool>(), vec(any::<u8>(), 0..200)).prop_map(|(which, bytes)| Step::Output(which, bytes)),
        1 => (5..64u8, vec(any::<u8>(), 0..20)).prop_map(|(channel, bytes)| Step::Noise(channel, bytes)),
    ]
}

fn protocol() -> impl Strategy<Value = Protocol> {
    prop_oneof![
        Just(Protocol::Spdy(Version::V3)),
        Just(Protocol::Spdy(Version::V4)),
        Just(Protocol::WebSocket(Version::V1, Codec::Binary)),
        Just(Protocol::WebSocket(Version::V4, Codec::Base64)),
        Just(Protocol::WebSocket(Version::V5, Codec::Binary)),
    ]
}

/// Bytes of a client that sends `payload` on a channel; SPDY's streams are opened as 1 error, 3 stdin, 5 stdout, 7 resize.
fn sent(protocol: Protocol, channel: u8, payload: &[u8]) -> Vec<u8> {
    use base64::Engine as _;
    match protocol {
        Protocol::Spdy(_) => {
            let id = match channel {
                0 => 3,
                4 => 7,
                other => 2 * u32::from(other) + 1,
            };
            data(id, 0, payload)
        }
        Protocol::WebSocket(_, Codec::Binary) => message(BINARY, &[&[channel][..], payload].concat()),
        Protocol::WebSocket(_, Codec::Base64) => {
            let text = base64::engine::general_purpose::STANDARD.encode(payload);
            message(TEXT, &[&[b'0' + channel][..], text.as_bytes()].concat())
        }
    }
}

proptest! {
    #[test]
    fn the_process_gets_what_the_client_sends(
        protocol in protocol(),
        steps in vec(step(), 0..20),
        cuts in vec(any::<usize>(), 0..20),
    ) {
        let mut session = Session::new(protocol, TERMINAL);
        let mut client = Client::new();
        let mut bytes = match protocol {
            Protocol::Spdy(_) => open(&mut client, &["error", "stdin", "stdout", "resize"]),
            Protocol::WebSocket(..) => Vec::new(),
        };
        let (mut stdin, mut size, mut output) = (Vec::new(), None, Vec::<u8>::new());
        for step in &steps {
            match step {
                Step::Stdin(payload) => {
                    stdin.extend(payload);
                    bytes.extend(sent(protocol, 0, payload));
                }
                Step::Resize(width, height) => {
                    size = Some((*width, *height));
                    let json = format!("{{\"Width\":{width},\"Height\":{height}}}\n");
                    bytes.extend(sent(protocol, 4, json.as_bytes()));
                }
                Step::Output(..) => {}
                Step::Noise(channel, payload) => bytes.extend(sent(protocol, *channel, payload)),
            }
        }
        let (mut ready, mut got_stdin, mut got_size) = (0, Vec::new(), None);
        split(&bytes, &cuts, |part| {
            for event in feed(&mut session, part).unwrap() {
                match event {
                    Got::Ready => ready += 1,
                    Got::Stdin(bytes) => got_stdin.extend(bytes),
                    Got::Resize(width, height) => got_size = Some((width, height)),
                    other => panic!("{other:?}"),
                }
                assert_eq!(ready, 1, "nothing comes before");
            }
        });
        prop_assert_eq!((got_stdin, got_size), (stdin, size));

        // What the process writes reaches the client, in order, and then the end.
        let mut wire = super::output(&mut session);
        for step in &steps {
            if let Step::Output(stderr, payload) = step {
                let to = if *stderr { Output::Stderr } else { Output::Stdout };
                let frame = session.frame(to, payload).unwrap();
                prop_assert_eq!(frame.is_some(), !stderr);
                if let Some(frame) = frame {
                    output.extend(payload);
                    wire.extend([&*frame.head, &frame.body].concat());
                }
            }
        }
        session.finish(&Outcome::Success);
        wire.extend(super::output(&mut session));
        prop_assert_eq!(stdout(protocol, &mut client, &wire), output);
    }

    #[test]
    fn any_bytes_are_survived(
        protocol in protocol(),
        start in vec((0..6u8, vec(any::<u8>(), 0..50)), 0..6),
        tail in vec(any::<u8>(), 0..300),
    ) {
        let mut session = Session::new(protocol, TERMINAL);
        let mut bytes = open(&mut Client::new(), &["error", "stdin", "stdout", "resize"]);
        if !matches!(protocol, Protocol::Spdy(_)) {
            bytes.clear();
        }
        bytes.extend(start.iter().flat_map(|(channel, payload)| sent(protocol, *channel, payload)));
        bytes.extend(tail);
        let mut input = Input::new(&mut bytes);
        let mut errors = 0;
        loop {
            match session.receive(&mut input) {
                Ok(None) if input.is_empty() => break,
                Ok(None) => drop(super::output(&mut session)),
                Ok(Some(_)) => {}
                Err(_) => errors += 1,
            }
        }
        prop_assert!(errors <= 1);
    }
}

/// What a client reads as stdout, if the connection ends as it should.
fn stdout(protocol: Protocol, client: &mut Client, wire: &[u8]) -> Vec<u8> {
    use base64::Engine as _;
    let mut stdout = Vec::new();
    if let Protocol::WebSocket(_, codec) = protocol {
        let mut messages = read(wire);
        assert_eq!(messages.pop(), Some((CLOSE, vec![3, 232])));
        for (_, message) in messages {
            match (codec, message.split_first()) {
                (Codec::Binary, Some((1, rest))) => stdout.extend(rest),
                (Codec::Base64, Some((b'1', rest))) => {
                    stdout.extend(base64::engine::general_purpose::STANDARD.decode(rest).unwrap());
                }
                _ => {}
            }
        }
        return stdout;
    }
    let frames = client.read(wire);
    assert!(matches!(frames.last(), Some(Sent::GoAway(..))));
    for frame in frames {
        if let Sent::Data(5, _, bytes) = frame {
            stdout.extend(bytes);
        }
    }
    stdout
}
