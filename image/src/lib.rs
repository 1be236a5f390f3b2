//! Images: from a name through a registry to layers that overlayfs can stack. Knows no CRI and no pods.
//!
//! A pull streams: each layer is downloaded, hashed, inflated, hashed again and unpacked in one pass, several
//! layers at once. Nothing becomes visible before it is verified and durable, and the name is written last, so
//! a crash leaves only garbage that the next start sweeps. Everything a registry serves is treated as hostile.

mod error;
mod lane;
mod manifest;
mod pull;
mod record;
mod reference;
mod registry;
mod snapshot;
mod store;
mod transfers;
mod unpack;

pub use error::Error;
pub use record::{ImageConfig, ImageRecord, Lease, Usage};
pub use reference::{Digest, Reference, Selector};

use lane::blocking;
use pull::Puller;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use store::Store;

/// Where the store lives and what it refuses. Start from [`Options::new`].
#[derive(Debug, Clone)]
pub struct Options {
    /// The store's own folder, made when absent; on a file system with extended attributes.
    pub root: PathBuf,
    /// containerd-style registry configuration: `<certs_dir>/<host>/hosts.toml`. Read at every pull.
    pub certs_dir: PathBuf,
    /// Most layers in an image. overlayfs takes 500; registries and builders stop at 127.
    pub max_layers: usize,
    /// Most bytes a single layer may unpack to.
    pub max_layer_bytes: u64,
    /// Most entries in a single layer.
    pub max_layer_entries: u64,
    /// Layers of one pull that are transferred and unpacked at once. All pulls from one registry have twice, all
    /// pulls together four times as many.
    pub parallel_layers: usize,
    /// Sent to registries.
    pub user_agent: String,
    /// References that report themselves as pinned.
    pub pinned: Vec<String>,
    /// For a connection to be made, TLS included.
    pub connect_timeout: Duration,
    /// For response headers, and for the next bytes of a body. Half of it is what a layer that brings next to
    /// nothing is waited for while another one waits for its place. A transfer that moves is never cut.
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

/// Credentials as CRI's AuthConfig carries them; empty fields are absent. Cannot be printed.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Auth {
    /// User for basic authentication.
    pub username: String,
    /// Password for basic authentication.
    pub password: String,
    /// base64 of `user:password`, used when there is no user name.
    pub auth: String,
    /// The only registry these may be sent to; empty means the reference's own.
    pub server_address: String,
    /// OAuth2 refresh token.
    pub identity_token: String,
    /// Bearer token sent as it is.
    pub registry_token: String,
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Auth").field("server_address", &self.server_address).finish_non_exhaustive()
    }
}

/// The image store. Clones share one store.
#[derive(Debug, Clone)]
pub struct ImageStore {
    store: Arc<Store>,
    puller: Arc<Puller>,
}

impl ImageStore {
    /// Opens the store, making its folders, sweeping what a crash left and deleting unreachable layers.
    /// Blocks: call it before the runtime starts or on a blocking thread.
    pub fn open(options: Options) -> Result<Self, Error> {
        let store = Arc::new(Store::open(&options.root, &options.pinned)?);
        let puller = Arc::new(Puller::new(Arc::new(options), store.clone()));
        Ok(Self { store, puller })
    }

    /// The threads that short work of the stores is done on.
    pub fn lane() -> &'static pool::Lane {
        lane::store()
    }

    /// Pulls an image, or joins an equal pull under way. Dropping the last caller's future cancels the transfer
    /// and leaves nothing.
    pub async fn pull(&self, reference: &str, auth: Option<Auth>) -> Result<Arc<ImageRecord>, Error> {
        self.store.changeable()?;
        self.puller.pull(Reference::parse(reference)?, auth).await
    }

    /// The next pulls look for registry configuration in `certs_dir` ([`Options::certs_dir`]).
    pub fn set_certs_dir(&self, certs_dir: PathBuf) {
        self.puller.set_certs_dir(certs_dir);
    }

    /// All images. Never waits for anything.
    pub fn list(&self) -> Vec<Arc<ImageRecord>> {
        self.store.published().images.clone()
    }

    /// Finds an image by id, id prefix, tag, digest or short name. Never waits for anything.
    pub fn resolve(&self, name: &str) -> Option<Arc<ImageRecord>> {
        self.store.published().find(name).cloned()
    }

    /// Removes the image that `name` leads to, with all its names, as CRI has it; returns when its space is
    /// free. Unknown names are fine. Leased layers stay until released.
    pub async fn remove(&self, name: &str) -> Result<(), Error> {
        let (store, name) = (self.store.clone(), name.to_owned());
        blocking(move || store.remove(&name)).await
    }

    /// Keeps the image's layers for `owner` until `release`. Asking again gives the same lease, also after the
    /// image was removed; an owner has one lease, asking for another image moves it.
    pub async fn lease_for(&self, image_id: &str, owner: &str) -> Result<Lease, Error> {
        let (store, image, owner) = (self.store.clone(), image_id.to_owned(), owner.to_owned());
        blocking(move || store.lease(&image, &owner)).await
    }

    /// Gives `owner`'s lease back. Fine when there is none.
    pub async fn release(&self, owner: &str) -> Result<(), Error> {
        let (store, owner) = (self.store.clone(), owner.to_owned());
        blocking(move || store.release(&owner)).await
    }

    /// Owners that hold a lease, for releasing those that no longer exist.
    pub fn leases(&self) -> Vec<String> {
        self.store.owners()
    }

    /// What the store takes on disk. Counted as layers come and go, never by walking.
    pub async fn usage(&self) -> Usage {
        self.store.usage()
    }

    /// A folder on the file system of the images that exists as long as the store.
    pub fn mountpoint(&self) -> PathBuf {
        self.store.root().to_owned()
    }
}
