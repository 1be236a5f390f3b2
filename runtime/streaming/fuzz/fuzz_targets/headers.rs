//! Header blocks of SPDY, which are compressed here so that the decompressed bytes are what is varied.
#![no_main]

use libfuzzer_sys::fuzz_target;
use streaming::remote::{Protocol, Streams, Version};

fuzz_target!(
    init: drive::seeds::write(&drive::seeds::headers()),
    |data: &[u8]| {
        let [which, piece, blocks @ ..] = data else { return };
        let bytes = drive::client::opened(split(blocks).into_iter());
        if which & 2 != 0 {
            return drive::forward(streaming::forward::Protocol::Spdy, &bytes, usize::from(*piece));
        }
        let streams = Streams { stdin: true, stdout: true, stderr: which & 1 == 0, tty: which & 1 != 0 };
        drive::exec(Protocol::Spdy(Version::V4), streams, &bytes, usize::from(*piece));
    }
);

/// Blocks of at most 254 bytes, each after its length; 255 is a last block that is as long as it is.
fn split(mut rest: &[u8]) -> Vec<&[u8]> {
    let mut parts = Vec::new();
    while let [length, after @ ..] = rest {
        let (block, after) = match *length {
            255 => (after, &[][..]),
            length => after.split_at(usize::from(length).min(after.len())),
        };
        parts.push(block);
        rest = after;
    }
    parts
}
