//! The file system of writable layers.

use super::device;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// Size of a file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Filesystem {
    /// What it is mounted from: a block device, or the source in the mount table.
    pub device: String,
    /// Bytes that it has room for, used or not.
    pub bytes: u64,
    /// Inodes; 0 if their number is not limited.
    pub inodes: u64,
    /// Inodes that are free.
    pub inodes_free: u64,
}

impl Filesystem {
    /// The file system of a folder. It may hang with its disk.
    ///
    /// # Errors
    /// Those of stat(2) and statvfs(3).
    pub(crate) fn of(folder: &Path) -> io::Result<Self> {
        let device = std::fs::metadata(folder)?.dev();
        let facts = rustix::fs::statvfs(folder)?;
        Ok(Self {
            device: device::of_filesystem(device),
            bytes: facts.f_blocks.saturating_mul(facts.f_frsize),
            inodes: facts.f_files,
            inodes_free: facts.f_ffree,
        })
    }
}
