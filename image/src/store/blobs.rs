//! Small files that are either complete or absent: documents by digest, and JSON state.

use super::layout::Layout;
use crate::error::{Error, Result};
use crate::reference::Digest;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;

/// Whether a file must survive a power loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Durable {
    Yes,
    No,
}

/// Writes a temporary file, syncs it, renames it and syncs the folder.
pub(crate) fn write(layout: &Layout, path: &Path, bytes: &[u8], durable: Durable) -> Result<()> {
    let beside = layout.ingest();
    let result = (|| {
        let mut file = File::create_new(&beside).map_err(Error::storage("create", &beside))?;
        file.write_all(bytes).map_err(Error::storage("write", &beside))?;
        if durable == Durable::Yes {
            file.sync_all().map_err(Error::storage("sync", &beside))?;
        }
        fs::rename(&beside, path).map_err(Error::storage("rename to", path))?;
        if durable == Durable::Yes
            && let Some(folder) = path.parent()
        {
            sync_folder(folder)?;
        }
        Ok(())
    })();
    if result.is_err() {
        // Reports the first error. A file that stays is deleted at the next start.
        fs::remove_file(&beside).ok();
    }
    result
}

/// Makes renames within a folder durable.
pub(crate) fn sync_folder(folder: &Path) -> Result<()> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(Error::storage("sync", folder))
}

/// Reads at most `limit` bytes; `None` if the file does not exist.
pub(crate) fn read(path: &Path, limit: u64) -> Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::storage("open", path)(error)),
    };
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(Error::storage("read", path))?;
    if bytes.len() as u64 > limit {
        return Err(Error::TooLarge { object: path.display().to_string(), limit, unit: "bytes" });
    }
    Ok(Some(bytes))
}

/// Stores a document, unless it exists already.
pub(crate) fn put(layout: &Layout, bytes: &[u8]) -> Result<Digest> {
    let digest = Digest::of(bytes);
    let path = layout.blob(&digest);
    if get(layout, &digest, bytes.len() as u64).is_ok_and(|found| found.is_some()) {
        return Ok(digest);
    }
    write(layout, &path, bytes, Durable::Yes)?;
    Ok(digest)
}

/// Reads a document; `None` if it is absent or does not match its digest.
pub(crate) fn get(layout: &Layout, digest: &Digest, limit: u64) -> Result<Option<Vec<u8>>> {
    let bytes = read(&layout.blob(digest), limit)?;
    Ok(bytes.filter(|bytes| Digest::of(bytes) == *digest))
}
