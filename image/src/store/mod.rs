//! The images, layers and leases of this node: files on disk (`layout`, `blobs`, `index`, `lease`, `unfinished`), layers
//! that pulls add (`layers`, `guards`), what may be deleted (`gc`), and what readers see (`index::Published`). Calls block
//! unless they say otherwise.
//!
//! There are three locks, beside that of `published`, which is held to copy or replace a pointer. `images` is held during
//! I/O by everything that changes images or moves layers and documents, and `sync` while the file system is synced.
//! `catalog` is held for memory accesses only, so that leases and look-ups never wait for a disk. Lock order: `sync`,
//! `images`, `catalog`.

mod blobs;
mod gc;
mod guards;
mod index;
mod layers;
mod layout;
mod lease;
mod open;
mod pinned;
mod prune;
#[cfg(test)]
mod tests;
mod unfinished;

pub(crate) use guards::{Ingest, Pins};

use crate::error::{Error, Result};
use crate::record::{ImageRecord, Usage};
use crate::reference::{Digest, Reference};
use crate::unpack::LayerStats;
use blobs::Durable;
use bytes::Bytes;
use causes::with_causes;
use layout::{Layout, layer_name};
use pinned::Pinned;
pub(crate) use pinned::is_pattern;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::Notify;

/// What is recorded about a layer, in a file of its own: its folder has a shortened name.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Facts {
    diff_id: Digest,
    #[serde(flatten)]
    stats: LayerStats,
}

/// Maximum size of a file of [`Facts`], in bytes.
const MAX_FACTS: u64 = 64 << 10;
/// How long a removal waits until its disk space is free. kubelet's time limit is two minutes.
const MAX_SPACE_WAIT: Duration = Duration::from_secs(90);

/// A pulled image, to be committed.
#[derive(Debug)]
pub(crate) struct NewImage<'a> {
    /// Digest of the config, which is one of the documents.
    pub(crate) config: Digest,
    /// Diff ids as [`Store::overlay_layers`] returns them.
    pub(crate) layers: Vec<Digest>,
    /// The manifests, indexes and config, with their digests.
    pub(crate) documents: &'a [(Digest, Bytes)],
    /// Whether [`Store::make_durable`] has made the documents durable.
    pub(crate) durable_documents: bool,
}

/// An image that was taken out of the index.
#[derive(Debug, Default)]
pub(crate) struct Unlisted {
    /// Why the index file still names it: the disk is full.
    full: Option<Error>,
}

/// What protects layers from deletion, and which layers there are.
#[derive(Debug, Default)]
struct Catalog {
    /// Complete layers on disk, by folder name.
    layers: HashMap<String, Facts>,
    /// Those of them that a power loss may damage, with the value of `publications` when each was published. No image and
    /// no lease has one.
    unsynced: HashMap<String, u64>,
    /// Number of layers that were published. A layer may be deleted and published again while the disk is synced: its
    /// number tells that the sync was of an earlier folder.
    publications: u64,
    /// How often the disk has reported that it could not write something.
    failed_syncs: u64,
    leases: lease::Leases,
    /// Pulls that run, or that failed and whose layers are kept.
    unfinished: unfinished::Pulls,
    /// How often layers of failed pulls were given up for their space.
    times_given_up: u64,
    /// Digests that running pulls need, with the number of pulls.
    pins: HashMap<Digest, usize>,
}

impl Catalog {
    /// Whether a lease has this layer.
    fn is_leased(&self, diff_id: &Digest) -> bool {
        self.leases.values().any(|lease| lease.layers.contains(diff_id))
    }
}

/// The store of a node.
#[derive(Debug)]
pub(crate) struct Store {
    layout: Layout,
    /// Which images are reported as pinned. Locked for memory accesses only.
    pinned: RwLock<Arc<Pinned>>,
    /// The content of the index file.
    images: Mutex<index::Entries>,
    catalog: Mutex<Catalog>,
    /// The images as readers see them; replaced as a whole.
    published: RwLock<Arc<index::Published>>,
    /// Why the store is read-only: a later version wrote the index, or the index cannot be read.
    read_only: Option<Error>,
    /// Whether layers without an image and a lease may be deleted: all leases were read, and the index may be written.
    may_collect: bool,
    /// Whether [`Store::sweep`] may do so too: the index was not lost.
    may_sweep: bool,
    /// Layers that are not synced are kept within one boot: its id. Empty if it is not known.
    boot: String,
    /// The folder of layers, for syncfs(2): this descriptor reports every write error since it was opened.
    sync: Mutex<File>,
    /// Notified when a failed pull has left layers.
    kept: Notify,
}

