//! What must hold for any archive when it is unpacked: for the fuzz target `unpack`. Needs root, as unpacking does.

use super::written::{Format, written};
use super::{read, with_right_checksums};
use crate::unpack::apply::Applier;
use crate::unpack::tar::Reader;
use crate::unpack::whiteout::IMPLICIT_XATTR;
use rustix::fs::{self, Mode, OFlags};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Maximum number of entries and of inodes, as a layer has one.
const MAX_ENTRIES: u64 = 200;

/// Any archive, with right checksums. Nothing outside of its folder changes, no name of a whiteout is left, and the same
/// entries in another format give the same files.
pub(crate) fn unpacked(data: &[u8]) {
    let bytes = with_right_checksums(data);
    let whole = read(&bytes, usize::MAX);
    let one = unpack(&bytes);
    if whole.error.is_some() {
        assert!(one.is_err(), "an archive that cannot be read is unpacked");
        return;
    }
    let two = unpack(&written(&whole.entries, Format::Pax));
    match (one, two) {
        (Ok(one), Ok(two)) => assert_eq!(one, two),
        (Err(one), Err(two)) => assert_eq!(one, two),
        (one, two) => panic!("{one:?} and {two:?}"),
    }
}

/// A folder that is removed.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("copepod-unpack-{}-{number}", std::process::id()));
        std::fs::create_dir(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        sys::tree::remove_path(&self.0).ok();
    }
}

/// What unpacking makes of an archive: each path with all that it is.
fn unpack(bytes: &[u8]) -> Result<BTreeMap<PathBuf, String>, String> {
    let outer = Folder::new();
    let (victim, layer) = (outer.0.join("victim"), outer.0.join("layer"));
    std::fs::write(&victim, "untouched").expect("a file");
    std::fs::create_dir(&layer).expect("a folder");
    let before = std::fs::symlink_metadata(&victim).expect("it was written");
    let root = fs::open(&layer, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let result = Applier::new(root.expect("a folder")).run(&mut Reader::new(bytes), MAX_ENTRIES);
    let after = std::fs::symlink_metadata(&victim).expect("it was not removed");
    let seen = |meta: &Metadata| {
        (meta.mode(), meta.uid(), meta.nlink(), meta.size(), meta.mtime_nsec(), meta.ctime_nsec())
    };
    assert_eq!(seen(&before), seen(&after), "something outside has changed");
    assert_eq!(std::fs::read_dir(&outer.0).expect("a folder").count(), 2, "something was created outside");
    let stats = result.map_err(|error| error.to_string())?;
    let mut found = BTreeMap::new();
    walk(&layer, &layer, &mut found).unwrap_or_else(|error| panic!("{error}"));
    assert!(found.len() as u64 <= stats.inodes + MAX_ENTRIES, "{stats:?}");
    Ok(found)
}

fn walk(root: &Path, path: &Path, found: &mut BTreeMap<PathBuf, String>) -> io::Result<()> {
    for entry in std::fs::read_dir(path)? {
        let path = entry?.path();
        let meta = std::fs::symlink_metadata(&path)?;
        let (name, kind) = (path.file_name().unwrap_or_default(), meta.file_type());
        // A folder may have such a name if it has no entry of its own, as with containerd.
        assert!(kind.is_dir() || !name.as_encoded_bytes().starts_with(b".wh."), "{} is left", path.display());
        let mut text =
            format!("{:o} {}:{} {} {:x}", meta.mode(), meta.uid(), meta.gid(), meta.nlink(), meta.rdev());
        let is_implicit = kind.is_dir() && fs::lgetxattr(&path, IMPLICIT_XATTR, &mut [0; 8]).is_ok();
        let is_whiteout = kind.is_char_device() && meta.rdev() == 0;
        // What has no entry of its own has the time at which it was unpacked.
        if !is_implicit && !is_whiteout {
            let _ = write!(text, " {}.{}", meta.mtime(), meta.mtime_nsec());
        }
        if kind.is_symlink() {
            let _ = write!(text, " {:?}", std::fs::read_link(&path)?);
        }
        if kind.is_file() {
            let _ = write!(text, " {}", meta.size());
        }
        if kind.is_file() && meta.size() < 1 << 16 {
            let _ = write!(text, " {}", std::fs::read(&path)?.escape_ascii());
        }
        found.insert(path.strip_prefix(root).unwrap_or(&path).to_owned(), text);
        if kind.is_dir() {
            walk(root, &path, found)?;
        }
    }
    Ok(())
}
