//! The paths of the store's files:
//!
//! ```text
//! <root>/
//!   index.json            images and their names; a pull writes it last
//!   blobs/<hex>           manifests, indexes and configs, by digest
//!   layers/<24 hex>/      an unpacked layer, by the first 24 digits of its diff id; an overlayfs lower folder
//!   facts/<24 hex>.json   full diff id and size of that layer
//!   leases/<owner>.json   image and layers that the owner uses
//!   pulls/<name>.json     layers of an unfinished pull, and how long they are kept
//!   ingest/<name>         unfinished layers and files; those of earlier runs are deleted in the background
//!   trash/<name>          what is being deleted in the background
//! ```
//! Layer folders have short names so that many fit into the page of mount options of older kernels. 96 bits
//! do not collide by accident, and the full diff id in `facts` is compared before a layer is used.

use crate::error::{Error, Result};
use crate::reference::Digest;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use sys::tree::Trash;

/// The store's folders.
#[derive(Debug)]
pub(crate) struct Layout {
    root: PathBuf,
    trash: Trash,
}

impl Layout {
    /// Creates missing folders.
    pub(crate) fn create(root: &Path) -> Result<Self> {
        for name in ["blobs", "layers", "facts", "leases", "pulls", "ingest", "trash"] {
            let path = root.join(name);
            fs::create_dir_all(&path).map_err(Error::storage("create", &path))?;
        }
        // Layers have setuid programs, which users of the node must not reach.
        let have = fs::metadata(root).map_err(Error::storage("stat", root))?.permissions().mode();
        if have & 0o7777 != 0o700 {
            let private = fs::Permissions::from_mode(0o700);
            fs::set_permissions(root, private).map_err(Error::storage("chmod", root))?;
        }
        let trash = Trash::resting(root.join("trash"), |error| {
            tracing::warn!(%error, "cannot delete from the trash of the image store: tried again later and at the next start");
        });
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

    pub(crate) fn facts_of(&self, diff_id: &Digest) -> PathBuf {
        self.facts().join(format!("{}.json", layer_name(diff_id)))
    }

    pub(crate) fn leases(&self) -> PathBuf {
        self.root.join("leases")
    }

    pub(crate) fn lease(&self, owner: &str) -> PathBuf {
        self.leases().join(format!("{owner}.json"))
    }

    pub(crate) fn pulls(&self) -> PathBuf {
        self.root.join("pulls")
    }

    pub(crate) fn pull(&self, name: &str) -> PathBuf {
        self.pulls().join(format!("{name}.json"))
    }

    /// A name that no file of this or an earlier process has.
    pub(crate) fn unique_name(&self) -> String {
        self.trash.unique_name()
    }

    /// Starts to delete what earlier runs left in `trash` and `ingest`.
    pub(crate) fn empty_trash(&self) {
        self.trash.leftovers(self.root.join("ingest"));
    }

    /// An unused path in `ingest`.
    pub(crate) fn new_ingest(&self) -> PathBuf {
        self.root.join("ingest").join(self.unique_name())
    }

    /// Deletes files and folders in the background.
    pub(crate) fn trash(&self) -> &Trash {
        &self.trash
    }
}

/// The folder name of a layer: the first 24 hex digits of its diff id.
pub(crate) fn layer_name(diff_id: &Digest) -> String {
    let mut hex = diff_id.hex();
    hex.truncate(24);
    hex
}
