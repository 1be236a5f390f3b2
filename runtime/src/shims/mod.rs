//! Shims from the daemon's side: starting them, and talking to them.

pub(crate) mod client;
pub(crate) mod dial;
pub(crate) mod spawn;

pub(crate) use client::{Client, Connection};

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Registers a descriptor that its owner keeps open and never swaps: sockets and pidfds.
#[expect(
    deprecated,
    reason = "the new call is unsafe for types whose number may change; `unsafe` is for `sys` alone, and those used here own theirs"
)]
pub(crate) fn watched<T: AsFd + AsRawFd>(owner: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    AsyncFd::with_interest(owner, interest)
}
