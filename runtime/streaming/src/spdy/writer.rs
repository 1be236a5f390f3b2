//! The frames that a server sends.

use super::FLAG_FIN;
use crate::output::Head;

/// Why a stream is reset (RST_STREAM).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    /// The stream's headers or its id break the protocol.
    Protocol = 1,
    /// The stream was not begun.
    Refused = 3,
    /// The stream is no longer wanted.
    Cancel = 5,
}

/// Why a connection ends (GOAWAY).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Leave {
    /// Everything is done.
    Done = 0,
    /// The client broke the protocol.
    Protocol = 1,
}

/// Header of a data frame; its payload of `length` bytes follows. A length of 16 MiB or more does not fit; callers
/// have a lower limit.
pub(super) fn data(id: u32, length: u32, fin: bool) -> Head {
    let [_, x, y, z] = length.to_be_bytes();
    let flags = if fin { FLAG_FIN } else { 0 };
    Head::new().with(&id.to_be_bytes()).with(&[flags, x, y, z])
}

/// RST_STREAM.
pub(super) fn reset(id: u32, reason: Reason) -> [u8; 16] {
    pair([0x80, 3, 0, 3], id, reason as u32)
}

/// GOAWAY: `last` is the newest stream of the client.
pub(super) fn go_away(last: u32, why: Leave) -> [u8; 16] {
    pair([0x80, 3, 0, 7], last, why as u32)
}

/// The answer to a PING: the same frame.
pub(super) fn ping(id: u32) -> [u8; 12] {
    let [a, b, c, d] = id.to_be_bytes();
    [0x80, 3, 0, 6, 0, 0, 0, 4, a, b, c, d]
}

/// A control frame of two numbers.
fn pair(kind: [u8; 4], one: u32, two: u32) -> [u8; 16] {
    let mut frame = [0; 16];
    let words = [kind, [0, 0, 0, 8], one.to_be_bytes(), two.to_be_bytes()];
    for (place, byte) in frame.iter_mut().zip(words.as_flattened()) {
        *place = *byte;
    }
    frame
}

/// Writes SYN_REPLY frames without headers: the only header blocks that Kubernetes' servers send.
///
/// A block is part of one zlib stream for the whole connection. Four bytes gain nothing by compression, so they are
/// written as a stored block of deflate (RFC 1951, 3.2.4), which needs no state; a deflate library keeps 260 KiB.
#[derive(Debug, Default)]
pub(super) struct Replies {
    /// The zlib header was sent.
    begun: bool,
}

impl Replies {
    /// Header of a zlib stream (RFC 1950): deflate, window of 32 KiB, preset dictionary, Adler-32 of SPDY's.
    const ZLIB: [u8; 6] = [0x78, 0x20, 0xe3, 0xc6, 0xa7, 0xc2];
    /// A stored block with the number 0 (no headers), and an empty one: at an empty one Go's reader hands out what it
    /// has, and without it would look for a next block and fail.
    const NO_HEADERS: [u8; 14] = [0, 4, 0, 0xfb, 0xff, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];

    /// SYN_REPLY for `id`.
    pub(super) fn reply(&mut self, id: u32) -> Vec<u8> {
        let zlib: &[u8] = if std::mem::replace(&mut self.begun, true) { &[] } else { &Self::ZLIB };
        let length = if zlib.is_empty() { 18 } else { 24 };
        let head = [[0x80, 3, 0, 2], [0, 0, 0, length], id.to_be_bytes()];
        [head.as_flattened(), zlib, &Self::NO_HEADERS].concat()
    }
}
