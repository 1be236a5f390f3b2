//! The daemon: wiring of CRI services, pods, shims, images and networks. See ARCHITECTURE.md.

pub mod cgroups;
pub mod cli;
mod cni_watch;
pub mod config;
mod daemon;
pub mod node;
pub mod seccomp;
mod service;
pub mod shutdown;
pub mod stats;
pub mod telemetry;

pub use daemon::{Error, run};
