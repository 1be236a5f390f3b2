//! Turns requests into plans: process plans, cgroup files, capability masks, seccomp filters.
//!
//! This crate is pure: no I/O, no clock, no async. The daemon collects facts (image config, host devices,
//! capabilities), this crate computes, `cgroups` writes the files, and the shim creates the container.
//!
//! A rule about requests stands in one place. What the kernel accepts is said here, in functions and constants:
//! [`path`], [`sysctl`], [`resources`], [`security::canonical`]. What a CRI message may say is decided by
//! `service/convert` of the daemon, which uses these and adds the field to the error; it is the only maker of
//! `PodConfig` and `ContainerConfig`, which are therefore valid here. An [`Error`] of this crate is about what the
//! message alone does not show: a value that does not fit the sandbox, the image or the node.
//!
//! The order of a create: [`security::caps`] -> seccomp program for these capabilities; [`resources::writes`] and
//! [`devices::rules`] -> cgroup; [`container`] -> the plan; [`exec::keep`] -> the part of the plan that the
//! record keeps for execs.

mod container;
pub mod devices;
mod error;
pub mod exec;
mod mounts;
pub mod path;
pub mod resources;
mod sandbox;
pub mod seccomp;
pub mod security;
pub mod selinux;
pub mod signals;
pub mod slice;
pub mod sysctl;

pub use container::{ContainerInput, HostFacts, ImageFacts, container, log as log_plan};
pub use error::{Error, ErrorKind};
pub use exec::exec;
pub use mounts::{ImageLayers, PodFiles};
pub use sandbox::{PauseInput, SHIM_OOM_SCORE_ADJ, network_sysctls, pause, pause_limits};