/// Locks. Poison is ignored: no code panics while it leaves one of the values half-changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Store {
    /// Fails if the store is read-only. To be called before long work that ends in a change.
    pub(crate) fn ensure_writable(&self) -> Result<()> {
        self.read_only.clone().map_or(Ok(()), Err)
    }

    pub(crate) fn root(&self) -> &Path {
        self.layout.root()
    }

    /// The images as readers see them. Does not block: the lock is held to copy a pointer.
    pub(crate) fn published(&self) -> Arc<index::Published> {
        self.published.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Disk usage of the layers. Does not block.
    pub(crate) fn usage(&self) -> Usage {
        let catalog = lock(&self.catalog);
        catalog.layers.values().fold(Usage::default(), |usage, facts| Usage {
            bytes: usage.bytes + facts.stats.bytes,
            inodes: usage.inodes + facts.stats.inodes,
        })
    }

    /// Reads a stored document; `None` if it is absent or damaged.
    pub(crate) fn document(&self, digest: &Digest, limit: u64) -> Result<Option<Vec<u8>>> {
        blobs::get(&self.layout, digest, limit)
    }

    /// Stores an image's documents, its config among them, and gives it the names of `reference`, which makes it
    /// visible. `top` is the digest that the reference resolved to. The layers must be pinned and durable
    /// ([`Store::make_durable`]).
    ///
    /// The lock is held all the time: a removal of the same image deletes its documents, and must do so before or after
    /// this call.
    pub(crate) fn commit(
        &self,
        reference: &Reference,
        top: &Digest,
        image: NewImage<'_>,
    ) -> Result<Arc<ImageRecord>> {
        let id = image.config;
        let mut images = lock(&self.images);
        let mut documents = BTreeSet::new();
        for (digest, bytes) in image.documents {
            // What no image has may be left from a pull that was killed before it was durable.
            if image.durable_documents || index::has_document(&images, digest) {
                blobs::put(&self.layout, digest, bytes, Durable::Yes)?;
            } else {
                blobs::write(&self.layout, &self.layout.blob(digest), bytes, Durable::Yes)?;
            }
            documents.insert(*digest);
        }
        documents.remove(&id);
        let mut size: u64 = image.documents.iter().map(|(_, bytes)| bytes.len() as u64).sum();
        {
            let catalog = lock(&self.catalog);
            for layer in &image.layers {
                let name = layer_name(layer);
                let facts = catalog.layers.get(&name).filter(|_| !catalog.unsynced.contains_key(&name));
                let facts = facts.ok_or_else(|| Error::corrupt(layer, "the layer is not in the store"))?;
                size += facts.stats.bytes;
            }
        }
        let (tags, digests) = (BTreeSet::new(), BTreeSet::new());
        let entry = index::Entry { config: id, tags, digests, documents, layers: image.layers, size };
        let mut entries = images.clone();
        index::add(&mut entries, entry, reference, top);
        self.replace(&mut images, entries)?;
        let published = self.published();
        published.by_id(&id).cloned().ok_or_else(|| Error::corrupt(id, "it cannot be read back"))
    }

    /// Replaces the images: in the index file, then in memory.
    fn replace(&self, images: &mut index::Entries, entries: index::Entries) -> Result<()> {
        self.ensure_writable()?;
        if *images != entries {
            index::write(&self.layout, &entries)?;
        }
        self.publish(images, entries);
        Ok(())
    }

    /// Replaces the images in memory and shows them to readers. Equal entries are shown again too, because a pull may
    /// have repaired a damaged config.
    fn publish(&self, images: &mut index::Entries, entries: index::Entries) {
        // Configs are read from disk here, and look-ups must not wait for that: so it works on a copy of the layers.
        // They cannot change meanwhile, because the caller holds `images`.
        let (before, present) = (self.published(), lock(&self.catalog).layers.clone());
        let pinned = self.pinned.read().unwrap_or_else(PoisonError::into_inner).clone();
        let next = index::Published::new(&self.layout, &entries, &pinned, &before, &present);
        *images = entries;
        *self.published.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(next);
    }

    /// Changes which images are reported as pinned.
    pub(crate) fn set_pinned(&self, patterns: &[String]) {
        // Before the lock, which the disk may hold up: of two calls the later one counts.
        *self.pinned.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(Pinned::new(patterns));
        let mut images = lock(&self.images);
        let entries = images.clone();
        self.publish(&mut images, entries);
    }

    /// Removes the image that `name` refers to, with all its names, and all layers and documents that nothing else
    /// needs. Who calls this wants space, so the layers of failed pulls go in any case, also if there is no such image.
    /// [`Store::wait_for_space`] must follow, unless nothing was removed (`None`).
    ///
    /// Works on a full disk: if there is no space for the smaller index, the image's config is deleted instead, because
    /// an image without a config counts as removed (`open`). The index is written once the layers are deleted.
    pub(crate) fn remove(&self, name: &str) -> Result<Option<Unlisted>> {
        let given_up = self.give_up_unfinished();
        let unlisted = self.unlist(name)?.or_else(|| given_up.then(Unlisted::default));
        if unlisted.is_some() {
            self.collect()?;
        }
        Ok(unlisted)
    }

    /// Takes the image that `name` refers to out of the index; `None` if there is none. [`Store::collect`] and
    /// [`Store::wait_for_space`] must follow.
    fn unlist(&self, name: &str) -> Result<Option<Unlisted>> {
        let mut images = lock(&self.images);
        let listed = self.published().find(name).and_then(|image| Digest::parse(&image.id));
        // A damaged image is not listed, but takes disk space too.
        let Some(id) = listed.or_else(|| index::id_of(&images, name)) else { return Ok(None) };
        let mut entries = images.clone();
        entries.remove(&id);
        match self.replace(&mut images, entries.clone()) {
            Err(error) if error.is_full() => {
                gc::discard(&self.layout, &self.layout.blob(&id))?;
                blobs::sync_folder(&self.layout.blobs())?;
                self.publish(&mut images, entries);
                Ok(Some(Unlisted { full: Some(error) }))
            }
            replaced => replaced.map(|()| Some(Unlisted { full: None })),
        }
    }

    /// Waits for the disk space of what was removed. Writes the index file if it is behind.
    pub(crate) fn wait_for_space(&self, removed: Unlisted) {
        // kubelet removes images to free disk space, measures it right afterwards, and evicts pods if it is too little.
        self.layout.trash().wait(MAX_SPACE_WAIT);
        if let Some(error) = removed.full {
            self.layout.trash().empty();
            let images = lock(&self.images);
            match index::write(&self.layout, &images) {
                Ok(()) => tracing::info!("image removed although the disk was full"),
                Err(_) => {
                    tracing::warn!(
                        error = with_causes(&error),
                        "image removed, but the index file could not be written: it names the image until the next change of images"
                    )
                }
            }
        }
    }

    /// Moves unreachable layers and documents to the trash, also those of failed pulls that are no longer kept.
    pub(crate) fn collect(&self) -> Result<()> {
        self.expire();
        if !self.may_collect {
            return Ok(());
        }
        let images = lock(&self.images);
        let reachable = {
            let mut catalog = lock(&self.catalog);
            let kept = catalog.unfinished.values().flat_map(|pull| &pull.layers);
            let reachable = gc::Reachable::new(&images, &catalog.leases, kept.chain(catalog.pins.keys()));
            // From here on pulls do not find these layers, and no lease can be taken on them.
            catalog.layers.retain(|name, _| reachable.has_layer(name));
            catalog.unsynced.retain(|name, _| reachable.has_layer(name));
            reachable
        };
        gc::trash_unreachable(&self.layout, &reachable)
    }
}

/// Layers without duplicates, lowest first: overlayfs refuses duplicates. Of equal layers the topmost is kept, because
/// it hides the others completely.
pub(crate) fn without_duplicates(layers: impl DoubleEndedIterator<Item = Digest>) -> Vec<Digest> {
    let mut seen = BTreeSet::new();
    let mut found: Vec<Digest> = layers.rev().filter(|layer| seen.insert(*layer)).collect();
    found.reverse();
    found
}
