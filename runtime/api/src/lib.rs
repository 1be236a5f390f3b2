//! What the daemon offers beside CRI, on the same socket: messages and both halves of the services, generated from
//! `proto/copepod.proto`. No logic lives here. The command `copepod image` is the client.

/// The protobuf package `copepod.v1`.
// The code is generated, so our lints do not apply.
#[allow(
    missing_docs,
    unreachable_pub,
    let_underscore_drop,
    clippy::all,
    clippy::pedantic,
    clippy::restriction
)]
pub mod v1 {
    include!(concat!(env!("OUT_DIR"), "/copepod.v1.rs"));
}

/// Maximum size of the bytes of an archive in one message.
pub const MAX_DATA: usize = 1 << 20;
/// Maximum size of a message.
pub const MAX_MESSAGE: usize = MAX_DATA + (64 << 10);
