//! The images and leases that callers of the store see.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

/// An image in the store. Immutable: a new tag or a removal publishes a new record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// `sha256:<hex>` of the config: the image's id on this node.
    pub id: String,
    /// `registry/repository:tag`, sorted.
    pub repo_tags: Vec<String>,
    /// `registry/repository@sha256:<hex>`, with the digest of the manifest or index that was pulled by that
    /// name; sorted.
    pub repo_digests: Vec<String>,
    /// Disk space of the image's layers and documents, in bytes.
    pub size: u64,
    /// The numeric user of the image's `USER`; 0 (root) if it has none. `None` if `username` is set.
    pub uid: Option<u32>,
    /// The user name of the image's `USER`, if it is not a number.
    pub username: Option<String>,
    /// Process defaults from the image's config.
    pub config: ImageConfig,
    /// Folder names below `layers_dir`, topmost first; each is an overlayfs lower folder. The names are short
    /// so that many fit into one page of mount options.
    pub layers: Vec<String>,
    /// The folder with the layers of all images.
    pub layers_dir: PathBuf,
    /// Whether kubelet must not remove this image to free space.
    pub pinned: bool,
}

/// The process defaults of an image's config. All values come from the image and are untrusted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// `ENTRYPOINT`: program and first arguments.
    pub entrypoint: Vec<String>,
    /// `CMD`: default arguments, or the whole command if there is no entrypoint.
    pub cmd: Vec<String>,
    /// `ENV`: `NAME=value` each.
    pub env: Vec<String>,
    /// `USER`: `user`, `user:group`, `uid` or `uid:gid`; empty means root.
    pub user: String,
    /// `WORKDIR`; empty means `/`.
    pub working_dir: String,
    /// `STOPSIGNAL`, by name or number; empty means SIGTERM.
    pub stop_signal: String,
    /// `VOLUME`: paths in the container.
    pub volumes: Vec<String>,
    /// `LABEL`: names and values.
    pub labels: BTreeMap<String, String>,
}

/// The config document of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigDocument {
    /// The whole JSON object as it was pulled, at most 4 MiB. Its digest is the image's id. All of it is untrusted.
    pub json: String,
    /// The OCI chain id of all layers, `sha256:<hex>`; empty for an image without layers.
    pub chain_id: String,
}

/// Disk usage of the store.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of all layers.
    pub bytes: u64,
    /// Files, folders and other inodes.
    pub inodes: u64,
}

/// What a prune has removed, or would remove.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pruned {
    /// The images.
    pub images: Vec<Arc<ImageRecord>>,
    /// Disk space of the layers that nothing else needs, in bytes.
    pub bytes: u64,
}

/// A lease on an image's layers: they stay on disk until `ImageStore::release`, even if the image is removed or the
/// daemon restarts. Dropping this value does not release the lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The owner: a container or pod id.
    pub owner: String,
    /// The image's id.
    pub image_id: String,
    /// Folder names below `layers_dir`, topmost first.
    pub layers: Vec<String>,
    /// The folder with the layers.
    pub layers_dir: PathBuf,
}
