//! What a tree takes on disk.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::fd::BorrowedFd;
use std::time::Instant;

use rustix::fs::{AtFlags, FileType, Stat, statat};

use super::walk::{Left, Next, Walk};
use super::{Error, entry_name};

/// Most entries of one walk.
const MOST_ENTRIES: u64 = 2_000_000;
/// Hard links remembered, 16 bytes each; those beyond are counted again.
const MOST_LINKS: usize = 100_000;
/// Bytes of a block in `st_blocks`.
const BLOCK: u64 = 512;
/// Entries between two looks at the clock.
const LOOK: u64 = 256;

/// Bytes and inodes of a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Bytes on disk.
    pub bytes: u64,
    /// Files, folders and other inodes; hard links once.
    pub inodes: u64,
    /// False when the walk ended early: the figures are a lower bound then, which still shows who fills the disk.
    pub whole: bool,
}

/// Counts what is at and below the entry `name` of `dir`. What is mounted there is left out, what vanishes
/// meanwhile is passed over. Ends at `until`, or after two million entries.
///
/// # Errors
/// When the entry itself cannot be looked at.
pub(super) fn usage(dir: BorrowedFd<'_>, name: &OsStr, until: Instant) -> Result<Usage, Error> {
    let entry = entry_name(name)?;
    let failed = |action| move |errno| Error::io(action, name.as_ref(), errno);
    let top = statat(dir, &*entry, AtFlags::SYMLINK_NOFOLLOW).map_err(failed("look at"))?;
    let mut count = Count { bytes: 0, inodes: 0, device: top.st_dev, links: HashSet::new() };
    count.add(&top);
    let mut whole = true;
    if is_folder(&top) {
        let mut walk = Walk::open(dir, &entry).map_err(failed("open"))?;
        let mut looked = 0;
        loop {
            looked += 1;
            if looked > MOST_ENTRIES || (looked % LOOK == 0 && Instant::now() >= until) {
                whole = false;
                break;
            }
            if let Some(Ok(entry)) = walk.read() {
                let stat = walk
                    .folder()
                    .and_then(|folder| statat(folder, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW));
                // Gone, or a mount of another file system.
                let Ok(stat) = stat else { continue };
                // A mount of this one is refused by `enter`.
                if count.add(&stat) && is_folder(&stat) {
                    walk.enter(entry.file_name()).ok();
                }
                continue;
            }
            // At the folder's end, or where it cannot be read any more.
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
    /// False for what lies on another device.
    fn add(&mut self, stat: &Stat) -> bool {
        if stat.st_dev != self.device {
            return false;
        }
        let again = stat.st_nlink > 1 && !is_folder(stat) && !self.links.insert(stat.st_ino);
        if self.links.len() > MOST_LINKS {
            self.links.clear();
        }
        if !again {
            self.bytes = self.bytes.saturating_add(u64::try_from(stat.st_blocks).unwrap_or(0) * BLOCK);
            self.inodes += 1;
        }
        true
    }
}
