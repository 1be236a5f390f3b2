//! Attributes of folders, set once everything inside them is written.

use std::collections::HashMap;

/// Attributes that are set once everything inside the folder is written.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deferred {
    pub(super) mode: u32,
    pub(super) mtime: (i64, u32),
}

/// The folders that wait for attributes, and their parents, each stored once however often the archive names
/// it: memory grows with the folders on disk, not with entries times depth.
#[derive(Debug)]
pub(super) struct Folders {
    /// Index by parent's index and folder name. No part of a path was a symlink.
    places: HashMap<(usize, Box<[u8]>), usize>,
    /// Parent's index and attributes. The root comes first and is its own parent.
    all: Vec<(usize, Option<Deferred>)>,
}

impl Folders {
    pub(super) const ROOT: usize = 0;

    pub(super) fn new() -> Self {
        Self { places: HashMap::new(), all: vec![(Self::ROOT, None)] }
    }

    /// The index of a folder.
    pub(super) fn place(&mut self, parent: usize, name: &[u8]) -> usize {
        *self.places.entry((parent, name.into())).or_insert_with(|| {
            self.all.push((parent, None));
            self.all.len() - 1
        })
    }

    pub(super) fn defer(&mut self, place: usize, attributes: Deferred) {
        if let Some((_, deferred)) = self.all.get_mut(place) {
            *deferred = Some(attributes);
        }
    }

    /// Calls `set` with the path and attributes of each folder that has some.
    pub(super) fn each<E>(self, mut set: impl FnMut(&[&[u8]], Deferred) -> Result<(), E>) -> Result<(), E> {
        let mut names: Vec<&[u8]> = vec![&[]; self.all.len()];
        for ((_, name), place) in &self.places {
            names[*place] = name;
        }
        let mut path = Vec::new();
        for (place, (_, deferred)) in self.all.iter().enumerate() {
            let Some(deferred) = deferred else { continue };
            path.clear();
            let mut at = place;
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
