//! WebSocket (RFC 6455), the server's side, and Kubernetes' channels in its messages.
//!
//! ```text
//! bytes ── reader ──► frames ── connection ──► pieces of messages ── channels ──► bytes of stdin, resizes
//!                                   │
//!                                   └──► output: PONG, CLOSE
//! ```
//!
//! Messages are not put together: what arrives of a payload is unmasked in place and handed out, so that a message
//! needs no memory, whatever its size. A client can make this side keep 14 bytes of a frame's header, 125 bytes of a
//! control frame, 16 KiB of output and, with base64, what one read decodes to.
//!
//! Extensions are not offered, so reserved bits are errors. Text is not checked for UTF-8: Kubernetes' servers take
//! text and binary messages alike on binary channels (Python's client sends text), and base64 is ASCII or refused.

mod channels;
mod connection;
mod reader;
#[cfg(test)]
mod tests;

pub use channels::{ChannelEvent, Channels, Codec};
pub use connection::{Connection, Event};
pub use reader::{Error, Kind, Piece};
