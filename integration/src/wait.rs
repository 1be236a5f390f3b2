//! Bounded waiting.

use std::future::Future;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Pause between two looks.
const STEP: Duration = Duration::from_millis(20);

/// Looks until `check` gives a value; an error after `limit` that says what was waited for and what the last
/// look found.
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

/// As [`until`], for a plain look that cannot fail.
pub(crate) async fn until_true(what: &str, limit: Duration, mut check: impl FnMut() -> bool) -> Result<()> {
    until(what, limit, || std::future::ready(Ok(check().then_some(())))).await
}

/// Whole seconds, for readable calls.
pub(crate) const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}
