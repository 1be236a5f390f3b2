//! The daemon: connects the CRI services, pods, shims, images and networks. See ARCHITECTURE.md.

mod apparmor;
mod attempt;
mod cgroups;
pub mod cli;
mod clock;
mod cni_watch;
mod config;
mod daemon;
mod error;
mod failpoint;
mod files;
mod kept;
mod lanes;
mod memory;
mod netns;
mod node;
mod notify;
mod operations;
mod pod;
mod reload;
mod restore;
mod root;
mod seccomp;
mod selinux;
mod service;
mod shims;
mod shutdown;
mod stats;
mod telemetry;
mod user_namespaces;
mod watchdog;

pub(crate) use daemon::{Error, run};
