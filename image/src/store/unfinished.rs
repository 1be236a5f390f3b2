//! Pulls that are not finished. The layers that a failed, cancelled or killed pull has completed are kept for an hour, so
//! that a retry needs only the rest.
//!
//! A pull that needs a layer has a file with its layers, from its start until its image is stored. If it fails, the file
//! gets the time until which the layers are kept. If the daemon is killed, the file is found without a time, and the hour
//! begins with the next start. The layers of these files are not synced, so the files count in the boot only that they
//! were written in: the time is that of a clock which begins with the boot, runs while the host sleeps, and cannot be set.

use super::blobs::{self, Durable};
use super::layout::{Layout, layer_name};
use super::{Catalog, Pins, Store, gc, index, lock};
use crate::error::{Error, Result};
use crate::reference::Digest;
use causes::with_causes;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// How long the layers of a failed pull are kept, in seconds.
const KEPT: u64 = 3600;
/// Maximum number of failed pulls whose layers are kept. The oldest go first.
const MAX_KEPT: usize = 64;
/// Layers of failed pulls are given up if less than this part of the space or inodes is free. By default kubelet removes
/// images and then evicts pods when less than 15 % are.
const FREE_SHARE: u64 = 6;
/// Maximum size of a pull's file, in bytes; 128 layers take less than 20 KiB.
const MAX_FILE: u64 = 256 << 10;

/// A pull as stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pull {
    /// Id of the boot in which the file was written.
    pub(super) boot: String,
    /// Diff ids of its layers, which need not be in the store.
    pub(super) layers: Vec<Digest>,
    /// When the layers are given up, in seconds since the boot; `None` while the pull runs.
    pub(super) until: Option<u64>,
}

/// All pulls, by name of their file.
pub(crate) type Pulls = BTreeMap<String, Pull>;

impl Store {
    /// Protects layers (by diff id) and documents (by digest) from deletion until the guard is dropped.
    pub(crate) fn pin(self: &Arc<Self>, digests: Vec<Digest>) -> Pins {
        self.pin_for(digests, None, &mut lock(&self.catalog))
    }

    fn pin_for(self: &Arc<Self>, digests: Vec<Digest>, pull: Option<String>, catalog: &mut Catalog) -> Pins {
        for digest in &digests {
            *catalog.pins.entry(*digest).or_default() += 1;
        }
        Pins {
            store: self.clone(),
            digests,
            pull,
            succeeded: AtomicBool::default(),
            given_up: AtomicBool::default(),
        }
    }

    /// Begins a pull of an image with these layers and documents, and pins them. Until the guard's end the layers are
    /// protected also if the daemon is killed.
    pub(crate) fn begin_pull(self: &Arc<Self>, layers: &[Digest], documents: Vec<Digest>) -> Pins {
        let mut digests = documents;
        digests.extend(layers);
        let layers: Vec<Digest> = layers.iter().copied().collect::<BTreeSet<_>>().into_iter().collect();
        let (pins, begun) = {
            let mut catalog = lock(&self.catalog);
            let complete = layers.iter().all(|layer| catalog.layers.contains_key(&layer_name(layer)));
            let begun = (!complete)
                .then(|| (self.layout.unique_name(), Pull { boot: self.boot.clone(), layers, until: None }));
            catalog.unfinished.extend(begun.clone());
            let name = begun.as_ref().map(|(name, _)| name.clone());
            (self.pin_for(digests, name, &mut catalog), begun)
        };
        if let Some((name, pull)) = begun {
            self.record(&name, &pull);
        }
        pins
    }

    /// Writes a pull's file. A failure is only logged: it matters if the daemon is killed.
    fn record(&self, name: &str, pull: &Pull) {
        if let Err(error) = write(&self.layout, name, pull) {
            tracing::warn!(
                error = with_causes(&error),
                "cannot record an unfinished pull: if the daemon is killed, its layers must be transferred again"
            );
        }
        // It may have been forgotten, and its file deleted, just before the file was written.
        if !lock(&self.catalog).unfinished.contains_key(name) {
            self.forget([name]);
        }
    }

