//! Garbage collection. What is unreachable is first renamed into the trash, so that a half-deleted layer is
//! never seen, and then deleted in the background.

use super::index::Entries;
use super::layout::{Layout, layer_name};
use super::lease::Leases;
use crate::error::{Error, Result};
use crate::reference::Digest;
use std::collections::HashSet;
use std::fs;
use std::path::Path;

/// Layers and documents that must stay.
#[derive(Debug, Default)]
pub(crate) struct Reachable {
    layers: HashSet<String>,
    blobs: HashSet<String>,
}

impl Reachable {
    /// Computed from the roots: images, leases and the pins of running pulls.
    pub(crate) fn new<'a>(
        entries: &Entries,
        leases: &Leases,
        pinned: impl Iterator<Item = &'a Digest>,
    ) -> Self {
        let mut reachable = Self::default();
        let stored = entries.values().flat_map(|entry| &entry.layers);
        let leased = leases.values().flat_map(|lease| &lease.layers);
        let layers = stored.chain(leased).filter_map(|layer| Digest::parse(layer));
        for digest in layers.chain(pinned.copied()) {
            reachable.layers.insert(layer_name(&digest));
            reachable.blobs.insert(digest.hex());
        }
        for (id, entry) in entries {
            reachable.blobs.insert(id.hex());
            let documents = entry.documents.iter().filter_map(|text| Digest::parse(text));
            reachable.blobs.extend(documents.map(|digest| digest.hex()));
        }
        reachable
    }

    pub(crate) fn layer(&self, name: &str) -> bool {
        self.layers.contains(name)
    }
}

/// Renames everything unreachable into the trash. Layers go first: facts without a layer are ignored, and a
/// layer without facts is garbage.
pub(crate) fn trash_unreachable(layout: &Layout, reachable: &Reachable) -> Result<()> {
    for name in names(&layout.layers())? {
        if !reachable.layers.contains(&name) {
            discard(layout, &layout.layers().join(&name))?;
        }
    }
    for name in names(&layout.facts())? {
        if !reachable.layers.contains(name.trim_end_matches(".json")) {
            discard(layout, &layout.facts().join(&name))?;
        }
    }
    for name in names(&layout.blobs())? {
        if !reachable.blobs.contains(&name) {
            discard(layout, &layout.blobs().join(&name))?;
        }
    }
    Ok(())
}

/// Renames one file or folder into the trash. Needs no space on the file system.
pub(crate) fn discard(layout: &Layout, path: &Path) -> Result<()> {
    layout.trash().take(path).map_err(Error::storage("move to trash", path))
}

fn names(folder: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(folder).map_err(Error::storage("list", folder))?;
    let names = entries.map(|entry| {
        let entry = entry.map_err(Error::storage("list", folder))?;
        Ok(entry.file_name().to_string_lossy().into_owned())
    });
    names.collect()
}
