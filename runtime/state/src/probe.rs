//! Checks whether the durable folder accepts writes. A node with a full or read-only root cannot run new
//! pods.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;

use crate::Layout;
use crate::error::refuses_writes;

/// Size of the test file: more than the record of an ordinary pod.
const BYTES: usize = 64 << 10;
/// Name of the test file.
const NAME: &str = ".probe";

/// Why the durable folder accepts no writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The file system is read-only: it was mounted so, or the kernel made it so after a disk error.
    ReadOnly,
    /// No space, no inodes, or a quota is used up.
    Full,
    /// Writes fail with an I/O error.
    Broken,
}

/// Writes a small file to the root of `layout` and removes it. Blocks for as long as the disk takes.
pub fn root(layout: &Layout) -> Result<(), (Refusal, io::Error)> {
    let path = layout.root().join(NAME);
    let written = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(&path)
        .and_then(|mut file| file.write_all(&[0; BYTES]));
    let removed = match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    };
    written.and(removed).map_err(|error| {
        let refusal = match error.raw_os_error() {
            Some(libc::EROFS) => Refusal::ReadOnly,
            _ if refuses_writes(&error) => Refusal::Full,
            _ => Refusal::Broken,
        };
        (refusal, error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path().join("root"), dir.path().join("run")).unwrap();
        layout.create().unwrap();
        let before = fs::read_dir(layout.root()).unwrap().count();
        root(&layout).unwrap();
        assert_eq!(fs::read_dir(layout.root()).unwrap().count(), before);
    }
}
