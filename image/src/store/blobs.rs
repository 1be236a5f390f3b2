//! Small files: documents by digest, and the store's own JSON files. A file is either complete or absent.

use super::layout::Layout;
use crate::error::{Error, Result};
use crate::reference::Digest;
use std::io;
use std::path::Path;

/// Whether a file must survive a power loss once it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Durable {
    Yes,
    No,
}

/// Writes a temporary file and renames it to `path`. If durable, syncs the file before and the folder after.
pub(crate) fn write(layout: &Layout, path: &Path, bytes: &[u8], durable: Durable) -> Result<()> {
    // A temporary file that stays after a crash is deleted at the next start.
    sys::file::replace(path, &layout.new_ingest(), bytes, 0o644, durable == Durable::Yes)
        .map_err(Error::storage("write", path))
}

/// Makes renames within a folder durable.
pub(crate) fn sync_folder(folder: &Path) -> Result<()> {
    sys::file::sync_folder(folder).map_err(Error::storage("sync", folder))
}

/// Reads at most `limit` bytes; `None` if the file does not exist.
pub(crate) fn read(path: &Path, limit: u64) -> Result<Option<Vec<u8>>> {
    sys::file::read_own(path, limit).map_err(|error| match error.kind() {
        io::ErrorKind::FileTooLarge => {
            Error::TooLarge { object: path.display().to_string(), limit, unit: "bytes" }
        }
        _ => Error::storage("read", path)(error),
    })
}

/// Stores a document under its digest, unless it is there and undamaged.
pub(crate) fn put(layout: &Layout, digest: &Digest, bytes: &[u8], durable: Durable) -> Result<()> {
    if get(layout, digest, bytes.len() as u64).is_ok_and(|found| found.is_some()) {
        return Ok(());
    }
    write(layout, &layout.blob(digest), bytes, durable)
}

/// Reads a document; `None` if it is absent or damaged: it does not match its digest.
pub(crate) fn get(layout: &Layout, digest: &Digest, limit: u64) -> Result<Option<Vec<u8>>> {
    let bytes = read(&layout.blob(digest), limit)?;
    Ok(bytes.filter(|bytes| digest.is_of(bytes)))
}
