//! The real kubelet on copepod.

use std::path::Path;

use anyhow::{Result, bail};

/// Runs all checks.
#[expect(clippy::unused_async, reason = "in work")]
pub(crate) async fn run(_bin: &Path, _kubelet: &Path, _filter: Option<&str>) -> Result<bool> {
    bail!("in work")
}
