//! Guards of a running pull: digests that must not be deleted, and a folder that is being filled.

use super::{Store, lock};
use crate::lane::blocking;
use crate::reference::Digest;
use causes::with_causes;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use sys::tree::Trash;

/// Protects digests from deletion, usually for a pull. If it is dropped without [`Pins::succeed`], the pull has failed:
/// its complete layers are kept for a while, and everything else that it left is deleted.
#[derive(Debug)]
pub(crate) struct Pins {
    pub(super) store: Arc<Store>,
    pub(super) digests: Vec<Digest>,
    /// The record of the pull, if it has one.
    pub(super) pull: Option<String>,
    pub(super) succeeded: AtomicBool,
    pub(super) given_up: AtomicBool,
}

impl Pins {
    /// To be called once an image has the digests, so that nothing needs to be deleted. Blocks.
    pub(crate) fn succeed(&self) {
        self.succeeded.store(true, Ordering::Relaxed);
        self.store.pull_succeeded(self.pull.as_ref(), &self.digests);
    }

    /// To be called if there is no space: no layer of the pull is kept.
    pub(crate) fn give_up(&self) {
        self.given_up.store(true, Ordering::Relaxed);
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        let (succeeded, given_up) = (*self.succeeded.get_mut(), *self.given_up.get_mut());
        {
            let mut catalog = lock(&self.store.catalog);
            if !succeeded && let Some(pull) = &self.pull {
                Store::pull_failed(&mut catalog, pull, given_up);
            }
            for digest in &self.digests {
                if let Some(count) = catalog.pins.get_mut(digest) {
                    *count -= 1;
                    if *count == 0 {
                        catalog.pins.remove(digest);
                    }
                }
            }
        }
        if succeeded {
            return;
        }
        let (store, pull) = (self.store.clone(), self.pull.take());
        // Without a runtime the daemon is ending, and the next start does this.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                let settled = blocking(move || {
                    if let Some(pull) = pull {
                        store.settle(&pull);
                    }
                    store.collect()
                });
                if let Err(error) = settled.await {
                    tracing::warn!(error = with_causes(&error), "cannot delete what a failed pull has left");
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
    /// The store's `failed_syncs` when the folder was created.
    pub(super) failed_syncs: u64,
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
