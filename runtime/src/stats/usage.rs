//! What a folder takes on disk. It is the container's to fill, so the walk is bounded, follows no symlink
//! and stays on its file system.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::{fs, io};

/// Most entries of one walk; beyond it the figures are a lower bound, which still shows who fills the disk.
const MOST_ENTRIES: u64 = 2_000_000;
/// Hard links remembered; those beyond are counted again.
const MOST_LINKS: usize = 100_000;
/// Most folders waiting for their turn.
const MOST_WAITING: usize = 100_000;
/// Bytes of a block in `st_blocks`.
const BLOCK: u64 = 512;

/// Bytes and inodes at and below a folder. What vanishes meanwhile is passed over.
pub(super) fn of(root: &Path) -> io::Result<(u64, u64)> {
    let top = fs::symlink_metadata(root)?;
    let (mut bytes, mut inodes) = (top.blocks() * BLOCK, 1);
    let mut seen = HashSet::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(folder) = waiting.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries.filter_map(Result::ok) {
            // Of the entry itself: symlinks are not followed.
            let Ok(facts) = entry.metadata() else { continue };
            if facts.dev() != top.dev() {
                continue;
            }
            let again = facts.nlink() > 1 && !facts.is_dir() && !seen.insert(facts.ino());
            if seen.len() > MOST_LINKS {
                seen.clear();
            }
            if !again {
                bytes += facts.blocks() * BLOCK;
                inodes += 1;
            }
            if facts.is_dir() && waiting.len() < MOST_WAITING {
                waiting.push(entry.path());
            }
        }
        if inodes > MOST_ENTRIES {
            break;
        }
    }
    Ok((bytes, inodes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_links_once_and_follows_nothing() {
        let room = tempfile::tempdir().unwrap();
        let upper = room.path().join("upper");
        fs::create_dir_all(upper.join("a/b")).unwrap();
        fs::write(upper.join("a/file"), vec![1; 100_000]).unwrap();
        fs::hard_link(upper.join("a/file"), upper.join("link")).unwrap();
        std::os::unix::fs::symlink("/", upper.join("away")).unwrap();
        let (bytes, inodes) = of(&upper).unwrap();
        assert_eq!(inodes, 5, "upper, a, b, file, away");
        assert!((100_000..300_000).contains(&bytes), "{bytes}");
        assert!(of(&room.path().join("none")).is_err());
    }
}
