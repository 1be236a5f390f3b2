//! The tests, one file a theme.

mod container;
mod exec;
mod image;
mod pod;

use crate::runner::Test;

/// Every test, in the order they run.
pub(crate) fn all() -> Vec<Test> {
    [pod::tests(), container::tests(), exec::tests(), image::tests()].concat()
}
