//! Errors of this crate, by what the caller can do about them.

use std::io;
use std::path::{Path, PathBuf};

/// An error of this crate. Each names the file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file operation failed.
    #[error("{action} {}", path.display())]
    Io {
        /// The failed action, for example `open`.
        action: &'static str,
        /// The path.
        path: PathBuf,
        /// The error of the system call.
        source: io::Error,
    },
    /// Cut off, overwritten or damaged. Set it aside.
    #[error("{} is damaged: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Complete, but written by a later version of copepod, with another format or an unknown value. Its
    /// object may be running. Leave the file unchanged.
    #[error("{} was written by a later version of copepod: {reason}", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// What is unknown.
        reason: String,
    },
    /// Complete, but not a record of ours, or of another kind. Set it aside.
    #[error("{} has unexpected content: {reason}", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Larger than a record may be.
    #[error("{} has {size} bytes, and may have at most {limit}", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// The value cannot be written as JSON.
    #[error("encode the record for {}", path.display())]
    Encode {
        /// The file.
        path: PathBuf,
        /// The error of the serializer.
        source: serde_json::Error,
    },
    /// Another daemon uses this folder.
    #[error("{} is locked by another copepod (pid {holder}): two cannot share a folder", path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
        /// Pid of the holder, from the lock file or /proc/locks, or `unknown`.
        holder: String,
    },
    /// A folder of the layout contains files of other software.
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

    pub(crate) fn damaged(path: &Path, reason: impl ToString) -> Self {
        Self::Damaged { path: path.to_path_buf(), reason: reason.to_string() }
    }

    pub(crate) fn newer(path: &Path, reason: impl ToString) -> Self {
        Self::Newer { path: path.to_path_buf(), reason: reason.to_string() }
    }

    pub(crate) fn foreign(path: &Path, reason: impl ToString) -> Self {
        Self::Foreign { path: path.to_path_buf(), reason: reason.to_string() }
    }

    /// Whether the file itself is bad, so that it should be set aside ([`crate::set_aside`]). After a read error it may not
    /// be, and another version may be able to read it if it is newer or too large.
    pub fn is_bad_file(&self) -> bool {
        matches!(self, Self::Damaged { .. } | Self::Foreign { .. })
    }
}

/// Whether the error means that a file system accepts no more writes: ENOSPC, EDQUOT or EROFS.
pub(crate) fn refuses_writes(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT | libc::EROFS))
}
