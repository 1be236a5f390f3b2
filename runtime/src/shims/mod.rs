//! The daemon's side of shims: starting them (`spawn`), finding them (`dial`), and the protocol (`client`).

pub(crate) mod client;
pub(crate) mod dial;
#[cfg(test)]
pub(crate) mod fakes;
pub(crate) mod spawn;

pub(crate) use client::{Client, Connection};

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Registers a socket or a pidfd for waiting. Their types keep the same descriptor open as long as they exist.
#[expect(
    deprecated,
    reason = "its replacement is an unsafe function, because some types close or change their descriptor; the types used here do not"
)]
pub(crate) fn watched<T: AsFd + AsRawFd>(owner: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    AsyncFd::with_interest(owner, interest)
}
