//! The shim's life as data: inputs in, actions out. Nothing here makes a system call, reads a clock or holds a
//! descriptor; [`crate::performer`] performs the actions and decides nothing.
//!
//! ```text
//!   daemon: requests     ┐                                    ┌ replies, events
//!   workers: packets     │         ┌───────────┐              │ forks, signals, looks
//!   children: reaped     ├─ Input ─► Lifecycle ├─── Action ───┤ exit records
//!   timer()              │         └─────▲─────┘              │ descriptors to close
//!   connection           ┘               └──── results ───────┘ end
//! ```
//! What the result of an action is stands beside it in [`action`]. A result is the next input, before any other
//! action and any other input; so nothing can be reaped between the decision to send a signal and the signal.
//!
//! The drawings of the phases: [`pause`], [`phase`] (containers), [`exec`]. The table of what each phase does with
//! each input is docs/shim-states.md; a test prints it. The pod's own phases are few:
//!
//! ```text
//!      StopPod            nothing lives
//! No ──────────► Stopping ──────────────► Stopped ──► End, when the daemon shuts it down or leaves
//! ```
//!
//! A number of a process is used only while it was not reaped. A process may end, and be reaped, before its worker's
//! packet that names it is read: such ends are remembered while a worker is at work ([`worker::ReapedEarly`]).

mod action;
mod container;
mod context;
mod exec;
mod id;
mod input;
mod look;
mod pause;
mod phase;
mod pod;
mod requests;
mod worker;

#[cfg(test)]
mod tests;

pub(crate) use action::{Action, CgroupLook, Fork, Session};
pub(crate) use context::Time;
pub(crate) use id::{Requester, Serial};
pub(crate) use input::{CgroupState, Happened, Held, InitState, Input};
pub(crate) use pod::Lifecycle;
pub(crate) use worker::SIGKILL;

#[cfg(test)]
pub(crate) use {
    phase::{MAX_START_ERROR, cut_start_error},
    pod::MAX_EXECS,
};
