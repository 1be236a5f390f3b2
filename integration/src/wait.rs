//! Waiting with a time limit.

use std::future::Future;
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::expect::ensure;

/// Pause between two checks.
const STEP: Duration = Duration::from_millis(20);

/// Repeats `check` until it returns a value. After `limit` it fails with what was waited for and the result
/// of the last check.
pub(crate) async fn until<T, F, Fut>(what: &str, limit: Duration, mut check: F) -> Result<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<Option<T>>>,
{
    let end = Instant::now() + limit;
    loop {
        let last = match check().await {
            Ok(Some(value)) => return Ok(value),
            Ok(None) => String::from("not yet"),
            Err(e) => format!("{e:#}"),
        };
        if Instant::now() >= end {
            bail!("waited {limit:?} for {what}: {last}");
        }
        tokio::time::sleep(STEP).await;
    }
}

/// Like [`until`], for a check that returns a bool and cannot fail.
pub(crate) async fn until_true(what: &str, limit: Duration, mut check: impl FnMut() -> bool) -> Result<()> {
    until(what, limit, || std::future::ready(Ok(check().then_some(())))).await
}

/// Waits until a child process has ended. Blocks the calling thread, but not longer than `limit`.
pub(crate) fn ended(child: &mut Child, limit: Duration) -> Result<ExitStatus> {
    let end = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        ensure!(Instant::now() < end, "process {} has not ended within {limit:?}", child.id());
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Seconds, for readable calls.
pub(crate) const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}
