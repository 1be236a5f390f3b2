//! What an image should contain: entries of archives, applied to a tree by the rules of OCI's layer.md and overlayfs.

use super::tree::{Entry, Kind, Tree};
use std::collections::{BTreeMap, BTreeSet};

/// One entry of an archive, as the builder writes it.
#[derive(Debug, Clone)]
pub struct Item {
    /// As in the archive, with slashes at its beginning and end.
    pub name: String,
    pub what: What,
    pub mode: u32,
    pub owner: (u32, u32),
    pub mtime: (i64, i64),
    pub xattrs: Vec<(&'static str, &'static [u8])>,
}

#[derive(Debug, Clone)]
pub enum What {
    Is(Kind),
    /// A hard link to another entry, by its name.
    Link(String),
}

pub fn file(name: &str, content: &str) -> Item {
    Item::new(name, What::Is(Kind::File(content.as_bytes().to_vec())), 0o644)
}

pub fn folder(name: &str) -> Item {
    Item::new(name, What::Is(Kind::Folder), 0o755)
}

pub fn symlink(name: &str, target: &str) -> Item {
    Item::new(name, What::Is(Kind::Symlink(target.to_owned())), 0o777)
}

pub fn link(name: &str, target: &str) -> Item {
    Item::new(name, What::Link(target.to_owned()), 0o644)
}

/// An empty file, as those that mean a whiteout.
pub fn empty(name: &str) -> Item {
    file(name, "").mode(0)
}

impl Item {
    pub fn new(name: &str, what: What, mode: u32) -> Self {
        Self { name: name.to_owned(), what, mode, owner: (0, 0), mtime: (0, 0), xattrs: Vec::new() }
    }
    pub fn mode(self, mode: u32) -> Self {
        Self { mode, ..self }
    }
    pub fn owner(self, uid: u32, gid: u32) -> Self {
        Self { owner: (uid, gid), ..self }
    }
    pub fn at(self, seconds: i64, nanoseconds: i64) -> Self {
        Self { mtime: (seconds, nanoseconds), ..self }
    }
    pub fn xattr(mut self, name: &'static str, value: &'static [u8]) -> Self {
        self.xattrs.push((name, value));
        self
    }
}

/// Sets the time of all entries.
pub fn all_at(seconds: i64, items: Vec<Item>) -> Vec<Item> {
    items.into_iter().map(|item| item.at(seconds, 0)).collect()
}

/// The tree that layers (lowest first) make up.
pub fn apply(layers: &[&[Item]]) -> Tree {
    let mut model = Model { tree: Tree::new(), own: BTreeSet::new(), inodes: 0 };
    for layer in layers {
        model.own.clear();
        for item in *layer {
            model.item(item);
        }
    }
    model.tree
}

struct Model {
    tree: Tree,
    /// What the current layer has created.
    own: BTreeSet<String>,
    inodes: u64,
}

fn clean(name: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            _ => parts.push(part),
        }
    }
    parts
}

fn is_below(path: &str, folder: &str) -> bool {
    path.strip_prefix(folder).is_some_and(|rest| folder.is_empty() || rest.starts_with('/'))
}

impl Model {
    fn item(&mut self, item: &Item) {
        let parts = clean(&item.name);
        let Some((name, parents)) = parts.split_last() else { return };
        let folder = parents.iter().fold(String::new(), |at, part| self.parent(&at, part));
        let path = if folder.is_empty() { (*name).to_owned() } else { format!("{folder}/{name}") };
        if *name == ".wh..wh..opq" {
            self.hide(|path| is_below(path, &folder));
        } else if let Some(hidden) = name.strip_prefix(".wh.") {
            let hidden = path.replace(&format!(".wh.{hidden}"), hidden);
            self.hide(|path| path == hidden || is_below(path, &hidden));
        } else {
            self.put(path, item);
        }
    }

    /// The path of a parent, which is created if it is missing. Its time changes with its content.
    fn parent(&mut self, at: &str, part: &str) -> String {
        let path = if at.is_empty() { part.to_owned() } else { format!("{at}/{part}") };
        let kind = self.tree.get(&path).map(|entry| entry.kind.clone());
        match kind {
            Some(Kind::Symlink(target)) => {
                let from = if target.starts_with('/') { "" } else { at };
                clean(&format!("{from}/{target}"))
                    .iter()
                    .fold(String::new(), |at, part| self.parent(&at, part))
            }
            Some(Kind::Folder) => {
                if self.own.insert(path.clone()) {
                    self.tree.entry(path.clone()).and_modify(|entry| entry.mtime = None);
                }
                path
            }
            _ => {
                let implicit = Item::new(&path, What::Is(Kind::Folder), 0o755);
                self.put(path.clone(), &implicit);
                self.tree.entry(path.clone()).and_modify(|entry| entry.mtime = None);
                path
            }
        }
    }

    /// Removes what lower layers have.
    fn hide(&mut self, is_hidden: impl Fn(&str) -> bool) {
        let own = &self.own;
        self.tree.retain(|path, _| own.contains(path) || !is_hidden(path));
    }

    fn put(&mut self, path: String, item: &Item) {
        let merged = matches!(item.what, What::Is(Kind::Folder))
            && self.tree.get(&path).is_some_and(|entry| entry.kind == Kind::Folder);
        let linked = match &item.what {
            What::Link(target) => Some(self.tree[&clean(target).join("/")].clone()),
            What::Is(_) => None,
        };
        if !merged {
            self.tree.retain(|other, _| *other != path && !is_below(other, &path));
        }
        self.inodes += 1;
        let entry = linked.unwrap_or_else(|| Entry {
            kind: match &item.what {
                What::Is(kind) => kind.clone(),
                What::Link(_) => Kind::Folder,
            },
            mode: item.mode,
            owner: item.owner,
            mtime: Some(item.mtime),
            xattrs: item
                .xattrs
                .iter()
                .map(|(name, value)| ((*name).to_owned(), value.to_vec()))
                .collect::<BTreeMap<_, _>>(),
            inode: self.inodes,
        });
        self.own.insert(path.clone());
        self.tree.insert(path, entry);
    }
}
