//! Leases: which owner uses which layers. A lease stays when its image is removed and when the daemon ends.

use super::blobs::{self, Durable};
use super::layout::{Layout, layer_name};
use super::{Catalog, Store, lock, without_duplicates};
use crate::error::{Error, Result};
use crate::record::Lease;
use crate::reference::Digest;
use causes::with_causes;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::io;

/// Maximum size of a lease's file, in bytes.
const MAX_LEASE: u64 = 1 << 20;

/// A lease as stored; the file is named by its owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stored {
    /// The image's id.
    pub(crate) image: Digest,
    /// Diff ids, lowest first.
    pub(crate) layers: Vec<Digest>,
}

/// All leases, by owner.
pub(crate) type Leases = BTreeMap<String, Stored>;

impl Store {
    /// Takes a lease on the image with this id, or returns the one that the owner has. Replaces the owner's lease on
    /// another image.
    pub(crate) fn lease(&self, image: &str, owner: &str) -> Result<Lease> {
        check_owner(owner)?;
        let image = Digest::parse(image).ok_or_else(|| absent(image))?;
        let (stored, before) = {
            let mut catalog = lock(&self.catalog);
            if let Some(stored) = catalog.leases.get(owner).filter(|stored| stored.image == image) {
                return Ok(self.as_lease(owner, stored));
            }
            let stored = self.new_lease(&catalog, &image)?;
            let before = catalog.leases.insert(owner.to_owned(), stored.clone());
            (stored, before)
        };
        // Written without the lock, which must not wait for the disk. The lease protects the layers already.
        if let Err(error) = write(&self.layout, owner, &stored) {
            let mut catalog = lock(&self.catalog);
            match before {
                Some(before) => catalog.leases.insert(owner.to_owned(), before),
                None => catalog.leases.remove(owner),
            };
            return Err(error);
        }
        Ok(self.as_lease(owner, &stored))
    }

    /// A lease on the layers of a listed image, or, if the image was removed, a copy of another owner's lease on it.
    fn new_lease(&self, catalog: &Catalog, image: &Digest) -> Result<Stored> {
        let absent = || absent(&image.to_string());
        if let Some(record) = self.published().by_id(image) {
            let layers = record.layers.iter().rev();
            let diff_ids: Option<Vec<_>> =
                layers.map(|name| catalog.layers.get(name).map(|facts| facts.diff_id)).collect();
            return Ok(Stored { image: *image, layers: diff_ids.ok_or_else(absent)? });
        }
        catalog.leases.values().find(|stored| stored.image == *image).cloned().ok_or_else(absent)
    }

    fn as_lease(&self, owner: &str, stored: &Stored) -> Lease {
        let layers = without_duplicates(stored.layers.iter().copied());
        Lease {
            owner: owner.to_owned(),
            image_id: stored.image.to_string(),
            layers: layers.iter().rev().map(layer_name).collect(),
            layers_dir: self.layout.layers(),
        }
    }

    /// Releases the leases of an owner and its parts. If an image of theirs was removed, the layers that nothing else
    /// needs are deleted. An error of the disk is only logged, because the owner is gone: the next start finds a lease
    /// without its owner and releases it again.
    pub(crate) fn release(&self, owner: &str) -> Result<()> {
        check_owner(owner)?;
        let (mut owners, mut images) = (vec![owner.to_owned()], Vec::new());
        {
            let mut catalog = lock(&self.catalog);
            let part = format!("{owner}_");
            let parts = catalog.leases.range(part.clone()..).map(|(name, _)| name);
            owners.extend(parts.take_while(|name| name.starts_with(&part)).cloned());
            images.extend(owners.iter().filter_map(|name| catalog.leases.remove(name)));
        }
        let removed = owners.iter().try_for_each(|name| remove(&self.layout, name));
        let is_gone = |stored: &Stored| self.published().by_id(&stored.image).is_none();
        let released =
            removed.and_then(|()| if images.iter().any(is_gone) { self.collect() } else { Ok(()) });
        match released {
            Err(error @ Error::Storage { .. }) => {
                tracing::warn!(
                    owner,
                    error = with_causes(&error),
                    "image lease released, but its file or layers could not be deleted: the next start tries again"
                );
                Ok(())
            }
            released => released,
        }
    }

    pub(crate) fn lease_owners(&self) -> Vec<String> {
        lock(&self.catalog).leases.keys().cloned().collect()
    }
}

fn absent(image: &str) -> Error {
    Error::NotFound { object: format!("image {image}"), detail: String::new() }
}

/// Checks an owner's name, which becomes a file name.
fn check_owner(owner: &str) -> Result<()> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    if owner.is_empty() || owner.len() > 200 || !owner.bytes().all(plain) {
        return Err(Error::unsupported(format!("lease owner {owner:?}"), "not 1 to 200 of [A-Za-z0-9_-]"));
    }
    Ok(())
}

/// Not durable: after a power loss no container runs that would need the lease.
fn write(layout: &Layout, owner: &str, lease: &Stored) -> Result<()> {
    let bytes = serde_json::to_vec(lease).map_err(|error| Error::corrupt("lease", error))?;
    blobs::write(layout, &layout.lease(owner), &bytes, Durable::No)
}

fn remove(layout: &Layout, owner: &str) -> Result<()> {
    let path = layout.lease(owner);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::storage("remove", &path)(error)),
        _ => Ok(()),
    }
}

/// All leases, and whether the list is complete. Leases are not synced, so a power loss may damage them. A damaged lease
/// is deleted, because its container did not survive the power loss either. If a lease cannot be read, the layers that it
/// protects are not known.
pub(crate) fn read_all(layout: &Layout) -> Result<(Leases, bool)> {
    let folder = layout.leases();
    let (mut leases, mut complete) = (Leases::new(), true);
    for file in fs::read_dir(&folder).map_err(Error::storage("list", &folder))? {
        let path = file.map_err(Error::storage("list", &folder))?.path();
        let owner = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        let bytes = match blobs::read(&path, MAX_LEASE) {
            Ok(bytes) => bytes,
            Err(error) => {
                tracing::error!(
                    ?path,
                    error = with_causes(&error),
                    "cannot read an image lease: no layer is deleted until a restart can read it"
                );
                complete = false;
                continue;
            }
        };
        match bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()) {
            Some(lease) if check_owner(&owner).is_ok() => {
                leases.insert(owner, lease);
            }
            _ => {
                tracing::warn!(?path, "image lease is damaged, as after a power loss: it is deleted");
                if let Err(error) = fs::remove_file(&path) {
                    tracing::warn!(?path, %error, "cannot delete a damaged image lease");
                }
            }
        }
    }
    Ok((leases, complete))
}
