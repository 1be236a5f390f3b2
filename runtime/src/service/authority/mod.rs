//! Makes the `:authority` of gRPC's C core acceptable.
//!
//! Clients on the C core (Python, C++, Ruby, PHP) connect to `unix:///run/copepod/copepod.sock` and send
//! `:authority: run%2Fcopepod%2Fcopepod.sock`. RFC 3986 allows a percent sign in a host, but the `http` crate does not, so
//! h2 ends each of their calls with RST_STREAM and PROTOCOL_ERROR, and has no option for it. Nothing reads the value.
//!
//! [`Scanner`] follows the frames that a client sends and replaces each `%` and `/` in a literal value of `:authority`
//! with `-`, in place. No length changes, so nothing else on the connection has to: not the frames, not the table of
//! HPACK, in which sizes count and values do not.
//!
//! The scanner protects nothing: h2 checks everything after it. What it does not understand it leaves as it is, and
//! from then on it reads nothing more of that connection. It leaves Huffman-coded strings too, and names that refer to
//! the dynamic table: the C core sends neither.

mod fields;
#[cfg(test)]
mod tests;

use fields::Fields;

/// What a client sends first (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Length of a frame's head (RFC 9113, section 4.1).
const HEAD: usize = 9;
/// Types of frames.
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
/// Flags of these frames.
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
/// Length of the fields that the flag PRIORITY adds.
const PRIORITY_FIELDS: usize = 5;

/// Follows what one client sends. Its size is constant.
#[derive(Debug)]
pub(super) struct Scanner {
    at: At,
    /// A header block has begun and goes on in the next frame.
    open: bool,
    fields: Fields,
}

/// What the next byte is. Counts of bytes that are left are never all 0.
#[derive(Debug, Clone, Copy)]
enum At {
    /// A byte of the preface, of which this many were read.
    Preface(usize),
    /// A byte of a frame's head, of which `read` bytes were read.
    Head { bytes: [u8; HEAD], read: usize },
    /// The length of a frame's padding. `block` still includes the padding.
    PadLength(Part),
    /// A byte of a frame that has a part of a header block.
    Part(Part),
    /// A byte that is skipped.
    Skip(usize),
    /// Not understood.
    Lost,
}

/// What is left of a frame with a part of a header block, in this order.
#[derive(Debug, Clone, Copy)]
struct Part {
    priority: usize,
    block: usize,
    padding: usize,
}

impl At {
    const HEAD: Self = Self::Head { bytes: [0; HEAD], read: 0 };

    fn skip(bytes: usize) -> Self {
        if bytes == 0 { Self::HEAD } else { Self::Skip(bytes) }
    }
}

impl Scanner {
    /// For a new connection.
    pub(super) fn new() -> Self {
        Self { at: At::Preface(0), open: false, fields: Fields::new() }
    }

    /// Takes the next bytes of the connection, in any pieces, and repairs them.
    pub(super) fn scan(&mut self, mut bytes: &mut [u8]) {
        while !bytes.is_empty() {
            let Some(used) = self.step(bytes) else {
                self.at = At::Lost;
                return;
            };
            bytes = &mut bytes[used..];
        }
    }

    /// Reads one part of `bytes`, which are not empty. Returns its length, which is not 0, or `None` if it is not
    /// understood.
    fn step(&mut self, bytes: &mut [u8]) -> Option<usize> {
        match self.at {
            At::Preface(read) => {
                let used = bytes.len().min(PREFACE.len() - read);
                if !PREFACE[read..].starts_with(&bytes[..used]) {
                    return None;
                }
                let read = read + used;
                self.at = if read == PREFACE.len() { At::HEAD } else { At::Preface(read) };
                Some(used)
            }
            At::Head { bytes: mut head, read } => {
                let used = bytes.len().min(HEAD - read);
                head[read..read + used].copy_from_slice(&bytes[..used]);
                let read = read + used;
                self.at = if read == HEAD { self.enter(head)? } else { At::Head { bytes: head, read } };
                Some(used)
            }
            At::PadLength(part) => {
                let padding = usize::from(*bytes.first()?);
                let block = part.block.checked_sub(padding)?;
                self.at = self.part(Part { block, padding, ..part })?;
                Some(1)
            }
            At::Part(mut part) => {
                let used = if part.priority > 0 {
                    let used = bytes.len().min(part.priority);
                    part.priority -= used;
                    used
                } else {
                    let used = bytes.len().min(part.block);
                    self.fields.read(&mut bytes[..used])?;
                    part.block -= used;
                    used
                };
                self.at = self.part(part)?;
                Some(used)
            }
            At::Skip(left) => {
                let used = bytes.len().min(left);
                self.at = At::skip(left - used);
                Some(used)
            }
            At::Lost => Some(bytes.len()),
        }
    }

    /// After a frame's head.
    fn enter(&mut self, head: [u8; HEAD]) -> Option<At> {
        let [high, middle, low, kind, flags, ..] = head;
        let length = (usize::from(high) << 16) | (usize::from(middle) << 8) | usize::from(low);
        let (padded, priority) = match (kind, self.open) {
            (HEADERS, false) => {
                (flags & PADDED != 0, if flags & PRIORITY == 0 { 0 } else { PRIORITY_FIELDS })
            }
            (CONTINUATION, true) => (false, 0),
            // A header block is not interrupted, and only HEADERS begins one.
            (CONTINUATION, false) | (_, true) => return None,
            (_, false) => return Some(At::skip(length)),
        };
        self.open = flags & END_HEADERS == 0;
        let block = length.checked_sub(usize::from(padded) + priority)?;
        let part = Part { priority, block, padding: 0 };
        if padded { Some(At::PadLength(part)) } else { self.part(part) }
    }

    /// In a frame with a part of a header block, or after that part.
    fn part(&self, part: Part) -> Option<At> {
        if part.priority > 0 || part.block > 0 {
            return Some(At::Part(part));
        }
        (self.open || self.fields.is_complete()).then(|| At::skip(part.padding))
    }
}
