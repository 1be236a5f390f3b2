//! Leases: which owner uses which layers. A lease outlives the image's names and the daemon.

use super::blobs::{self, Durable};
use super::layout::{Layout, layer_name};
use super::{Catalog, Store, distinct, lock};
use crate::error::{Error, Result};
use crate::record::Lease;
use crate::reference::Digest;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::io;

const MAX_LEASE: u64 = 1 << 20;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stored {
    /// The image's id.
    pub(crate) image: String,
    /// Diff-ids, lowest first.
    pub(crate) layers: Vec<String>,
}

pub(crate) type Leases = BTreeMap<String, Stored>;

impl Store {
    /// Takes a lease, or returns the one that the owner holds on this image.
    pub(crate) fn lease(&self, image: &str, owner: &str) -> Result<Lease> {
        check(owner)?;
        let (stored, before) = {
            let mut catalog = lock(&self.catalog);
            if let Some(held) = catalog.leases.get(owner).filter(|held| held.image == image) {
                return Ok(self.as_lease(owner, held));
            }
            let stored = self.leasable(&catalog, image)?;
            let before = catalog.leases.insert(owner.to_owned(), stored.clone());
            (stored, before)
        };
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

    /// The image's layers, which must all be present; or another owner's lease on an image that was removed
    /// since.
    fn leasable(&self, catalog: &Catalog, image: &str) -> Result<Stored> {
        let absent = || Error::NotFound { reference: image.to_owned(), detail: String::new() };
        let published = self.published();
        if let Some(record) = published.find(image).filter(|record| record.id == image) {
            let layers = record.layers.iter().rev();
            let full: Option<Vec<_>> =
                layers.map(|name| catalog.layers.get(name).map(|facts| facts.diff_id.clone())).collect();
            return Ok(Stored { image: image.to_owned(), layers: full.ok_or_else(absent)? });
        }
        catalog.leases.values().find(|held| held.image == image).cloned().ok_or_else(absent)
    }

    fn as_lease(&self, owner: &str, stored: &Stored) -> Lease {
        let layers = distinct(stored.layers.iter().filter_map(|layer| Digest::parse(layer)));
        Lease {
            owner: owner.to_owned(),
            image_id: stored.image.clone(),
            layers: layers.iter().rev().map(layer_name).collect(),
            layers_dir: self.layout.layers(),
        }
    }

    /// Releases a lease. The layers of a removed image are deleted with its last lease. If the disk keeps the lease's
    /// file, that is logged and no error: the next start finds the owner gone and releases it again.
    pub(crate) fn release(&self, owner: &str) -> Result<()> {
        check(owner)?;
        let published = self.published();
        let needed = |image: &str| published.find(image).is_some_and(|record| record.id == image);
        let held = lock(&self.catalog).leases.remove(owner);
        let released = remove(&self.layout, owner).and_then(|()| match held {
            Some(held) if !needed(&held.image) => self.collect(),
            _ => Ok(()),
        });
        match released {
            Err(error @ Error::Storage { .. }) => {
                tracing::warn!(owner, %error, "image lease given back, its file or layers stay until the next start");
                Ok(())
            }
            released => released,
        }
    }

    pub(crate) fn owners(&self) -> Vec<String> {
        lock(&self.catalog).leases.keys().cloned().collect()
    }
}

/// Checks an owner's name, which becomes a file name.
fn check(owner: &str) -> Result<()> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    if owner.is_empty() || owner.len() > 200 || !owner.bytes().all(plain) {
        return Err(Error::unsupported(format!("lease owner {owner:?}"), "not 1 to 200 of [A-Za-z0-9_-]"));
    }
    Ok(())
}

/// Not synced: nothing that a lease protects runs after a power loss.
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

/// All leases, and whether the list is complete. A torn lease, left by a power loss, is deleted: its
/// container ended with the machine. A lease that cannot be read protects layers that are not known then.
pub(crate) fn read_all(layout: &Layout) -> Result<(Leases, bool)> {
    let folder = layout.leases();
    let (mut leases, mut complete) = (Leases::new(), true);
    for file in fs::read_dir(&folder).map_err(Error::storage("list", &folder))? {
        let path = file.map_err(Error::storage("list", &folder))?.path();
        let owner = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        let bytes = match blobs::read(&path, MAX_LEASE) {
            Ok(bytes) => bytes,
            Err(error) => {
                tracing::error!(?path, %error, "cannot read an image lease: no layer is deleted until a restart can read it");
                complete = false;
                continue;
            }
        };
        match bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()) {
            Some(lease) if check(&owner).is_ok() => {
                leases.insert(owner, lease);
            }
            _ => {
                tracing::warn!(?path, "deleted a torn lease");
                if let Err(error) = fs::remove_file(&path) {
                    tracing::warn!(?path, %error, "cannot delete a torn lease");
                }
            }
        }
    }
    Ok((leases, complete))
}
