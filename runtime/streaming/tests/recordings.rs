//! What real clients sent (`fixtures/README.md`), in pieces of every size that matters.

use std::time::{Duration, Instant};

use http::request::Parts;
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
    gone: bool,
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
                    remote::Event::Gone => exec.gone = true,
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
