//! Shims from the daemon's side: starting them, and talking to them.

pub(crate) mod client;
pub(crate) mod spawn;

pub(crate) use client::{Client, Connection};
