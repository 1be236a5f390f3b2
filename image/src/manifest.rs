//! Manifests, indexes and configs: parsed, and reduced to what a pull needs. Pure.

use crate::error::{Error, Result};
use crate::record::{ConfigDocument, ImageConfig};
use crate::reference::Digest;
use serde::Deserialize;
use std::collections::BTreeMap;

/// Maximum size of a manifest or index, in bytes. Registries refuse larger ones.
pub(crate) const MAX_MANIFEST: u64 = 4 << 20;
/// Maximum size of a config, in bytes. A config contains the build history, but real ones have less than 100 KiB.
pub(crate) const MAX_CONFIG: u64 = 4 << 20;
/// Maximum number of indexes from a reference to a manifest: an index may contain another one.
pub(crate) const MAX_INDEXES: usize = 2;

const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const DOCKER_V1: &str = "application/vnd.docker.distribution.manifest.v1";

/// Media types that old docker clients and registries give to configs (distribution/distribution#1621). They say
/// nothing about the content: whether it is a config shows when it is parsed.
const GENERIC_TYPES: [&str; 4] = ["application/octet-stream", "application/json", "text/html", "text/plain"];

/// The Accept header: the media types of manifests and indexes.
pub(crate) const ACCEPT: [&str; 4] = [OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST];

/// Refers to a blob, manifest or index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Descriptor {
    pub(crate) digest: Digest,
    /// In bytes, as stated by who refers to it.
    pub(crate) size: u64,
}

/// A parsed manifest or index.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Document {
    /// The entry of an index that fits this platform best.
    Index(Descriptor),
    /// Config, and layers lowest first.
    Manifest { config: Descriptor, layers: Vec<Descriptor> },
}

/// A parsed config.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Config {
    pub(crate) process: ImageConfig,
    /// Digests of the uncompressed layers, lowest first.
    pub(crate) diff_ids: Vec<Digest>,
}

/// The platform that images are chosen for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Platform {
    pub(crate) architecture: &'static str,
    /// Variants that run here, best first; an empty one stands for images that state none.
    pub(crate) variants: &'static [&'static str],
}

