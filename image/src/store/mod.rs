//! The images, layers and leases of this node: files on disk (`layout`, `blobs`, `index`, `lease`), what may be deleted
//! (`gc`, `guards`), and what readers see (`index::Published`). Calls block unless they say otherwise.
//!
//! There are two locks, beside that of `published`, which is held to copy or replace a pointer. `images` is held during
//! I/O by everything that changes images or moves layers and documents. `catalog` is held for memory accesses only, so
//! that leases and look-ups never wait for a disk. Lock order: `images`, then `catalog`.

mod blobs;
mod gc;
mod guards;
mod index;
mod layout;
mod lease;
mod open;
mod pinned;
mod prune;

pub(crate) use guards::{Ingest, Pins};

use crate::error::{Error, Result};
use crate::record::{ImageRecord, Usage};
use crate::reference::{Digest, Reference};
use crate::unpack::{self, LayerStats};
use causes::with_causes;
use layout::{Layout, layer_name};
use pinned::Pinned;
pub(crate) use pinned::is_pattern;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

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
    pub(crate) documents: &'a [(Digest, &'a [u8])],
}

/// What protects layers from deletion, and which layers there are.
#[derive(Debug, Default)]
struct Catalog {
    /// Complete layers on disk, by folder name.
    layers: HashMap<String, Facts>,
    leases: lease::Leases,
    /// Digests that running pulls need, with the number of pulls.
    pins: HashMap<Digest, usize>,
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

    /// Protects layers (by diff id) and documents (by digest) from deletion until the guard is dropped.
    pub(crate) fn pin(self: &Arc<Self>, digests: Vec<Digest>) -> Pins {
        let mut catalog = lock(&self.catalog);
        for digest in &digests {
            *catalog.pins.entry(*digest).or_default() += 1;
        }
        Pins { store: self.clone(), digests, kept: AtomicBool::new(false) }
    }

    /// Whether the complete, durable layer is in the store. It must be pinned, or it may be deleted at any time. Does
    /// not block.
    pub(crate) fn has_layer(&self, diff_id: &Digest) -> Result<bool> {
        match lock(&self.catalog).layers.get(&layer_name(diff_id)) {
            None => Ok(false),
            Some(facts) if facts.diff_id == *diff_id => Ok(true),
            Some(facts) => Err(Error::unsupported(
                format!("layer {diff_id}"),
                format!("the store has layer {}, whose diff id begins with the same digits", facts.diff_id),
            )),
        }
    }

    /// Creates a folder to unpack a layer into. It is deleted when the guard is dropped, unless the layer is published.
    pub(crate) fn new_ingest(&self) -> Result<Ingest> {
        let path = self.layout.new_ingest();
        fs::create_dir(&path).map_err(Error::storage("create", &path))?;
        Ok(Ingest { path, trash: self.layout.trash().clone(), published: false })
    }

    /// An unused path for a file that gets no name (`spool`).
    pub(crate) fn new_spool_path(&self) -> PathBuf {
        self.layout.new_ingest()
    }

    /// The folder of a layer that is in the store and pinned.
    pub(crate) fn layer_folder(&self, diff_id: &Digest) -> PathBuf {
        self.layout.layer(diff_id)
    }

    /// Makes an unpacked layer durable, then visible. Does nothing if the store has the layer.
    pub(crate) fn publish_layer(
        &self,
        mut ingest: Ingest,
        diff_id: &Digest,
        stats: LayerStats,
    ) -> Result<()> {
        // The file system is synced once, because a sync of every file would cost a journal commit each.
        File::open(&ingest.path)
            .and_then(|folder| rustix::fs::syncfs(&folder).map_err(Into::into))
            .map_err(Error::storage("sync", &ingest.path))?;
        let facts = Facts { diff_id: *diff_id, stats };
        let bytes = serde_json::to_vec(&facts).map_err(|error| Error::corrupt("layer facts", error))?;
        let _images = lock(&self.images);
        if self.has_layer(diff_id)? {
            return Ok(());
        }
        let target = self.layout.layer(diff_id);
        // There is a folder if its facts were lost. If it is leased, containers have it mounted: it stays and gets new
        // facts. It is complete, as only complete layers are renamed to this place.
        let leased = lock(&self.catalog).leases.values().any(|lease| lease.layers.contains(diff_id));
        let stays = leased && target.is_dir();
        if !stays {
            gc::discard(&self.layout, &target)?;
        }
        blobs::write(&self.layout, &self.layout.facts_of(diff_id), &bytes, blobs::Durable::Yes)?;
        if !stays {
            fs::rename(&ingest.path, &target).map_err(Error::storage("rename to", &target))?;
            ingest.published = true;
            blobs::sync_folder(&self.layout.layers())?;
        }
        lock(&self.catalog).layers.insert(layer_name(diff_id), facts);
        Ok(())
    }

