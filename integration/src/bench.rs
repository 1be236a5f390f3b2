//! First figures of copepod against its peers.

use std::path::Path;

use anyhow::{Result, bail};

/// Prints one table of medians and ratios.
#[expect(clippy::unused_async, reason = "the same shape as the other subcommands")]
pub(crate) async fn run(_bin: &Path, _endpoints: &[String]) -> Result<bool> {
    bail!("the bench is not written yet")
}
