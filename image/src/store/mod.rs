//! The content on disk and who may delete it. Everything here blocks but reading what is published.
//!
//! Two locks. `disk` is held by whoever changes images or moves folders, over their I/O. `catalog` is held for
//! memory only, so that leases and look-ups never wait for a disk. Order: `disk`, then `catalog`.

pub(crate) mod blobs;
mod gc;
pub(crate) mod index;
mod layout;
mod lease;

use crate::error::{Error, Result};
use crate::lane::blocking;
use crate::record::{ImageRecord, Lease, Usage};
use crate::reference::{Digest, Reference};
use crate::unpack::{self, Made};
use layout::{Layout, layer_name};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;
use sys::tree::Trash;

/// A layer's facts file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Facts {
    diff_id: String,
    #[serde(flatten)]
    made: Made,
}

const MAX_FACTS: u64 = 64 << 10;
/// The longest that a removal waits for its space: kubelet waits for two minutes.
const SPACE: Duration = Duration::from_secs(90);

#[derive(Debug, Default)]
struct Catalog {
    /// Layers on disk, by folder name.
    layers: HashMap<String, Facts>,
    leases: lease::Leases,
    /// What running pulls need, counted.
    pins: HashMap<Digest, usize>,
}

#[derive(Debug)]
pub(crate) struct Store {
    layout: Layout,
    pinned: BTreeSet<String>,
    disk: Mutex<index::Entries>,
    catalog: Mutex<Catalog>,
    published: RwLock<Arc<index::Published>>,
    /// Why nothing may be changed: the index is a later version's, or the disk does not give it.
    frozen: Option<Error>,
    /// Whether all that protects layers is known, so that others may be deleted.
    collectable: bool,
}

