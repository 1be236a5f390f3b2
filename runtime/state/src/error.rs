//! What can go wrong with a record, by what the caller can do about it.

use std::io;
use std::path::{Path, PathBuf};

/// A failure of this crate. Each names the file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The disk said no.
    #[error("{action} {}", path.display())]
    Io {
        /// What was tried, for example `open`.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Cut short, overwritten or otherwise not what was once written. Set it aside.
    #[error("{} is torn: {reason}", path.display())]
    Torn {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },
    /// Whole, and written by a later version of copepod: another format, or a value that this build does not
    /// know. What it describes may be alive and well. Leave it where it is.
    #[error("{} was written by a later version of copepod: {reason}", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// What this build does not know.
        reason: String,
    },
    /// Whole, but not one of ours, or of another kind. Set it aside.
    #[error("{} is foreign: {reason}", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },
    /// Larger than a record may be, read or to be written.
    #[error("{} has {size} bytes, and may have at most {limit}", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
        /// What it may have.
        limit: u64,
    },
    /// The value cannot be written as JSON.
    #[error("encode the record for {}", path.display())]
    Encode {
        /// The file.
        path: PathBuf,
        /// What serde said.
        source: serde_json::Error,
    },
    /// Another daemon works on this folder.
    #[error("{} is locked by another copepod (pid {holder}): two cannot share a folder", path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
        /// What the lock file says about its holder.
        holder: String,
    },
    /// A folder of the layout holds what is not copepod's.
    #[error(
        "{} holds {found:?}, which is not copepod's: choose a folder that is new, empty or copepod's own",
        path.display()
    )]
    NotOurs {
        /// The folder.
        path: PathBuf,
        /// One of the names in it.
        found: String,
    },
    /// A folder of the layout is not absolute.
    #[error("{} is not an absolute path", path.display())]
    Relative {
        /// The folder.
        path: PathBuf,
    },
}

impl Error {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { action, path, source }
    }

    pub(crate) fn torn(path: &Path, reason: impl ToString) -> Self {
        Self::Torn { path: path.to_path_buf(), reason: reason.to_string() }
    }

    pub(crate) fn newer(path: &Path, reason: impl ToString) -> Self {
        Self::Newer { path: path.to_path_buf(), reason: reason.to_string() }
    }

    pub(crate) fn foreign(path: &Path, reason: impl ToString) -> Self {
        Self::Foreign { path: path.to_path_buf(), reason: reason.to_string() }
    }

    /// Whether the file itself is at fault, so that it belongs into [`crate::file::set_aside`]. Not so one
    /// that the disk does not give, or that another version may be able to read.
    pub fn is_bad_file(&self) -> bool {
        matches!(self, Self::Torn { .. } | Self::Foreign { .. })
    }
}

/// Whether an error of the kernel says that a file system takes no more: ENOSPC, EDQUOT or EROFS.
pub(crate) fn refuses_writes(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT | libc::EROFS))
}
