//! What `docker save` writes: `manifest.json` lists images with the members of their config and layers. It has no manifest
//! and no digests of the compressed layers, so a manifest is made, always the same one of the same archive.

use super::members::{Extent, Members};
use super::{Found, MAX_LIST, Top, check_number, parse_list};
use crate::error::{Error, Result};
use crate::manifest::{self, MAX_CONFIG};
use crate::reference::{Digest, Reference};
use crate::unpack::Compression;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

const MANIFEST: &str = "manifest.json";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// Bytes of a layer that are read at once to compute its digest.
const READ: usize = 1 << 20;
/// Maximum number of layers of all images, each listing counted.
const MAX_LAYERS: usize = 4096;

#[derive(Debug, Deserialize)]
struct Entry {
    #[serde(rename = "Config")]
    config: String,
    #[serde(rename = "RepoTags", default)]
    tags: Option<Vec<String>>,
    #[serde(rename = "Layers", default)]
    layers: Option<Vec<String>>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct MadeManifest {
    schema_version: u32,
    media_type: &'static str,
    config: MadeDescriptor,
    layers: Vec<MadeDescriptor>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct MadeDescriptor {
    media_type: String,
    digest: Digest,
    size: u64,
}

/// The images; `None` if the archive is none of `docker save`. Adds where their configs and layers are to `blobs`.
pub(super) fn images(members: &Members, blobs: &mut HashMap<Digest, Extent>) -> Result<Option<Vec<Found>>> {
    let Some(bytes) = members.content(MANIFEST, MAX_LIST)? else { return Ok(None) };
    let mut entries: Vec<Entry> = parse_list(MANIFEST, &bytes)?;
    let is_named = |entry: &Entry| entry.tags.as_ref().is_some_and(|tags| !tags.is_empty());
    // Images that were saved by their ids, beside others.
    if entries.iter().any(is_named) {
        entries.retain(is_named);
    }
    check_number(entries.len())?;
    let layers: usize = entries.iter().map(|entry| entry.layers.as_ref().map_or(0, Vec::len)).sum();
    if layers > MAX_LAYERS {
        let object = format!("{MANIFEST} of the archive");
        return Err(Error::TooLarge { object, limit: MAX_LAYERS as u64, unit: "layers" });
    }
    let mut known = HashMap::new();
    entries.into_iter().map(|entry| image(members, blobs, &mut known, entry)).collect::<Result<_>>().map(Some)
}

/// `known`: digests of compressed layers, by offset. Images share layers.
fn image(
    members: &Members,
    blobs: &mut HashMap<Digest, Extent>,
    known: &mut HashMap<u64, Digest>,
    entry: Entry,
) -> Result<Found> {
    let config_extent = find(members, &entry.config)?;
    let config = members.bytes(config_extent, &entry.config, MAX_CONFIG)?;
    let id = Digest::of(&config);
    blobs.insert(id, config_extent);
    let diff_ids = manifest::config(&id, &config)?.diff_ids;
    let layers = entry.layers.unwrap_or_default();
    if layers.len() != diff_ids.len() {
        let reason =
            format!("{MANIFEST} lists {} layers for it, its config {}", layers.len(), diff_ids.len());
        return Err(Error::corrupt(format!("image {id} of the archive"), reason));
    }
    let mut descriptors = Vec::with_capacity(layers.len());
    for (name, diff_id) in layers.iter().zip(diff_ids) {
        let extent = find(members, name)?;
        let compression = Compression::of(
            &members.spool.read(extent.offset, Compression::MAGIC.min(length_in_memory(extent)))?,
        );
        // An uncompressed layer has the digest that the config states. It is verified when the layer is unpacked.
        let digest = match (compression, known.get(&extent.offset)) {
            (Compression::None, _) => diff_id,
            (_, Some(digest)) => *digest,
            (_, None) => digest_of(members, extent)?,
        };
        if compression != Compression::None {
            known.insert(extent.offset, digest);
        }
        blobs.insert(digest, extent);
        let suffix = match compression {
            Compression::Gzip => "+gzip",
            Compression::Zstd => "+zstd",
            Compression::None => "",
        };
        descriptors.push(MadeDescriptor {
            media_type: format!("{OCI_LAYER}{suffix}"),
            digest,
            size: extent.size,
        });
    }
    let made = MadeManifest {
        schema_version: 2,
        media_type: OCI_MANIFEST,
        config: MadeDescriptor { media_type: OCI_CONFIG.to_owned(), digest: id, size: config_extent.size },
        layers: descriptors,
    };
    let bytes = serde_json::to_vec(&made).map_err(|error| Error::corrupt(MANIFEST, error))?;
    let top =
        Top { digest: Digest::of(&bytes), content_type: OCI_MANIFEST.to_owned(), made: Some(bytes.into()) };
    let tags = entry.tags.unwrap_or_default();
    let names = tags.iter().map(|tag| Reference::parse(tag)).collect::<Result<Vec<_>>>()?;
    Ok(Found { names, top })
}

/// The extent's size as a length in memory; the largest `usize` if it does not fit.
fn length_in_memory(extent: Extent) -> usize {
    usize::try_from(extent.size).unwrap_or(usize::MAX)
}

/// Where a member is that manifest.json names.
fn find(members: &Members, name: &str) -> Result<Extent> {
    let plain = name.trim_start_matches("./");
    members.find(plain)?.ok_or_else(|| {
        let shown: String = name.chars().take(200).collect();
        let detail = format!("{MANIFEST} of the archive names it, but the archive does not have it");
        Error::NotFound { object: format!("member {shown:?}"), detail }
    })
}

/// Computes the digest of a member.
fn digest_of(members: &Members, extent: Extent) -> Result<Digest> {
    let mut hasher = Digest::of(b"").hasher();
    let mut done = 0;
    while done < extent.size {
        let length = usize::try_from(extent.size - done).map_or(READ, |left| left.min(READ));
        let bytes = members.spool.read(extent.offset + done, length)?;
        if bytes.is_empty() {
            return Err(Error::corrupt("the archive", "it ends within a layer"));
        }
        hasher.update(&bytes);
        done += bytes.len() as u64;
    }
    Ok(hasher.finish())
}