/// A panic while a lock was held left whole values: they are replaced, never edited half.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Store {
    /// Reads the store and cleans up after a crash.
    pub(crate) fn open(root: &Path, pinned: &[String]) -> Result<Self> {
        let layout = Layout::make(root)?;
        let mut damaged = false;
        let mut frozen = None;
        let mut entries = match index::read(&layout) {
            Ok(entries) => entries,
            // What it names is whole, and that version will want it back.
            Err(error @ Error::Unsupported { .. }) => {
                tracing::error!(%error, "images can be used where this version understands them, and not be changed");
                frozen = Some(error);
                index::glance(&layout)
            }
            Err(error @ (Error::Corrupt { .. } | Error::TooLarge { .. })) => {
                let aside = layout.index().with_extension(format!("unreadable-{}", now()));
                tracing::error!(%error, ?aside, "image index set aside: images must be pulled again");
                match fs::rename(layout.index(), &aside) {
                    Ok(()) => damaged = true,
                    Err(source) => frozen = Some(Error::storage("set aside", &aside)(source)),
                }
                index::Entries::new()
            }
            // The disk does not give it: pods go on without, and it may be given next time.
            Err(error) => {
                tracing::error!(%error, "image index not readable: no images are known, and none can be changed");
                frozen = Some(error);
                index::Entries::new()
            }
        };
        entries.retain(|id, _| !is_removed(&layout, id));
        let (leases, complete) = lease::read_all(&layout)?;
        let mut catalog = Catalog { leases, ..Catalog::default() };
        let reachable = gc::Reachable::new(&entries, &catalog.leases, std::iter::empty());
        // With the index lost nothing looks reachable; the next removal or pull collects.
        if !damaged && complete && frozen.is_none() {
            // Space that is not given back is no reason to leave pods alone.
            if let Err(error) = gc::set_aside(&layout, &reachable) {
                tracing::warn!(%error, "unused layers stay until something is removed");
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
            collectable: complete && frozen.is_none(),
            frozen,
        })
    }

    /// An error where the index belongs to a later version: ask before work that ends in a change.
    pub(crate) fn changeable(&self) -> Result<()> {
        self.frozen.clone().map_or(Ok(()), Err)
    }

    pub(crate) fn root(&self) -> &Path {
        self.layout.root()
    }

    /// What readers see. Does not block: the lock is held to copy a pointer.
    pub(crate) fn published(&self) -> Arc<index::Published> {
        self.published.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Counted from memory.
    pub(crate) fn usage(&self) -> Usage {
        let catalog = lock(&self.catalog);
        catalog.layers.values().fold(Usage::default(), |usage, facts| Usage {
            bytes: usage.bytes + facts.made.bytes,
            inodes: usage.inodes + facts.made.inodes,
        })
    }

    /// Holds layers and documents against collection until the guard goes.
    pub(crate) fn pin(self: &Arc<Self>, digests: Vec<Digest>) -> Pins {
        let mut catalog = lock(&self.catalog);
        for digest in &digests {
            *catalog.pins.entry(*digest).or_default() += 1;
        }
        Pins { store: self.clone(), digests, named: AtomicBool::new(false) }
    }

    /// Whether a whole, durable layer is here. Pin it first.
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

    /// A new folder to unpack into; gone with the guard unless published.
    pub(crate) fn ingest(&self) -> Result<Ingest> {
        let path = self.layout.ingest();
        fs::create_dir(&path).map_err(Error::storage("create", &path))?;
        Ok(Ingest { path, trash: self.layout.trash().clone(), published: false })
    }

    /// Makes an unpacked layer durable, then visible.
    pub(crate) fn publish_layer(&self, mut ingest: Ingest, diff_id: &Digest, made: Made) -> Result<()> {
        // One flush for all files of the layer: a sync of each costs a journal commit of each.
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

    /// The image's layers as overlayfs is to have them, lowest first: each once, with one more on top where folders
    /// without an entry would hide how a layer below has them. All must be here and pinned. The pins hold the one
    /// on top until the image is named.
    pub(crate) fn complete(self: &Arc<Self>, diff_ids: &[Digest]) -> Result<(Vec<Digest>, Pins)> {
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

    /// Reads a kept document back.
    pub(crate) fn document(&self, digest: &Digest, limit: u64) -> Result<Option<Vec<u8>>> {
        blobs::get(&self.layout, digest, limit)
    }

    /// Keeps an image's documents, its config among them, and names it: the moment it becomes visible. Its layers
    /// must be here and pinned. `image.size` and `image.documents` are set here.
    ///
    /// All under the one lock: a removal of the same image, which takes its documents away, comes before this or
    /// after it.
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
        self.changeable()?;
        if *disk != entries {
            index::write(&self.layout, &entries)?;
        }
        self.publish(disk, entries);
        Ok(())
    }

    /// Even for equal entries: a config that was damaged may be whole again.
    fn publish(&self, disk: &mut index::Entries, entries: index::Entries) {
        // A copy: configs are read from the disk, and who waits for the catalog may be a worker that everything
        // else needs. Who changes it holds `disk`, as we do.
        let (before, present) = (self.published(), lock(&self.catalog).layers.clone());
        let next = index::Published::new(&self.layout, &entries, &self.pinned, &before, &present);
        *disk = entries;
        *self.published.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(next);
    }

    /// Removes the image that the name leads to, with all names, and what nothing else needs.
    ///
    /// Works on a full disk: where there is no space for the smaller index, the image's config is taken away first,
    /// which removes the image as well (see [`is_removed`]), and the index is written once layers are deleted.
    pub(crate) fn remove(&self, name: &str) -> Result<()> {
        let mut full = None;
        {
            let mut disk = lock(&self.disk);
            let listed = self.published().find(name).and_then(|image| Digest::parse(&image.id));
            // One that is left out takes space too.
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
        // kubelet removes images to get space, measures at once, and evicts pods when there is none.
        self.layout.trash().wait(SPACE);
        if let Some(error) = full {
            self.layout.trash().empty();
            let disk = lock(&self.disk);
            match index::write(&self.layout, &disk) {
                Ok(()) => tracing::info!("image removed on a full disk"),
                Err(_) => {
                    tracing::warn!(%error, "image removed, the index still names it: written with the next change")
                }
            }
        }
        Ok(())
    }

    /// Deletes what is unreachable.
    pub(crate) fn collect(&self) -> Result<()> {
        if !self.collectable {
            return Ok(());
        }
        let disk = lock(&self.disk);
        let reachable = {
            let mut catalog = lock(&self.catalog);
            let reachable = gc::Reachable::new(&disk, &catalog.leases, catalog.pins.keys());
            // From here on a pull finds these absent, and a lease cannot have them.
            catalog.layers.retain(|name, _| reachable.layer(name));
            reachable
        };
        gc::set_aside(&self.layout, &reachable)
    }

    /// Takes a lease, or gives the one that the owner holds on this image.
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

    /// The image's layers, all present; or another owner's lease on an image that was removed since.
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

    /// Gives a lease back; layers of removed images go with the last one. What a disk that takes no writes keeps
    /// of it is no error: nobody uses the lease any more, and the next start, which finds its owner gone, gives
    /// it back once more.
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
        tracing::warn!(image = %id, "image without its config: removed");
    }
    absent
}

/// Layers, lowest first, each once. overlayfs refuses one that comes twice. The topmost of equal layers stays:
/// it hides the other ones entirely, so the result is the same.
pub(crate) fn distinct(layers: impl DoubleEndedIterator<Item = Digest>) -> Vec<Digest> {
    let mut seen = BTreeSet::new();
    let mut found: Vec<Digest> = layers.rev().filter(|layer| seen.insert(*layer)).collect();
    found.reverse();
    found
}

fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Layers that images and leases name and that are on disk with their facts.
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
            tracing::warn!(%diff_id, %error, "facts of a layer not readable");
            None
        });
        let facts = facts.and_then(|bytes| serde_json::from_slice::<Facts>(&bytes).ok());
        match facts {
            Some(facts) if layout.layer(&diff_id).is_dir() => {
                layers.insert(layer_name(&diff_id), facts);
            }
            _ => {
                tracing::warn!(%diff_id, "layer is missing: its images are left out until they are pulled again")
            }
        }
    }
    Ok(layers)
}

/// Holds digests against collection. When the last holder of a failed pull goes, what it left is deleted.
#[derive(Debug)]
pub(crate) struct Pins {
    store: Arc<Store>,
    digests: Vec<Digest>,
    named: AtomicBool,
}

impl Pins {
    /// The pull succeeded: an image names everything, there is nothing to delete.
    pub(crate) fn named(&self) {
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
        // Without a runtime the process is ending: the next start sweeps.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                if let Err(error) = blocking(move || store.collect()).await {
                    tracing::warn!(%error, "collecting unused layers");
                }
            });
        }
    }
}

/// A folder being filled. Drop it on a blocking thread.
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
            tracing::warn!(%error, "left behind, removed at the next start");
        }
    }
}
