//! Writes records to disk.
//!
//! A disk can hang. Stops and starts must work then, so they wait for a write only [`LIMIT`]; the write goes on without
//! them. The next daemon finds out again what was not written: an exit, for example, from the shim's exit file, which is
//! deleted only once the exit is durable in the record.

use super::context::{Context, blocking};
use crate::error::{Error, ErrorKind};
use model::{ContainerRecord, PodRecord};
use serde::Serialize;
use state::Layout;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::timeout;

/// How long a caller waits for a write. A write takes milliseconds, on a busy disk a second or two.
const LIMIT: Duration = Duration::from_secs(5);
/// Maximum number of writes of one record that go on without their callers: one that is running, and one behind it, which
/// will write the latest content.
const MAX_LATE: usize = 2;

/// Writes one record: one write at a time, and always the latest content.
#[derive(Debug)]
pub(crate) struct Recorder<T> {
    path: PathBuf,
    kind: &'static str,
    newest: Mutex<Arc<T>>,
    /// Fair: writes run in the order in which they were requested.
    writing: Arc<tokio::sync::Mutex<()>>,
    /// Number of writes that go on without their callers.
    late: AtomicUsize,
}

impl<T: Serialize + Send + Sync + 'static> Recorder<T> {
    pub(crate) fn new(path: PathBuf, kind: &'static str, content: Arc<T>) -> Arc<Self> {
        Arc::new(Self {
            path,
            kind,
            newest: Mutex::new(content),
            writing: Arc::default(),
            late: AtomicUsize::new(0),
        })
    }

    /// Sets what the next write contains. Writes nothing.
    pub(crate) fn set(&self, content: Arc<T>) {
        *self.newest.lock().unwrap_or_else(PoisonError::into_inner) = content;
    }

    /// Writes the latest content. With `durable` it survives a power loss once this returns.
    ///
    /// # Errors
    /// Those of the write; DeadlineExceeded if it takes longer than [`LIMIT`], and then it goes on.
    pub(crate) async fn persist(
        self: &Arc<Self>,
        context: &Arc<Context>,
        durable: bool,
    ) -> Result<(), Error> {
        let (shared, path, kind) = (Arc::clone(context), self.path.clone(), self.kind);
        let write = move |content: &T| shared.write(&path, kind, content, durable);
        let written = self.within(LIMIT, write).await;
        if let Err(Error { kind: ErrorKind::DeadlineExceeded, .. }) = &written {
            context.root.check_soon();
        }
        written
    }

    /// Writes the record of an object that is not listed yet, with the size limit of new objects; not synced. There is no
    /// time limit: nobody knows the object before this, and each step of its creation needs the same disk.
    pub(crate) async fn persist_new(self: &Arc<Self>, context: &Arc<Context>) -> Result<(), Error> {
        let (shared, path, kind) = (Arc::clone(context), self.path.clone(), self.kind);
        let limit = state::file::MAX_NEW_BYTES;
        let write = move |content: &T| shared.write_within(limit, &path, kind, content, false);
        Arc::clone(self).in_turn(write).await
    }

    /// Waits for a write, at most for `limit`.
    async fn within(
        self: &Arc<Self>,
        limit: Duration,
        write: impl FnOnce(&T) -> Result<(), Error> + Send + 'static,
    ) -> Result<(), Error> {
        let mut writing = Box::pin(Arc::clone(self).in_turn(write));
        if let Ok(written) = timeout(limit, &mut writing).await {
            return written;
        }
        if self.late.fetch_add(1, Ordering::AcqRel) < MAX_LATE {
            let recorder = Arc::clone(self);
            tokio::spawn(async move {
                let path = recorder.path.display();
                match writing.await {
                    Ok(()) => tracing::info!(%path, "a write that hung is done"),
                    Err(error) => tracing::warn!(%path, error = error.text(), "a write that hung has failed"),
                }
                recorder.late.fetch_sub(1, Ordering::AcqRel);
            });
        } else {
            // This write is not needed: one of the late ones before it will write the latest content.
            drop(writing);
            self.late.fetch_sub(1, Ordering::AcqRel);
        }
        let text = format!("{} was not written within {limit:?}: its disk hangs", self.path.display());
        Err(Error::new(ErrorKind::DeadlineExceeded, text))
    }

    /// Writes the latest content when all earlier writes have ended. If the future is dropped after the write has begun,
    /// the write goes on, and the next one waits for it.
    async fn in_turn(
        self: Arc<Self>,
        write: impl FnOnce(&T) -> Result<(), Error> + Send + 'static,
    ) -> Result<(), Error> {
        let turn = Arc::clone(&self.writing).lock_owned().await;
        let content = Arc::clone(&self.newest.lock().unwrap_or_else(PoisonError::into_inner));
        // The lock is released when the write has ended, even if nobody waits for its result.
        let (_turn, written) = blocking("write a record", move || Ok((turn, write(&content)))).await?;
        written
    }
}

/// A recorder for a container's record.
pub(crate) fn of_container(layout: &Layout, record: Arc<ContainerRecord>) -> Arc<Recorder<ContainerRecord>> {
    Recorder::new(layout.container_record(&record.id), state::kind::CONTAINER, record)
}

/// A recorder for a pod's record.
pub(crate) fn of_pod(layout: &Layout, record: Arc<PodRecord>) -> Arc<Recorder<PodRecord>> {
    Recorder::new(layout.pod_record(&record.id), state::kind::POD, record)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Sender, channel};
    use tokio::sync::mpsc;

    const SHORT: Duration = Duration::from_millis(20);
    const LONG: Duration = Duration::from_secs(60);

    fn recorder() -> Arc<Recorder<i32>> {
        Recorder::new("/nonexistent/record".into(), "test", Arc::new(1))
    }

    /// A write that hangs until the sender is dropped, and tells what it writes.
    fn hung(written: mpsc::Sender<i32>) -> (impl FnOnce(&i32) -> Result<(), Error>, Sender<()>) {
        let (release, hangs) = channel();
        let write = move |content: &i32| {
            assert!(hangs.recv().is_err(), "nothing is sent");
            written.try_send(*content).map_err(|_| Error::internal("the test does not listen"))
        };
        (write, release)
    }

    #[tokio::test]
    async fn a_write_that_hangs_is_not_waited_for_and_goes_on() {
        let recorder = recorder();
        let (sender, mut written) = mpsc::channel(8);
        let (write, release) = hung(sender.clone());
        let error = recorder.within(SHORT, write).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::DeadlineExceeded);
        assert!(format!("{error:?}").contains("/nonexistent/record"), "{error:?}");
        // The writes behind it write the latest content, and one of them is enough.
        for content in 2..6 {
            recorder.set(Arc::new(content));
            let (write, _) = hung(sender.clone());
            assert_eq!(recorder.within(SHORT, write).await.unwrap_err().kind, ErrorKind::DeadlineExceeded);
        }
        assert!(written.try_recv().is_err(), "one write at a time");
        drop(release);
        for expected in [1, 5] {
            assert_eq!(timeout(LONG, written.recv()).await.unwrap(), Some(expected));
        }
        // This one is behind any other.
        recorder.set(Arc::new(6));
        let (write, _) = hung(sender.clone());
        recorder.within(LONG, write).await.unwrap();
        assert_eq!(written.recv().await, Some(6));
        assert_eq!(recorder.late.load(Ordering::Acquire), 0);
    }

    #[tokio::test]
    async fn the_error_of_a_write_is_returned() {
        let error = recorder().within(LONG, |_| Err(Error::internal("the disk"))).await.unwrap_err();
        assert_eq!(error, Error::internal("the disk"));
    }
}
