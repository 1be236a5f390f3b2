//! The index: all images and their names. An image is visible once this file names it.

use super::blobs::{self, Durable};
use super::layout::{Layout, layer_name};
use super::{Facts, distinct};
use crate::error::{Error, Result};
use crate::manifest;
use crate::record::ImageRecord;
use crate::reference::{Digest, Reference, Selector};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

const VERSION: u32 = 1;
/// Some 30,000 images, far more than a node holds.
const MAX_INDEX: u64 = 64 << 20;

/// One image as stored. Its config is read from its blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// Digest of the config, which is the image's id.
    pub(crate) config: String,
    /// `name:tag`.
    pub(crate) tags: BTreeSet<String>,
    /// `name@digest`.
    pub(crate) digests: BTreeSet<String>,
    /// Digests of the documents that led to the image: manifests and indexes.
    pub(crate) documents: BTreeSet<String>,
    /// Diff-ids, lowest first; the last may be the store's own layer of folders.
    pub(crate) layers: Vec<String>,
    /// Bytes on disk.
    pub(crate) size: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct File {
    version: u32,
    images: Vec<Entry>,
}

/// All images by id.
pub(crate) type Entries = BTreeMap<Digest, Entry>;

/// Reads the index. The caller sets a torn or foreign index aside.
pub(crate) fn read(layout: &Layout) -> Result<Entries> {
    let path = layout.index();
    let Some(bytes) = blobs::read(&path, MAX_INDEX)? else { return Ok(Entries::new()) };
    let file: File = serde_json::from_slice(&bytes).map_err(|error| {
        // Images of another version may have other fields, so the version is read first.
        #[derive(Deserialize)]
        struct Head {
            version: u32,
        }
        match serde_json::from_slice::<Head>(&bytes) {
            Ok(head) if head.version > VERSION => newer(&path, head.version),
            _ => Error::corrupt(path.display(), error),
        }
    })?;
    if file.version > VERSION {
        return Err(newer(&path, file.version));
    }
    let keyed = file.images.into_iter().map(|entry| {
        let id =
            Digest::parse(&entry.config).ok_or_else(|| Error::corrupt(path.display(), "bad image id"))?;
        Ok((id, entry))
    });
    keyed.collect()
}

fn newer(path: &std::path::Path, version: u32) -> Error {
    let reason = format!(
        "a later version of copepod wrote it (format {version}, known is {VERSION}); run that version to pull or remove images"
    );
    Error::unsupported(format!("image index {}", path.display()), reason)
}

/// Reads what this version understands of an index that a later version wrote; for reading only.
pub(crate) fn read_newer(layout: &Layout) -> Entries {
    #[derive(Deserialize)]
    struct Any {
        #[serde(default)]
        images: Vec<serde_json::Value>,
    }
    let bytes = blobs::read(&layout.index(), MAX_INDEX).ok().flatten().unwrap_or_default();
    let images = serde_json::from_slice::<Any>(&bytes).map(|any| any.images).unwrap_or_default();
    let entries = images.into_iter().filter_map(|image| serde_json::from_value::<Entry>(image).ok());
    entries.filter_map(|entry| Some((Digest::parse(&entry.config)?, entry))).collect()
}

/// Replaces the index, durably.
pub(crate) fn write(layout: &Layout, entries: &Entries) -> Result<()> {
    let file = File { version: VERSION, images: entries.values().cloned().collect() };
    let bytes = serde_json::to_vec(&file).map_err(|error| Error::corrupt("image index", error))?;
    blobs::write(layout, &layout.index(), &bytes, Durable::Yes)
}

/// Adds or updates an image and gives it the names of `reference`; a tag is taken away from any other image.
pub(crate) fn name(entries: &mut Entries, id: Digest, image: Entry, reference: &Reference, top: &Digest) {
    let tag = reference.to_string();
    if matches!(reference.selector(), Selector::Tag(_)) {
        for other in entries.values_mut() {
            other.tags.remove(&tag);
        }
    }
    let entry = entries.entry(id).or_insert_with(|| image.clone());
    // A layer that was unpacked again may need another layer of folders.
    entry.layers = image.layers;
    entry.size = image.size;
    entry.documents.extend(image.documents);
    entry.digests.insert(reference.with_digest(top));
    if matches!(reference.selector(), Selector::Tag(_)) {
        entry.tags.insert(tag);
    }
}

