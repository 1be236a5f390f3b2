//! Threads for the blocking work of this crate: one lane for the store's short operations, and one for work that may take
//! minutes: that on the content of layers, and waits for disk space.

use crate::error::{Error, Result};
use pool::{Lane, Size};
use std::sync::{Arc, LazyLock};

/// Maximum number of operations that wait for a thread.
const WAITING: usize = 4096;

static STORE: LazyLock<Lane> = LazyLock::new(|| lane("images", 1, 16));
static UNPACK: LazyLock<Lane> = LazyLock::new(|| lane("unpack", 0, 64));

fn lane(name: &'static str, kept_threads: usize, max_threads: usize) -> Lane {
    Lane::new(Size { name, kept_threads, max_threads, max_per_owner: max_threads, max_queued: WAITING })
}

/// The lane for short operations: index, leases, documents, removal.
pub(crate) fn store() -> &'static Lane {
    &STORE
}

/// Runs a short operation of the store.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    on(store(), work).await
}

/// Runs work that may take minutes.
pub(crate) async fn unpacking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    on(&UNPACK, work).await
}

async fn on<T: Send + 'static>(lane: &Lane, work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match lane.run(work).await {
        Ok(result) => result,
        Err(error) if error.is_temporary() => Err(Error::Threads { source: Arc::new(error) }),
        Err(error) => Err(Error::Panicked { source: Arc::new(error) }),
    }
}
