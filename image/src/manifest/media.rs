//! Media types of the OCI image specification and of Docker's schema 2, and those that old clients and registries wrote
//! in their place.

pub(super) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(super) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(super) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(super) const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub(super) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(super) const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
/// Followed by `+json` or, with a signature, by `+prettyjws`.
pub(super) const DOCKER_SCHEMA_1: &str = "application/vnd.docker.distribution.manifest.v1";

/// The Accept header: the media types of manifests and indexes.
pub(crate) const ACCEPT: [&str; 4] = [OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST];

/// Media types that old docker clients and registries gave to configs (distribution/distribution#1621), all those that
/// moby accepts. They say nothing about the content: whether it is a config shows when it is parsed.
const GENERIC_CONFIGS: [&str; 5] =
    ["", "application/octet-stream", "application/json", "text/html", "text/plain"];

/// Media types that say no more of a layer than that it has bytes.
const GENERIC_LAYERS: [&str; 6] = [
    "",
    "application/octet-stream",
    "application/gzip",
    "application/x-gzip",
    "application/x-tar",
    "application/tar+gzip",
];

/// Without parameters, as in `text/html; charset=utf-8`.
pub(super) fn essence(media_type: &str) -> &str {
    media_type.split(';').next().unwrap_or_default().trim()
}

pub(super) fn is_index(essence: &str) -> bool {
    matches!(essence, OCI_INDEX | DOCKER_LIST)
}

pub(super) fn is_manifest(essence: &str) -> bool {
    matches!(essence, OCI_MANIFEST | DOCKER_MANIFEST)
}

pub(super) fn is_config(essence: &str) -> bool {
    matches!(essence, OCI_CONFIG | DOCKER_CONFIG) || GENERIC_CONFIGS.contains(&essence)
}

/// An archive of files: of OCI or docker, with or without gzip or zstd, also if it is called foreign or
/// nondistributable. How it is compressed is detected from the content.
pub(super) fn is_layer(essence: &str) -> bool {
    let kind = essence
        .strip_prefix("application/vnd.oci.image.layer.v1.")
        .or_else(|| essence.strip_prefix("application/vnd.oci.image.layer.nondistributable.v1."))
        .or_else(|| essence.strip_prefix("application/vnd.docker.image.rootfs.diff."))
        .or_else(|| essence.strip_prefix("application/vnd.docker.image.rootfs.foreign.diff."));
    match kind {
        Some(kind) => matches!(kind, "tar" | "tar+gzip" | "tar.gzip" | "tar+zstd" | "tar.zstd"),
        None => GENERIC_LAYERS.contains(&essence),
    }
}
