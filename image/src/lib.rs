//! The image store: pulls images from registries and unpacks their layers into folders that overlayfs can stack. It
//! knows neither CRI nor pods.
//!
//! ```text
//! pull ──► reference            the image's name
//!      ──► source               manifests, config and layers: of a registry or a mirror of it (`registry`), or of an
//!                               archive that is imported (`archive`)
//!      ──► resolve, manifest    the image for this node, by way of indexes: its layers, its config
//!      ──► transfers, unpack    each layer in one pass: download, hash, decompress, hash, write files
//!      ──► store                makes layers durable and visible, then names the image
//! ```
//!
//! No image becomes visible before it is verified and durable, and the name is written last, so a crash leaves complete
//! layers, which a retry uses, and garbage, which [`ImageStore::upkeep`] deletes after the next start. All content from registries is treated as
//! hostile.

mod archive;
mod digest;
mod error;
mod export;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod import;
mod lane;
mod manifest;
mod pull;
mod record;
mod reference;
mod registry;
mod resolve;
mod source;
mod space;
mod spool;
mod store;
mod transfers;
mod unpack;

pub use error::Error;
pub use export::{Compression, Exported};
pub use import::{ImportPlace, ImportProgress, Imported};
pub use record::{ConfigDocument, ImageConfig, ImageRecord, Lease, Pruned, Usage};
use reference::Reference;
pub use registry::{InvalidProxy, Proxies};

use causes::with_causes;
use lane::{blocking, for_space};
use pull::Puller;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use store::Store;
use transfers::Transfers;

/// Maximum number of imports, and of exports, that run at once.
const MAX_LARGE_FILES: usize = 2;
/// An import or export whose other end sends or takes less than 64 KiB in this time is cancelled: `docker save` may be there,
/// which begins when it has read the whole image.
const STALL_LIMIT: Duration = Duration::from_secs(300);
/// The same if another import or export waits for its place.
const CROWDED_LIMIT: Duration = Duration::from_secs(120);

/// How often [`ImageStore::upkeep`] looks whether layers of failed pulls must go, while there are any.
const UPKEEP_PAUSE: Duration = Duration::from_secs(60);

/// Where the store lives, and its limits. Start from [`Options::new`].
#[derive(Debug, Clone)]
pub struct Options {
    /// The store's own folder, created if missing. Its file system must support extended attributes.
    pub root: PathBuf,
    /// containerd-style registry configuration: `<certs_dir>/<host>/hosts.toml`. Read at every pull.
    pub certs_dir: PathBuf,
    /// The node's own credentials: docker's `config.json`, or `auth.json` of Podman and CRI-O. May be missing. Read at
    /// every pull; `None` reads no file.
    pub credentials_file: Option<PathBuf>,
    /// The proxies between this node and registries.
    pub proxies: Arc<Proxies>,
    /// Maximum number of layers of one pull that are transferred and unpacked at once. All pulls from one registry
    /// together may have twice as many, all pulls on the node four times as many. At most 16: `lane` and `unpack::frames` have
    /// threads and places for that many.
    pub parallel_layers: usize,
    /// Which images are reported as pinned ([`ImageRecord::pinned`]): names as users write them, or patterns of whole
    /// names with a registry, in which `*` is any number of characters and `?` is one.
    pub pinned: Vec<String>,
    /// Time limit for the TCP connection to a host. Name resolution and the TLS handshake count towards
    /// `idle_timeout`.
    pub connect_timeout: Duration,
    /// Time limit for response headers, and for the next bytes of a body. A layer's transfer that receives less than
    /// 64 KiB in half of this time is cancelled if another one waits for its place.
    pub idle_timeout: Duration,
    /// A layer's transfer that receives less than 64 KiB in this time is cancelled, and so is that of a document that is
    /// not complete after it.
    pub progress_timeout: Duration,
    /// Id of this boot (`/proc/sys/kernel/random/boot_id`). After a restart of the daemon in the same boot, layers of
    /// pulls that did not end are used again. Empty: they are not.
    pub boot_id: String,
}

