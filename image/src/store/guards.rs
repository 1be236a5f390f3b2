//! What a running pull holds: digests that are protected from collection, and a folder that is being filled.

use super::{Store, lock};
use crate::lane::blocking;
use crate::reference::Digest;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use sys::tree::Trash;

/// Protects digests from collection. When the last holder of a failed pull is dropped, what it left is
/// deleted.
#[derive(Debug)]
pub(crate) struct Pins {
    pub(super) store: Arc<Store>,
    pub(super) digests: Vec<Digest>,
    pub(super) named: AtomicBool,
}

impl Pins {
    /// The pull succeeded: an image now names everything, so there is nothing to delete.
    pub(crate) fn keep(&self) {
        self.named.store(true, Ordering::Relaxed);
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        {
            let mut catalog = lock(&self.store.catalog);
            for digest in &self.digests {
                if let Some(count) = catalog.pins.get_mut(digest) {
                    *count -= 1;
                    if *count == 0 {
                        catalog.pins.remove(digest);
                    }
                }
            }
        }
        if *self.named.get_mut() {
            return;
        }
        let store = self.store.clone();
        // Without a runtime the process is ending: the next start deletes it.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                if let Err(error) = blocking(move || store.collect()).await {
                    tracing::warn!(%error, "cannot delete unused layers");
                }
            });
        }
    }
}

/// A folder that is being filled. Drop it on a blocking thread.
#[derive(Debug)]
pub(crate) struct Ingest {
    pub(super) path: PathBuf,
    pub(super) trash: Trash,
    pub(super) published: bool,
}

impl Ingest {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Ingest {
    fn drop(&mut self) {
        if !self.published
            && let Err(error) = self.trash.take(&self.path)
        {
            tracing::warn!(%error, "cannot remove an unfinished folder; the next start removes it");
        }
    }
}
