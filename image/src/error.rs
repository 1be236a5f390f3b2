//! The crate's error. Its variants differ in what the caller can do.

use crate::space;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Why a call of the image store failed. Cheap to clone, because one pull may have several callers.
///
/// The texts carry host names, status codes and digests, never credentials, tokens or query strings.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The name cannot be read as an image reference.
    #[error("invalid image reference {reference:?}: {reason}")]
    InvalidReference {
        /// The name as given, cut to a printable length.
        reference: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// No registry has such an image, or the local store or an archive does not have what is named.
    #[error("{object} not found{}", after_colon(detail))]
    NotFound {
        /// What was requested: the image, or a layer, blob or member of an archive.
        object: String,
        /// The hosts that were asked, with the reason of each, or why it is not here; may be empty.
        detail: String,
    },
    /// Credentials are missing or were refused.
    #[error("registry refuses access to {reference}{}", after_colon(detail))]
    Unauthorized {
        /// The image that was requested.
        reference: String,
        /// The hosts that were asked, with the reason of each.
        detail: String,
    },
    /// No registry could be reached, or all of them failed; a retry may help.
    #[error("registry unavailable for {reference}{}", after_colon(detail))]
    Unavailable {
        /// The image that was requested.
        reference: String,
        /// The hosts that were asked, with the reason of each.
        detail: String,
    },
    /// No registry serves it: each rejects the request (such as with status 400 or 405), or answers in a way that the
    /// distribution protocol does not allow. The image's name or the registry configuration must be changed first.
    #[error("registry cannot serve {reference}{}", after_colon(detail))]
    Protocol {
        /// The image that was requested.
        reference: String,
        /// The hosts that were asked, with the reason of each.
        detail: String,
    },
    /// The content is damaged or hostile: wrong digest, malformed document, invalid layer entry.
    #[error("{object} is corrupt: {reason}")]
    Corrupt {
        /// The manifest, config or layer, with its digest or reference.
        object: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The object cannot be used as it is: an image for another platform, an unknown media type, an index that a later
    /// version wrote, an archive without the name that is needed.
    #[error("{object} cannot be used: {reason}")]
    Unsupported {
        /// What cannot be used: a manifest, config or layer with its digest, an archive, a name.
        object: String,
        /// Why not.
        reason: String,
    },
    /// A size limit was exceeded.
    #[error("{object} exceeds the limit of {limit} {unit}")]
    TooLarge {
        /// What is too large.
        object: String,
        /// The limit.
        limit: u64,
        /// What the limit counts: bytes, entries or layers.
        unit: &'static str,
    },
    /// `certs.d/<host>/hosts.toml`, or a certificate that it names, cannot be read or is invalid.
    #[error("registry configuration {path:?} cannot be used")]
    Configuration {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// The local store failed.
    #[error("image store: {action} {path:?}")]
    Storage {
        /// The failed action.
        action: &'static str,
        /// The path it was applied to.
        path: PathBuf,
        /// The error of the system call.
        #[source]
        source: Arc<io::Error>,
    },
    /// A layer could not be written to the local store.
    #[error("image {image}: layer {layer} cannot be written: {action} {path:?}")]
    Layer {
        /// The image that is pulled.
        image: String,
        /// Digest of the layer's compressed bytes.
        layer: String,
        /// The failed action.
        action: &'static str,
        /// The path it was applied to.
        path: PathBuf,
        /// The error of the system call.
        #[source]
        source: Arc<io::Error>,
    },
    /// What it needs is used by others for too long. A retry may help.
    #[error("{object} cannot be unpacked now: {reason}")]
    Busy {
        /// The layer, with its digest.
        object: String,
        /// What it waited for, and for how long.
        reason: String,
    },
    /// The other end of an import or export sends or takes almost nothing.
    #[error("the {who} of the archive is too slow: {detail}")]
    Stalled {
        /// The sender or the reader.
        who: &'static str,
        /// How little came in which time.
        detail: String,
    },
    /// No thread is free: the node is out of processes, or too many operations hang. Nothing was changed.
    #[error("image store is busy")]
    Threads {
        /// The error of the lane.
        #[source]
        source: Arc<pool::Error>,
    },
    /// An operation panicked: a bug. (Release builds abort instead.)
    #[error("image store failed")]
    Panicked {
        /// The error of the lane.
        #[source]
        source: Arc<pool::Error>,
    },
    /// The daemon is shutting down, or nobody takes the archive of an export any longer.
    #[error("image operation was cancelled")]
    Cancelled,
}

fn after_colon(detail: &str) -> String {
    if detail.is_empty() { String::new() } else { format!(": {detail}") }
}

/// A result with the crate's error.
pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Whether the file system is out of space or inodes, or a quota is used up.
    pub fn is_full(&self) -> bool {
        match self {
            Self::Storage { source, .. } | Self::Layer { source, .. } => space::is_full(source),
            _ => false,
        }
    }

    pub(crate) fn corrupt(object: impl ToString, reason: impl ToString) -> Self {
        Self::Corrupt { object: object.to_string(), reason: reason.to_string() }
    }

    /// For `map_err`: adds which end of an archive is too slow.
    pub(crate) fn stalled<D: ToString>(who: &'static str) -> impl FnOnce(D) -> Self {
        move |detail| Self::Stalled { who, detail: detail.to_string() }
    }

    pub(crate) fn unsupported(object: impl ToString, reason: impl ToString) -> Self {
        Self::Unsupported { object: object.to_string(), reason: reason.to_string() }
    }

    /// For `map_err`: adds the file to what is wrong with the registry configuration.
    pub(crate) fn configuration<E>(path: &Path) -> impl FnOnce(E) -> Self
    where
        E: std::error::Error + Send + Sync + 'static,
    {
        let path = path.to_owned();
        move |source| Self::Configuration { path, source: Arc::new(source) }
    }

    /// For `map_err`: adds the action and the path to the error of a system call.
    pub(crate) fn storage<E: Into<io::Error>>(action: &'static str, path: &Path) -> impl FnOnce(E) -> Self {
        let path = path.to_owned();
        move |source| {
            let source = Arc::new(space::explained(source.into(), &path));
            Self::Storage { action, path, source }
        }
    }
}
