//! Public errors, sorted by what the caller can do about them.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Why an image call failed. Cheap to clone, because one transfer may answer several callers.
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
    /// No registry, or not the local store, has such an image.
    #[error("image {reference} not found{}", tail(detail))]
    NotFound {
        /// The reference asked for.
        reference: String,
        /// Which hosts answered what; empty for the local store.
        detail: String,
    },
    /// Credentials are missing or were refused.
    #[error("registry refuses access to {reference}{}", tail(detail))]
    Unauthorized {
        /// The reference asked for.
        reference: String,
        /// Which hosts answered what.
        detail: String,
    },
    /// No registry could be reached, or all gave up; trying again later may help.
    #[error("registry unavailable for {reference}{}", tail(detail))]
    Unavailable {
        /// The reference asked for.
        reference: String,
        /// Which hosts answered what.
        detail: String,
    },
    /// What the registry served is broken or hostile: wrong digest, malformed document, illegal layer entry.
    #[error("{object} is corrupt: {reason}")]
    Corrupt {
        /// The manifest, config or layer, by digest or reference.
        object: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A valid image that this node cannot run: other platform, unknown media type.
    #[error("{object} is not supported: {reason}")]
    Unsupported {
        /// The manifest, config or layer, by digest or reference.
        object: String,
        /// What is not supported.
        reason: String,
    },
    /// A stated size cap was reached.
    #[error("{object} exceeds the limit of {limit} {unit}")]
    TooLarge {
        /// What is too large.
        object: String,
        /// The cap.
        limit: u64,
        /// What the cap counts: bytes, entries, layers.
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
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: Arc<io::Error>,
    },
    /// No thread to work on: the node is out of processes, or too much hangs. Nothing was done.
    #[error("image store: {source}")]
    Threads {
        /// What is missing.
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
    /// The file system has no space or no inodes left, or a quota is used up.
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

    /// For `map_err`: names the action and the path of a failed system call.
    pub(crate) fn storage<E: Into<io::Error>>(action: &'static str, path: &Path) -> impl FnOnce(E) -> Self {
        let path = path.to_owned();
        move |source| Self::Storage { action, path, source: Arc::new(source.into()) }
    }
}