/// The image with this id or exact name.
pub(crate) fn id_of(entries: &Entries, name: &str) -> Option<Digest> {
    let reference = Reference::parse(name).ok().map(|reference| reference.to_string());
    let named = |entry: &Entry, name: &str| {
        entry.config == name || entry.tags.contains(name) || entry.digests.contains(name)
    };
    let is_it =
        |entry: &Entry| named(entry, name) || reference.as_ref().is_some_and(|name| named(entry, name));
    entries.iter().find(|(_, entry)| is_it(entry)).map(|(id, _)| *id)
}

/// The images as readers see them: immutable, and replaced as a whole.
#[derive(Debug, Default)]
pub(crate) struct Published {
    pub(crate) images: Vec<Arc<ImageRecord>>,
    names: HashMap<String, usize>,
}

/// Shortest id prefix that is looked up: a shorter one is more likely a name.
const MIN_PREFIX: usize = 3;

impl Published {
    /// Turns entries into records; unchanged configs are taken from `before`. An image whose config is
    /// missing or damaged, or that has a layer which is not in `present` (by folder name), is left out with a
    /// warning. If it were listed, kubelet would never pull it again, and no container could be created from
    /// it.
    pub(super) fn new(
        layout: &Layout,
        entries: &Entries,
        pinned: &BTreeSet<String>,
        before: &Self,
        present: &HashMap<String, Facts>,
    ) -> Self {
        let mut published = Self::default();
        for (id, entry) in entries {
            let layers = distinct(entry.layers.iter().filter_map(|layer| Digest::parse(layer)));
            let layers: Vec<String> = layers.iter().rev().map(layer_name).collect();
            if let Some(layer) = layers.iter().find(|layer| !present.contains_key(*layer)) {
                tracing::warn!(image = %id, layer, "image not listed because a layer is missing: pull it again");
                continue;
            }
            let known = before.find(&entry.config).map(|record| record.config.clone());
            let config = match known {
                Some(config) => config,
                None => match blobs::get(layout, id, manifest::MAX_CONFIG).and_then(|bytes| {
                    let bytes =
                        bytes.ok_or_else(|| Error::corrupt(id, "its config is missing or damaged"))?;
                    manifest::config(id, &bytes)
                }) {
                    Ok(config) => config.process,
                    Err(error) => {
                        tracing::warn!(image = %id, %error, "image not listed because it is damaged: pull it again");
                        continue;
                    }
                },
            };
            let (uid, username) = manifest::user(&config.user);
            let at = published.images.len();
            for name in entry.tags.iter().chain(&entry.digests) {
                published.names.insert(name.clone(), at);
            }
            for document in &entry.documents {
                published.names.entry(document.clone()).or_insert(at);
            }
            published.names.insert(entry.config.clone(), at);
            published.images.push(Arc::new(ImageRecord {
                id: entry.config.clone(),
                repo_tags: entry.tags.iter().cloned().collect(),
                repo_digests: entry.digests.iter().cloned().collect(),
                size: entry.size,
                uid,
                username,
                config,
                layers,
                layers_dir: layout.layers(),
                pinned: entry.tags.iter().chain(&entry.digests).any(|name| pinned.contains(name)),
            }));
        }
        published
    }

    /// By id or exact name, then by name as users write it, then by a prefix that matches one id only.
    pub(crate) fn find(&self, name: &str) -> Option<&Arc<ImageRecord>> {
        if let Some(at) = self.names.get(name) {
            return self.images.get(*at);
        }
        let normalised = Reference::parse(name).ok().map(|reference| reference.to_string());
        if let Some(at) = normalised.and_then(|name| self.names.get(&name)) {
            return self.images.get(*at);
        }
        let prefix = name.strip_prefix("sha256:").unwrap_or(name);
        let hex = prefix.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if prefix.len() < MIN_PREFIX || !hex {
            return None;
        }
        let id = |record: &&Arc<ImageRecord>| {
            record.id.strip_prefix("sha256:").is_some_and(|id| id.starts_with(prefix))
        };
        let mut found = self.images.iter().filter(id);
        let first = found.next()?;
        found.next().is_none().then_some(first)
    }
}
