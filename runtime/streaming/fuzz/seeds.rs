//! What the fuzzer begins with: short sessions of every protocol, what real clients sent, and what comes near the limits.

use std::path::Path;

use crate::client::{Blocks, control, data, frame, go_away, ping, plain, reset};
use crate::{EXEC, FORWARD};

/// Writes seeds into the corpus, which is the folder among the program's arguments. A run that reproduces a crash has
/// none.
pub fn write(seeds: &[Vec<u8>]) {
    let mut arguments = std::env::args().skip(1).filter(|argument| !argument.starts_with('-'));
    let Some(folder) = arguments.find(|argument| Path::new(argument).is_dir()) else { return };
    for (number, seed) in seeds.iter().enumerate() {
        let path = Path::new(&folder).join(format!("seed-{number:02}"));
        std::fs::write(&path, seed).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
}

/// Includes what a client sent, of `fixtures/README.md`.
macro_rules! recorded {
    ($name:literal) => {
        include_bytes!(concat!("../fixtures/", $name)).as_slice()
    };
}

/// Standard streams: stdin, stdout, stderr.
const PIPES: u8 = 1 | 2 | 4;
/// A terminal with stdin.
const TERMINAL: u8 = 1 | 2 | 8;

/// For `exec`: the number of the protocol, the wanted streams, the size of pieces, and bytes.
pub fn exec() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for protocol in 0..EXEC.len() as u8 {
        let sessions = if protocol < 4 { spdy_sessions() } else { channel_sessions(protocol % 2 == 1) };
        for (streams, session) in sessions {
            seeds.push([&[protocol, streams, 7], &session[..]].concat());
        }
    }
    for (protocol, streams, bytes) in [
        (0, 2 | 4, recorded!("exec-spdy-v1.bin")),
        (2, TERMINAL, recorded!("exec-spdy-v3-terminal.bin")),
        (3, PIPES, recorded!("exec-spdy-v4.bin")),
        (3, PIPES, recorded!("exec-kubelet.bin")),
        (8, PIPES, recorded!("exec-websocket-v5.bin")),
        (8, TERMINAL, recorded!("exec-websocket-v5-terminal.bin")),
    ] {
        seeds.push([&[protocol, streams, 5], bytes].concat());
    }
    seeds
}

fn spdy_sessions() -> Vec<(u8, Vec<u8>)> {
    let open = |names: &[&str]| {
        let mut blocks = Blocks::stored();
        let frames = names.iter().zip((1..).step_by(2));
        frames.flat_map(|(name, id)| blocks.open(id, &[("streamtype", name)])).collect::<Vec<u8>>()
    };
    let pipes = open(&["error", "stdin", "stdout", "stderr"]);
    let terminal = open(&["error", "stdin", "stdout", "resize"]);
    let size = br#"{"Width":80,"Height":24}"#;
    let bomb = Blocks::deflated().open_raw(1, 0, &vec![0; 7 << 20]);
    vec![
        (PIPES, [&pipes[..], &data(3, 0, b"hello"), &data(3, 1, b""), &ping(1), &go_away()].concat()),
        (PIPES, [&pipes[..], &data(3, 0, b"hello"), &reset(3), &reset(5), &data(3, 0, b"late")].concat()),
        (
            PIPES,
            [&open(&["error", "stdin"])[..], &data(3, 0, &[b'x'; 9000]), &data(3, 0, &[b'y'; 9000])].concat(),
        ),
        (TERMINAL, [&terminal[..], &data(7, 0, size), &data(3, 1, b"x"), &data(7, 0, b"{}")].concat()),
        (PIPES, ping(1).repeat(1500)),
        (PIPES, [bomb, ping(3)].concat()),
        (
            PIPES,
            [control(4, 0, &[&[0; 12]]), control(9, 0, &[&[0; 8]]), control(8, 1, &[&[0, 0, 0, 1]])].concat(),
        ),
        (PIPES, control(1, 0, &[&[0, 0, 0, 1], &[0; 8188]])),
    ]
}

fn channel_sessions(base64: bool) -> Vec<(u8, Vec<u8>)> {
    let (kind, data, size, long): (u8, &[u8], &[u8], Vec<u8>) = if base64 {
        (0x81, b"0aGVsbG8=", b"4eyJXaWR0aCI6ODAsIkhlaWdodCI6MjR9", [b"0", &[b'A'; 9000][..]].concat())
    } else {
        (0x82, b"\0hello", b"\x04{\"Width\":80,\"Height\":24}", vec![0; 9000])
    };
    let (begin, end) = data.split_at(4);
    vec![
        (
            PIPES,
            [frame(kind, data), frame(kind, b"\xff\0"), frame(0x89, b"ping"), frame(0x88, b"\x03\xe8")]
                .concat(),
        ),
        (PIPES, [frame(kind & 0xf, begin), frame(0x8a, b""), frame(0, b""), frame(0x80, end)].concat()),
        (TERMINAL, [frame(kind, size), frame(kind, data), frame(0x88, b"\x03\xe8bye")].concat()),
        (PIPES, [frame(kind, &long), frame(kind, &long), frame(0x88, b"")].concat()),
        (PIPES, frame(0x89, &[b'p'; 125]).repeat(140)),
    ]
}

