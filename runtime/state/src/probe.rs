//! Does the durable folder take writes? A node whose root is full or read-only has no use for new pods.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;

use crate::Layout;
use crate::error::refuses_writes;

/// What is tried: more than the record of an ordinary pod.
const BYTES: usize = 64 << 10;
/// Name of the file that is written and removed.
const NAME: &str = ".probe";

/// Why the durable folder takes no writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The file system is read-only: mounted so, or made so by the kernel after an error of the disk.
    ReadOnly,
    /// No space, no inodes, or the end of a quota.
    Full,
    /// The disk answers with errors.
    Broken,
}

/// Writes a small file into the root of `layout` and removes it. Blocking, for as long as the disk likes.
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
