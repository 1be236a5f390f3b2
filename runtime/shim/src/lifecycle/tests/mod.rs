//! Tests of the machine without root, processes or clocks: a simulated kernel and daemon ([`world`]) drive it, and
//! what it does is checked after each step ([`check`]).

mod cases;
mod check;
mod kernel;
mod model;
mod op;
mod perform;
mod table;
mod world;

use check::Violation;

/// What was done was right, or not.
type Checked = Result<(), Violation>;

/// Some user that a container may run as.
fn user() -> ::model::User {
    ::model::User::default()
}
