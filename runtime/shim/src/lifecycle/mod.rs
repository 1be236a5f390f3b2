//! The state machine of the shim: each input results in actions. It makes no system calls, reads no clock and
//! holds no descriptors; the performer carries out the actions and decides nothing.
//!
//! ```text
//!   daemon: requests     ┐                                    ┌ replies, events
//!   workers: packets     │         ┌───────────┐              │ forks, signals, checks
//!   children: reaped     ├─ Input ─► Lifecycle ├─── Action ───┤ exit files
//!   timer()              │         └─────▲─────┘              │ descriptors to close
//!   connection           ┘               └──── results ───────┘ end
//! ```
//! [`action`] lists the result of each action. A result is the next input, before any other action and any other
//! input; so nothing can be reaped between the decision to send a signal and the signal.
//!
//! The phases are drawn in [`pause`], [`phase`] (containers) and [`exec`]. docs/shim-states.md, printed by a
//! test, lists what each phase does with each input. The pod itself has few phases:
//!
//! ```text
//!      StopPod            nothing lives
//! No ──────────► Stopping ──────────────► Stopped ──► End, when the daemon shuts it down or leaves
//! ```
//!
//! A pid is used only while its process is not reaped. A process may end and be reaped before the worker's
//! packet with its pid is read: such exits are remembered while a worker is running
//! ([`worker::ReapedEarly`]). The packet also has the process's pidfd, which tells that process from another one that
//! has the pid by then.

mod action;
mod checks;
mod container;
mod context;
mod exec;
mod id;
mod input;
mod pause;
mod phase;
mod pod;
mod requests;
mod worker;

#[cfg(test)]
mod tests;

pub(crate) use action::{Action, CgroupCheck, Fork, SIGKILL, Session};
pub(crate) use context::Time;
pub(crate) use id::{Requester, Serial};
pub(crate) use input::{CgroupState, ContainerInput, ExecInput, InitState, Input, Stopped, WorkerInput};
pub(crate) use pod::Lifecycle;

#[cfg(test)]
pub(crate) use {
    phase::{MAX_START_ERROR, cut_start_error},
    pod::MAX_EXECS,
};
