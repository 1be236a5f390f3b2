//! The Kubernetes container runtime interface, v1: messages, enums and service traits generated from
//! `proto/api.proto`. No logic lives here. The server half is always built; the Cargo feature `client` adds
//! the client half, for `copepod image`, tests and the bench.

/// The protobuf package `runtime.v1`.
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
    include!(concat!(env!("OUT_DIR"), "/runtime.v1.rs"));
}

/// The encoded `FileDescriptorSet` that [`v1`] was generated from.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
