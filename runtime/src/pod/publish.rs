//! What List and Status read: an immutable view of each pod and container, which the pod's driver replaces.
//!
//! The lock is held only to change or copy tables of pointers, never during I/O, so that no pod can delay a list.
//! A change of state is told to the subscribers of `pod::events` under the same lock.

use super::events::{self, EventKind, Events, Feed, State};
use crate::error::{Error, ErrorKind};
use model::{ContainerId, ContainerRecord, PodId, PodMeta, PodPhase, PodRecord};
use std::collections::{BTreeMap, HashMap};
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

/// A published pod with its containers, all at one time.
#[derive(Debug)]
pub(crate) struct PodWithContainers {
    /// The pod.
    pub(crate) pod: Arc<PodView>,
    /// Its containers, oldest first.
    pub(crate) containers: Vec<Arc<ContainerRecord>>,
}

/// The published state of the node.
#[derive(Debug, Default)]
pub(crate) struct Published(Mutex<Tables>);

#[derive(Debug, Default)]
struct Tables {
    pods: Table<PodView>,
    containers: Table<ContainerView>,
    /// The containers of each pod that has any, oldest first.
    of_pod: HashMap<PodId, Vec<Arc<ContainerRecord>>>,
    feed: Feed,
}

impl Tables {
    /// Sends events about the pod or the container with this id. A container whose pod is not published has no events:
    /// each must have the pod's status.
    fn tell(&mut self, kinds: &[EventKind], id: &str, pod: &PodId) {
        if kinds.is_empty() || !self.feed.is_followed() {
            return;
        }
        if let Some(view) = self.pods.by_id.get(pod.as_str()) {
            let containers = self.of_pod.get(pod).map(Vec::as_slice).unwrap_or_default();
            self.feed.send(kinds, id, &view.record, containers);
        }
    }
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
        // A change is a few inserts or removes, each of which leaves tables that can be read, so a poisoned lock is used.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Publishes the current state of a pod. `silent_since`: [`PodView::silent_since`].
    pub(crate) fn put_pod(&self, record: Arc<PodRecord>, silent_since: i64) {
        let id = record.id.clone();
        let mut tables = self.tables();
        let before = tables.pods.by_id.get(id.as_str()).map(|view| State::of_pod(&view.record));
        let changes = events::of_change(before, State::of_pod(&record));
        tables.pods.put(id.as_str(), PodView { record, silent_since });
        tables.tell(changes, id.as_str(), &id);
    }

    /// Publishes the current state of a container.
    pub(crate) fn put_container(&self, record: Arc<ContainerRecord>) {
        let (id, pod) = (record.id.clone(), record.pod.clone());
        let mut tables = self.tables();
        let before = tables.containers.by_id.get(id.as_str()).map(|view| State::of_container(&view.record));
        let changes = events::of_change(before, State::of_container(&record));
        let siblings = tables.of_pod.entry(pod.clone()).or_default();
        match siblings.iter_mut().find(|known| known.id == id) {
            Some(known) => *known = Arc::clone(&record),
            None => {
                siblings.push(Arc::clone(&record));
                siblings.sort_by_key(|known| known.created_at);
            }
        }
        tables.containers.put(id.as_str(), ContainerView { record });
        tables.tell(changes, id.as_str(), &pod);
    }

    /// Removes a pod.
    pub(crate) fn remove_pod(&self, id: &PodId) {
        let mut tables = self.tables();
        tables.tell(&[EventKind::Deleted], id.as_str(), id);
        tables.pods.take(id.as_str());
    }

    /// Removes a container.
    pub(crate) fn remove_container(&self, id: &ContainerId) {
        let mut tables = self.tables();
        let Some(pod) = tables.containers.by_id.get(id.as_str()).map(|view| view.record.pod.clone()) else {
            return;
        };
        tables.containers.take(id.as_str());
        if let Some(siblings) = tables.of_pod.get_mut(&pod) {
            siblings.retain(|known| known.id != *id);
            if siblings.is_empty() {
                tables.of_pod.remove(&pod);
            }
        }
        tables.tell(&[EventKind::Deleted], id.as_str(), &pod);
    }

    /// All pods, oldest first.
    pub(crate) fn pods(&self) -> Arc<[Arc<PodView>]> {
        self.tables().pods.list(|view| (view.record.created_at, view.record.id.clone()))
    }

    /// When the newest attempt of a pod was created; `None` if there is none.
    pub(crate) fn newest_attempt(&self, meta: &PodMeta) -> Option<i64> {
        let tables = self.tables();
        let is_attempt = |pod: &&Arc<PodView>| {
            let PodMeta { name, namespace, uid, attempt: _ } = &pod.record.config.meta;
            (uid, name, namespace) == (&meta.uid, &meta.name, &meta.namespace)
        };
        let attempts = tables.pods.by_id.values().filter(is_attempt);
        attempts.map(|pod| pod.record.created_at).max()
    }

    /// All containers, oldest first.
    pub(crate) fn containers(&self) -> Arc<[Arc<ContainerView>]> {
        self.tables().containers.list(|view| (view.record.created_at, view.record.id.clone()))
    }

    /// Finds a pod by its id or a unique prefix of it.
    pub(crate) fn pod(&self, id: &str) -> Result<Arc<PodView>, Error> {
        self.tables().pods.find("pod sandbox", id)
    }

