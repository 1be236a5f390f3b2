//! Streaming of CRI: exec, attach, port-forward. [`server`] has the sockets; all other modules are the protocols, without
//! I/O: bytes and commands in, events and bytes out.
//!
//! ```text
//!  HTTP headers ── negotiate ──► protocol
//!                                   │            ┌ remote ──┬── spdy ───────────┬── bytes of the client
//!  bytes, commands ◄── session ─────┴────────────┤          └── websocket ──────┤
//!                                                └ forward ─┴── the same, or SPDY in WebSocket
//! ```
//!
//! The owner of a socket ([`server`]) repeats three steps, with one task for each connection:
//!
//! 1. Read once, make an [`Input`] of the bytes, and call the session's `receive` until it returns no event. Handle
//!    each event (for example, wait until the process's stdin has taken the bytes) before the next call. If bytes are
//!    left without an event, the client does not read its answers: step 2 first.
//! 2. Write the session's `output`, all of it, and tell it so (`written`).
//! 3. When a process or a port has output and the socket takes it, make a [`Frame`] and write its head and its body,
//!    with nothing between; what is in `output` goes first.
//!
//! No protocol keeps the bytes of streams, so the wait in step 1 stops the client by TCP, and not reading the
//! process's output until the socket takes it stops the process. There is no other flow control: see [`spdy`].
//!
//! The wait in step 1 must not delay steps 2 and 3: a process that does not read may itself wait until its output is
//! taken. An event borrows from the read buffer only, so the session can be used meanwhile. At the end the
//! caller shuts the socket's sending side and reads on until the client closes, for a limited time: closing with
//! received bytes unread makes the kernel reset the connection, and the client may lose the end of the output.
//!
//! No call panics or allocates without a bound, whatever the bytes; the bounds are constants of the modules. The
//! protocols read no clock: the caller passes the time.

pub mod forward;
mod input;
pub mod negotiate;
mod output;
pub mod remote;
pub mod server;
pub mod spdy;
#[cfg(test)]
mod testing;
pub mod websocket;

pub use input::Input;
pub use output::{Frame, Head, MAX_PAYLOAD, SendError};