    /// Forgets pulls. A file that cannot be deleted is only logged: the next start finds that it is too old, or that its
    /// layers are gone.
    pub(super) fn forget<T: AsRef<str>>(&self, names: impl IntoIterator<Item = T>) {
        for name in names {
            let name = name.as_ref();
            lock(&self.catalog).unfinished.remove(name);
            if let Err(error) = remove(&self.layout, name) {
                tracing::warn!(error = with_causes(&error), "cannot delete the record of a pull");
            }
        }
    }

    /// The image of a pull is stored, and with it the layers of earlier attempts.
    pub(super) fn pull_succeeded(&self, pull: Option<&String>, digests: &[Digest]) {
        let mut over = superseded(&mut lock(&self.catalog).unfinished, digests);
        over.extend(pull.cloned());
        self.forget(&over);
    }

    /// A pull has failed: its layers are kept from now on, unless they are given up. Does not block. [`Store::settle`]
    /// must follow.
    pub(super) fn pull_failed(catalog: &mut Catalog, name: &str, given_up: bool) {
        if let Some(pull) = catalog.unfinished.get_mut(name) {
            pull.until = Some(now() + KEPT);
            if given_up {
                pull.layers.clear();
            }
        }
    }

    /// Records which layers of a failed pull are kept: those in the store that no image or lease has. Older records of
    /// the same layers end.
    pub(super) fn settle(&self, name: &str) {
        let mut over = Vec::new();
        let settled = {
            let images = lock(&self.images);
            let mut catalog = lock(&self.catalog);
            let Some(mut pull) = catalog.unfinished.remove(name) else { return };
            pull.layers.retain(|layer| {
                catalog.layers.contains_key(&layer_name(layer))
                    && !index::has_layer(&images, layer)
                    && !catalog.is_leased(layer)
            });
            over.extend(superseded(&mut catalog.unfinished, &pull.layers));
            if pull.layers.is_empty() {
                over.push(name.to_owned());
            } else {
                catalog.unfinished.insert(name.to_owned(), pull.clone());
                over.extend(beyond_limit(&catalog.unfinished));
            }
            pull
        };
        if !over.iter().any(|other| other == name) {
            self.record(name, &settled);
        }
        self.forget(&over);
        self.kept.notify_one();
    }

    /// Forgets the failed pulls whose time is over; returns whether there were any.
    pub(super) fn expire(&self) -> bool {
        let now = now();
        let over = self.unfinished_with(|pull| pull.until.is_some_and(|until| until <= now));
        self.forget(&over);
        !over.is_empty()
    }

    /// Gives up the layers of all failed pulls, for their space; returns whether there were any. They are deleted by the
    /// next [`Store::collect`].
    pub(super) fn give_up_unfinished(&self) -> bool {
        let kept = self.unfinished_with(|pull| pull.until.is_some());
        if kept.is_empty() {
            return false;
        }
        tracing::info!(pulls = kept.len(), "layers of failed pulls are given up for their space");
        lock(&self.catalog).times_given_up += 1;
        self.forget(&kept);
        true
    }

    fn unfinished_with(&self, condition: impl Fn(&Pull) -> bool) -> Vec<String> {
        let catalog = lock(&self.catalog);
        let found = catalog.unfinished.iter().filter(|(_, pull)| condition(pull));
        found.map(|(name, _)| name.clone()).collect()
    }

    /// How often layers of failed pulls were given up for their space. Does not block.
    pub(crate) fn times_given_up(&self) -> u64 {
        lock(&self.catalog).times_given_up
    }

    /// The disk is full: gives up the layers of failed pulls and waits for their space. Returns whether that was done
    /// since [`Store::times_given_up`] was `before`, by this call or another one.
    pub(crate) fn make_room(&self, before: u64) -> Result<bool> {
        if self.give_up_unfinished() {
            self.collect()?;
        }
        self.layout.trash().wait(super::MAX_SPACE_WAIT);
        Ok(self.times_given_up() != before)
    }

    /// Whether the file system has so little space or so few inodes left that kubelet may soon evict pods.
    fn is_short_of_space(&self) -> bool {
        let few = |free: u64, all: u64| free < all / FREE_SHARE;
        rustix::fs::statvfs(self.layout.root())
            .is_ok_and(|found| few(found.f_bavail, found.f_blocks) || few(found.f_favail, found.f_files))
    }

