//! Guards of a running pull: digests that must not be deleted, and a folder that is being filled.

use super::{Store, lock};
use crate::lane::blocking;
use crate::reference::Digest;
use causes::with_causes;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use sys::tree::Trash;

/// Protects digests from deletion. If it is dropped without [`Pins::keep`], the pull has failed, and what it left is
/// deleted.
#[derive(Debug)]
pub(crate) struct Pins {
    pub(super) store: Arc<Store>,
    pub(super) digests: Vec<Digest>,
    pub(super) kept: AtomicBool,
}

impl Pins {
    /// To be called once an image has the digests, so that nothing needs to be deleted.
    pub(crate) fn keep(&self) {
        self.kept.store(true, Ordering::Relaxed);
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
        if *self.kept.get_mut() {
            return;
        }
        let store = self.store.clone();
        // Without a runtime the daemon is ending, and the next start deletes what the pull left.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                if let Err(error) = blocking(move || store.collect()).await {
                    tracing::warn!(error = with_causes(&error), "cannot delete unused layers");
                }
            });
        }
    }
}

/// A folder that is being filled with a layer. To be dropped on a thread that may block.
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
            tracing::warn!(%error, "cannot remove the folder of an unfinished layer: the next start removes it");
        }
    }
}
