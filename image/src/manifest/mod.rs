//! Manifests, indexes and configs: parsed, and reduced to what a pull needs. Pure.
//!
//! docs/image-members.md lists every member of these documents with what is done with it. Refused is what would be
//! misunderstood, and nothing else: many programs write images, and few of them follow the specification in all points.

mod config;
mod json;
mod media;
#[cfg(test)]
mod members;
mod platform;
#[cfg(test)]
mod tests;

pub(crate) use config::{Config, config, config_document, user};
pub(crate) use media::ACCEPT;
pub(crate) use platform::Host;

use crate::error::{Error, Result};
use crate::reference::Digest;
use json::Present;
use platform::Platform;

/// Maximum size of a manifest or index, in bytes. Registries refuse larger ones.
pub(crate) const MAX_MANIFEST: u64 = 4 << 20;
/// Maximum size of a config, in bytes. A config contains the build history, but real ones have less than 100 KiB.
pub(crate) const MAX_CONFIG: u64 = 4 << 20;
/// Maximum number of indexes from a reference to a manifest: an index may contain another one.
pub(crate) const MAX_INDEXES: usize = 2;
/// Maximum number of entries of one index that are tried.
const MAX_CANDIDATES: usize = 4;

/// Refers to a blob, manifest or index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Descriptor {
    pub(crate) digest: Digest,
    /// In bytes, as stated by who refers to it.
    pub(crate) size: u64,
}

/// An entry of an index that may be an image for this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) digest: Digest,
    /// The index says that it is for this node. If not, its config tells.
    pub(crate) certain: bool,
}

/// A parsed manifest or index.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Document {
    /// The entries that fit this node, best first, at least one.
    Index(Vec<Candidate>),
    /// Config, and layers lowest first.
    Manifest { config: Descriptor, layers: Vec<Descriptor> },
}

json::object! {
    /// A manifest, an index, or something else.
    struct RawDocument {
        schema_version: i64 = "schemaVersion",
        media_type: String = "mediaType",
        config: Option<RawDescriptor> = "config",
        layers: Option<Vec<RawDescriptor>> = "layers",
        manifests: Option<Vec<RawEntry>> = "manifests",
        /// Schema 1 has these instead of `layers`.
        fs_layers: Present = "fsLayers",
    }
}

json::object! {
    /// Of a config or layer.
    struct RawDescriptor {
        media_type: String = "mediaType",
        digest: String = "digest",
        size: i64 = "size",
    }
}

json::object! {
    /// Of a manifest or index in an index.
    struct RawEntry {
        media_type: String = "mediaType",
        artifact_type: String = "artifactType",
        digest: String = "digest",
        platform: Option<RawPlatform> = "platform",
    }
}

json::object! {
    struct RawPlatform {
        architecture: String = "architecture",
        os: String = "os",
        variant: String = "variant",
        features: Vec<String> = "os.features",
    }
}

/// Parses a manifest or index. The HTTP header `content_type` is used only if the document itself has no media type.
pub(crate) fn document(digest: &Digest, content_type: &str, bytes: &[u8], host: &Host) -> Result<Document> {
    let corrupt = |reason: &str| Error::corrupt(format!("manifest {digest}"), reason);
    let unsupported = |reason: String| Error::unsupported(format!("manifest {digest}"), reason);
    let raw: RawDocument = json::parse(bytes).map_err(|error| corrupt(&error.to_string()))?;
    let own = media::essence(&raw.media_type);
    let media_type = if own.is_empty() { media::essence(content_type) } else { own };
    if raw.schema_version == 1 || raw.fs_layers.0 || media_type.starts_with(media::DOCKER_SCHEMA_1) {
        let reason = "it is in Docker's schema 1, which was given up for schema 2 in 2016: the image must be pushed \
                      again, by a docker of today or `skopeo copy --format oci`";
        return Err(unsupported(reason.to_owned()));
    }
    // Some programs leave it out.
    if !matches!(raw.schema_version, 0 | 2) {
        return Err(unsupported(format!("its schema version is {} instead of 2", raw.schema_version)));
    }
    // A document with both would be a manifest to some readers and an index to others.
    if raw.manifests.is_some() && (raw.layers.is_some() || raw.config.is_some()) {
        return Err(corrupt("it has both config or layers and manifests"));
    }
    match (raw.manifests, raw.config) {
        (Some(manifests), _) => {
            if media::is_manifest(media_type) {
                return Err(corrupt("its media type is that of a manifest, its content that of an index"));
            }
            choose(digest, &manifests, host).map(Document::Index)
        }
        (None, Some(config)) => {
            if media::is_index(media_type) {
                return Err(corrupt("its media type is that of an index, its content that of a manifest"));
            }
            image(digest, &config, &raw.layers.unwrap_or_default())
        }
        (None, None) if media::is_index(media_type) => choose(digest, &[], host).map(Document::Index),
        (None, None) => Err(corrupt("it has neither config nor manifests")),
    }
}

