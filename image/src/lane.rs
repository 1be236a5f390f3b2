//! Threads for the blocking work of this crate: the store's short operations, and unpacking, which takes
//! minutes and must not delay the others.

use crate::error::{Error, Result};
use pool::{Lane, Size};
use std::sync::{Arc, LazyLock};

/// Most operations that wait for a thread.
const WAITING: usize = 4096;

static STORE: LazyLock<Lane> = LazyLock::new(|| lane("images", 1, 16));
static UNPACK: LazyLock<Lane> = LazyLock::new(|| lane("unpack", 0, 64));

fn lane(name: &'static str, kept: usize, most: usize) -> Lane {
    Lane::new(Size { name, kept, most, each: most, waiting: WAITING })
}

/// The lane for the store: index, leases, documents, removal.
pub(crate) fn store() -> &'static Lane {
    &STORE
}

/// Runs a blocking operation of the store.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    on(store(), work).await
}

/// Runs the unpacking of a layer.
pub(crate) async fn unpacking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    on(&UNPACK, work).await
}

async fn on<T: Send + 'static>(lane: &Lane, work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match lane.run(work).await {
        Ok(outcome) => outcome,
        Err(error) if error.is_temporary() => Err(Error::Threads { source: Arc::new(error.into()) }),
        Err(error) => Err(Error::corrupt("an operation of the image store", error)),
    }
}
