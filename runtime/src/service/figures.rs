//! Figures of running containers, for the stats calls.
//!
//! Cgroup files are opened when somebody first asks for a container's figures and closed at the first list
//! after it has ended, so that a node nobody asks costs nothing. Blocking: called on the blocking pool.

use crate::node::ContainerView;
use crate::stats::{ContainerStats, Error, StatsReader};
use image::Usage;
use model::{ContainerId, ContainerPhase, ContainerRecord};
use state::Layout;
use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long a call waits for the first walk through the writable layers of containers that are new: most have few
/// files. Figures that come later are in the next answer.
const FIRST_WALK: Duration = Duration::from_millis(20);
/// Time for walking in the background, a round. What is not reached comes first in the next one.
const ROUND: Duration = Duration::from_secs(2);

/// Reads figures, opening and closing files as containers come and go.
#[derive(Debug)]
pub(crate) struct Figures {
    reader: StatsReader,
    layout: Layout,
    attached: Mutex<HashSet<ContainerId>>,
    walking: AtomicBool,
}

impl Figures {
    pub(crate) fn new(reader: StatsReader, layout: Layout) -> Self {
        Self { reader, layout, attached: Mutex::default(), walking: AtomicBool::new(false) }
    }

    fn attached(&self) -> MutexGuard<'_, HashSet<ContainerId>> {
        // Nothing can panic half-way through a change of a set of names.
        self.attached.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Figures of each of `wanted`, `None` for those that do not run, in their order. `all` is every
    /// container there is: files of others are closed.
    pub(super) fn collect(
        self: &Arc<Self>,
        wanted: &[Arc<ContainerView>],
        all: &[Arc<ContainerView>],
    ) -> Vec<Option<ContainerStats>> {
        self.prune(all);
        self.attach_and_walk(wanted);
        wanted.iter().map(|container| self.read(&container.record)).collect()
    }

    /// What the running containers of `all` have in their writable layers, by the newest walk of each.
    pub(super) fn written(self: &Arc<Self>, all: &[Arc<ContainerView>]) -> Usage {
        self.attach_and_walk(all);
        let layers = all.iter().filter_map(|container| self.reader.writable_layer(&container.record.id));
        layers.fold(Usage::default(), |sum, layer| Usage {
            bytes: sum.bytes + layer.used_bytes,
            inodes: sum.inodes + layer.inodes_used,
        })
    }

    /// Opens the files of those that run, and begins a walk; waits a moment for that of new ones.
    fn attach_and_walk(self: &Arc<Self>, wanted: &[Arc<ContainerView>]) {
        let attached = wanted.iter().filter(|container| self.attach(&container.record));
        let new: Vec<ContainerId> = attached.map(|container| container.record.id.clone()).collect();
        self.walk();
        if !new.is_empty() {
            self.reader.wait_for_walks(&new, FIRST_WALK);
        }
    }

    /// Begins one round of walking what is stale, on a thread of its own: a walk may take half a minute. Does
    /// nothing while one is under way, or when nothing is stale: a thread costs a tenth of a call.
    fn walk(self: &Arc<Self>) {
        if !self.reader.is_stale() || self.walking.swap(true, Ordering::AcqRel) {
            return;
        }
        let figures = Arc::clone(self);
        let spawned = std::thread::Builder::new().name("disk-usage".to_owned()).spawn(move || {
            figures.reader.refresh_stale(ROUND);
            figures.walking.store(false, Ordering::Release);
        });
        if let Err(error) = spawned {
            tracing::warn!(%error, "no thread to walk writable layers: their figures grow old");
            self.walking.store(false, Ordering::Release);
        }
    }

    /// True for one that was not attached before.
    fn attach(&self, container: &ContainerRecord) -> bool {
        if container.phase != ContainerPhase::Running || self.attached().contains(&container.id) {
            return false;
        }
        let upper = self.layout.container_rw(&container.id).join("upper");
        match self.reader.attach(&container.id, &container.cgroup, upper) {
            Ok(()) => self.attached().insert(container.id.clone()),
            // It has just ended, and its leaf is gone; or there are too many.
            Err(error) => {
                tracing::debug!(container = %container.id, %error, "no figures");
                false
            }
        }
    }

    fn read(&self, container: &ContainerRecord) -> Option<ContainerStats> {
        if container.phase != ContainerPhase::Running {
            return None;
        }
        match self.reader.read(&container.id) {
            Ok(figures) => Some(figures),
            Err(Error::Unknown { .. }) => None,
            // The leaf went away under the open files.
            Err(error) => {
                tracing::debug!(container = %container.id, %error, "no figures");
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
