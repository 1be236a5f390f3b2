//! Pods. Each has one driver task that owns its state, and jobs that do the work.
//!
//! ```text
//! Node ──Command──► driver ──Supervisor──► jobs ──► launch, containers, teardown ──► shim, CNI, cgroups, files
//!                   │ │ ▲──────outcomes, shim events──────┘
//!                   │ └──► publish (List, Status), events
//!                   └──► life: what is legal, and what is next
//! ```
//! `supervisor` separates deciding from working. `jobs` implements it for this node; `fakes`, for tests, in memory.

mod admission;
pub(crate) mod attach;
mod backoff;
pub(crate) mod command;
pub(crate) mod containers;
pub(crate) mod context;
mod driver;
mod events;
pub(crate) mod exec;
mod exit;
#[cfg(test)]
mod fakes;
mod foreign;
mod inputs;
mod intent;
mod jobs;
mod launch;
mod life;
mod output;
mod parallel;
mod plan;
mod publish;
mod recorder;
mod registry;
mod resources;
mod run;
mod scope;
mod stdio;
mod stop;
mod supervisor;
mod teardown;
mod volume_watch;
mod weight;

pub(crate) use command::Command;
pub(crate) use context::Context;
pub(crate) use context::NodeOptions;
pub(crate) use events::{Event, EventKind, Events};
pub(crate) use exec::ExecOutput;
pub(crate) use publish::{ContainerView, PodView, PodWithContainers};
pub(crate) use registry::Registry;
pub(crate) use run::{adopt, run};
