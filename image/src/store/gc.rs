//! Garbage collection. Unreachable layers and documents are renamed into the trash, so that nobody sees a half-deleted
//! layer, and deleted there in the background.

use super::index::Entries;
use super::layout::{Layout, layer_name};
use super::lease::Leases;
use crate::error::{Error, Result};
use crate::reference::Digest;
use std::collections::HashSet;
use std::fs;
use std::path::Path;

/// The layers and documents that must stay.
#[derive(Debug, Default)]
pub(crate) struct Reachable {
    /// Folder names.
    layers: HashSet<String>,
    /// File names.
    blobs: HashSet<String>,
}

impl Reachable {
    /// What is reachable from images, leases and `pulls`, what pulls need that run or are kept.
    pub(crate) fn new<'a>(
        entries: &Entries,
        leases: &Leases,
        pulls: impl Iterator<Item = &'a Digest>,
    ) -> Self {
        let mut reachable = Self::default();
        let of_images = entries.values().flat_map(|entry| &entry.layers);
        let leased = leases.values().flat_map(|lease| &lease.layers);
        // A pin does not tell whether its digest is that of a layer or of a document.
        for digest in of_images.chain(leased).copied().chain(pulls.copied()) {
            reachable.layers.insert(layer_name(&digest));
            reachable.blobs.insert(digest.hex());
        }
        for (id, entry) in entries {
            reachable.blobs.insert(id.hex());
            reachable.blobs.extend(entry.documents.iter().map(Digest::hex));
        }
        reachable
    }

    /// Whether a layer must stay, by folder name.
    pub(crate) fn has_layer(&self, name: &str) -> bool {
        self.layers.contains(name)
    }
}

/// Renames everything unreachable into the trash. Layers go before their facts, as facts without a layer are harmless.
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

/// The names of a folder's entries.
pub(crate) fn names(folder: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(folder).map_err(Error::storage("list", folder))?;
    let names = entries.map(|entry| {
        let entry = entry.map_err(Error::storage("list", folder))?;
        Ok(entry.file_name().to_string_lossy().into_owned())
    });
    names.collect()
}
