//! Attributes of folders that must wait until everything inside the folders is written.

use std::collections::HashMap;

/// Mode and time of a folder.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deferred {
    pub(super) mode: u32,
    pub(super) mtime: (i64, u32),
}

/// The folders that wait for attributes, and their parents, as a tree: each folder is stored once, so that memory grows
/// with the number of folders, and not with that of entries times their depth.
#[derive(Debug)]
pub(super) struct Folders {
    /// Indexes in `all`, by the parent's index and the folder's name on disk.
    indexes: HashMap<(usize, Box<[u8]>), usize>,
    /// The parent's index, and the attributes. The root is the first one, and its own parent.
    all: Vec<(usize, Option<Deferred>)>,
}

impl Folders {
    pub(super) const ROOT: usize = 0;

    pub(super) fn new() -> Self {
        Self { indexes: HashMap::new(), all: vec![(Self::ROOT, None)] }
    }

    /// The index of a folder. Adds it if it is new.
    pub(super) fn index(&mut self, parent: usize, name: &[u8]) -> usize {
        *self.indexes.entry((parent, name.into())).or_insert_with(|| {
            self.all.push((parent, None));
            self.all.len() - 1
        })
    }

    /// Keeps attributes for the end, instead of earlier ones of the same folder.
    pub(super) fn defer(&mut self, index: usize, attributes: Deferred) {
        if let Some((_, deferred)) = self.all.get_mut(index) {
            *deferred = Some(attributes);
        }
    }

    /// Calls `set` with the path and attributes of each folder that waits for attributes.
    pub(super) fn each<E>(self, mut set: impl FnMut(&[&[u8]], Deferred) -> Result<(), E>) -> Result<(), E> {
        let mut names: Vec<&[u8]> = vec![&[]; self.all.len()];
        for ((_, name), index) in &self.indexes {
            names[*index] = name;
        }
        let mut path = Vec::new();
        for (index, (_, deferred)) in self.all.iter().enumerate() {
            let Some(deferred) = deferred else { continue };
            path.clear();
            let mut at = index;
            while at != Self::ROOT {
                path.push(names[at]);
                at = self.all[at].0;
            }
            path.reverse();
            set(&path, *deferred)?;
        }
        Ok(())
    }
}
