//! The index: the file of all images and their names, and the view of it that readers see.

use super::blobs::{self, Durable};
use super::layout::{Layout, layer_name};
use super::pinned::Pinned;
use super::{Facts, without_duplicates};
use crate::error::{Error, Result};
use crate::manifest;
use crate::record::ImageRecord;
use crate::reference::{Digest, Reference, Selector};
use causes::with_causes;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// Version of the file's format.
const VERSION: u32 = 1;
/// Maximum size of the file, in bytes: some 30,000 images, far more than a node has.
const MAX_INDEX: u64 = 64 << 20;

/// One image as stored. Its config is a blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// Digest of the config, which is the image's id.
    pub(crate) config: Digest,
    /// `name:tag`.
    pub(crate) tags: BTreeSet<String>,
    /// `name@digest`.
    pub(crate) digests: BTreeSet<String>,
    /// Digests of the manifests and indexes that pulls of the image have resolved.
    pub(crate) documents: BTreeSet<Digest>,
    /// Diff ids, lowest first. The last may be the id of a layer that the store has added (`unpack::corrections`).
    pub(crate) layers: Vec<Digest>,
    /// Disk space of layers and documents, in bytes.
    pub(crate) size: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct File {
    version: u32,
    images: Vec<Entry>,
}

/// All images by id.
pub(crate) type Entries = BTreeMap<Digest, Entry>;

/// Reads the index. `Unsupported` if a later version wrote it, `Corrupt` or `TooLarge` if it is damaged.
pub(crate) fn read(layout: &Layout) -> Result<Entries> {
    let path = layout.index();
    let Some(bytes) = blobs::read(&path, MAX_INDEX)? else { return Ok(Entries::new()) };
    let file: File = serde_json::from_slice(&bytes).map_err(|error| {
        // The images of a later version may have other fields: its version is no reason to call the file damaged.
        #[derive(Deserialize)]
        struct VersionOnly {
            version: u32,
        }
        match serde_json::from_slice::<VersionOnly>(&bytes) {
            Ok(found) if found.version > VERSION => newer(&path, found.version),
            _ => Error::corrupt(path.display(), error),
        }
    })?;
    if file.version > VERSION {
        return Err(newer(&path, file.version));
    }
    Ok(file.images.into_iter().map(|entry| (entry.config, entry)).collect())
}

fn newer(path: &std::path::Path, version: u32) -> Error {
    let reason = format!(
        "a later version of copepod wrote it (format {version}, this version knows {VERSION}); run that version to pull or remove images"
    );
    Error::unsupported(format!("image index {}", path.display()), reason)
}

/// Reads the images of a later version's index as far as this version understands them. They must not be written back.
pub(crate) fn read_newer(layout: &Layout) -> Entries {
    #[derive(Deserialize)]
    struct AnyVersion {
        #[serde(default)]
        images: Vec<serde_json::Value>,
    }
    let bytes = blobs::read(&layout.index(), MAX_INDEX).ok().flatten().unwrap_or_default();
    let images = serde_json::from_slice::<AnyVersion>(&bytes).map(|file| file.images).unwrap_or_default();
    let entries = images.into_iter().filter_map(|image| serde_json::from_value::<Entry>(image).ok());
    entries.map(|entry| (entry.config, entry)).collect()
}

/// Replaces the index, durably. `TooLarge` if the next start would not read it.
pub(crate) fn write(layout: &Layout, entries: &Entries) -> Result<()> {
    let bytes = encode(entries, MAX_INDEX)?;
    blobs::write(layout, &layout.index(), &bytes, Durable::Yes)
}

/// The text of the index, of at most `limit` bytes.
fn encode(entries: &Entries, limit: u64) -> Result<Vec<u8>> {
    let file = File { version: VERSION, images: entries.values().cloned().collect() };
    let bytes = serde_json::to_vec(&file).map_err(|error| Error::corrupt("image index", error))?;
    if bytes.len() as u64 > limit {
        return Err(Error::TooLarge { object: "the image index".to_owned(), limit, unit: "bytes" });
    }
    Ok(bytes)
}

/// Adds or updates an image and gives it the names of `reference`, which resolved to the digest `top`. A tag moves to
/// this image from any other.
pub(crate) fn add(entries: &mut Entries, image: Entry, reference: &Reference, top: &Digest) {
    let tag = reference.to_string();
    if matches!(reference.selector(), Selector::Tag(_)) {
        for other in entries.values_mut() {
            other.tags.remove(&tag);
        }
    }
    let entry = entries.entry(image.config).or_insert_with(|| image.clone());
    // A layer may have been unpacked again, by a version that marks implicit folders.
    entry.layers = image.layers;
    entry.size = image.size;
    entry.documents.extend(image.documents);
    entry.digests.insert(reference.with_digest(top));
    if matches!(reference.selector(), Selector::Tag(_)) {
        entry.tags.insert(tag);
    }
}

/// Whether an image has the layer, which is then durable: the index is written later.
pub(crate) fn has_layer(entries: &Entries, diff_id: &Digest) -> bool {
    entries.values().any(|entry| entry.layers.contains(diff_id))
}

