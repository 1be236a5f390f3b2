//! Threads for the blocking work of this crate: one lane for the store's short operations, one for work on the content of
//! layers, which may take hours, and one for waits for disk space: 90 seconds at most, or longer if the disk was full and
//! the waiter deletes what is to be deleted itself.

use crate::error::{Error, Result};
use pool::{Lane, Size};
use std::sync::{Arc, LazyLock};
use tokio::runtime::Handle;

/// Maximum number of operations that wait for a thread.
const WAITING: usize = 4096;
/// At most 64 transfers have a place (four times [`crate::Options::parallel_layers`], which the configuration limits to 16) and
/// 16 go on without one, and two imports and two exports run. The other 12 are for
/// images that are made durable, and for transfers that have ended but whose threads have not yet.
const UNPACK_THREADS: usize = 96;

static STORE: LazyLock<Lane> = LazyLock::new(|| lane("images", 1, 16));
static UNPACK: LazyLock<Lane> = LazyLock::new(|| lane("unpack", 0, UNPACK_THREADS));
static SPACE: LazyLock<Lane> = LazyLock::new(|| lane("space", 0, 16));

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

/// Runs work on the content of layers, which may wait for a registry.
pub(crate) async fn unpacking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    on(&UNPACK, work).await
}

/// Runs what may wait for disk space. It waits neither behind transfers, whose time has no limit, nor does it delay leases.
pub(crate) async fn for_space<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    on(&SPACE, work).await
}

async fn on<T: Send + 'static>(lane: &Lane, work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match lane.run(work).await {
        Ok(result) => result,
        Err(error) if error.is_temporary() => Err(Error::Threads { source: Arc::new(error) }),
        Err(error) => Err(Error::Panicked { source: Arc::new(error) }),
    }
}

/// A value whose drop may block: it is dropped on a thread for such work.
#[derive(Debug)]
pub(crate) struct Closing<T: Send + 'static>(Option<T>);

impl<T: Send> Closing<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(Some(value))
    }
}

impl<T: Send> Drop for Closing<T> {
    fn drop(&mut self) {
        let value = self.0.take();
        // Without a runtime this thread may block, or the daemon is ending. If there is no thread, the value is dropped by the
        // task.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(unpacking(move || {
                drop(value);
                Ok(())
            }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::sync::oneshot;

    /// Tells the name of the thread that drops it.
    struct Witness(Option<oneshot::Sender<String>>);

    impl Drop for Witness {
        fn drop(&mut self) {
            let name = std::thread::current().name().unwrap_or_default().to_owned();
            self.0.take().map(|sender| sender.send(name));
        }
    }

    #[tokio::test]
    async fn a_value_is_dropped_on_a_thread_that_may_block() {
        let (sender, name) = oneshot::channel();
        drop(Closing::new(Witness(Some(sender))));
        assert_eq!(name.await.unwrap(), "cpd-unpack");
    }

    #[tokio::test]
    async fn waits_for_space_do_not_queue_behind_transfers() {
        let (open, gate) = std::sync::mpsc::channel::<()>();
        let gate = Arc::new(std::sync::Mutex::new(gate));
        // As many transfers as there are threads, and one that waits for one.
        let transfers: Vec<_> = (0..=UNPACK_THREADS)
            .map(|_| {
                let gate = gate.clone();
                tokio::spawn(unpacking(move || {
                    // Until it is opened.
                    assert!(gate.lock().unwrap().recv().is_err());
                    Ok(())
                }))
            })
            .collect();
        // One turn of the runtime does not begin all of them.
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        let waited = tokio::time::timeout(Duration::from_secs(60), for_space(|| Ok(7))).await;
        assert_eq!(waited.expect("it waits for a thread of transfers").unwrap(), 7);
        assert!(transfers.iter().all(|transfer| !transfer.is_finished()));
        drop(open);
        for transfer in transfers {
            transfer.await.unwrap().unwrap();
        }
    }

    #[test]
    fn without_a_runtime_it_is_dropped_at_once() {
        let (sender, mut name) = oneshot::channel();
        drop(Closing::new(Witness(Some(sender))));
        assert!(name.try_recv().is_ok());
    }
}