    /// The image's layers as overlayfs must stack them, lowest first, each once. If an implicit folder would hide the
    /// attributes of a lower layer's folder, a layer that corrects this is added on top (see [`unpack::corrections`]).
    /// All layers must be in the store and pinned. The returned pins protect the added layer until the image is
    /// committed.
    pub(crate) fn overlay_layers(self: &Arc<Self>, diff_ids: &[Digest]) -> Result<(Vec<Digest>, Pins)> {
        let mut layers = without_duplicates(diff_ids.iter().copied());
        let sources: Vec<unpack::Layer> = {
            let catalog = lock(&self.catalog);
            let source = |layer: &Digest| {
                let facts = catalog.layers.get(&layer_name(layer));
                let implicit = facts.is_some_and(|facts| facts.stats.implicit > 0);
                unpack::Layer { folder: self.layout.layer(layer), implicit }
            };
            layers.iter().rev().map(source).collect()
        };
        if sources.iter().all(|layer| !layer.implicit) {
            return Ok((layers, self.pin(Vec::new())));
        }
        let ingest = self.new_ingest()?;
        let Some((id, stats)) = unpack::corrections(&sources, ingest.path())? else {
            return Ok((layers, self.pin(Vec::new())));
        };
        let pins = self.pin(vec![id]);
        if !self.has_layer(&id)? {
            self.publish_layer(ingest, &id, stats)?;
        }
        layers.push(id);
        Ok((layers, pins))
    }

    /// Reads a stored document; `None` if it is absent or damaged.
    pub(crate) fn document(&self, digest: &Digest, limit: u64) -> Result<Option<Vec<u8>>> {
        blobs::get(&self.layout, digest, limit)
    }

    /// Stores an image's documents, its config among them, and gives it the names of `reference`, which makes it
    /// visible. `top` is the digest that the reference resolved to. The layers must be in the store and pinned.
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
            blobs::put(&self.layout, digest, bytes)?;
            documents.insert(*digest);
        }
        documents.remove(&id);
        let mut size: u64 = image.documents.iter().map(|(_, bytes)| bytes.len() as u64).sum();
        {
            let catalog = lock(&self.catalog);
            for layer in &image.layers {
                let facts = catalog.layers.get(&layer_name(layer));
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
    /// needs. Waits for the disk space.
    ///
    /// Works on a full disk: if there is no space for the smaller index, the image's config is deleted instead, because
    /// an image without a config counts as removed (`open`). The index is written once the layers are deleted.
    pub(crate) fn remove(&self, name: &str) -> Result<()> {
        let mut full = None;
        {
            let mut images = lock(&self.images);
            let listed = self.published().find(name).and_then(|image| Digest::parse(&image.id));
            // A damaged image is not listed, but takes disk space too.
            let Some(id) = listed.or_else(|| index::id_of(&images, name)) else { return Ok(()) };
            let mut entries = images.clone();
            entries.remove(&id);
            match self.replace(&mut images, entries.clone()) {
                Err(error) if error.is_full() => {
                    gc::discard(&self.layout, &self.layout.blob(&id))?;
                    blobs::sync_folder(&self.layout.blobs())?;
                    self.publish(&mut images, entries);
                    full = Some(error);
                }
                replaced => replaced?,
            }
        }
        self.collect()?;
        // kubelet removes images to free disk space, measures it right afterwards, and evicts pods if it is too little.
        self.layout.trash().wait(MAX_SPACE_WAIT);
        if let Some(error) = full {
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
        Ok(())
    }

    /// Moves unreachable layers and documents to the trash.
    pub(crate) fn collect(&self) -> Result<()> {
        if !self.may_collect {
            return Ok(());
        }
        let images = lock(&self.images);
        let reachable = {
            let mut catalog = lock(&self.catalog);
            let reachable = gc::Reachable::new(&images, &catalog.leases, catalog.pins.keys());
            // From here on pulls do not find these layers, and no lease can be taken on them.
            catalog.layers.retain(|name, _| reachable.has_layer(name));
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
