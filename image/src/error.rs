//! Public errors, sorted by what the caller can do about them.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Why an image call failed. Cheap to clone, because one transfer may have several callers.
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
    /// No registry has such an image, or the local store does not have it.
    #[error("image {reference} not found{}", tail(detail))]
    NotFound {
        /// The reference asked for.
        reference: String,
        /// The hosts that were asked and what each returned; empty for the local store.
        detail: String,
    },
    /// Credentials are missing or were refused.
    #[error("registry refuses access to {reference}{}", tail(detail))]
    Unauthorized {
        /// The reference asked for.
        reference: String,
        /// The hosts that were asked and what each returned.
        detail: String,
    },
    /// No registry could be reached, or all of them failed; a retry may help.
    #[error("registry unavailable for {reference}{}", tail(detail))]
    Unavailable {
        /// The reference asked for.
        reference: String,
        /// The hosts that were asked and what each returned.
        detail: String,
    },
    /// The content is broken or hostile: wrong digest, malformed document, illegal layer entry.
    #[error("{object} is corrupt: {reason}")]
    Corrupt {
        /// The manifest, config or layer, by digest or reference.
        object: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A valid image that this node cannot run: other platform or unknown media type.
    #[error("{object} is not supported: {reason}")]
    Unsupported {
        /// The manifest, config or layer, by digest or reference.
        object: String,
        /// What is not supported.
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
    /// `certs.d/<host>/hosts.toml` or a certificate it names is unusable.
    #[error("registry configuration {path:?}: {reason}")]
    Configuration {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
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
    /// No thread is free: the node is out of processes, or too many operations hang. Nothing was changed.
    #[error("image store: {source}")]
    Threads {
        /// Which threads.
        source: Arc<io::Error>,
    },
    /// The caller went away, or the daemon is shutting down.
    #[error("image operation was cancelled")]
    Cancelled,
}

fn tail(detail: &str) -> String {
    if detail.is_empty() { String::new() } else { format!(": {detail}") }
}

/// Short form used throughout the crate.
pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Whether the file system is out of space or inodes, or a quota is used up.
    pub(crate) fn is_full(&self) -> bool {
        use io::ErrorKind::{QuotaExceeded, StorageFull};
        matches!(self, Self::Storage { source, .. } if matches!(source.kind(), StorageFull | QuotaExceeded))
    }

    pub(crate) fn corrupt(object: impl ToString, reason: impl ToString) -> Self {
        Self::Corrupt { object: object.to_string(), reason: reason.to_string() }
    }

    pub(crate) fn unsupported(object: impl ToString, reason: impl ToString) -> Self {
        Self::Unsupported { object: object.to_string(), reason: reason.to_string() }
    }

    /// For `map_err`: adds the action and the path to the error of a system call.
    pub(crate) fn storage<E: Into<io::Error>>(action: &'static str, path: &Path) -> impl FnOnce(E) -> Self {
        let path = path.to_owned();
        move |source| Self::Storage { action, path, source: Arc::new(source.into()) }
    }
}