    /// Finds a pod by its id or a unique prefix of it, with its containers.
    pub(crate) fn pod_with_containers(&self, id: &str) -> Result<PodWithContainers, Error> {
        let tables = self.tables();
        let pod = tables.pods.find("pod sandbox", id)?;
        let containers = tables.of_pod.get(&pod.record.id).cloned().unwrap_or_default();
        Ok(PodWithContainers { pod, containers })
    }

    /// Subscribes to the events from now on.
    ///
    /// # Errors
    /// As `Feed::subscribe`.
    pub(crate) fn subscribe(&self) -> Result<Events, Error> {
        self.tables().feed.subscribe()
    }

    /// Ends all subscriptions: the daemon is stopping.
    pub(crate) fn end_events(&self) {
        self.tables().feed.close();
    }

    /// Finds a container by its id or a unique prefix of it.
    pub(crate) fn container(&self, id: &str) -> Result<Arc<ContainerView>, Error> {
        self.tables().containers.find("container", id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{ContainerConfig, ContainerPhase, PodConfig};

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

    #[test]
    fn the_newest_attempt() {
        let published = Published::default();
        let meta = |uid: &str, attempt| PodMeta { uid: uid.to_owned(), attempt, ..PodMeta::default() };
        let put = |byte, uid, attempt, created_at| {
            let mut pod = pod(byte, created_at);
            pod.config.meta = meta(uid, attempt);
            published.put_pod(Arc::new(pod), 0);
        };
        put(1, "a", 0, 9);
        put(2, "a", 1, 5);
        put(3, "b", 0, 20);
        assert_eq!(published.newest_attempt(&meta("a", 2)), Some(9));
        assert_eq!(published.newest_attempt(&meta("c", 0)), None);
    }

    fn container(byte: u8, pod: &PodId, created_at: i64) -> ContainerRecord {
        let id = ContainerId::from_random([byte; 32]);
        let mut record = ContainerRecord::new(id, pod.clone(), ContainerConfig::default(), created_at);
        record.phase = ContainerPhase::Created;
        record
    }

    /// All events that are left, with these names of containers.
    async fn told(
        events: &mut Events,
        names: [(&'static str, &str); 2],
    ) -> Vec<(&'static str, EventKind, PodPhase, usize)> {
        let mut told = Vec::new();
        let mut latest = 0;
        while let Ok(event) = events.next().await {
            assert!(event.created_at > latest, "{event:?}");
            latest = event.created_at;
            let name = names.iter().find(|(_, id)| *id == &*event.id).map_or(&"pod", |(name, _)| name);
            let snapshot = event.snapshot.as_ref().unwrap();
            if (*name, event.kind) == ("old", EventKind::Stopped) {
                assert_eq!(snapshot.containers[0].phase, ContainerPhase::Exited);
            }
            told.push((*name, event.kind, snapshot.pod.phase, snapshot.containers.len()));
        }
        told
    }

    /// The life of a pod: each event has the state right after it.
    #[tokio::test]
    async fn events_have_the_state_right_after_them() {
        let published = Published::default();
        let mut events = published.subscribe().unwrap();
        let ready = pod(1, 1);
        let pod_id = ready.id.clone();
        published.put_pod(Arc::new(ready.clone()), 0);
        let (young, old) = (container(3, &pod_id, 3), container(2, &pod_id, 2));
        published.put_container(Arc::new(young.clone()));
        published.put_container(Arc::new(old.clone()));
        let running = ContainerRecord { phase: ContainerPhase::Running, started_at: 9, ..old.clone() };
        published.put_container(Arc::new(running.clone()));
        // Its shim is silent, and the record is written again: no events.
        published.put_pod(Arc::new(ready.clone()), 7);
        published.put_container(Arc::new(running.clone()));
        let at = published.pod_with_containers(pod_id.as_str()).unwrap();
        assert_eq!(
            at.containers.iter().map(|it| it.id.clone()).collect::<Vec<_>>(),
            [old.id.clone(), young.id.clone()]
        );
        published.put_container(Arc::new(ContainerRecord { phase: ContainerPhase::Exited, ..running }));
        published.put_pod(Arc::new(PodRecord { phase: PodPhase::Stopped, ..ready }), 0);
        published.remove_container(&old.id);
        published.remove_container(&old.id);
        published.remove_container(&young.id);
        published.remove_pod(&pod_id);
        published.remove_pod(&pod_id);
        published.end_events();

        let told = told(&mut events, [("old", old.id.as_str()), ("young", young.id.as_str())]).await;
        use EventKind::{Created, Deleted, Started, Stopped};
        assert_eq!(
            told,
            [
                ("pod", Created, PodPhase::Ready, 0),
                ("pod", Started, PodPhase::Ready, 0),
                ("young", Created, PodPhase::Ready, 1),
                ("old", Created, PodPhase::Ready, 2),
                ("old", Started, PodPhase::Ready, 2),
                ("old", Stopped, PodPhase::Ready, 2),
                ("pod", Stopped, PodPhase::Stopped, 2),
                ("old", Deleted, PodPhase::Stopped, 1),
                ("young", Deleted, PodPhase::Stopped, 0),
                ("pod", Deleted, PodPhase::Stopped, 0),
            ]
        );
        assert!(published.tables().of_pod.is_empty());
    }

    #[tokio::test]
    async fn a_container_without_its_pod_has_no_events() {
        let published = Published::default();
        let mut events = published.subscribe().unwrap();
        let kept = container(2, &PodId::from_random([1; 32]), 2);
        published.put_container(Arc::new(kept.clone()));
        published.remove_container(&kept.id);
        published.end_events();
        assert_eq!(events.next().await.unwrap_err().kind, ErrorKind::Unavailable);
    }
}
