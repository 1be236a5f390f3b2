//! What callers see of an image.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// An image in the store. Immutable; a new tag or removal publishes a new record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// `sha256:<hex>` of the config: the one node-local identifier.
    pub id: String,
    /// `registry/repository:tag`, sorted.
    pub repo_tags: Vec<String>,
    /// `registry/repository@sha256:<hex>` of the manifest or index each name led to, sorted.
    pub repo_digests: Vec<String>,
    /// Bytes that the image's files take on disk, documents included.
    pub size: u64,
    /// The numeric user of the image's `USER`, when it is one. Root (no user) is 0. Exclusive with `username`.
    pub uid: Option<u32>,
    /// The user name of the image's `USER`, when it is not a number.
    pub username: Option<String>,
    /// What the image says about the process to run.
    pub config: ImageConfig,
    /// Folder names below `layers_dir`, topmost first, each an overlay lower layer. Short names: many fit a page.
    pub layers: Vec<String>,
    /// The folder that holds the layers of every image.
    pub layers_dir: PathBuf,
    /// Never to be garbage-collected by kubelet.
    pub pinned: bool,
}

/// The process defaults of an image's config. Labels and all texts are data of unknown origin.
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
    /// Where the process starts; empty means `/`.
    pub working_dir: String,
    /// `STOPSIGNAL`, by name or number; empty means SIGTERM.
    pub stop_signal: String,
    /// Paths the image declares as volumes.
    pub volumes: Vec<String>,
    /// Free-form labels.
    pub labels: BTreeMap<String, String>,
}

/// What the store takes on its file system.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of all layers and documents.
    pub bytes: u64,
    /// Files, folders and other inodes.
    pub inodes: u64,
}

/// Keeps an image's layers while its owner uses them, also after the image was removed and over a restart.
/// Dropping the value releases nothing: call `ImageStore::release`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// Who holds it: a container or pod id.
    pub owner: String,
    /// The image.
    pub image_id: String,
    /// Folder names below `layers_dir`, topmost first.
    pub layers: Vec<String>,
    /// The folder that holds the layers.
    pub layers_dir: PathBuf,
}
