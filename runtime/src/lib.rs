//! The daemon: connects the CRI services, pods, shims, images and networks. See ARCHITECTURE.md.

pub mod cgroups;
pub mod cli;
mod clock;
mod cni_watch;
pub mod config;
mod daemon;
pub mod error;
mod failpoint;
mod files;
mod kept;
mod lanes;
mod memory;
mod netns;
pub mod node;
mod pod;
mod reload;
mod restore;
mod root;
pub mod seccomp;
pub mod service;
mod shims;
pub mod shutdown;
pub mod stats;
pub mod telemetry;

pub use daemon::{Error, run};
