//! What List and Status read: an immutable view of each pod and container, which the pod's driver replaces.
//!
//! The lock is held only to change or copy tables of pointers, never during I/O, so that no pod can delay a list.

use crate::error::{Error, ErrorKind};
use model::{ContainerId, ContainerRecord, PodId, PodPhase, PodRecord};
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex, PoisonError};

/// A published pod; immutable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PodView {
    /// The record, which has everything that List and Status return.
    pub record: Arc<PodRecord>,
    /// Since when its shim is silent: nanoseconds since the epoch, 0 if it responds or is dead. While it is silent, the
    /// record has the last known state.
    pub silent_since: i64,
}

impl PodView {
    /// Whether its state is SANDBOX_READY.
    pub(crate) fn is_ready(&self) -> bool {
        self.record.phase == PodPhase::Ready
    }
}

/// A published container; immutable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ContainerView {
    /// The record, which has everything that List and Status return.
    pub record: Arc<ContainerRecord>,
}

/// The published state of the node.
#[derive(Debug, Default)]
pub(crate) struct Published(Mutex<Tables>);

#[derive(Debug, Default)]
struct Tables {
    pods: Table<PodView>,
    containers: Table<ContainerView>,
}

/// Views by id, and the list of them.
#[derive(Debug)]
struct Table<T> {
    by_id: BTreeMap<Box<str>, Arc<T>>,
    /// Made by the first call after a change.
    list: Option<Arc<[Arc<T>]>>,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self { by_id: BTreeMap::new(), list: None }
    }
}

impl<T> Table<T> {
    fn put(&mut self, id: &str, view: T) {
        self.by_id.insert(id.into(), Arc::new(view));
        self.list = None;
    }

    fn take(&mut self, id: &str) {
        if self.by_id.remove(id).is_some() {
            self.list = None;
        }
    }

    fn list<K: Ord>(&mut self, key: impl Fn(&T) -> K) -> Arc<[Arc<T>]> {
        let by_id = &self.by_id;
        let list = self.list.get_or_insert_with(|| {
            let mut views: Vec<Arc<T>> = by_id.values().cloned().collect();
            views.sort_by_key(|view| key(view));
            views.into()
        });
        Arc::clone(list)
    }

    /// Finds a view by id or by a unique prefix of one.
    fn find(&self, kind: &str, asked: &str) -> Result<Arc<T>, Error> {
        if let Some(view) = self.by_id.get(asked) {
            return Ok(Arc::clone(view));
        }
        let shown: String = asked.chars().take(80).collect();
        let not_found = || Error::new(ErrorKind::NotFound, format!("no {kind} {shown:?}"));
        if asked.is_empty() {
            return Err(not_found());
        }
        let mut hits = self
            .by_id
            .range::<str, _>((Bound::Included(asked), Bound::Unbounded))
            .take_while(|(id, _)| id.starts_with(asked))
            .map(|(_, view)| view);
        match (hits.next(), hits.next()) {
            (Some(view), None) => Ok(Arc::clone(view)),
            (None, _) => Err(not_found()),
            (Some(_), Some(_)) => {
                let text = format!("{kind} id {shown:?} is a prefix of several: give more digits");
                Err(Error::new(ErrorKind::InvalidArgument, text))
            }
        }
    }
}

impl Published {
    fn tables(&self) -> std::sync::MutexGuard<'_, Tables> {
        // Every change is one insert or remove, so the tables are consistent even if a panic has poisoned the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Publishes the current state of a pod. `silent_since`: [`PodView::silent_since`].
    pub(crate) fn put_pod(&self, record: Arc<PodRecord>, silent_since: i64) {
        let id = record.id.clone();
        self.tables().pods.put(id.as_str(), PodView { record, silent_since });
    }

    /// Publishes the current state of a container.
    pub(crate) fn put_container(&self, record: Arc<ContainerRecord>) {
        let id = record.id.clone();
        self.tables().containers.put(id.as_str(), ContainerView { record });
    }

    /// Removes a pod.
    pub(crate) fn remove_pod(&self, id: &PodId) {
        self.tables().pods.take(id.as_str());
    }

    /// Removes a container.
    pub(crate) fn remove_container(&self, id: &ContainerId) {
        self.tables().containers.take(id.as_str());
    }

    /// All pods, oldest first.
    pub(crate) fn pods(&self) -> Arc<[Arc<PodView>]> {
        self.tables().pods.list(|view| (view.record.created_at, view.record.id.clone()))
    }

    /// All containers, oldest first.
    pub(crate) fn containers(&self) -> Arc<[Arc<ContainerView>]> {
        self.tables().containers.list(|view| (view.record.created_at, view.record.id.clone()))
    }

    /// Finds a pod by its id or a unique prefix of it.
    pub(crate) fn pod(&self, id: &str) -> Result<Arc<PodView>, Error> {
        self.tables().pods.find("pod sandbox", id)
    }

    /// Finds a container by its id or a unique prefix of it.
    pub(crate) fn container(&self, id: &str) -> Result<Arc<ContainerView>, Error> {
        self.tables().containers.find("container", id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::PodConfig;

    fn pod(byte: u8, created_at: i64) -> PodRecord {
        PodRecord {
            phase: PodPhase::Ready,
            ..PodRecord::new(PodId::from_random([byte; 32]), PodConfig::default(), created_at)
        }
    }

    #[test]
    fn finds_by_unique_prefix_and_lists_by_age() {
        let published = Published::default();
        let (young, old) = (Arc::new(pod(0xab, 9)), Arc::new(pod(0xac, 3)));
        published.put_pod(Arc::clone(&young), 0);
        published.put_pod(Arc::clone(&old), 0);
        let ids: Vec<PodId> = published.pods().iter().map(|view| view.record.id.clone()).collect();
        assert_eq!(ids, [old.id.clone(), young.id.clone()]);
        assert_eq!(published.pod("ac").unwrap().record.id, old.id);
        assert_eq!(published.pod(young.id.as_str()).unwrap().record.id, young.id);
        assert_eq!(published.pod("a").unwrap_err().kind, ErrorKind::InvalidArgument);
        for absent in ["", "b", "acc", "acacacacz"] {
            assert_eq!(published.pod(absent).unwrap_err().kind, ErrorKind::NotFound, "{absent}");
        }
        published.put_pod(Arc::clone(&old), 7);
        assert_eq!(published.pod("ac").unwrap().silent_since, 7);
        published.remove_pod(&old.id);
        assert_eq!(published.pods().len(), 1);
    }
}
