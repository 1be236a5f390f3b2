//! From what was asked for to what is made: plans, resource files, capability masks, filters.
//!
//! This crate is pure: no I/O, no clock, no async. The daemon gathers facts (image configuration, host
//! devices, capabilities), this crate judges and computes, `cgroups` writes files and the shim makes the
//! container. Refusals name the CRI field, the value and what would be right ([`Error`]).
//!
//! The order of a create: [`security::caps`] -> seccomp program of those capabilities;
//! [`resources::v1`] and [`devices::rules`] -> cgroup leaf; [`container`] -> the plan;
//! [`exec::keep`] -> what the record keeps for execs.

mod container;
pub mod devices;
mod error;
pub mod exec;
mod mounts;
pub mod oci;

pub mod path;
pub mod refuse;
pub mod resources;
mod sandbox;
pub mod seccomp;
pub mod security;
pub mod signals;

pub use container::{ContainerInput, DEFAULT_PATH, HostFacts, ImageFacts, container, log as log_plan};
pub use error::{Error, ErrorKind};
pub use exec::exec;
pub use mounts::PodFiles;
pub use sandbox::{
    PAUSE_OOM_SCORE_ADJ, PauseInput, SHIM_OOM_SCORE_ADJ, SHM_SIZE, network_sysctls, pause, pause_limits,
    sysctls,
};
