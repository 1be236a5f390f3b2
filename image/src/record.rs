//! The image data that callers of the store see.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

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
    /// Bytes that the image's layers and documents take on disk.
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
    /// The folder that holds the layers of all images.
    pub layers_dir: PathBuf,
    /// kubelet must not garbage-collect this image.
    pub pinned: bool,
}

/// The process defaults of an image's config. All values come from the image and are untrusted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// Program and first arguments.
    pub entrypoint: Vec<String>,
    /// Default arguments, or the whole command without an entrypoint.
    pub cmd: Vec<String>,
    /// `NAME=value` lines.
    pub env: Vec<String>,
    /// `user`, `user:group`, `uid` or `uid:gid`; empty means root.
    pub user: String,
    /// Working directory; empty means `/`.
    pub working_dir: String,
    /// `STOPSIGNAL`, by name or number; empty means SIGTERM.
    pub stop_signal: String,
    /// Paths the image declares as volumes.
    pub volumes: Vec<String>,
    /// Free-form labels.
    pub labels: BTreeMap<String, String>,
}

/// Disk usage of the store.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of all layers and documents.
    pub bytes: u64,
    /// Files, folders and other inodes.
    pub inodes: u64,
}

/// Keeps an image's layers on disk while its owner uses them, even if the image is removed or the daemon
/// restarts. Dropping the value does not release the lease: call `ImageStore::release`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The owner: a container or pod id.
    pub owner: String,
    /// The image's id.
    pub image_id: String,
    /// Folder names below `layers_dir`, topmost first.
    pub layers: Vec<String>,
    /// The folder that holds the layers.
    pub layers_dir: PathBuf,
}
