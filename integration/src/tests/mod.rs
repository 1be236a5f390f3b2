//! The tests, one file a theme.

mod container;
mod exec;
mod image;
mod pause;
mod pod;

use crate::runner::Test;

/// Every test, in the order they run.
pub(crate) fn all() -> Vec<Test> {
    [pod::tests(), container::tests(), exec::tests(), image::tests(), pause::tests()].concat()
}
