//! Returns freed memory to the kernel. glibc keeps freed memory that lies below its highest used block, so a
//! single large reply or pull would count as the daemon's memory until it ends.

use crate::lanes;
use std::time::Duration;
use tokio::sync::Notify;

/// Delay after the last large operation: its reply may still be in transfer, or another one may follow.
const SETTLE: Duration = Duration::from_secs(1);

static FREED: Notify = Notify::const_new();

/// Must be called when a large object was freed or will soon be freed.
pub(crate) fn freed() {
    FREED.notify_one();
}

/// Returns memory to the kernel a while after the start and after each call of [`freed`]. Runs until dropped.
pub(crate) async fn trim() {
    freed();
    loop {
        FREED.notified().await;
        while tokio::time::timeout(SETTLE, FREED.notified()).await.is_ok() {}
        if let Err(error) = lanes::stats().run(sys::malloc::trim).await {
            tracing::debug!(%error, "cannot return freed memory to the kernel");
        }
    }
}
