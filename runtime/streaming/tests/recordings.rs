//! What real clients sent (`fixtures/README.md`), in pieces of every size that matters.

use std::time::{Duration, Instant};

use http::request::Parts;
use streaming::remote::Version;
use streaming::websocket::Codec;
use streaming::{Input, forward, negotiate, remote};

/// A client's request and what it sent after the upgrade.
struct Recording {
    request: Parts,
    bytes: Vec<u8>,
}

fn recording(name: &str) -> Recording {
    let read = |ending: &str| {
        let path = format!("{}/fixtures/{name}.{ending}", env!("CARGO_MANIFEST_DIR"));
        std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
    };
    let head = String::from_utf8(read("head")).unwrap();
    let mut lines = head.lines();
    let mut start = lines.next().unwrap().split(' ');
    let mut builder = http::Request::builder().method(start.next().unwrap()).uri(start.next().unwrap());
    for (name, value) in lines.filter_map(|line| line.split_once(": ")) {
        builder = builder.header(name, value);
    }
    Recording { request: builder.body(()).unwrap().into_parts().0, bytes: read("bin") }
}

/// Sizes of the pieces in which a recording is read.
const SIZES: [usize; 6] = [1, 2, 7, 64, 1000, usize::MAX];

/// What a session of exec understands, with joined stdin.
#[derive(Debug, Default, PartialEq, Eq)]
struct Exec {
    ready: bool,
    stdin: Vec<u8>,
    ended: bool,
    sizes: Vec<(u16, u16)>,
}

fn exec(name: &str, protocol: remote::Protocol, streams: remote::Streams) -> Exec {
    let Recording { request, bytes } = recording(name);
    assert_eq!(negotiate::remote(&request).unwrap().protocol, protocol);
    let all = SIZES.map(|size| {
        let mut session = remote::Session::new(protocol, streams);
        let mut exec = Exec::default();
        for piece in bytes.chunks(size) {
            let mut piece = piece.to_vec();
            let mut input = Input::new(&mut piece);
            while let Some(event) = session.receive(&mut input).unwrap() {
                match event {
                    remote::Event::Ready => exec.ready = true,
                    remote::Event::Stdin(bytes) => exec.stdin.extend_from_slice(&bytes),
                    remote::Event::StdinEnd => exec.ended = true,
                    remote::Event::Resize(size) => exec.sizes.push((size.width, size.height)),
                    remote::Event::Gone => {}
                }
            }
            assert!(input.is_empty());
            session.written(usize::MAX);
        }
        exec
    });
    let [first, rest @ ..] = all;
    assert!(rest.iter().all(|exec| *exec == first), "{first:?} {rest:?}");
    first
}

const STDIN: remote::Streams = remote::Streams { stdin: true, stdout: true, stderr: true, tty: false };
const TERMINAL: remote::Streams = remote::Streams { stdin: true, stdout: true, stderr: false, tty: true };

#[test]
fn exec_with_stdin() {
    for (name, protocol) in [
        ("exec-spdy-v4", remote::Protocol::Spdy(Version::V4)),
        ("exec-kubelet", remote::Protocol::Spdy(Version::V4)),
        ("exec-websocket-v5", remote::Protocol::WebSocket(Version::V5, Codec::Binary)),
    ] {
        let got = exec(name, protocol, STDIN);
        assert_eq!((got.ready, &got.stdin[..], got.ended), (true, &b"hello\n"[..], true), "{name}");
        assert_eq!(got.sizes, [], "{name}");
    }
}

#[test]
fn exec_with_a_terminal() {
    for (name, protocol) in [
        ("exec-spdy-v3-terminal", remote::Protocol::Spdy(Version::V3)),
        ("exec-websocket-v5-terminal", remote::Protocol::WebSocket(Version::V5, Codec::Binary)),
    ] {
        let got = exec(name, protocol, TERMINAL);
        assert_eq!((got.ready, &got.stdin[..], got.ended), (true, &b"x"[..], true), "{name}");
        assert_eq!(got.sizes.last(), Some(&(82, 24)), "{name}");
    }
}

#[test]
fn exec_of_the_first_version() {
    let streams = remote::Streams { stdin: false, ..STDIN };
    let got = exec("exec-spdy-v1", remote::Protocol::Spdy(Version::V1), streams);
    assert!(got.ready && got.stdin.is_empty());
}

#[test]
fn forwarded_connection() {
    for (name, protocol) in
        [("forward-spdy", forward::Protocol::Spdy), ("forward-tunnel", forward::Protocol::Tunnel)]
    {
        let Recording { request, bytes } = recording(name);
        assert_eq!(negotiate::forward(&request).unwrap().protocol, protocol);
        for size in SIZES {
            let mut session = forward::Session::new(protocol, &[], Duration::from_secs(30)).unwrap();
            let (mut opened, mut data, mut ended) = (None, Vec::new(), false);
            for piece in bytes.chunks(size) {
                let mut piece = piece.to_vec();
                let mut input = Input::new(&mut piece);
                while let Some(event) = session.receive(&mut input, Instant::now()).unwrap() {
                    match event {
                        forward::Event::Opened { id, .. } => assert!(opened.replace(id).is_none()),
                        forward::Event::Data { id, bytes } => {
                            assert_eq!(Some(id), opened);
                            data.extend_from_slice(&bytes);
                        }
                        forward::Event::Ended { id } | forward::Event::Reset { id } => {
                            assert_eq!(Some(id), opened);
                            ended = true;
                        }
                        forward::Event::Gone => assert!(ended),
                    }
                }
                session.written(usize::MAX);
            }
            assert_eq!((&data[..], ended), (&b"hello\n"[..], true), "{name}");
            assert_eq!(session.deadline(), None);
        }
    }
}