impl Options {
    /// The defaults for a store below `root`.
    pub fn new(root: impl Into<PathBuf>, certs_dir: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            certs_dir: certs_dir.into(),
            credentials_file: None,
            proxies: Arc::default(),
            parallel_layers: 3,
            pinned: Vec::new(),
            connect_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(60),
            progress_timeout: Duration::from_secs(300),
            boot_id: String::new(),
        }
    }
}

/// Credentials as in CRI's AuthConfig; an empty field counts as absent. Debug output hides them.
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
    /// Places of imports and of exports, each of which has a large file.
    imports: Arc<Transfers>,
    exports: Arc<Transfers>,
}

impl ImageStore {
    /// Opens the store and creates its folders. What a crash left is deleted later, by [`ImageStore::upkeep`]. Blocks.
    ///
    /// # Errors
    /// [`Error::Storage`] if the folders cannot be created or listed. Damaged content is no error: what is left is
    /// served, and the rest is logged.
    pub fn open(options: Options) -> Result<Self, Error> {
        let store = Arc::new(Store::open(&options.root, &options.pinned, &options.boot_id)?);
        let puller = Arc::new(Puller::new(Arc::new(options), store.clone()));
        let places = || Arc::new(Transfers::new(MAX_LARGE_FILES, CROWDED_LIMIT, STALL_LIMIT));
        Ok(Self { store, puller, imports: places(), exports: places() })
    }

    /// Deletes what an earlier process left, and then the layers of failed pulls, when their hour is over or the disk is
    /// short of space. To be run once, beside the other calls, as soon as they are served. Does not end, and sleeps while
    /// there are no such layers.
    pub async fn upkeep(&self) {
        let store = self.store.clone();
        if let Err(error) = blocking(move || store.sweep()).await {
            tracing::warn!(
                error = with_causes(&error),
                "cannot delete unused layers: the next image removal tries again"
            );
        }
        loop {
            let Some(seconds) = self.store.next_expiry() else {
                self.store.layers_kept().await;
                continue;
            };
            tokio::time::sleep(Duration::from_secs(seconds).min(UPKEEP_PAUSE)).await;
            let store = self.store.clone();
            if let Err(error) = blocking(move || store.tidy()).await {
                tracing::warn!(error = with_causes(&error), "cannot delete the layers of failed pulls");
                tokio::time::sleep(UPKEEP_PAUSE).await;
            }
        }
    }

