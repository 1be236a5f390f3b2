//! What the targets share: sessions that are fed as a whole and in pieces, and must understand the same.

use std::time::{Duration, Instant};

use flate2::{Compress, Compression, FlushCompress};
use streaming::remote::{Outcome, Output, Protocol, Streams, Version};
use streaming::websocket::Codec;
use streaming::{Input, forward, remote};

/// Most bytes that a session may have for a client that reads nothing.
const MAX_OUTPUT: usize = 256 * 1024;

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

/// What a session has understood; bytes of one stream are joined.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Ready,
    Bytes(u32, Vec<u8>),
    Ended(u32),
    Resized(u16, u16),
    Opened(u16),
    Reset,
    Gone,
    Failed(String),
}

fn push(seen: &mut Vec<Seen>, event: Seen) {
    if let (Some(Seen::Bytes(of, bytes)), Seen::Bytes(to, more)) = (seen.last_mut(), &event)
        && of == to
    {
        return bytes.extend_from_slice(more);
    }
    seen.push(event);
}

/// Feeds a session of exec; whatever the bytes, it understands the same in pieces of any size.
pub fn exec(protocol: Protocol, streams: Streams, bytes: &[u8], piece: usize) {
    let whole = run_exec(protocol, streams, bytes, bytes.len().max(1));
    assert_eq!(whole, run_exec(protocol, streams, bytes, piece.max(1)), "in pieces of {piece}");
}

fn run_exec(protocol: Protocol, streams: Streams, bytes: &[u8], piece: usize) -> Vec<Seen> {
    let mut session = remote::Session::new(protocol, streams);
    let mut seen = Vec::new();
    'all: for piece in bytes.chunks(piece) {
        let mut piece = piece.to_vec();
        let mut input = Input::new(&mut piece);
        loop {
            let event = match session.receive(&mut input) {
                Ok(Some(event)) => event,
                Ok(None) if input.is_empty() => break,
                Ok(None) => {
                    let waiting = session.output().len();
                    assert!(waiting > 0, "bytes are left, without an event and without output");
                    session.written(waiting);
                    continue;
                }
                Err(error) => {
                    push(&mut seen, Seen::Failed(error.to_string()));
                    break 'all;
                }
            };
            let gone = event == remote::Event::Gone;
            push(
                &mut seen,
                match event {
                    remote::Event::Ready => Seen::Ready,
                    remote::Event::Stdin(bytes) => Seen::Bytes(0, bytes.into_owned()),
                    remote::Event::StdinEnd => Seen::Ended(0),
                    remote::Event::Resize(size) => Seen::Resized(size.width, size.height),
                    remote::Event::Gone => Seen::Gone,
                },
            );
            if gone {
                break 'all;
            }
        }
        assert!(session.output().len() <= MAX_OUTPUT);
    }
    // None of these may panic, whatever came before.
    drop(session.frame(Output::Stdout, b"out"));
    session.drop_stdin();
    session.ping();
    session.finish(&Outcome::Failed("over".to_owned()));
    drop(session.frame(Output::Stderr, b"late"));
    session.written(usize::MAX);
    seen
}

/// As [`exec`], for port-forward.
pub fn forward(protocol: forward::Protocol, bytes: &[u8], piece: usize) {
    let whole = run_forward(protocol, bytes, bytes.len().max(1));
    assert_eq!(whole, run_forward(protocol, bytes, piece.max(1)), "in pieces of {piece}");
}

fn run_forward(protocol: forward::Protocol, bytes: &[u8], piece: usize) -> Vec<Seen> {
    let now = Instant::now();
    let Ok(mut session) = forward::Session::new(protocol, &[80, 443], Duration::from_secs(30)) else {
        return Vec::new();
    };
    let (mut seen, mut open) = (Vec::new(), Vec::new());
    'all: for piece in bytes.chunks(piece) {
        let mut piece = piece.to_vec();
        let mut input = Input::new(&mut piece);
        loop {
            let event = match session.receive(&mut input, now) {
                Ok(Some(event)) => event,
                Ok(None) if input.is_empty() => break,
                Ok(None) => {
                    let waiting = session.output().len();
                    assert!(waiting > 0, "bytes are left, without an event and without output");
                    session.written(waiting);
                    continue;
                }
                Err(error) => {
                    push(&mut seen, Seen::Failed(error.to_string()));
                    break 'all;
                }
            };
            // Ids are numbers in the order in which connections were opened.
            let mut place = |id| open.iter().position(|other| *other == id).expect("an open connection") as u32;
            let event = match event {
                forward::Event::Opened { id, port } => {
                    assert!(!open.contains(&id), "an id is used twice");
                    open.push(id);
                    Seen::Opened(port)
                }
                forward::Event::Data { id, bytes } => Seen::Bytes(place(id), bytes.into_owned()),
                forward::Event::Ended { id } => Seen::Ended(place(id)),
                forward::Event::Reset { id } => {
                    place(id);
                    Seen::Reset
                }
                forward::Event::Gone => Seen::Gone,
            };
            let gone = event == Seen::Gone;
            push(&mut seen, event);
            if gone {
                break 'all;
            }
        }
        assert!(session.output().len() <= MAX_OUTPUT);
    }
    for id in open {
        drop(session.frame(id, b"down"));
        session.finish(id);
        session.close(id, Some("over"));
        drop(session.frame(id, b"late"));
    }
    session.expire(now + Duration::from_secs(60));
    session.ping();
    session.leave();
    seen
}

/// A client's SYN_STREAM frames with these header blocks, compressed as one connection's are.
pub fn opened<'b>(blocks: impl Iterator<Item = &'b [u8]>) -> Vec<u8> {
    let mut deflate = Compress::new(Compression::fast(), true);
    let mut bytes = Vec::new();
    for (number, block) in blocks.enumerate() {
        let mut out = Vec::with_capacity(block.len() * 2 + 1024);
        deflate.compress_vec(block, &mut out, FlushCompress::Sync).expect("room for the block");
        let id = 2 * number as u32 + 1;
        let length = (out.len() + 10) as u32 & 0xff_ffff;
        bytes.extend([0x80, 3, 0, 1]);
        bytes.extend(length.to_be_bytes());
        bytes.extend(id.to_be_bytes());
        bytes.extend([0; 6]);
        bytes.extend(out);
    }
    bytes
}
