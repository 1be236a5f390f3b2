//! The tests, one file a theme.

mod badinput;
mod container;
mod exec;
mod hazards;
mod image;
mod kill9;
mod log;
mod mounts;
mod network;
mod pause;
mod pod;
mod pss;
mod restart;
mod same_as_runc;
mod security;

use crate::runner::Test;

/// Every test, in the order they run.
pub(crate) fn all() -> Vec<Test> {
    [
        pod::tests(),
        container::tests(),
        exec::tests(),
        pause::tests(),
        log::tests(),
        image::tests(),
        security::tests(),
        same_as_runc::tests(),
        mounts::tests(),
        network::tests(),
        hazards::tests(),
        badinput::tests(),
        restart::tests(),
        kill9::tests(),
        pss::tests(),
    ]
    .concat()
}
