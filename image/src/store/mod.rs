//! The content on disk and the rules for deleting it. All calls block, except reading what is published.
//!
//! There are two locks. `disk` is held during I/O by everything that changes images or moves folders.
//! `catalog` is only held for memory accesses, so that leases and look-ups never wait for a disk. Lock order:
//! `disk`, then `catalog`.

pub(crate) mod blobs;
mod gc;
pub(crate) mod index;
mod layout;
mod lease;

use crate::error::{Error, Result};
use crate::lane::blocking;
use crate::record::{ImageRecord, Lease, Usage};
use crate::reference::{Digest, Reference};
use crate::unpack::{self, LayerStats};
use layout::{Layout, layer_name};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;
use sys::tree::Trash;

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
    /// Reads the store and cleans up after a crash.
    pub(crate) fn open(root: &Path, pinned: &[String]) -> Result<Self> {
        let layout = Layout::make(root)?;
        let mut damaged = false;
        let mut read_only = None;
        let mut entries = match index::read(&layout) {
            Ok(entries) => entries,
            // The layers it names are complete, and the later version will need them.
            Err(error @ Error::Unsupported { .. }) => {
                tracing::error!(%error, "images are read-only: pulls and removals fail; images that this version does not understand are not listed");
                read_only = Some(error);
                index::read_newer(&layout)
            }
            Err(error @ (Error::Corrupt { .. } | Error::TooLarge { .. })) => {
                let aside = layout.index().with_extension(format!("unreadable-{}", now()));
                tracing::error!(%error, ?aside, "image index set aside: images must be pulled again");
                match fs::rename(layout.index(), &aside) {
                    Ok(()) => damaged = true,
                    Err(source) => read_only = Some(Error::storage("set aside", &aside)(source)),
                }
                index::Entries::new()
            }
            // A read error may be temporary: running pods go on, and the next start may succeed.
            Err(error) => {
                tracing::error!(%error, "cannot read the image index: no images are listed, and pulls and removals fail until a restart can read it");
                read_only = Some(error);
                index::Entries::new()
            }
        };
        entries.retain(|id, _| !is_removed(&layout, id));
        let (leases, complete) = lease::read_all(&layout)?;
        let mut catalog = Catalog { leases, ..Catalog::default() };
        let reachable = gc::Reachable::new(&entries, &catalog.leases, std::iter::empty());
        // Without the index everything looks unreachable, so nothing is deleted now; the next removal or pull
        // does it.
        if !damaged && complete && read_only.is_none() {
            // A failure here only costs disk space; it must not keep the daemon from starting.
            if let Err(error) = gc::trash_unreachable(&layout, &reachable) {
                tracing::warn!(%error, "cannot delete unused layers; the next image removal tries again");
            }
        }
        catalog.layers = read_layers(&layout, &entries, &catalog.leases)?;
        let pinned =
            pinned.iter().filter_map(|name| Some(Reference::parse(name).ok()?.to_string())).collect();
        let before = index::Published::default();
        let published = index::Published::new(&layout, &entries, &pinned, &before, &catalog.layers);
        Ok(Self {
            layout,
            pinned,
            disk: Mutex::new(entries),
            catalog: Mutex::new(catalog),
            published: RwLock::new(Arc::new(published)),
            collectable: complete && read_only.is_none(),
            read_only,
        })
    }

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

    /// Takes a lease, or returns the one that the owner holds on this image.
    pub(crate) fn lease(&self, image: &str, owner: &str) -> Result<Lease> {
        lease::check(owner)?;
        let (stored, before) = {
            let mut catalog = lock(&self.catalog);
            if let Some(held) = catalog.leases.get(owner).filter(|held| held.image == image) {
                return Ok(self.as_lease(owner, held));
            }
            let stored = self.leasable(&catalog, image)?;
            let before = catalog.leases.insert(owner.to_owned(), stored.clone());
            (stored, before)
        };
        if let Err(error) = lease::write(&self.layout, owner, &stored) {
            let mut catalog = lock(&self.catalog);
            match before {
                Some(before) => catalog.leases.insert(owner.to_owned(), before),
                None => catalog.leases.remove(owner),
            };
            return Err(error);
        }
        Ok(self.as_lease(owner, &stored))
    }

    /// The image's layers, which must all be present; or another owner's lease on an image that was removed
    /// since.
    fn leasable(&self, catalog: &Catalog, image: &str) -> Result<lease::Stored> {
        let absent = || Error::NotFound { reference: image.to_owned(), detail: String::new() };
        let published = self.published();
        if let Some(record) = published.find(image).filter(|record| record.id == image) {
            let layers = record.layers.iter().rev();
            let full: Option<Vec<_>> =
                layers.map(|name| catalog.layers.get(name).map(|facts| facts.diff_id.clone())).collect();
            return Ok(lease::Stored { image: image.to_owned(), layers: full.ok_or_else(absent)? });
        }
        catalog.leases.values().find(|held| held.image == image).cloned().ok_or_else(absent)
    }

    fn as_lease(&self, owner: &str, stored: &lease::Stored) -> Lease {
        let layers = distinct(stored.layers.iter().filter_map(|layer| Digest::parse(layer)));
        Lease {
            owner: owner.to_owned(),
            image_id: stored.image.clone(),
            layers: layers.iter().rev().map(layer_name).collect(),
            layers_dir: self.layout.layers(),
        }
    }

    /// Releases a lease. The layers of a removed image are deleted with its last lease. If the disk keeps the lease's
    /// file, that is logged and no error: the next start finds the owner gone and releases it again.
    pub(crate) fn release(&self, owner: &str) -> Result<()> {
        lease::check(owner)?;
        let published = self.published();
        let needed = |image: &str| published.find(image).is_some_and(|record| record.id == image);
        let held = lock(&self.catalog).leases.remove(owner);
        let released = lease::remove(&self.layout, owner).and_then(|()| match held {
            Some(held) if !needed(&held.image) => self.collect(),
            _ => Ok(()),
        });
        match released {
            Err(error @ Error::Storage { .. }) => {
                tracing::warn!(owner, %error, "image lease given back, its file or layers stay until the next start");
                Ok(())
            }
            released => released,
        }
    }

    pub(crate) fn owners(&self) -> Vec<String> {
        lock(&self.catalog).leases.keys().cloned().collect()
    }
}