    /// The threads for the store's short blocking work, so that the daemon can start them in advance.
    pub fn lane() -> &'static pool::Lane {
        lane::store()
    }

    /// Pulls an image, or joins a running pull of the same reference with the same credentials. When the last caller
    /// drops its future, the pull is cancelled. The layers that a failed or cancelled pull has completed are kept for an
    /// hour, and used by the next one, unless their space is needed.
    ///
    /// # Errors
    /// Any [`Error`].
    pub async fn pull(&self, reference: &str, auth: Option<Auth>) -> Result<Arc<ImageRecord>, Error> {
        self.store.ensure_writable()?;
        let (pull, progress) = self.puller.pull(Reference::parse(reference)?, auth);
        let _following = progress::follow(&progress);
        pull.await
    }

    /// Changes [`Options::certs_dir`] and [`Options::credentials_file`]. Running pulls keep the old ones.
    pub fn set_registry_files(&self, certs_dir: PathBuf, credentials_file: Option<PathBuf>) {
        self.puller.set_registry_files(certs_dir, credentials_file);
    }

    /// Whether [`Options::pinned`] may have this element: it is a valid name, or a pattern.
    pub fn is_pattern(text: &str) -> bool {
        store::is_pattern(text)
    }

    /// Changes [`Options::pinned`], also for the images that are there.
    ///
    /// # Errors
    /// [`Error::Threads`].
    pub async fn set_pinned(&self, patterns: Vec<String>) -> Result<(), Error> {
        let store = self.store.clone();
        blocking(move || {
            store.set_pinned(&patterns);
            Ok(())
        })
        .await
    }

    /// All images. Does not block.
    pub fn list(&self) -> Vec<Arc<ImageRecord>> {
        self.store.published().images.clone()
    }

    /// Finds an image by its id, by a prefix of at least three digits that only this id has, or by a tag or digest,
    /// normalised or as users write it. Does not block.
    pub fn resolve(&self, name: &str) -> Option<Arc<ImageRecord>> {
        self.store.published().find(name).cloned()
    }

    /// The config document of the image with this id; `None` if the image or its config is gone or damaged.
    ///
    /// # Errors
    /// [`Error::Storage`], [`Error::Threads`].
    pub async fn document(&self, image_id: &str) -> Result<Option<ConfigDocument>, Error> {
        let Some(id) = reference::Digest::parse(image_id) else { return Ok(None) };
        let store = self.store.clone();
        blocking(move || {
            let bytes = store.document(&id, manifest::MAX_CONFIG)?;
            Ok(bytes.and_then(|bytes| manifest::config_document(&id, bytes)))
        })
        .await
    }

    /// Removes the image that `name` refers to, with all its names, as CRI requires, and waits up to 90 s for its disk
    /// space. An unknown name is not an error. The layers of failed pulls are deleted too. Leased layers stay until they
    /// are released.
    ///
    /// # Errors
    /// [`Error::Storage`], [`Error::Threads`]; [`Error::Unsupported`] if a later version wrote the index.
    pub async fn remove(&self, name: &str) -> Result<(), Error> {
        let _step =
            progress::enter("delete the image's layers", "the disk of the image store is slow or hangs");
        let (store, name) = (self.store.clone(), name.to_owned());
        let Some(removed) = blocking(move || store.remove(&name)).await? else { return Ok(()) };
        let store = self.store.clone();
        let waited = for_space(move || {
            store.wait_for_space(removed);
            Ok(())
        });
        match waited.await {
            // The image is removed all the same, and the next change of images writes the index.
            Err(error @ Error::Threads { .. }) => {
                tracing::warn!(%error, "the disk space of a removed image was not waited for");
                Ok(())
            }
            waited => waited,
        }
    }

    /// Leases the layers of the image with this id to `owner`: they stay on disk until `release`, even if the image is
    /// removed or the daemon restarts. A repeated call returns the same lease. An owner has at most one lease: a call
    /// for another image replaces it.
    ///
    /// # Errors
    /// [`Error::NotFound`] if neither the image nor another lease on it exists, [`Error::Unsupported`] if `owner` is
    /// not 1 to 200 of `[A-Za-z0-9_-]`, [`Error::Storage`], [`Error::Threads`].
    pub async fn lease_for(&self, image_id: &str, owner: &str) -> Result<Lease, Error> {
        let (store, image, owner) = (self.store.clone(), image_id.to_owned(), owner.to_owned());
        blocking(move || store.lease(&image, &owner)).await
    }

    /// Releases `owner`'s lease and those of its parts (owners with the names `<owner>_...`), if there are any, and
    /// deletes layers that nothing else needs. If the disk refuses, that is only logged, and the next start releases the
    /// lease.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if `owner` is not a valid name, [`Error::Threads`].
    pub async fn release(&self, owner: &str) -> Result<(), Error> {
        let (store, owner) = (self.store.clone(), owner.to_owned());
        blocking(move || store.release(&owner)).await
    }

    /// The owners of all leases, so that the caller can release those of owners that no longer exist.
    pub fn lease_owners(&self) -> Vec<String> {
        self.store.lease_owners()
    }

    /// Disk usage of the store, computed from the sizes of its layers. Does not block.
    pub fn usage(&self) -> Usage {
        self.store.usage()
    }

    /// The store's own folder ([`Options::root`]).
    pub fn root(&self) -> PathBuf {
        self.store.root().to_owned()
    }
}
