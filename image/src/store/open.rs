//! Opening the store: what a crash, a later version or a damaged disk left.

use super::layout::{Layout, layer_name};
use super::{Catalog, Facts, MAX_FACTS, Store, blobs, gc, index, lease};
use crate::error::{Error, Result};
use crate::reference::{Digest, Reference};
use std::collections::{BTreeSet, HashMap};
use std::fs::{self};
use std::path::Path;
use std::sync::{Arc, Mutex, RwLock};

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
