//! The content on disk and the rules for deleting it. All calls block, except reading what is published.
//!
//! There are two locks. `disk` is held during I/O by everything that changes images or moves folders.
//! `catalog` is only held for memory accesses, so that leases and look-ups never wait for a disk. Lock order:
//! `disk`, then `catalog`.

pub(crate) mod blobs;
mod gc;
mod guards;
pub(crate) mod index;
mod layout;
mod lease;
mod open;

pub(crate) use guards::{Ingest, Pins};

use crate::error::{Error, Result};
use crate::record::{ImageRecord, Usage};
use crate::reference::{Digest, Reference};
use crate::unpack::{self, LayerStats};
use layout::{Layout, layer_name};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File};
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

/// Content of a layer's facts file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Facts {
    diff_id: String,
    #[serde(flatten)]
    made: LayerStats,
}

const MAX_FACTS: u64 = 64 << 10;
/// How long a removal waits for its space to be free. kubelet's time limit is two minutes.
const MAX_SPACE_WAIT: Duration = Duration::from_secs(90);

#[derive(Debug, Default)]
struct Catalog {
    /// Layers on disk, by folder name.
    layers: HashMap<String, Facts>,
    leases: lease::Leases,
    /// Digests that running pulls need, with a count.
    pins: HashMap<Digest, usize>,
}

#[derive(Debug)]
pub(crate) struct Store {
    layout: Layout,
    pinned: BTreeSet<String>,
    disk: Mutex<index::Entries>,
    catalog: Mutex<Catalog>,
    published: RwLock<Arc<index::Published>>,
    /// Why the store is read-only: a later version wrote the index, or the index cannot be read.
    read_only: Option<Error>,
    /// Whether everything that protects layers is known, so that other layers may be deleted.
    collectable: bool,
}

