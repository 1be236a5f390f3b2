//! Checks whether the durable folders accept writes. If one is full or read-only, the node cannot run new pods.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use sys::mount;

use crate::Layout;
use crate::error::refuses_writes;

/// Size of the test file in bytes: more than the record of an ordinary pod.
const BYTES: usize = 64 << 10;
/// Name of the test file.
const NAME: &str = ".probe";

/// Why a folder accepts no writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The file system is read-only: it was mounted so, or the kernel made it so after a disk error.
    ReadOnly,
    /// No space, no inodes, or a quota is used up.
    Full,
    /// Writes fail with an I/O error.
    Broken,
}

/// The durable folders that may be file systems of their own, the root first, each with its name in the reason of the
/// condition RuntimeReady (`Images` in `ImagesReadOnly`).
pub fn parts(layout: &Layout) -> [(&'static str, PathBuf); 5] {
    [
        ("Root", layout.root().to_owned()),
        ("Images", layout.images_dir()),
        ("Containers", layout.containers_dir()),
        ("Pods", layout.pods_dir()),
        ("Network", layout.network_dir()),
    ]
}

/// Whether a folder is a mount point. Then it can fail while the folder above it does not. Blocks for as long as the disk
/// takes.
///
/// # Errors
/// It cannot be opened.
pub fn is_mount(folder: &Path) -> io::Result<bool> {
    Ok(mount::identity(mount::open_path(folder)?.as_fd())?.is_mount_root)
}

/// Writes a small file to a folder and removes it. Blocks for as long as the disk takes.
///
/// # Errors
/// Why it failed, and the kernel's error.
pub fn folder(folder: &Path) -> Result<(), (Refusal, io::Error)> {
    let path = folder.join(NAME);
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
        folder(layout.root()).unwrap();
        assert_eq!(fs::read_dir(layout.root()).unwrap().count(), before);
        assert!(parts(&layout).iter().all(|(_, path)| path.is_dir() && !is_mount(path).unwrap()));
        assert!(is_mount(Path::new("/proc")).unwrap());
    }
}
