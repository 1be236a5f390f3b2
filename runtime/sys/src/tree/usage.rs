//! Measures how much disk space a tree uses.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::fd::BorrowedFd;
use std::time::Instant;

use rustix::fs::{AtFlags, FileType, Stat, statat};

use super::walk::{Left, Next, Walk};
use super::{Error, entry_name};

/// Maximum number of entries that are counted.
const MAX_ENTRIES: u64 = 2_000_000;
/// Maximum number of inodes that are remembered because they have several names, 16 bytes each. With more, some are
/// counted twice.
const MAX_LINKS: usize = 100_000;
/// Bytes of a block in `st_blocks`.
const BLOCK: u64 = 512;
/// Number of entries between two readings of the clock.
const CLOCK_EVERY: u64 = 256;

/// Bytes and inodes of a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Bytes on disk.
    pub bytes: u64,
    /// Number of inodes (files, folders and others). An inode with several names counts once.
    pub inodes: u64,
    /// False if the walk ended early. The figures are then lower bounds, which still show who fills the disk.
    pub whole: bool,
}

/// Measures the entry `name` of `dir` and everything below it, except mounts and entries that are removed meanwhile.
/// Ends at the time `until`, or after two million entries.
///
/// # Errors
/// The entry itself cannot be read.
pub(super) fn usage(dir: BorrowedFd<'_>, name: &OsStr, until: Instant) -> Result<Usage, Error> {
    let entry = entry_name(name)?;
    let failed = |action| move |errno| Error::io(action, name.as_ref(), errno);
    let top = statat(dir, &*entry, AtFlags::SYMLINK_NOFOLLOW).map_err(failed("stat"))?;
    let mut count = Count { bytes: 0, inodes: 0, device: top.st_dev, links: HashSet::new() };
    count.add(&top);
    let mut whole = true;
    if is_folder(&top) {
        let mut walk = Walk::open(dir, &entry).map_err(failed("open"))?;
        let mut read = 0;
        loop {
            read += 1;
            if read > MAX_ENTRIES || (read % CLOCK_EVERY == 0 && Instant::now() >= until) {
                whole = false;
                break;
            }
            if let Some(Ok(entry)) = walk.read() {
                let stat = walk
                    .folder()
                    .and_then(|folder| statat(folder, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW));
                // It was removed.
                let Ok(stat) = stat else { continue };
                // A mount of another file system is not counted; `enter` refuses a mount of the same one.
                if count.add(&stat) && is_folder(&stat) {
                    walk.enter(entry.file_name()).ok();
                }
                continue;
            }
            // The end of the folder, or an error.
            match walk.leave(Next::Following) {
                Left::Parent { .. } => {}
                Left::Top => break,
                Left::Lost => {
                    whole = false;
                    break;
                }
            }
        }
    }
    Ok(Usage { bytes: count.bytes, inodes: count.inodes, whole })
}

fn is_folder(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

struct Count {
    bytes: u64,
    inodes: u64,
    device: u64,
    /// Inodes of files with several names.
    links: HashSet<u64>,
}

impl Count {
    /// Counts an inode. Returns false if it is on another device.
    fn add(&mut self, stat: &Stat) -> bool {
        if stat.st_dev != self.device {
            return false;
        }
        let known = stat.st_nlink > 1 && !is_folder(stat) && !self.links.insert(stat.st_ino);
        if self.links.len() > MAX_LINKS {
            self.links.clear();
        }
        if !known {
            self.bytes = self.bytes.saturating_add(u64::try_from(stat.st_blocks).unwrap_or(0) * BLOCK);
            self.inodes += 1;
        }
        true
    }
}