/// An image without its config was removed when there was no space to write the index.
fn is_removed(layout: &Layout, id: &Digest) -> bool {
    let blob = layout.blob(id);
    let absent = blob.symlink_metadata().is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound);
    if absent {
        tracing::warn!(image = %id, "image has no config: treated as removed");
    }
    absent
}

/// Layers, lowest first, each once, because overlayfs refuses duplicates. The topmost of equal layers is
/// kept: it hides the others completely, so the result is the same.
pub(crate) fn distinct(layers: impl DoubleEndedIterator<Item = Digest>) -> Vec<Digest> {
    let mut seen = BTreeSet::new();
    let mut found: Vec<Digest> = layers.rev().filter(|layer| seen.insert(*layer)).collect();
    found.reverse();
    found
}

fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The layers that images and leases name and that are on disk with their facts.
fn read_layers(
    layout: &Layout,
    entries: &index::Entries,
    leases: &lease::Leases,
) -> Result<HashMap<String, Facts>> {
    let named = entries.values().flat_map(|entry| &entry.layers);
    let leased = leases.values().flat_map(|lease| &lease.layers);
    let wanted: BTreeSet<Digest> = named.chain(leased).filter_map(|layer| Digest::parse(layer)).collect();
    let mut layers = HashMap::new();
    for diff_id in wanted {
        let facts = blobs::read(&layout.fact(&diff_id), MAX_FACTS).unwrap_or_else(|error| {
            tracing::warn!(%diff_id, %error, "cannot read the facts of a layer");
            None
        });
        let facts = facts.and_then(|bytes| serde_json::from_slice::<Facts>(&bytes).ok());
        match facts {
            Some(facts) if layout.layer(&diff_id).is_dir() => {
                layers.insert(layer_name(&diff_id), facts);
            }
            _ => {
                tracing::warn!(%diff_id, "layer is missing: its images are not listed until they are pulled again")
            }
        }
    }
    Ok(layers)
}

/// Protects digests from collection. When the last holder of a failed pull is dropped, what it left is
/// deleted.
#[derive(Debug)]
pub(crate) struct Pins {
    store: Arc<Store>,
    digests: Vec<Digest>,
    named: AtomicBool,
}

impl Pins {
    /// The pull succeeded: an image now names everything, so there is nothing to delete.
    pub(crate) fn keep(&self) {
        self.named.store(true, Ordering::Relaxed);
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        {
            let mut catalog = lock(&self.store.catalog);
            for digest in &self.digests {
                if let Some(count) = catalog.pins.get_mut(digest) {
                    *count -= 1;
                    if *count == 0 {
                        catalog.pins.remove(digest);
                    }
                }
            }
        }
        if *self.named.get_mut() {
            return;
        }
        let store = self.store.clone();
        // Without a runtime the process is ending: the next start deletes it.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                if let Err(error) = blocking(move || store.collect()).await {
                    tracing::warn!(%error, "cannot delete unused layers");
                }
            });
        }
    }
}

/// A folder that is being filled. Drop it on a blocking thread.
#[derive(Debug)]
pub(crate) struct Ingest {
    path: PathBuf,
    trash: Trash,
    published: bool,
}

impl Ingest {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Ingest {
    fn drop(&mut self) {
        if !self.published
            && let Err(error) = self.trash.take(&self.path)
        {
            tracing::warn!(%error, "cannot remove an unfinished folder; the next start removes it");
        }
    }
}