/// Whether an image has the document, which is then durable: the index is written later.
pub(crate) fn has_document(entries: &Entries, digest: &Digest) -> bool {
    entries.contains_key(digest) || entries.values().any(|entry| entry.documents.contains(digest))
}

/// The image with this id, tag or digest, as given or normalised. Finds images that are not listed too.
pub(crate) fn id_of(entries: &Entries, name: &str) -> Option<Digest> {
    if let Some(id) = Digest::parse(name) {
        return entries.contains_key(&id).then_some(id);
    }
    let normalised = Reference::parse(name).ok().map(|reference| reference.to_string());
    let has = |entry: &Entry, name: &str| entry.tags.contains(name) || entry.digests.contains(name);
    let found = |entry: &Entry| has(entry, name) || normalised.as_ref().is_some_and(|name| has(entry, name));
    entries.iter().find(|(_, entry)| found(entry)).map(|(id, _)| *id)
}

/// The images as readers see them: immutable, and replaced as a whole.
#[derive(Debug, Default)]
pub(crate) struct Published {
    pub(crate) images: Vec<Arc<ImageRecord>>,
    /// Position in `images` by id, tag, digest, and digest of a document.
    names: HashMap<String, usize>,
}

/// Minimum digits of an id prefix: a shorter text is more likely a name.
const MIN_PREFIX: usize = 3;

impl Published {
    /// Turns entries into records. Configs that are in `before` are not read again. An image whose config is missing or
    /// damaged, or that has a layer which is not in `present` (by folder name), is left out with a warning: if it were
    /// listed, kubelet would never pull it again, and containers could not be created from it.
    pub(super) fn new(
        layout: &Layout,
        entries: &Entries,
        pinned: &Pinned,
        before: &Self,
        present: &HashMap<String, Facts>,
    ) -> Self {
        let mut published = Self::default();
        for (id, entry) in entries {
            let layers = without_duplicates(entry.layers.iter().copied());
            let layers: Vec<String> = layers.iter().rev().map(layer_name).collect();
            if let Some(layer) = layers.iter().find(|layer| !present.contains_key(*layer)) {
                tracing::warn!(image = %id, layer, "image is not listed, because a layer is missing: pull it again");
                continue;
            }
            let known = before.by_id(id).map(|record| record.config.clone());
            let config = match known {
                Some(config) => config,
                None => match blobs::get(layout, id, manifest::MAX_CONFIG).and_then(|bytes| {
                    let bytes =
                        bytes.ok_or_else(|| Error::corrupt(id, "its config is missing or damaged"))?;
                    manifest::config(id, &bytes)
                }) {
                    Ok(config) => config.process,
                    Err(error) => {
                        tracing::warn!(image = %id, error = with_causes(&error), "image is not listed, because it is damaged: pull it again");
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
                published.names.entry(document.to_string()).or_insert(at);
            }
            published.names.insert(id.to_string(), at);
            published.images.push(Arc::new(ImageRecord {
                id: id.to_string(),
                repo_tags: entry.tags.iter().cloned().collect(),
                repo_digests: entry.digests.iter().cloned().collect(),
                size: entry.size,
                uid,
                username,
                config,
                layers,
                layers_dir: layout.layers(),
                pinned: entry.tags.iter().chain(&entry.digests).any(|name| pinned.has(name)),
            }));
        }
        published
    }

    /// The image with this id.
    pub(crate) fn by_id(&self, id: &Digest) -> Option<&Arc<ImageRecord>> {
        let id = id.to_string();
        self.images.get(*self.names.get(&id)?).filter(|record| record.id == id)
    }

    /// Finds an image by id, tag or digest as given, then normalised, then by a prefix that only this id has.
    pub(crate) fn find(&self, name: &str) -> Option<&Arc<ImageRecord>> {
        if let Some(at) = self.names.get(name) {
            return self.images.get(*at);
        }
        // A digest could be read as the repository `sha256` with a tag.
        let normalised = if Digest::parse(name).is_some() { None } else { Reference::parse(name).ok() };
        let normalised = normalised.map(|reference| reference.to_string());
        if let Some(at) = normalised.and_then(|name| self.names.get(&name)) {
            return self.images.get(*at);
        }
        let prefix = name.split_once(':').map_or(name, |(algorithm, hex)| {
            if matches!(algorithm, "sha256" | "sha512") { hex } else { name }
        });
        let hex = prefix.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if prefix.len() < MIN_PREFIX || !hex {
            return None;
        }
        let id = |record: &&Arc<ImageRecord>| {
            record.id.split_once(':').is_some_and(|(_, id)| id.starts_with(prefix))
        };
        let mut found = self.images.iter().filter(id);
        let first = found.next()?;
        found.next().is_none().then_some(first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_that_cannot_be_read_again_is_not_written() {
        let entries = Entries::new();
        let length = encode(&entries, MAX_INDEX).unwrap().len() as u64;
        assert!(encode(&entries, length).is_ok());
        assert!(matches!(encode(&entries, length - 1), Err(Error::TooLarge { .. })));
    }
}
