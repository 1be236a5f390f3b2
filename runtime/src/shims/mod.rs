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
    reason = "its replacement is an unsafe function, because a type may close or change its descriptor meanwhile; the types used here do not"
)]
pub(crate) fn watched<T: AsFd + AsRawFd>(owner: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    AsyncFd::with_interest(owner, interest)
}
