//! Tests of the lifecycle without root, processes or clocks: a simulated kernel and daemon ([`world`]) drive
//! it, and its actions are checked after each step ([`check`]).

mod cases;
mod check;
mod kernel;
mod model;
mod op;
mod perform;
mod samples;
mod table;
mod workers;
mod world;

use check::Violation;

/// The result of a check.
type Checked = Result<(), Violation>;

/// A user for containers.
fn user() -> ::model::User {
    ::model::User::default()
}
