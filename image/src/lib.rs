//! Images: from a name through a registry to layers that overlayfs can stack. Knows no CRI and no pods.
//!
//! A pull streams: each layer is downloaded, hashed, decompressed, hashed again and unpacked in one pass,
//! several layers at once. Nothing becomes visible before it is verified and durable, and the name is written
//! last, so a crash leaves only garbage, which the next start deletes. All content from registries is treated
//! as hostile.

mod error;
mod lane;
mod manifest;
mod pull;
mod record;
mod reference;
mod registry;
mod store;
mod transfers;
mod unpack;

pub use error::Error;
pub use record::{ImageConfig, ImageRecord, Lease, Usage};
use reference::Reference;

use lane::blocking;
use pull::Puller;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use store::Store;

/// Where the store lives, and its limits. Start from [`Options::new`].
#[derive(Debug, Clone)]
pub struct Options {
    /// The store's own folder, created if missing. Its file system must support extended attributes.
    pub root: PathBuf,
    /// containerd-style registry configuration: `<certs_dir>/<host>/hosts.toml`. Read at every pull.
    pub certs_dir: PathBuf,
    /// Most layers in an image. overlayfs supports 500; registries and builders allow 127.
    pub max_layers: usize,
    /// Most bytes a single layer may unpack to.
    pub max_layer_bytes: u64,
    /// Most entries in a single layer.
    pub max_layer_entries: u64,
    /// Layers of one pull that are transferred and unpacked at once. All pulls from one registry together may
    /// have twice as many, all pulls on the node four times as many.
    pub parallel_layers: usize,
    /// User-Agent header of requests to registries.
    pub user_agent: String,
    /// References of images that are reported as pinned.
    pub pinned: Vec<String>,
    /// Time limit for making a connection, TLS included.
    pub connect_timeout: Duration,
    /// Time limit for response headers and for the next bytes of a body. A transfer that makes no progress
    /// for half of this time is cancelled if another one waits for its place. A transfer that makes progress
    /// is never cancelled.
    pub idle_timeout: Duration,
}

impl Options {
    /// The defaults for a store below `root`.
    pub fn new(root: impl Into<PathBuf>, certs_dir: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            certs_dir: certs_dir.into(),
            max_layers: 128,
            max_layer_bytes: 64 << 30,
            max_layer_entries: 4_000_000,
            parallel_layers: 3,
            user_agent: concat!("copepod/", env!("CARGO_PKG_VERSION")).to_owned(),
            pinned: Vec::new(),
            connect_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(60),
        }
    }
}

/// Credentials as in CRI's AuthConfig; an empty field is absent. Debug output hides them.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Auth {
    /// User for basic authentication.
    pub username: String,
    /// Password for basic authentication.
    pub password: String,
    /// base64 of `user:password`, used if there is no user name.
    pub auth: String,
    /// The only registry that may receive these credentials; empty means the registry of the reference.
    pub server_address: String,
    /// OAuth2 refresh token.
    pub identity_token: String,
    /// Bearer token, sent unchanged.
    pub registry_token: String,
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Auth").field("server_address", &self.server_address).finish_non_exhaustive()
    }
}

/// The image store. Clones share the same store.
#[derive(Debug, Clone)]
pub struct ImageStore {
    store: Arc<Store>,
    puller: Arc<Puller>,
}

impl ImageStore {
    /// Opens the store: creates its folders, deletes what a crash left and deletes unreachable layers.
    /// Blocks: call it before the runtime starts or on a blocking thread.
    pub fn open(options: Options) -> Result<Self, Error> {
        let store = Arc::new(Store::open(&options.root, &options.pinned)?);
        let puller = Arc::new(Puller::new(Arc::new(options), store.clone()));
        Ok(Self { store, puller })
    }

    /// The threads for the store's short blocking work.
    pub fn lane() -> &'static pool::Lane {
        lane::store()
    }

    /// Pulls an image, or joins an equal pull that is running. When the last caller drops its future, the
    /// transfer is cancelled and undone.
    pub async fn pull(&self, reference: &str, auth: Option<Auth>) -> Result<Arc<ImageRecord>, Error> {
        self.store.ensure_writable()?;
        self.puller.pull(Reference::parse(reference)?, auth).await
    }

    /// Changes [`Options::certs_dir`] for pulls that start from now on.
    pub fn set_certs_dir(&self, certs_dir: PathBuf) {
        self.puller.set_certs_dir(certs_dir);
    }

    /// All images. Does not block.
    pub fn list(&self) -> Vec<Arc<ImageRecord>> {
        self.store.published().images.clone()
    }

    /// Finds an image by id, id prefix, tag, digest or short name. Does not block.
    pub fn resolve(&self, name: &str) -> Option<Arc<ImageRecord>> {
        self.store.published().find(name).cloned()
    }

    /// Removes the image that `name` refers to, with all its names, as CRI requires, and returns when its
    /// space is free. An unknown name is not an error. Leased layers stay until they are released.
    pub async fn remove(&self, name: &str) -> Result<(), Error> {
        let (store, name) = (self.store.clone(), name.to_owned());
        blocking(move || store.remove(&name)).await
    }

    /// Keeps the image's layers for `owner` until `release`. A repeated call returns the same lease, even
    /// after the image was removed. An owner has one lease: a call for another image moves it.
    pub async fn lease_for(&self, image_id: &str, owner: &str) -> Result<Lease, Error> {
        let (store, image, owner) = (self.store.clone(), image_id.to_owned(), owner.to_owned());
        blocking(move || store.lease(&image, &owner)).await
    }

    /// Releases `owner`'s lease, if there is one.
    pub async fn release(&self, owner: &str) -> Result<(), Error> {
        let (store, owner) = (self.store.clone(), owner.to_owned());
        blocking(move || store.release(&owner)).await
    }

    /// All owners that hold a lease, so that the caller can release those of owners that no longer exist.
    pub fn leases(&self) -> Vec<String> {
        self.store.owners()
    }

    /// Disk usage of the store. Kept up to date as layers come and go; never counted by walking.
    pub async fn usage(&self) -> Usage {
        self.store.usage()
    }

    /// A folder on the images' file system that exists as long as the store does.
    pub fn mountpoint(&self) -> PathBuf {
        self.store.root().to_owned()
    }
}
