//! Leases: which owner uses which layers. A lease outlives the image's names and the daemon.

use super::blobs::{self, Durable};
use super::layout::Layout;
use crate::error::{Error, Result};
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

/// Checks an owner's name, which becomes a file name.
pub(crate) fn check(owner: &str) -> Result<()> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    if owner.is_empty() || owner.len() > 200 || !owner.bytes().all(plain) {
        return Err(Error::unsupported(format!("lease owner {owner:?}"), "not 1 to 200 of [A-Za-z0-9_-]"));
    }
    Ok(())
}

/// Not synced: nothing that a lease protects runs after a power loss.
pub(crate) fn write(layout: &Layout, owner: &str, lease: &Stored) -> Result<()> {
    let bytes = serde_json::to_vec(lease).map_err(|error| Error::corrupt("lease", error))?;
    blobs::write(layout, &layout.lease(owner), &bytes, Durable::No)
}

pub(crate) fn remove(layout: &Layout, owner: &str) -> Result<()> {
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
