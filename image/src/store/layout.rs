//! Every path of the store:
//!
//! ```text
//! <root>/
//!   index.json            images and their names; written last, by temp + sync + rename
//!   blobs/<hex>           manifests, indexes and configs, by sha256
//!   layers/<24 hex>/      an unpacked layer, by diff-id; an overlay lower folder
//!   facts/<24 hex>.json   full diff-id and size of that layer
//!   leases/<owner>.json   layers in use
//!   ingest/<name>         unfinished layers and files; those of earlier runs are deleted in the background
//!   trash/<name>          renamed to here to be deleted in the background; also holds those of earlier runs
//! ```
//! Layer folders have short names so that many fit into the page of mount options of older kernels. 96 bits
//! do not collide by accident, and the full diff-id in `facts` is compared before a layer is reused.

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
    /// Creates missing folders.
    pub(crate) fn make(root: &Path) -> Result<Self> {
        for name in ["blobs", "layers", "facts", "leases", "ingest", "trash"] {
            let path = root.join(name);
            fs::create_dir_all(&path).map_err(Error::storage("create", &path))?;
        }
        // Layers hold setuid programs: only root may enter.
        let have = fs::metadata(root).map_err(Error::storage("stat", root))?.permissions().mode();
        if have & 0o7777 != 0o700 {
            let private = fs::Permissions::from_mode(0o700);
            fs::set_permissions(root, private).map_err(Error::storage("chmod", root))?;
        }
        let trash = Trash::new(root.join("trash"), |error| {
            tracing::warn!(%error, "cannot delete a folder in the trash; it is retried later and at the next start");
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

    /// A new, unused path.
    pub(crate) fn ingest(&self) -> PathBuf {
        self.root.join("ingest").join(self.trash.unique_name())
    }

    /// The folder whose content is deleted in the background.
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
