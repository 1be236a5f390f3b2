//! SPDY/3.1, the server's side, as Kubernetes uses it: streams over one connection.
//!
//! ```text
//! bytes ── reader ──► frames ── connection ──► events
//!                                   ▲  └─────► output: SYN_REPLY, RST_STREAM, PING, GOAWAY
//!                                commands
//! ```
//!
//! The other side is always Go's spdystream, directly or behind a proxy, and it decides what SPDY is here:
//!
//! - There is no flow control. WINDOW_UPDATE and SETTINGS are ignored and never sent: a side that obeyed the
//!   window of 64 KiB would wait for ever. A slow reader of one stream stops the whole connection by TCP.
//! - Its client drops data of a stream that has no SYN_REPLY yet, and stops reading at GOAWAY.
//! - It may reset a stream without a frame: if it ended its side before, RST_STREAM is not sent.
//!
//! A client can make this side keep: one incomplete control frame ([`MAX_CONTROL`]), the state of the decompression
//! (48 KiB, most of it its window), one decompressed header block (twice [`MAX_BLOCK`] while it is read), a few bytes
//! for each of the streams that the caller allows, and 16 KiB of output. Bytes of streams are not kept at all.

mod connection;
mod dictionary;
mod headers;
mod reader;
#[cfg(test)]
mod tests;
mod writer;

#[cfg(test)]
pub(crate) use dictionary::DICTIONARY;

pub use connection::{Connection, Event, StreamId};
pub use headers::{Headers, MAX_BLOCK, MAX_HEADERS};
pub use reader::{Error, MAX_CONTROL};

/// Flag of data frames, SYN_STREAM and HEADERS: this direction of the stream ends.
const FLAG_FIN: u8 = 0x01;
