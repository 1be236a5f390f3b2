//! Header blocks of SPDY, which are compressed here so that the decompressed bytes are what is varied.
#![no_main]

use libfuzzer_sys::fuzz_target;
use streaming::remote::{Protocol, Streams, Version};

fuzz_target!(|data: &[u8]| {
    let [which, piece, blocks @ ..] = data else { return };
    // Blocks of at most 255 bytes, each after its length; the last may be longer.
    let mut rest = blocks;
    let mut parts = Vec::new();
    while let [length, after @ ..] = rest {
        let (block, after) = match *length {
            255 => (after, &[][..]),
            length => after.split_at(usize::from(length).min(after.len())),
        };
        parts.push(block);
        rest = after;
    }
    let bytes = drive::opened(parts.into_iter());
    let streams = Streams { stdin: true, stdout: true, stderr: which & 1 == 0, tty: which & 1 != 0 };
    drive::exec(Protocol::Spdy(Version::V4), streams, &bytes, usize::from(*piece));
    drive::forward(streaming::forward::Protocol::Spdy, &bytes, usize::from(*piece));
});
