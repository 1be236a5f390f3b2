//! What is under way: calls of clients, and jobs of pods' drivers. Each has a subject (pod, container, image) and tells
//! which step it is in.
//!
//! ```text
//! service::handle ── Call ──┐                    ┌──► the error of a call whose deadline has passed
//!                           ├─ entry ─ table ────┼──► lines about calls that take long
//! pod::driver ────── job ───┘                    └──► verbose Status (`crictl info`)
//! ```
//! A call that waits for a pod's driver is where that pod's job is; a job can have several callers, or none any more. The
//! code between a call and its job knows neither: it names the call's subject ([`about_pod`] and others), and the steps
//! that it is in ([`progress::enter`]).
//!
//! A call that is answered without waiting, as List and Status are, is never listed and has no span unless a line is
//! logged about it. An entry is removed when its future ends or is dropped, so also when the client has gone. The table
//! needs no bound of its own: an entry is a small part of the call or job that it stands for, and these are bounded.

mod call;
mod entry;
mod job;
mod table;
mod trace;

pub(crate) use call::{
    Call, about_container, about_image, about_new_container, about_new_pod, about_pod, await_driver,
};
pub(crate) use entry::Subject;
pub(crate) use job::job;
pub(crate) use table::{Operation, UnderWay, under_way};
pub(crate) use trace::TraceId;
