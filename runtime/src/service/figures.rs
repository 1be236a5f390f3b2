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

/// Time for walking the writable layers of containers that are new, within the call: a new one has few files.
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
        &self,
        wanted: &[Arc<ContainerView>],
        all: &[Arc<ContainerView>],
    ) -> Vec<Option<ContainerStats>> {
        self.prune(all);
        let before = self.attached().len();
        for container in wanted {
            self.attach(&container.record);
        }
        if self.attached().len() > before {
            self.reader.refresh_stale(FIRST_WALK);
        }
        wanted.iter().map(|container| self.read(&container.record)).collect()
    }

    /// What the running containers of `all` have in their writable layers, by the newest walk of each.
    pub(super) fn written(&self, all: &[Arc<ContainerView>]) -> Usage {
        let before = self.attached().len();
        for container in all {
            self.attach(&container.record);
        }
        if self.attached().len() > before {
            self.reader.refresh_stale(FIRST_WALK);
        }
        let layers = all.iter().filter_map(|container| self.reader.writable_layer(&container.record.id));
        layers.fold(Usage::default(), |sum, layer| Usage {
            bytes: sum.bytes + layer.used_bytes,
            inodes: sum.inodes + layer.inodes_used,
        })
    }

    /// One round of walking what is stale; at once when one is under way.
    pub(super) fn walk(&self) {
        if !self.walking.swap(true, Ordering::AcqRel) {
            self.reader.refresh_stale(ROUND);
            self.walking.store(false, Ordering::Release);
        }
    }

    fn attach(&self, container: &ContainerRecord) {
        if container.phase != ContainerPhase::Running || self.attached().contains(&container.id) {
            return;
        }
        let upper = self.layout.container_rw(&container.id).join("upper");
        match self.reader.attach(&container.id, &container.cgroup, upper) {
            Ok(()) => {
                self.attached().insert(container.id.clone());
            }
            // It has just ended, and its leaf is gone; or there are too many.
            Err(error) => tracing::debug!(container = %container.id, %error, "no figures"),
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
