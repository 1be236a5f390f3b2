//! Unusual events in a container's life: terminals that are closed for a moment, lost log lines, processes that are
//! stopped, traced or frozen by others, full tables.

mod cgroups;
mod limits;
mod terminal;
mod traced;

use crate::runner::Test;

pub(super) fn tests() -> Vec<Test> {
    [terminal::tests(), traced::tests(), cgroups::tests(), limits::tests()].concat()
}
