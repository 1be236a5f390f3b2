//! What is in a folder, for comparison.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

/// Entries by their path from the root; without the root itself, whose attributes no container shows.
pub type Tree = BTreeMap<String, Entry>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    File(Vec<u8>),
    Folder,
    Symlink(String),
    Fifo,
    /// Major and minor number.
    Character(u32, u32),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub kind: Kind,
    pub mode: u32,
    pub owner: (u32, u32),
    /// Seconds and nanoseconds; `None` if nothing decides on it.
    pub mtime: Option<(i64, i64)>,
    pub xattrs: BTreeMap<String, Vec<u8>>,
    /// Which entries are hard links of one file have the same number.
    pub inode: u64,
}

/// Reads a folder with all that is below it.
pub fn read(root: &Path) -> Tree {
    let mut tree = Tree::new();
    let mut todo = vec![String::new()];
    while let Some(folder) = todo.pop() {
        for entry in fs::read_dir(root.join(&folder)).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            let meta = fs::symlink_metadata(&path).unwrap();
            let kind = match meta.file_type() {
                kind if kind.is_dir() => {
                    todo.push(name.clone());
                    Kind::Folder
                }
                kind if kind.is_symlink() => {
                    Kind::Symlink(fs::read_link(&path).unwrap().to_str().unwrap().to_owned())
                }
                kind if kind.is_fifo() => Kind::Fifo,
                kind if kind.is_char_device() => {
                    Kind::Character(rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()))
                }
                _ => Kind::File(fs::read(&path).unwrap()),
            };
            // A symlink has no mode of its own.
            let mode = if matches!(kind, Kind::Symlink(_)) { 0o777 } else { meta.mode() & 0o7777 };
            let owner = (meta.uid(), meta.gid());
            let mtime = Some((meta.mtime(), meta.mtime_nsec()));
            tree.insert(name, Entry { kind, mode, owner, mtime, xattrs: xattrs(&path), inode: meta.ino() });
        }
    }
    tree
}

/// The extended attributes that an image can set.
fn xattrs(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut names = vec![0; 4096];
    let length = rustix::fs::llistxattr(path, &mut names).unwrap_or(0);
    let names =
        names[..length].split(|byte| *byte == 0).map(|name| String::from_utf8_lossy(name).into_owned());
    let of_images = names.filter(|name| name.starts_with("user.") || name == "security.capability");
    of_images
        .map(|name| {
            let mut value = vec![0; 4096];
            let length = rustix::fs::lgetxattr(path, &*name, &mut value).unwrap();
            value.truncate(length);
            (name, value)
        })
        .collect()
}

/// For each entry the first path of the same file.
fn links(tree: &Tree) -> BTreeMap<&str, &str> {
    let mut first: HashMap<u64, &str> = HashMap::new();
    let files = tree.iter().filter(|(_, entry)| entry.kind != Kind::Folder);
    files.map(|(path, entry)| (path.as_str(), *first.entry(entry.inode).or_insert(path))).collect()
}

/// Asserts that two trees have the same entries.
pub fn assert_same(what: &str, found: &Tree, wanted: &Tree) {
    let mut differences = Vec::new();
    for (path, wanted) in wanted {
        let Some(found) = found.get(path) else {
            differences.push(format!("{path}: missing"));
            continue;
        };
        let mut found = found.clone();
        found.inode = wanted.inode;
        if wanted.mtime.is_none() {
            found.mtime = None;
        }
        if found != *wanted {
            differences.push(format!("{path}: {found:?}, not {wanted:?}"));
        }
    }
    differences.extend(
        found.keys().filter(|path| !wanted.contains_key(*path)).map(|path| format!("{path}: too much")),
    );
    let (have, want) = (links(found), links(wanted));
    for (path, first) in &want {
        if have.get(path).is_some_and(|found| found != first) {
            differences.push(format!("{path}: a link of {}, not of {first}", have[path]));
        }
    }
    assert!(differences.is_empty(), "{what}:\n{}", differences.join("\n"));
}
