//! Reads what a session sends as strictly as a client may.

use std::collections::HashSet;
use std::ops::Range;

use streaming::websocket::Codec;

/// What carries a session.
pub(crate) enum Wire {
    Spdy,
    /// Channels of WebSocket, and the numbers on which this side sends.
    Channels(Codec, Range<u8>),
    /// SPDY in the messages of WebSocket.
    Tunnel,
}

impl Wire {
    /// What `sent`, which is all of a connection, says to the client. Panics if it is not whole frames of the protocol in
    /// an allowed order.
    pub(crate) fn check(&self, sent: &[u8]) -> Vec<u8> {
        match self {
            Self::Spdy => spdy(sent),
            Self::Tunnel => {
                let messages = websocket(sent);
                assert!(messages.iter().all(|(opcode, _)| *opcode == BINARY), "a text message in a tunnel");
                // Where messages begin and end means nothing.
                let joined: Vec<u8> =
                    messages.into_iter().flat_map(|(_, payload)| payload).copied().collect();
                spdy(&joined);
                return joined;
            }
            Self::Channels(codec, channels) => {
                let (wanted, zero) = match codec {
                    Codec::Binary => (BINARY, 0),
                    Codec::Base64 => (TEXT, b'0'),
                };
                for (opcode, payload) in websocket(sent) {
                    assert_eq!(opcode, wanted, "kind of message");
                    let channel = payload.first().expect("a channel").wrapping_sub(zero);
                    assert!(channels.contains(&channel), "a message on channel {channel}");
                }
            }
        }
        sent.to_vec()
    }
}

const TEXT: u8 = 1;
const BINARY: u8 = 2;

fn spdy(mut bytes: &[u8]) {
    let (mut replied, mut ended) = (HashSet::new(), HashSet::new());
    let mut left = false;
    while !bytes.is_empty() {
        let (head, rest) = bytes.split_first_chunk::<8>().expect("a whole header");
        let [a, b, c, d, flags, x, y, z] = *head;
        let (content, rest) = rest.split_at(u32::from_be_bytes([0, x, y, z]) as usize);
        bytes = rest;
        if a & 0x80 == 0 {
            let id = u32::from_be_bytes([a, b, c, d]);
            assert!(replied.contains(&id), "data before the reply");
            assert!(!ended.contains(&id), "data after the end");
            if flags & 1 != 0 {
                ended.insert(id);
            }
            continue;
        }
        assert_eq!([a, b, c, flags], [0x80, 3, 0, 0], "a control frame");
        let id = content.first_chunk().map(|id| u32::from_be_bytes(*id)).expect("an id");
        match d {
            2 => assert!(replied.insert(id), "a second reply"),
            3 => assert_eq!(content.len(), 8),
            6 => assert!(content.len() == 4 && id % 2 == 1, "a ping of this side"),
            7 => assert!(content.len() == 8 && !std::mem::replace(&mut left, true), "left twice"),
            other => panic!("a frame of type {other}"),
        }
    }
}

/// The messages: opcodes and payloads.
fn websocket(mut bytes: &[u8]) -> Vec<(u8, &[u8])> {
    let mut messages = Vec::new();
    let mut closed = false;
    while let Some(([first, second], rest)) = bytes.split_first_chunk::<2>() {
        assert!(!closed, "a frame after the close");
        let (length, rest) = match second {
            126 => {
                let (length, rest) = rest.split_first_chunk().expect("a length");
                (usize::from(u16::from_be_bytes(*length)), rest)
            }
            127 => {
                let (length, rest) = rest.split_first_chunk().expect("a length");
                (u64::from_be_bytes(*length) as usize, rest)
            }
            short => (usize::from(*short), rest),
        };
        let (payload, rest) = rest.split_at(length);
        assert_eq!(first & 0xf0, 0x80, "a whole message");
        match first & 0x0f {
            opcode @ (TEXT | BINARY) => messages.push((opcode, payload)),
            8..=10 => assert!(length <= 125, "a long control frame"),
            other => panic!("opcode {other}"),
        }
        closed = first & 0x0f == 8;
        bytes = rest;
    }
    assert!(bytes.is_empty(), "half a header");
    messages
}
