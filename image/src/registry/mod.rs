//! Access to registries: which hosts to ask (`mirror`, from `hosts_file`), how to reach them (`dns`, `tls`), with which
//! credentials (`auth`), and what to request (`client`).

mod auth;
mod client;
mod dns;
mod hosts_file;
mod mirror;
mod tls;

pub(crate) use client::{Fetched, Registry};