/// A poisoned lock is fine: values are replaced as a whole, never edited in place.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Store {
    /// Fails if the store is read-only. Check this before work that ends in a change.
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

    /// Computed from memory.
    pub(crate) fn usage(&self) -> Usage {
        let catalog = lock(&self.catalog);
        catalog.layers.values().fold(Usage::default(), |usage, facts| Usage {
            bytes: usage.bytes + facts.made.bytes,
            inodes: usage.inodes + facts.made.inodes,
        })
    }

    /// Protects layers and documents from collection until the guard is dropped.
    pub(crate) fn pin(self: &Arc<Self>, digests: Vec<Digest>) -> Pins {
        let mut catalog = lock(&self.catalog);
        for digest in &digests {
            *catalog.pins.entry(*digest).or_default() += 1;
        }
        Pins { store: self.clone(), digests, named: AtomicBool::new(false) }
    }

    /// Whether the complete, durable layer is in the store. Pin it first.
    pub(crate) fn has_layer(&self, diff_id: &Digest) -> Result<bool> {
        match lock(&self.catalog).layers.get(&layer_name(diff_id)) {
            None => Ok(false),
            Some(facts) if facts.diff_id == diff_id.to_string() => Ok(true),
            Some(facts) => Err(Error::unsupported(
                format!("layer {diff_id}"),
                format!("its folder is {}'s", facts.diff_id),
            )),
        }
    }

    /// A new folder to unpack into; deleted when the guard is dropped, unless it is published.
    pub(crate) fn ingest(&self) -> Result<Ingest> {
        let path = self.layout.ingest();
        fs::create_dir(&path).map_err(Error::storage("create", &path))?;
        Ok(Ingest { path, trash: self.layout.trash().clone(), published: false })
    }

    /// Makes an unpacked layer durable, then visible.
    pub(crate) fn publish_layer(&self, mut ingest: Ingest, diff_id: &Digest, made: LayerStats) -> Result<()> {
        // One sync of the file system for all files of the layer: a sync per file costs a journal commit
        // each.
        File::open(&ingest.path)
            .and_then(|folder| rustix::fs::syncfs(&folder).map_err(Into::into))
            .map_err(Error::storage("sync", &ingest.path))?;
        let facts = Facts { diff_id: diff_id.to_string(), made };
        let bytes = serde_json::to_vec(&facts).map_err(|error| Error::corrupt("layer facts", error))?;
        let _disk = lock(&self.disk);
        if self.has_layer(diff_id)? {
            return Ok(());
        }
        let target = self.layout.layer(diff_id);
        if target.symlink_metadata().is_ok() {
            gc::discard(&self.layout, &target)?;
        }
        blobs::write(&self.layout, &self.layout.fact(diff_id), &bytes, blobs::Durable::Yes)?;
        fs::rename(&ingest.path, &target).map_err(Error::storage("rename to", &target))?;
        ingest.published = true;
        blobs::sync_folder(&self.layout.layers())?;
        lock(&self.catalog).layers.insert(layer_name(diff_id), facts);
        Ok(())
    }

    /// The image's layers as overlayfs must stack them, lowest first, each once. If folders without an entry
    /// would hide the attributes of a lower layer's folder, a layer with the right ones is added on top. All
    /// layers must be in the store and pinned. The returned pins protect the added layer until the image is
    /// named.
    pub(crate) fn overlay_layers(self: &Arc<Self>, diff_ids: &[Digest]) -> Result<(Vec<Digest>, Pins)> {
        let mut layers = distinct(diff_ids.iter().copied());
        let sources: Vec<unpack::Layer> = {
            let catalog = lock(&self.catalog);
            let source = |layer: &Digest| {
                let facts = catalog.layers.get(&layer_name(layer));
                let implicit = facts.is_some_and(|facts| facts.made.implicit > 0);
                unpack::Layer { folder: self.layout.layer(layer), implicit }
            };
            layers.iter().rev().map(source).collect()
        };
        if sources.iter().all(|layer| !layer.implicit) {
            return Ok((layers, self.pin(Vec::new())));
        }
        let ingest = self.ingest()?;
        let Some((folders, made)) = unpack::folders(&sources, ingest.path())? else {
            return Ok((layers, self.pin(Vec::new())));
        };
        let pins = self.pin(vec![folders]);
        if !self.has_layer(&folders)? {
            self.publish_layer(ingest, &folders, made)?;
        }
        layers.push(folders);
        Ok((layers, pins))
    }

    /// Reads a stored document.
    pub(crate) fn document(&self, digest: &Digest, limit: u64) -> Result<Option<Vec<u8>>> {
        blobs::get(&self.layout, digest, limit)
    }

    /// Stores an image's documents, including its config, and names the image. It becomes visible by this. Its layers
    /// must be present and pinned. Sets `image.size` and `image.documents`.
    ///
    /// The lock is held for all of it, so that a removal of the same image, which deletes its documents, comes before
    /// or after it.
    pub(crate) fn commit(
        &self,
        reference: &Reference,
        top: &Digest,
        mut image: index::Entry,
        documents: &[&[u8]],
    ) -> Result<Arc<ImageRecord>> {
        let id =
            Digest::parse(&image.config).ok_or_else(|| Error::corrupt(&image.config, "not an image id"))?;
        let mut disk = lock(&self.disk);
        for bytes in documents {
            let digest = blobs::put(&self.layout, bytes)?;
            if digest != id {
                image.documents.insert(digest.to_string());
            }
        }
        {
            let catalog = lock(&self.catalog);
            image.size = documents.iter().map(|bytes| bytes.len() as u64).sum();
            for layer in &image.layers {
                let facts = Digest::parse(layer).and_then(|layer| catalog.layers.get(&layer_name(&layer)));
                let facts = facts.ok_or_else(|| Error::corrupt(layer, "the layer is not in the store"))?;
                image.size += facts.made.bytes;
            }
        }
        let mut entries = disk.clone();
        index::name(&mut entries, id, image, reference, top);
        self.replace(&mut disk, entries)?;
        self.published()
            .find(&id.to_string())
            .cloned()
            .ok_or_else(|| Error::corrupt(id, "it cannot be read back"))
    }

    fn replace(&self, disk: &mut index::Entries, entries: index::Entries) -> Result<()> {
        self.ensure_writable()?;
        if *disk != entries {
            index::write(&self.layout, &entries)?;
        }
        self.publish(disk, entries);
        Ok(())
    }

    /// Rebuilds even if the entries are equal: a new pull may have repaired a damaged config.
    fn publish(&self, disk: &mut index::Entries, entries: index::Entries) {
        // Works on a copy of the catalog: configs are read from disk here, and look-ups must not wait for
        // that. The catalog cannot change meanwhile, because we hold `disk`.
        let (before, present) = (self.published(), lock(&self.catalog).layers.clone());
        let next = index::Published::new(&self.layout, &entries, &self.pinned, &before, &present);
        *disk = entries;
        *self.published.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(next);
    }

    /// Removes the image that `name` refers to, with all its names, and everything that nothing else needs.
    ///
    /// Works on a full disk: if there is no space for the smaller index, the image's config is deleted first,
    /// which removes the image as well (see [`is_removed`]). The index is written once layers are deleted.
    pub(crate) fn remove(&self, name: &str) -> Result<()> {
        let mut full = None;
        {
            let mut disk = lock(&self.disk);
            let listed = self.published().find(name).and_then(|image| Digest::parse(&image.id));
            // An image that is not listed takes space too.
            let Some(id) = listed.or_else(|| index::id_of(&disk, name)) else { return Ok(()) };
            let mut entries = disk.clone();
            entries.remove(&id);
            match self.replace(&mut disk, entries.clone()) {
                Err(error) if error.is_full() => {
                    gc::discard(&self.layout, &self.layout.blob(&id))?;
                    blobs::sync_folder(&self.layout.blobs())?;
                    self.publish(&mut disk, entries);
                    full = Some(error);
                }
                replaced => replaced?,
            }
        }
        self.collect()?;
        // kubelet removes images to free space, measures right after, and evicts pods if there is too little.
        self.layout.trash().wait(MAX_SPACE_WAIT);
        if let Some(error) = full {
            self.layout.trash().empty();
            let disk = lock(&self.disk);
            match index::write(&self.layout, &disk) {
                Ok(()) => tracing::info!("image removed although the disk was full"),
                Err(_) => {
                    tracing::warn!(%error, "image removed, but the index still names it; the next change writes it")
                }
            }
        }
        Ok(())
    }

    /// Deletes unreachable layers and documents.
    pub(crate) fn collect(&self) -> Result<()> {
        if !self.collectable {
            return Ok(());
        }
        let disk = lock(&self.disk);
        let reachable = {
            let mut catalog = lock(&self.catalog);
            let reachable = gc::Reachable::new(&disk, &catalog.leases, catalog.pins.keys());
            // From here on pulls do not find these layers, and no lease can be taken on them.
            catalog.layers.retain(|name, _| reachable.layer(name));
            reachable
        };
        gc::trash_unreachable(&self.layout, &reachable)
    }
}

/// Layers, lowest first, each once, because overlayfs refuses duplicates. The topmost of equal layers is
/// kept: it hides the others completely, so the result is the same.
pub(crate) fn distinct(layers: impl DoubleEndedIterator<Item = Digest>) -> Vec<Digest> {
    let mut seen = BTreeSet::new();
    let mut found: Vec<Digest> = layers.rev().filter(|layer| seen.insert(*layer)).collect();
    found.reverse();
    found
}
