//! Stats of running containers, for the stats calls.
//!
//! A container's cgroup files are opened when its stats are first requested and closed at the next request for stats
//! after it has ended, so that it costs nothing on a node without stats calls. Blocking: called on the lane for
//! stats.

use crate::node::ContainerView;
use crate::stats::{ContainerStats, Error, StatsReader, WritableLayer};
use image::Usage;
use model::{ContainerId, ContainerPhase, ContainerRecord};
use state::Layout;
use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long a call waits for the first walk of new containers' writable layers, most of which have few files.
/// Values that arrive later are in the next reply.
const FIRST_WALK: Duration = Duration::from_millis(20);
/// Time limit of one round of walking in the background. Layers that were not reached come first in the next
/// round.
const ROUND: Duration = Duration::from_secs(2);

/// Reads stats; opens and closes files as containers come and go.
#[derive(Debug)]
pub(crate) struct StatsCache {
    reader: StatsReader,
    layout: Layout,
    attached: Mutex<HashSet<ContainerId>>,
    walking: AtomicBool,
}

impl StatsCache {
    pub(crate) fn new(reader: StatsReader, layout: Layout) -> Self {
        Self { reader, layout, attached: Mutex::default(), walking: AtomicBool::new(false) }
    }

    fn attached(&self) -> MutexGuard<'_, HashSet<ContainerId>> {
        // No panic can leave a set of names half-changed.
        self.attached.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The stats of each of `wanted` in order; `None` for containers that are not running. `all` are all
    /// containers that exist: files of those that are not running, or not among them, are closed.
    pub(super) fn collect(
        self: &Arc<Self>,
        wanted: &[Arc<ContainerView>],
        all: &[Arc<ContainerView>],
    ) -> Vec<Option<ContainerStats>> {
        self.prune(all);
        self.attach_and_walk(wanted, FIRST_WALK);
        wanted.iter().map(|container| self.read(&container.record)).collect()
    }

    /// Disk usage of the writable layers of the running containers in `all`, by the latest walk of each.
    pub(super) fn writable_layers(self: &Arc<Self>, all: &[Arc<ContainerView>]) -> Usage {
        self.attach_and_walk(all, FIRST_WALK);
        let layers = all.iter().filter_map(|container| self.reader.writable_layer(&container.record.id));
        layers.fold(Usage::default(), |sum, layer| Usage {
            bytes: sum.bytes + layer.used_bytes,
            inodes: sum.inodes + layer.inodes_used,
        })
    }

    /// The writable layer of each of `wanted` in order, by its latest walk. Waits for the first walk of new ones, at most
    /// for `limit`. `all` as for [`StatsCache::collect`].
    pub(super) fn layers(
        self: &Arc<Self>,
        wanted: &[Arc<ContainerView>],
        all: &[Arc<ContainerView>],
        limit: Duration,
    ) -> Vec<Option<WritableLayer>> {
        self.prune(all);
        self.attach_and_walk(wanted, limit);
        wanted.iter().map(|container| self.reader.writable_layer(&container.record.id)).collect()
    }

    /// Opens the files of running containers that have no open ones yet, and starts a walk. Waits for the first walk of
    /// these, at most for `limit`.
    fn attach_and_walk(self: &Arc<Self>, wanted: &[Arc<ContainerView>], limit: Duration) {
        let attached = wanted.iter().filter(|container| self.attach(&container.record));
        let new: Vec<ContainerId> = attached.map(|container| container.record.id.clone()).collect();
        self.walk();
        if !new.is_empty() {
            self.reader.wait_for_walks(&new, limit);
        }
    }

    /// Starts one round of walking outdated layers on its own thread, because a walk may take half a minute.
    /// Does nothing while a round is running, or if no layer is outdated: starting a thread takes a tenth of the
    /// time of a call.
    fn walk(self: &Arc<Self>) {
        if !self.reader.is_stale() || self.walking.swap(true, Ordering::AcqRel) {
            return;
        }
        let stats = Arc::clone(self);
        let spawned = std::thread::Builder::new().name("disk-usage".to_owned()).spawn(move || {
            stats.reader.refresh_stale(ROUND);
            stats.walking.store(false, Ordering::Release);
        });
        if let Err(error) = spawned {
            tracing::warn!(%error, "cannot start a thread to walk writable layers: their disk usage is outdated");
            self.walking.store(false, Ordering::Release);
        }
    }

    /// Returns true if the container was not attached before.
    fn attach(&self, container: &ContainerRecord) -> bool {
        if container.phase != ContainerPhase::Running || self.attached().contains(&container.id) {
            return false;
        }
        let upper = self.layout.container_rw(&container.id).join("upper");
        match self.reader.attach(&container.id, &container.cgroup, upper) {
            Ok(()) => self.attached().insert(container.id.clone()),
            // The container has just ended and its cgroup is gone, or too many are attached.
            Err(error) => {
                tracing::debug!(container = %container.id, %error, "no stats for this container");
                false
            }
        }
    }

    fn read(&self, container: &ContainerRecord) -> Option<ContainerStats> {
        if container.phase != ContainerPhase::Running {
            return None;
        }
        match self.reader.read(&container.id) {
            Ok(stats) => Some(stats),
            Err(Error::Unknown { .. }) => None,
            // The cgroup was removed while its files were open.
            Err(error) => {
                tracing::debug!(container = %container.id, %error, "no stats for this container");
                None
            }
        }
    }

    fn prune(&self, all: &[Arc<ContainerView>]) {
        let mut attached = self.attached();
        if attached.is_empty() {
            return;
        }
        let running: HashSet<&ContainerId> = all
            .iter()
            .filter(|container| container.record.phase == ContainerPhase::Running)
            .map(|container| &container.record.id)
            .collect();
        attached.retain(|id| {
            let keep = running.contains(id);
            if !keep {
                self.reader.detach(id);
            }
            keep
        });
    }
}