    /// Deletes the layers of failed pulls whose time is over, and all of them if the disk is short of space.
    pub(crate) fn tidy(&self) -> Result<()> {
        let short = lock(&self.catalog).unfinished.values().any(|pull| pull.until.is_some())
            && self.is_short_of_space();
        let given_up = short && self.give_up_unfinished();
        if self.expire() || given_up { self.collect() } else { Ok(()) }
    }

    /// How many seconds from now layers of failed pulls must be given up, if there are any. Does not block.
    pub(crate) fn next_expiry(&self) -> Option<u64> {
        let catalog = lock(&self.catalog);
        let first = catalog.unfinished.values().filter_map(|pull| pull.until).min()?;
        Some(first.saturating_sub(now()))
    }

    /// Waits until a pull has failed and left layers, after the last call.
    pub(crate) async fn layers_kept(&self) {
        self.kept.notified().await;
    }

    /// Writes the files of pulls as they are in memory after a start, and deletes other files.
    pub(super) fn rewrite_unfinished(&self) -> Result<()> {
        for name in self.unfinished_with(|pull| pull.until.is_some()) {
            let pull = lock(&self.catalog).unfinished.get(&name).cloned();
            if let Some(pull) = pull {
                self.record(&name, &pull);
            }
        }
        for file in gc::names(&self.layout.pulls())? {
            let name = file.trim_end_matches(".json");
            if !lock(&self.catalog).unfinished.contains_key(name) {
                gc::discard(&self.layout, &self.layout.pulls().join(&file))?;
            }
        }
        Ok(())
    }
}

/// Removes layers from the records of failed pulls; returns those that have no other.
fn superseded(pulls: &mut Pulls, layers: &[Digest]) -> Vec<String> {
    let mut over = Vec::new();
    for (name, pull) in pulls.iter_mut().filter(|(_, pull)| pull.until.is_some()) {
        pull.layers.retain(|layer| !layers.contains(layer));
        over.extend(pull.layers.is_empty().then(|| name.clone()));
    }
    over
}

/// The failed pulls that are too many.
fn beyond_limit(pulls: &Pulls) -> Vec<String> {
    let mut kept: Vec<_> = pulls.iter().filter_map(|(name, pull)| Some((pull.until?, name))).collect();
    kept.sort_unstable();
    kept.truncate(kept.len().saturating_sub(MAX_KEPT));
    kept.into_iter().map(|(_, name)| name.clone()).collect()
}

fn write(layout: &Layout, name: &str, pull: &Pull) -> Result<()> {
    let bytes = serde_json::to_vec(pull).map_err(|error| Error::corrupt("record of a pull", error))?;
    blobs::write(layout, &layout.pull(name), &bytes, Durable::No)
}

fn remove(layout: &Layout, name: &str) -> Result<()> {
    let path = layout.pull(name);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::storage("remove", &path)(error)),
        _ => Ok(()),
    }
}

/// The pulls of this boot whose layers are still kept. Those of other boots, damaged ones and those that cannot be read
/// are left out: their layers are transferred again.
pub(super) fn read_all(layout: &Layout, boot: &str) -> Pulls {
    let mut pulls = Pulls::new();
    let files = gc::names(&layout.pulls()).unwrap_or_else(|error| {
        tracing::warn!(error = with_causes(&error), "cannot list unfinished pulls");
        Vec::new()
    });
    let now = now();
    for file in files {
        let name = file.trim_end_matches(".json");
        let bytes = blobs::read(&layout.pull(name), MAX_FILE).unwrap_or_else(|error| {
            tracing::warn!(error = with_causes(&error), "cannot read the record of a pull");
            None
        });
        let pull = bytes.and_then(|bytes| serde_json::from_slice::<Pull>(&bytes).ok());
        if let Some(mut pull) = pull.filter(|pull| !boot.is_empty() && pull.boot == boot) {
            // Without a time the daemon was killed. A later time than possible is damage.
            let until = pull.until.unwrap_or(u64::MAX).min(now + KEPT);
            pull.until = Some(until);
            if until > now {
                pulls.insert(name.to_owned(), pull);
            }
        }
    }
    for name in beyond_limit(&pulls) {
        pulls.remove(&name);
    }
    pulls
}

fn now() -> u64 {
    sys::clock::since_boot_s()
}