/// The manifest of an image.
fn image(digest: &Digest, config: &RawDescriptor, layers: &[RawDescriptor]) -> Result<Document> {
    let unsupported = |reason: String| Error::unsupported(format!("manifest {digest}"), reason);
    if !media::is_config(media::essence(&config.media_type)) {
        let kind = clip(&config.media_type);
        return Err(unsupported(format!("its config has type {kind:?}: it is no container image")));
    }
    let layers = layers.iter().map(|layer| {
        if media::is_layer(media::essence(&layer.media_type)) {
            return descriptor(digest, layer);
        }
        let what =
            if layer.media_type.ends_with("+encrypted") { "is encrypted, it" } else { "is no archive, it" };
        Err(unsupported(format!("a layer {what} has type {:?}", clip(&layer.media_type))))
    });
    Ok(Document::Manifest { config: descriptor(digest, config)?, layers: layers.collect::<Result<_>>()? })
}

/// Cuts foreign text for an error.
fn clip(text: &str) -> String {
    text.chars().take(100).collect()
}

fn parse_digest(document: &Digest, text: &str) -> Result<Digest> {
    let reason = || format!("{:?} is no sha256 or sha512 digest", clip(text));
    Digest::parse(text).ok_or_else(|| Error::unsupported(format!("manifest {document}"), reason()))
}

fn descriptor(document: &Digest, raw: &RawDescriptor) -> Result<Descriptor> {
    let digest = parse_digest(document, &raw.digest)?;
    let size = u64::try_from(raw.size).map_err(|_| {
        Error::corrupt(
            format!("manifest {document}"),
            format!("it says that {digest} has {} bytes", raw.size),
        )
    })?;
    Ok(Descriptor { digest, size })
}

/// The entries of an index that fit this node, best first; of equal ones the first comes first. Artifacts and
/// attestations are no images: they have another type, or the platform unknown/unknown.
fn choose(index: &Digest, entries: &[RawEntry], host: &Host) -> Result<Vec<Candidate>> {
    let (mut found, mut unusable) = (Vec::new(), None);
    for entry in entries {
        let kind = media::essence(&entry.media_type);
        let is_image = kind.is_empty() || media::is_manifest(kind) || media::is_index(kind);
        let is_artifact = !media::is_config(media::essence(&entry.artifact_type));
        let Some(rank) = rank(entry.platform.as_ref(), host).filter(|_| is_image && !is_artifact) else {
            continue;
        };
        match parse_digest(index, &entry.digest) {
            Ok(digest) => found.push((rank, Candidate { digest, certain: rank < host.worst() })),
            Err(error) => unusable = unusable.or(Some(error)),
        }
    }
    if found.is_empty() {
        let reason = format!("it has no image for {host}");
        return Err(unusable.unwrap_or_else(|| Error::unsupported(format!("index {index}"), reason)));
    }
    found.sort_by_key(|(rank, _)| *rank);
    Ok(found.into_iter().map(|(_, candidate)| candidate).take(MAX_CANDIDATES).collect())
}

/// How well an entry of this platform fits. Those that need features of the operating system, and those that state no
/// platform, are the last.
fn rank(platform: Option<&RawPlatform>, host: &Host) -> Option<usize> {
    let Some(raw) = platform else { return Some(host.worst()) };
    let platform = Platform::new(&raw.os, &raw.architecture, &raw.variant);
    if platform.is_linux() && !platform.has_architecture() {
        return Some(host.worst());
    }
    let rank = host.rank(&platform)?;
    Some(if raw.features.is_empty() { rank } else { host.worst() + 1 })
}
