//! Waiting with a time limit. The limits of tests are for a real machine; where processors are emulated, all of them are
//! longer by [`SLOWNESS`].

use std::future::Future;
use std::process::{Child, ExitStatus};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::expect::ensure;

/// Pause between two checks.
const STEP: Duration = Duration::from_millis(20);

/// Environment variable with [`SLOWNESS`].
const VARIABLE: &str = "COPEPOD_TEST_SLOWNESS";

/// How many times longer everything may take: a whole number from 1, the default, to 100.
static SLOWNESS: LazyLock<u32> = LazyLock::new(|| {
    let given = std::env::var(VARIABLE).ok().and_then(|text| text.parse::<u32>().ok());
    given.unwrap_or(1).clamp(1, 100)
});

/// Whether everything takes longer than on a real machine.
pub(crate) fn is_slow() -> bool {
    *SLOWNESS > 1
}

/// A time limit as it is on this machine. [`until`], [`ended`] and [`timeout`] take theirs as on a real one.
pub(crate) fn longer(limit: Duration) -> Duration {
    limit.saturating_mul(*SLOWNESS)
}

/// [`tokio::time::timeout`] with a limit that is longer where everything is.
pub(crate) fn timeout<F: Future>(limit: Duration, future: F) -> tokio::time::Timeout<F> {
    tokio::time::timeout(longer(limit), future)
}

/// Repeats `check` until it returns a value. After `limit` it fails with what was waited for and the result
/// of the last check.
pub(crate) async fn until<T, F, Fut>(what: &str, limit: Duration, mut check: F) -> Result<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<Option<T>>>,
{
    let limit = longer(limit);
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
    let limit = longer(limit);
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
