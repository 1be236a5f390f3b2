//! Counts the threads of a lane that each owner uses.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Entries of owners without work are removed when there are this many more than after the last removal.
const SWEEP: usize = 64;

#[derive(Debug)]
pub(crate) struct Owners {
    max_threads: usize,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    permits: HashMap<String, Weak<Semaphore>>,
    /// Number of entries after the last removal.
    swept: usize,
}

impl Owners {
    pub(crate) fn new(max_threads: usize) -> Self {
        Self { max_threads: max_threads.clamp(1, Semaphore::MAX_PERMITS), table: Mutex::default() }
    }

    /// Waits until the owner may use one more thread. `None` cannot occur, because no semaphore is ever closed; it
    /// would mean that the owner is not limited.
    pub(crate) async fn permit(&self, owner: &str) -> Option<OwnedSemaphorePermit> {
        self.of(owner).acquire_owned().await.ok()
    }

    fn of(&self, owner: &str) -> Arc<Semaphore> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(permits) = table.permits.get(owner).and_then(Weak::upgrade) {
            return permits;
        }
        if table.permits.len() >= table.swept + SWEEP {
            table.permits.retain(|_, permits| permits.strong_count() > 0);
            table.swept = table.permits.len();
        }
        let permits = Arc::new(Semaphore::new(self.max_threads));
        table.permits.insert(owner.to_owned(), Arc::downgrade(&permits));
        permits
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.table.lock().unwrap_or_else(PoisonError::into_inner).permits.len()
    }
}
