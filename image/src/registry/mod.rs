//! Access to registries: which hosts to ask (`mirror`), with which credentials (`auth`), and how (`client`).

pub(crate) mod auth;
mod client;
mod dns;
pub(crate) mod mirror;

pub(crate) use client::Registry;
