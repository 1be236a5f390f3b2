//! Memory that was needed for a moment goes back to the kernel. glibc keeps what is freed below its highest piece
//! in use, so that one large answer or a pull would count for the daemon until its end.

use crate::lanes;
use std::time::Duration;
use tokio::sync::Notify;

/// How long after the last large piece of work: its answer is still on its way, or the next one comes.
const SETTLE: Duration = Duration::from_secs(1);

static FREED: Notify = Notify::const_new();

/// Something large was freed, or is about to be.
pub(crate) fn freed() {
    FREED.notify_one();
}

/// Gives memory back once the daemon has become quiet, the first time after its start. Runs until it is dropped;
/// costs nothing while nothing large happens.
pub(crate) async fn trim() {
    freed();
    loop {
        FREED.notified().await;
        while tokio::time::timeout(SETTLE, FREED.notified()).await.is_ok() {}
        if let Err(error) = lanes::stats().run(sys::malloc::trim).await {
            tracing::debug!(%error, "memory is kept");
        }
    }
}