/// For `forward`: the number of the protocol, the size of pieces, and bytes.
pub fn forward() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for (protocol, bytes) in [(0, recorded!("forward-spdy.bin")), (1, recorded!("forward-tunnel.bin"))] {
        seeds.push([&[protocol, 5], bytes].concat());
    }
    for session in pairs() {
        seeds.push([&[0, 7], &session[..]].concat());
        // In messages whose ends are no ends of SPDY's frames.
        let tunnel = session.chunks(100).flat_map(|part| frame(0x82, part));
        seeds.push([1, 7].into_iter().chain(tunnel).collect());
    }
    for protocol in 2..FORWARD.len() as u8 {
        let sessions = channel_sessions(protocol == 3);
        seeds.extend(sessions.iter().map(|(_, session)| [&[protocol, 7], &session[..]].concat()));
    }
    seeds
}

fn stream<'a>(kind: &'a str, request: &'a str) -> [(&'a str, &'a str); 3] {
    [("streamtype", kind), ("port", "80"), ("requestid", request)]
}

/// Connections, each a pair of streams.
fn pairs() -> Vec<Vec<u8>> {
    let pair = |blocks: &mut Blocks, id: u32, request: &str| {
        [blocks.open(id, &stream("error", request)), blocks.open(id + 2, &stream("data", request))].concat()
    };
    let [mut one, mut early, mut old, mut four, mut second] = std::array::from_fn(|_| Blocks::stored());
    let without = |kind| [("streamtype", kind), ("port", "443")];
    vec![
        [
            pair(&mut one, 1, "0"),
            data(3, 0, b"hello"),
            pair(&mut one, 5, "1"),
            data(7, 1, b"x"),
            reset(3),
            reset(5),
            go_away(),
        ]
        .concat(),
        [
            early.open(1, &stream("data", "0")),
            data(1, 1, &[b'x'; 9000]),
            early.open(3, &stream("data", "1")),
            reset(3),
            early.open(5, &stream("error", "0")),
        ]
        .concat(),
        [old.open(1, &without("error")), old.open(3, &without("data")), data(3, 0, b"hello")].concat(),
        // Of four connections one is refused at once; here it is one with bytes and an end that came before.
        [
            (0..3).flat_map(|n: u32| pair(&mut four, 4 * n + 1, &n.to_string())).collect(),
            four.open(13, &stream("data", "3")),
            data(13, 1, b"early"),
            four.open(15, &stream("error", "3")),
            data(13, 0, b"late"),
            pair(&mut four, 17, "4"),
        ]
        .concat(),
        [second.open(1, &stream("error", "0")), second.open(3, &stream("error", "0")), ping(1).repeat(1500)]
            .concat(),
    ]
}

/// For `headers`: which session, the size of pieces, and header blocks with their lengths.
pub fn headers() -> Vec<Vec<u8>> {
    let port = |kind| [("streamtype", kind), ("port", "80"), ("requestid", "0")];
    let remote =
        ["error", "stdin", "stdout", "stderr", "resize"].map(|name| plain(&[("streamType", name)])).to_vec();
    let sessions = [
        (0, remote.clone()),
        (1, remote),
        (2, ["error", "data", "data"].map(|kind| plain(&port(kind))).to_vec()),
        (2, ["error", "data"].map(|kind| plain(&[("streamtype", kind), ("port", "65535")])).to_vec()),
        (2, vec![plain(&[("streamtype", "data\0error"), ("port", "+1"), ("", "")])]),
        (0, vec![plain(&[("a", "b"); 16])]),
    ];
    let mut seeds = Vec::new();
    for (which, blocks) in sessions {
        let blocks = blocks.iter().flat_map(|block| [&[block.len() as u8], &block[..]].concat());
        seeds.push([which, 7].into_iter().chain(blocks).collect());
    }
    // The last block may be longer than a byte says.
    seeds.push([&[0, 7, 255], &plain(&[("streamtype", &"x".repeat(9000))])[..]].concat());
    seeds.push([&[0, 7, 255], &plain(&[("n", ""); 33])[..]].concat());
    seeds
}

/// Names of headers that matter for `upgrade`, so that a byte is enough for one.
pub const NAMES: [&str; 8] = [
    "connection",
    "upgrade",
    "sec-websocket-version",
    "sec-websocket-key",
    "sec-websocket-protocol",
    "x-stream-protocol-version",
    "content-length",
    "host",
];

/// For `upgrade`: the method, and lines of a header's number and its value.
pub fn upgrade() -> Vec<Vec<u8>> {
    let heads = [
        recorded!("exec-spdy-v1.head"),
        recorded!("exec-spdy-v4.head"),
        recorded!("exec-kubelet.head"),
        recorded!("exec-websocket-v5.head"),
        recorded!("forward-spdy.head"),
        recorded!("forward-tunnel.head"),
    ];
    heads.into_iter().map(head).collect()
}

fn head(recorded: &[u8]) -> Vec<u8> {
    let mut lines = std::str::from_utf8(recorded).expect("text").lines();
    let mut seed = vec![u8::from(lines.next().is_some_and(|first| first.starts_with("POST")))];
    for (name, value) in lines.filter_map(|line| line.split_once(": ")) {
        if let Some(number) = NAMES.iter().position(|known| known.eq_ignore_ascii_case(name)) {
            seed.push(number as u8);
            seed.extend(value.as_bytes());
            seed.push(b'\n');
        }
    }
    seed
}
