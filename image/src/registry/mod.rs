//! Talking to registries: which hosts to ask (`mirror`), as whom (`auth`), and how (`client`).

pub(crate) mod auth;
mod client;
pub(crate) mod mirror;
mod names;

pub(crate) use client::Registry;
