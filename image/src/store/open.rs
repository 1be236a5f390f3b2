//! Opening the store after a crash, a later version or disk damage.

use super::layout::{Layout, layer_name};
use super::pinned::Pinned;
use super::{Catalog, Facts, MAX_FACTS, Store, blobs, index, lease, unfinished};
use crate::error::{Error, Result};
use crate::reference::Digest;
use causes::with_causes;
use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File};
use std::path::Path;
use std::sync::{Arc, Mutex, RwLock};
use tokio::sync::Notify;

impl Store {
    /// Reads the index, the leases, the records of unfinished pulls and the facts of layers. Damaged files are logged and
    /// cost as little as possible. Deletes nothing but damaged leases: [`Store::sweep`] does the rest. `boot` is the id of this boot.
    pub(crate) fn open(root: &Path, pinned: &[String], boot: &str) -> Result<Self> {
        let layout = Layout::create(root)?;
        let (mut entries, index) = load_index(&layout);
        entries.retain(|id, _| !is_removed(&layout, id));
        let (leases, complete) = lease::read_all(&layout)?;
        let mut catalog = Catalog { leases, ..Catalog::default() };
        catalog.layers = named_layers(&layout, &entries, &catalog.leases);
        add_unfinished(&layout, &mut catalog, unfinished::read_all(&layout, boot));
        let pinned = Pinned::new(pinned);
        let before = index::Published::default();
        let published = index::Published::new(&layout, &entries, &pinned, &before, &catalog.layers);
        let folder = layout.layers();
        let sync = File::open(&folder).map_err(Error::storage("open", &folder))?;
        Ok(Self {
            layout,
            pinned: RwLock::new(Arc::new(pinned)),
            images: Mutex::new(entries),
            catalog: Mutex::new(catalog),
            published: RwLock::new(Arc::new(published)),
            may_collect: complete && !matches!(index, Index::ReadOnly(_)),
            may_sweep: complete && matches!(index, Index::Complete),
            read_only: index.into_reason(),
            boot: boot.to_owned(),
            sync: Mutex::new(sync),
            kept: Notify::new(),
        })
    }

    /// Deletes what earlier processes left: half-made layers and files, records of pulls, unreachable layers. Pulls may run
    /// meanwhile. A failure only costs disk space.
    pub(crate) fn sweep(&self) -> Result<()> {
        self.layout.empty_trash();
        let rewritten = self.rewrite_unfinished();
        // Without the index, all layers without a lease are unreachable. They stay until the next removal or failed
        // pull, so that the index can be repaired.
        let collected = if self.may_sweep { self.collect() } else { Ok(()) };
        rewritten.and(collected)
    }
}

/// What became of the index file.
enum Index {
    Complete,
    /// It was damaged and is renamed.
    Lost,
    /// It must not be written, for this reason.
    ReadOnly(Error),
}

impl Index {
    fn into_reason(self) -> Option<Error> {
        match self {
            Self::ReadOnly(error) => Some(error),
            Self::Complete | Self::Lost => None,
        }
    }
}

/// The images of the index file, as far as it can be read.
fn load_index(layout: &Layout) -> (index::Entries, Index) {
    match index::read(layout) {
        Ok(entries) => (entries, Index::Complete),
        // Its layers are complete, and the later version will need them.
        Err(error @ Error::Unsupported { .. }) => {
            tracing::error!(
                error = with_causes(&error),
                "image index is of a later version: pulls and removals fail, and images that this version cannot read are not listed"
            );
            (index::read_newer(layout), Index::ReadOnly(error))
        }
        Err(error @ (Error::Corrupt { .. } | Error::TooLarge { .. })) => {
            let aside = layout.index().with_extension(format!("unreadable-{}", now()));
            tracing::error!(
                error = with_causes(&error),
                ?aside,
                "image index is damaged and renamed: all images must be pulled again"
            );
            let index = match fs::rename(layout.index(), &aside) {
                Ok(()) => Index::Lost,
                Err(source) => Index::ReadOnly(Error::storage("rename image index to", &aside)(source)),
            };
            (index::Entries::new(), index)
        }
        // It may be temporary: running pods continue, and the next start may succeed.
        Err(error) => {
            tracing::error!(
                error = with_causes(&error),
                "cannot read the image index: no images are listed, and pulls and removals fail until a restart can read it"
            );
            (index::Entries::new(), Index::ReadOnly(error))
        }
    }
}

/// Whether the image was removed while there was no space to write the index: then it has no config.
fn is_removed(layout: &Layout, id: &Digest) -> bool {
    let blob = layout.blob(id);
    let absent = blob.symlink_metadata().is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound);
    if absent {
        tracing::warn!(image = %id, "image has no config and counts as removed");
    }
    absent
}

fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The facts of all layers that images and leases have and that are on disk, by folder name.
fn named_layers(layout: &Layout, entries: &index::Entries, leases: &lease::Leases) -> HashMap<String, Facts> {
    let of_images = entries.values().flat_map(|entry| &entry.layers);
    let leased = leases.values().flat_map(|lease| &lease.layers);
    let wanted: BTreeSet<Digest> = of_images.chain(leased).copied().collect();
    let mut layers = HashMap::new();
    for diff_id in wanted {
        match read_layer(layout, &diff_id) {
            Some(facts) => {
                layers.insert(layer_name(&diff_id), facts);
            }
            None => {
                tracing::warn!(%diff_id, "layer is missing: its images are not listed until they are pulled again")
            }
        }
    }
    layers
}

/// Adds the layers that unfinished pulls have completed. A pull without such a layer is left out.
fn add_unfinished(layout: &Layout, catalog: &mut Catalog, pulls: unfinished::Pulls) {
    for (name, mut pull) in pulls {
        pull.layers.retain(|diff_id| {
            let name = layer_name(diff_id);
            if catalog.layers.contains_key(&name) {
                // Of another pull, or an image or a lease has it.
                return catalog.unsynced.contains_key(&name);
            }
            let Some(facts) = read_layer(layout, diff_id) else { return false };
            catalog.unsynced.insert(name.clone(), 0);
            catalog.layers.insert(name, facts);
            true
        });
        if !pull.layers.is_empty() {
            catalog.unfinished.insert(name, pull);
        }
    }
}

/// The facts of a layer, if they and its folder are there and undamaged.
fn read_layer(layout: &Layout, diff_id: &Digest) -> Option<Facts> {
    let bytes = blobs::read(&layout.facts_of(diff_id), MAX_FACTS).unwrap_or_else(|error| {
        tracing::warn!(%diff_id, error = with_causes(&error), "cannot read the facts of a layer");
        None
    })?;
    let facts = serde_json::from_slice::<Facts>(&bytes).ok()?;
    (facts.diff_id == *diff_id && layout.layer(diff_id).is_dir()).then_some(facts)
}
