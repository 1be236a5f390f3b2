//! Access to registries: which hosts to ask (`mirror`, from `hosts_file`), which of them were silent lately (`health`), how
//! to reach them (`connect`: `dns`, `proxy`, `tls`) and where they may lead to (`reach`), with which credentials
//! (`credentials`: those of the request, `auth`, or of the node, `docker_config` with `helper`), and what to request
//! (`client`).

#[cfg(test)]
mod arbitrary;
mod auth;
mod client;
mod connect;
mod credentials;
mod dns;
mod docker_config;
mod health;
mod helper;
mod hosts_file;
#[cfg(test)]
mod members;
mod mirror;
mod plain_text;
#[cfg(any(test, fuzzing))]
pub(crate) mod properties;
mod proxy;
mod reach;
mod tls;

pub(crate) use client::Registry;
pub(crate) use health::Health;
pub use proxy::{InvalidProxy, Proxies};
