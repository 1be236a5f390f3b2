//! Writes records to disk.

use super::context::{Context, blocking};
use crate::error::Error;
use model::{ContainerRecord, PodRecord};
use serde::Serialize;
use state::Layout;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

/// Writes one record: one write at a time, and always the latest content.
#[derive(Debug)]
pub(crate) struct Recorder<T> {
    path: PathBuf,
    kind: &'static str,
    newest: Mutex<Arc<T>>,
    writing: tokio::sync::Mutex<()>,
}

impl<T: Serialize + Send + Sync + 'static> Recorder<T> {
    pub(crate) fn new(path: PathBuf, kind: &'static str, content: Arc<T>) -> Arc<Self> {
        Arc::new(Self { path, kind, newest: Mutex::new(content), writing: tokio::sync::Mutex::new(()) })
    }

    /// Sets what the next write contains. Writes nothing.
    pub(crate) fn set(&self, content: Arc<T>) {
        *self.newest.lock().unwrap_or_else(PoisonError::into_inner) = content;
    }

    /// Writes the latest content. With `durable` it survives a power loss once this returns.
    pub(crate) async fn persist(&self, context: &Arc<Context>, durable: bool) -> Result<(), Error> {
        self.persist_within(state::file::MAX_BYTES, context, durable).await
    }

    /// Like [`Self::persist`], with a size limit in bytes.
    pub(crate) async fn persist_within(
        &self,
        limit: u64,
        context: &Arc<Context>,
        durable: bool,
    ) -> Result<(), Error> {
        let _turn = self.writing.lock().await;
        let content = Arc::clone(&self.newest.lock().unwrap_or_else(PoisonError::into_inner));
        let (context, path, kind) = (Arc::clone(context), self.path.clone(), self.kind);
        blocking("write a record", move || context.write_within(limit, &path, kind, &*content, durable)).await
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