impl Platform {
    /// The platform of this machine.
    pub(crate) fn host() -> Self {
        match std::env::consts::ARCH {
            // v3 and above are not known to run here.
            "x86_64" => Self { architecture: "amd64", variants: &["", "v1", "v2"] },
            "aarch64" => Self { architecture: "arm64", variants: &["", "v8"] },
            other => Self { architecture: other, variants: &[""] },
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDocument {
    schema_version: u32,
    media_type: Option<String>,
    config: Option<RawDescriptor>,
    layers: Option<Vec<RawDescriptor>>,
    manifests: Option<Vec<RawDescriptor>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: u64,
    platform: Option<RawPlatform>,
}

#[derive(Deserialize)]
struct RawPlatform {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    #[serde(default)]
    variant: String,
}

/// Parses a manifest or index. The HTTP header `content_type` is used only if the document itself has no media type.
pub(crate) fn document(
    digest: &Digest,
    content_type: &str,
    bytes: &[u8],
    platform: Platform,
) -> Result<Document> {
    let corrupt = |reason: &str| Error::corrupt(format!("manifest {digest}"), reason);
    let raw: RawDocument = serde_json::from_slice(bytes).map_err(|error| corrupt(&error.to_string()))?;
    let own = raw.media_type.as_deref().unwrap_or_default();
    let media_type =
        if own.is_empty() { content_type.split(';').next().unwrap_or_default().trim() } else { own };
    if raw.schema_version != 2 || media_type.starts_with(DOCKER_V1) {
        return Err(Error::unsupported(format!("manifest {digest}"), "its schema version is not 2"));
    }
    // A document with both would be a manifest to some readers and an index to others.
    if raw.manifests.is_some() && (raw.layers.is_some() || raw.config.is_some()) {
        return Err(corrupt("it has both config or layers and manifests"));
    }
    match (raw.manifests, raw.config, raw.layers) {
        (Some(manifests), ..) => {
            if matches!(media_type, OCI_MANIFEST | DOCKER_MANIFEST) {
                return Err(corrupt("its media type is that of a manifest, its content that of an index"));
            }
            choose(digest, &manifests, platform).map(Document::Index)
        }
        (None, Some(config), Some(layers)) => {
            if matches!(media_type, OCI_INDEX | DOCKER_LIST) {
                return Err(corrupt("its media type is that of an index, its content that of a manifest"));
            }
            // The type may have parameters, such as `text/html; charset=utf-8`.
            let kind = config.media_type.split(';').next().unwrap_or_default().trim();
            if !kind.is_empty()
                && ![OCI_CONFIG, DOCKER_CONFIG].contains(&kind)
                && !GENERIC_TYPES.contains(&kind)
            {
                let reason =
                    format!("its config has type {:?}: it is no container image", clip(&config.media_type));
                return Err(Error::unsupported(format!("manifest {digest}"), reason));
            }
            let layers = layers.iter().map(|layer| {
                if !is_layer(&layer.media_type) {
                    let reason = format!("a layer has type {:?}", clip(&layer.media_type));
                    return Err(Error::unsupported(format!("manifest {digest}"), reason));
                }
                descriptor(digest, layer)
            });
            Ok(Document::Manifest {
                config: descriptor(digest, &config)?,
                layers: layers.collect::<Result<_>>()?,
            })
        }
        _ => Err(corrupt("it has neither config and layers nor manifests")),
    }
}

/// Cuts foreign text for an error.
fn clip(text: &str) -> String {
    text.chars().take(100).collect()
}

/// tar, tar+gzip and tar+zstd of OCI and docker. The compression is detected from the content.
fn is_layer(media_type: &str) -> bool {
    let Some(kind) = media_type
        .strip_prefix("application/vnd.oci.image.layer.v1.")
        .or_else(|| media_type.strip_prefix("application/vnd.oci.image.layer.nondistributable.v1."))
        .or_else(|| media_type.strip_prefix("application/vnd.docker.image.rootfs.diff."))
        .or_else(|| media_type.strip_prefix("application/vnd.docker.image.rootfs.foreign.diff."))
    else {
        return false;
    };
    matches!(kind, "tar" | "tar+gzip" | "tar.gzip" | "tar+zstd" | "tar.zstd")
}

fn descriptor(document: &Digest, raw: &RawDescriptor) -> Result<Descriptor> {
    let digest = Digest::parse(&raw.digest).ok_or_else(|| {
        Error::unsupported(
            format!("manifest {document}"),
            format!("{:?} is not a sha256 digest", clip(&raw.digest)),
        )
    })?;
    Ok(Descriptor { digest, size: raw.size })
}

/// The entry of an index that fits the platform best. Of equal ones it is the first.
fn choose(digest: &Digest, manifests: &[RawDescriptor], platform: Platform) -> Result<Descriptor> {
    let mut best: Option<(usize, Descriptor)> = None;
    for raw in manifests {
        let is_image = raw.media_type.is_empty() || ACCEPT.contains(&raw.media_type.as_str());
        let rank = match &raw.platform {
            // It states no platform, so it may fit: its config tells.
            None => Some(platform.variants.len()),
            Some(stated) if stated.os == "linux" && stated.architecture == platform.architecture => {
                platform.variants.iter().position(|variant| *variant == stated.variant)
            }
            Some(_) => None,
        };
        if let (true, Some(rank)) = (is_image, rank) {
            let candidate = (rank, descriptor(digest, raw)?);
            best = best.filter(|(best, _)| *best <= rank).or(Some(candidate));
        }
    }
    let reason = || format!("it has no image for linux/{}", platform.architecture);
    let (_, best) = best.ok_or_else(|| Error::unsupported(format!("index {digest}"), reason()))?;
    Ok(best)
}

#[derive(Deserialize)]
struct RawConfig {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    config: Option<RawProcess>,
    rootfs: RawRootfs,
}

#[derive(Deserialize)]
struct RawRootfs {
    #[serde(default)]
    diff_ids: Option<Vec<String>>,
}

/// All fields are optional, as builders write null for empty ones.
#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase")]
struct RawProcess {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    user: Option<String>,
    working_dir: Option<String>,
    stop_signal: Option<String>,
    volumes: Option<BTreeMap<String, serde_json::Value>>,
    labels: Option<BTreeMap<String, String>>,
}

/// Parses a config. It must be for this node's platform.
pub(crate) fn config(digest: &Digest, bytes: &[u8]) -> Result<Config> {
    let object = || format!("config {digest}");
    let raw: RawConfig = serde_json::from_slice(bytes).map_err(|error| Error::corrupt(object(), error))?;
    let host = Platform::host();
    if !(raw.os.is_empty() || raw.os == "linux")
        || !(raw.architecture.is_empty() || raw.architecture == host.architecture)
    {
        let reason = format!(
            "it is for {}/{}, this node is linux/{}",
            clip(&raw.os),
            clip(&raw.architecture),
            host.architecture
        );
        return Err(Error::unsupported(object(), reason));
    }
    let diff_ids = raw.rootfs.diff_ids.unwrap_or_default();
    let diff_ids = diff_ids.iter().map(|text| {
        Digest::parse(text).ok_or_else(|| {
            Error::corrupt(object(), format!("diff id {:?} is not a sha256 digest", clip(text)))
        })
    });
    let process = raw.config.unwrap_or_default();
    Ok(Config {
        process: ImageConfig {
            entrypoint: process.entrypoint.unwrap_or_default(),
            cmd: process.cmd.unwrap_or_default(),
            env: process.env.unwrap_or_default(),
            user: process.user.unwrap_or_default(),
            working_dir: process.working_dir.unwrap_or_default(),
            stop_signal: process.stop_signal.unwrap_or_default(),
            volumes: process.volumes.unwrap_or_default().into_keys().collect(),
            labels: process.labels.unwrap_or_default(),
        },
        diff_ids: diff_ids.collect::<Result<_>>()?,
    })
}

/// A stored config as a document; `None` if it cannot be parsed.
pub(crate) fn config_document(id: &Digest, bytes: Vec<u8>) -> Option<ConfigDocument> {
    let config = config(id, &bytes).ok()?;
    let chain_id = chain_id(&config.diff_ids).map(|id| id.to_string()).unwrap_or_default();
    Some(ConfigDocument { json: String::from_utf8(bytes).ok()?, chain_id })
}

/// The chain id of these layers, lowest first (OCI image specification, "Layer ChainID"); `None` without layers.
fn chain_id(diff_ids: &[Digest]) -> Option<Digest> {
    let join = |below: Digest, layer: Digest| Digest::of(format!("{below} {layer}").as_bytes());
    diff_ids.iter().copied().reduce(join)
}

/// Parses the user part of `USER`: a numeric id, or a name. An empty one means root (0). A number that is too large for
/// an id counts as a name, which no passwd file has.
pub(crate) fn user(text: &str) -> (Option<u32>, Option<String>) {
    let user = text.split(':').next().unwrap_or_default();
    if user.is_empty() {
        return (Some(0), None);
    }
    let digits = user.bytes().all(|b| b.is_ascii_digit());
    match user.parse::<u32>() {
        Ok(uid) if digits && uid != u32::MAX => (Some(uid), None),
        _ => (None, Some(user.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const B: &str = "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";
    const AMD64: Platform = Platform { architecture: "amd64", variants: &["", "v1", "v2"] };

    fn parse(json: &serde_json::Value) -> Result<Document> {
        let bytes = serde_json::to_vec(json).unwrap();
        document(&Digest::of(&bytes), "", &bytes, AMD64)
    }

    #[test]
    fn index_prefers_plain_platform_and_skips_attestations() {
        let entry = |digest: &str, os: &str, arch: &str, variant: &str| {
            serde_json::json!({"mediaType": OCI_MANIFEST, "digest": digest, "size": 1,
                "platform": {"os": os, "architecture": arch, "variant": variant}})
        };
        let index = serde_json::json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [
            entry(A, "unknown", "unknown", ""), entry(A, "linux", "arm64", "v8"),
            entry(A, "linux", "amd64", "v2"), entry(B, "linux", "amd64", ""), entry(A, "linux", "amd64", "v4")]});
        let Document::Index(best) = parse(&index).unwrap() else { panic!("not an index") };
        assert_eq!(best.digest.to_string(), B);
        let second_best = serde_json::json!({"schemaVersion": 2, "manifests": [
            entry(B, "linux", "amd64", "v2"), entry(A, "linux", "amd64", "v1"), entry(B, "linux", "amd64", "v1")]});
        let Document::Index(best) = parse(&second_best).unwrap() else { panic!("not an index") };
        assert_eq!(best.digest.to_string(), A);
        let foreign =
            serde_json::json!({"schemaVersion": 2, "manifests": [entry(A, "windows", "amd64", "")]});
        assert!(matches!(parse(&foreign), Err(Error::Unsupported { .. })));
    }

    #[test]
    fn ambiguous_and_foreign_documents_are_refused() {
        let config = serde_json::json!({"mediaType": OCI_CONFIG, "digest": A, "size": 2});
        let layer = serde_json::json!({"mediaType": "application/vnd.oci.image.layer.v1.tar+zstd", "digest": B, "size": 3});
        let good = serde_json::json!({"schemaVersion": 2, "config": config, "layers": [layer]});
        assert!(matches!(parse(&good), Ok(Document::Manifest { .. })));
        for bad in [
            serde_json::json!({"schemaVersion": 2, "config": config, "layers": [layer], "manifests": []}),
            serde_json::json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "config": config, "layers": [layer]}),
            serde_json::json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "manifests": [layer]}),
            serde_json::json!({"schemaVersion": 1, "config": config, "layers": [layer]}),
            serde_json::json!({"schemaVersion": 2, "config": config}),
            serde_json::json!({"schemaVersion": 2, "config": config, "layers": [{"mediaType": "text/plain", "digest": B, "size": 3}]}),
            serde_json::json!({"schemaVersion": 2, "config": {"digest": "sha512:00", "size": 2}, "layers": []}),
            serde_json::json!({"schemaVersion": 2, "config": {"digest": A, "size": -1}, "layers": []}),
        ] {
            assert!(parse(&bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn configs_with_generic_types_are_images_and_artifacts_are_not() {
        let of = |media_type: &str| {
            parse(
                &serde_json::json!({"schemaVersion": 2, "config": {"mediaType": media_type, "digest": A, "size": 2}, "layers": []}),
            )
        };
        for good in [
            "",
            OCI_CONFIG,
            DOCKER_CONFIG,
            "application/octet-stream",
            "application/json",
            "text/html; charset=utf-8",
        ] {
            assert!(matches!(of(good), Ok(Document::Manifest { .. })), "{good}");
        }
        for bad in [
            "application/vnd.docker.plugin.v1+json",
            "application/vnd.cncf.helm.config.v1+json",
            "text",
            "json",
        ] {
            assert!(matches!(of(bad), Err(Error::Unsupported { .. })), "{bad}");
        }
    }

    #[test]
    fn configs_with_nulls_and_users() {
        let bytes =
            br#"{"architecture":"","os":"linux","config":{"Cmd":null,"Env":["A=b"],"User":"www-data:1",
            "Volumes":{"/v":{}}},"rootfs":{"type":"layers","diff_ids":null}}"#;
        let config = config(&Digest::of(bytes), bytes).unwrap();
        assert_eq!(config.process.env, ["A=b"]);
        assert_eq!(config.process.volumes, ["/v"]);
        assert!(config.process.cmd.is_empty() && config.diff_ids.is_empty());
        assert_eq!(user("www-data:1"), (None, Some("www-data".into())));
        assert_eq!(user(""), (Some(0), None));
        assert_eq!(user("1002:1003"), (Some(1002), None));
        assert_eq!(user("4294967296"), (None, Some("4294967296".into())));
        assert_eq!(user("+5"), (None, Some("+5".into())));
    }

    #[test]
    fn other_platforms_are_refused_by_the_config() {
        let bytes = br#"{"architecture":"s390x","os":"linux","rootfs":{}}"#;
        assert!(matches!(config(&Digest::of(bytes), bytes), Err(Error::Unsupported { .. })));
    }
}
