//! Every path of the store:
//!
//! ```text
//! <root>/
//!   index.json            images and their names; written last, by temp + sync + rename
//!   blobs/<hex>           manifests, indexes and configs, by sha256
//!   layers/<24 hex>/      an unpacked layer, by diff-id; an overlay lower folder
//!   facts/<24 hex>.json   full diff-id and size of that layer
//!   leases/<owner>.json   layers in use
//!   ingest/<name>         half-made layers and files; those of earlier runs are swept in the background
//!   trash/<name>          taken out of sight, being deleted in the background, those of earlier runs too
//! ```
//! Layer folders have short names so that many fit the page of mount options that older kernels take. 96 bits
//! cannot collide by accident, and the full diff-id in `facts` is compared before a layer is used again.

use crate::error::{Error, Result};
use crate::reference::Digest;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use sys::tree::Trash;

#[derive(Debug)]
pub(crate) struct Layout {
    root: PathBuf,
    trash: Trash,
}

impl Layout {
    /// Makes the folders that are missing.
    pub(crate) fn make(root: &Path) -> Result<Self> {
        for name in ["blobs", "layers", "facts", "leases", "ingest", "trash"] {
            let path = root.join(name);
            fs::create_dir_all(&path).map_err(Error::storage("create", &path))?;
        }
        // Layers hold setuid programs: no one but root walks in.
        let have = fs::metadata(root).map_err(Error::storage("stat", root))?.permissions().mode();
        if have & 0o7777 != 0o700 {
            let private = fs::Permissions::from_mode(0o700);
            fs::set_permissions(root, private).map_err(Error::storage("chmod", root))?;
        }
        let trash = Trash::new(root.join("trash"), |error| {
            tracing::warn!(%error, "left in the trash, tried again later and at the next start");
        });
        trash.leftovers(root.join("ingest"));
        Ok(Self { root: root.to_owned(), trash })
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn index(&self) -> PathBuf {
        self.root.join("index.json")
    }

    pub(crate) fn blobs(&self) -> PathBuf {
        self.root.join("blobs")
    }

    pub(crate) fn blob(&self, digest: &Digest) -> PathBuf {
        self.blobs().join(digest.hex())
    }

    pub(crate) fn layers(&self) -> PathBuf {
        self.root.join("layers")
    }

    pub(crate) fn layer(&self, diff_id: &Digest) -> PathBuf {
        self.layers().join(layer_name(diff_id))
    }

    pub(crate) fn facts(&self) -> PathBuf {
        self.root.join("facts")
    }

    pub(crate) fn fact(&self, diff_id: &Digest) -> PathBuf {
        self.facts().join(format!("{}.json", layer_name(diff_id)))
    }

    pub(crate) fn leases(&self) -> PathBuf {
        self.root.join("leases")
    }

    pub(crate) fn lease(&self, owner: &str) -> PathBuf {
        self.leases().join(format!("{owner}.json"))
    }

    /// A name that nothing has or had.
    pub(crate) fn ingest(&self) -> PathBuf {
        self.root.join("ingest").join(self.trash.unique_name())
    }

    /// Deletes in the background.
    pub(crate) fn trash(&self) -> &Trash {
        &self.trash
    }
}

/// The folder name of a layer.
pub(crate) fn layer_name(diff_id: &Digest) -> String {
    let mut hex = diff_id.hex();
    hex.truncate(24);
    hex
}
