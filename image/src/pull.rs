//! One pull: resolve the reference, choose the platform, transfer missing layers, name the image last. Equal
//! pulls share one transfer.

use crate::error::{Error, Result};
use crate::lane::{blocking, unpacking};
use crate::manifest::{self, Descriptor, Document, Platform};
use crate::record::ImageRecord;
use crate::reference::{Digest, Reference};
use crate::registry::Registry;
use crate::store::index::Entry;
use crate::store::{Pins, Store};
use crate::transfers::Transfers;
use crate::unpack::{Expected, unpack};
use crate::{Auth, Options};
use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt as _, Shared, WeakShared};
use futures_util::stream::{self, TryStreamExt as _};
use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use tokio::sync::mpsc;

/// Received chunks that may wait for the unpacker. hyper's chunks have some 8 to 400 KiB.
const WAITING: usize = 32;

type PullResult = Result<Arc<ImageRecord>>;
type Flights = HashMap<(Reference, Option<Auth>), WeakShared<BoxFuture<'static, PullResult>>>;

pub(crate) struct Puller {
    options: Arc<Options>,
    /// Used instead of `options.certs_dir`, because it can change.
    certs_dir: RwLock<PathBuf>,
    store: Arc<Store>,
    flights: Mutex<Flights>,
    /// One lock per layer in transfer, so that two images with a common layer transfer it once.
    layer_locks: Mutex<HashMap<Digest, Weak<tokio::sync::Mutex<()>>>>,
    /// Bounds the threads and memory of all pulls together.
    transfers: Arc<Transfers>,
}

impl std::fmt::Debug for Puller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Puller").field("store", &self.store).finish_non_exhaustive()
    }
}

impl Puller {
    pub(crate) fn new(options: Arc<Options>, store: Arc<Store>) -> Self {
        let of_one = options.parallel_layers.max(1) * 2;
        let transfers = Arc::new(Transfers::new(of_one, options.idle_timeout / 2));
        let certs_dir = RwLock::new(options.certs_dir.clone());
        Self {
            options,
            certs_dir,
            store,
            flights: Mutex::default(),
            layer_locks: Mutex::default(),
            transfers,
        }
    }

    /// Changes where the next pulls look for registry configuration.
    pub(crate) fn set_certs_dir(&self, certs_dir: PathBuf) {
        *self.certs_dir.write().unwrap_or_else(PoisonError::into_inner) = certs_dir;
    }

    /// The options with the current `certs_dir`.
    fn options(&self) -> Options {
        let certs_dir = self.certs_dir.read().unwrap_or_else(PoisonError::into_inner).clone();
        Options { certs_dir, ..Options::clone(&self.options) }
    }

    /// Starts a pull, or joins a running one with the same reference and credentials. Pulls are shared only
    /// between callers with equal credentials, so that nobody gets an image by another's login. The transfer
    /// runs while any of its futures is held.
    pub(crate) fn pull(
        self: &Arc<Self>,
        reference: Reference,
        auth: Option<Auth>,
    ) -> Shared<BoxFuture<'static, PullResult>> {
        let auth = auth.filter(|auth| *auth != Auth::default());
        let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        flights.retain(|_, flight| flight.upgrade().is_some_and(|flight| flight.peek().is_none()));
        let key = (reference, auth);
        if let Some(flight) = flights.get(&key).and_then(WeakShared::upgrade) {
            return flight;
        }
        let (this, (reference, auth)) = (self.clone(), key.clone());
        let flight = async move { this.run(&reference, auth).await }.boxed().shared();
        if let Some(weak) = flight.downgrade() {
            flights.insert(key, weak);
        }
        flight
    }

    async fn run(&self, reference: &Reference, auth: Option<Auth>) -> PullResult {
        let started = std::time::Instant::now();
        let (options, named) = (self.options(), reference.clone());
        let registry = blocking(move || Registry::new(&options, &named, auth.as_ref())).await?;
        let found = resolve(&registry).await?;
        let config_digest = found.config.digest;
        let store = self.store.clone();
        let kept = blocking(move || store.document(&config_digest, manifest::MAX_CONFIG)).await?;
        let config_bytes = match kept {
            Some(bytes) => bytes.into(),
            None => registry.small_blob(&found.config, manifest::MAX_CONFIG).await?,
        };
        let config = manifest::config(&config_digest, &config_bytes)?;
        let layers = self.pair(&found, &config.diff_ids)?;
        let mut pinned = config.diff_ids.clone();
        pinned.push(config_digest);
        pinned.extend(found.documents.iter().map(|(digest, _)| *digest));
        let pins = Arc::new(self.store.pin(pinned));
        stream::iter(layers.into_iter().map(Ok))
            .try_for_each_concurrent(self.options.parallel_layers.max(1), |(layer, diff_id)| {
                self.layer(&registry, pins.clone(), layer, diff_id)
            })
            .await?;
        let (store, reference) = (self.store.clone(), reference.clone());
        let record = blocking(move || {
            let (layers, folders) = store.overlay_layers(&config.diff_ids)?;
            let documents = found.documents.iter().map(|(_, bytes)| bytes).chain([&config_bytes]);
            let documents: Vec<&[u8]> = documents.map(AsRef::as_ref).collect();
            let entry = Entry {
                config: config_digest.to_string(),
                tags: BTreeSet::new(),
                digests: BTreeSet::new(),
                documents: BTreeSet::new(),
                layers: layers.iter().map(ToString::to_string).collect(),
                size: 0,
            };
            let record = store.commit(&reference, &found.top, entry, &documents)?;
            pins.keep();
            folders.keep();
            Ok(record)
        })
        .await?;
        tracing::info!(image = record.id, ms = started.elapsed().as_millis(), "image pulled");
        Ok(record)
    }

    /// Pairs layers with their diff-ids, each once, largest first, so that no long transfer runs alone at the
    /// end.
    fn pair(&self, found: &Resolved, diff_ids: &[Digest]) -> Result<Vec<(Descriptor, Digest)>> {
        let object = || format!("image {}", found.config.digest);
        if found.layers.len() != diff_ids.len() {
            let reason =
                format!("manifest with {} layers, config with {}", found.layers.len(), diff_ids.len());
            return Err(Error::corrupt(object(), reason));
        }
        if diff_ids.len() > self.options.max_layers {
            let limit = self.options.max_layers as u64;
            return Err(Error::TooLarge { object: object(), limit, unit: "layers" });
        }
        let mut seen = BTreeSet::new();
        let pairs = found.layers.iter().cloned().zip(diff_ids.iter().copied());
        let mut layers: Vec<_> = pairs.filter(|(_, diff_id)| seen.insert(*diff_id)).collect();
        layers.sort_by_key(|(layer, _)| std::cmp::Reverse(layer.size));
        Ok(layers)
    }

    async fn layer(
        &self,
        registry: &Registry,
        pins: Arc<Pins>,
        layer: Descriptor,
        diff_id: Digest,
    ) -> Result<()> {
        let lock = self.layer_lock(diff_id);
        let _alone = lock.lock().await;
        if self.store.has_layer(&diff_id)? {
            return Ok(());
        }
        let place = self.transfers.enter(registry.name()).await?;
        let expected = Expected {
            digest: layer.digest,
            size: layer.size,
            diff_id,
            max_bytes: self.options.max_layer_bytes,
            max_entries: self.options.max_layer_entries,
        };
        let store = self.store.clone();
        let start = move || {
            let (feed, input) = mpsc::channel::<Bytes>(WAITING);
            // If the feed ends early, the unpacking thread fails and deletes its folder.
            let unpacked = tokio::spawn(unpacking(move || {
                let ingest = store.ingest()?;
                let made = unpack(input, &expected, ingest.path())?;
                store.publish_layer(ingest, &expected.diff_id, made)?;
                drop(pins);
                Ok(())
            }));
            (feed, unpacked)
        };
        let mut blob = registry.blob(&layer);
        // The unpacking thread starts only when the host has sent something.
        let mut part = place.next(blob.next(), part_length).await?;
        let (feed, unpacked) = start();
        let downloaded = async {
            while let Some(bytes) = part {
                if feed.send(bytes).await.is_err() {
                    break;
                }
                part = place.next(blob.next(), part_length).await?;
            }
            Ok(())
        }
        .await;
        drop(feed);
        let unpacked = unpacked.await.map_err(|_| Error::Cancelled)?;
        // If both failed, the download's error is the cause.
        downloaded.and(unpacked)
    }

    fn layer_lock(&self, diff_id: Digest) -> Arc<tokio::sync::Mutex<()>> {
        let mut layer_locks = self.layer_locks.lock().unwrap_or_else(PoisonError::into_inner);
        layer_locks.retain(|_, lock| lock.strong_count() > 0);
        if let Some(lock) = layer_locks.get(&diff_id).and_then(Weak::upgrade) {
            return lock;
        }
        let lock = Arc::default();
        layer_locks.insert(diff_id, Arc::downgrade(&lock));
        lock
    }
}

fn part_length(part: &Option<Bytes>) -> usize {
    part.as_ref().map_or(0, Bytes::len)
}

/// The manifest of a reference for this platform.
struct Resolved {
    /// The digest that the reference resolves to: that of an index or of the manifest.
    top: Digest,
    config: Descriptor,
    layers: Vec<Descriptor>,
    /// All documents that were fetched on the way.
    documents: Vec<(Digest, Bytes)>,
}

async fn resolve(registry: &Registry) -> Result<Resolved> {
    let (top, content_type, bytes) = registry.resolve(manifest::MAX_MANIFEST).await?;
    let platform = Platform::host();
    let mut documents = vec![(top, bytes.clone())];
    let mut document = manifest::document(&top, &content_type, &bytes, platform)?;
    for _ in 0..=manifest::MAX_INDEX_DEPTH {
        match document {
            Document::Manifest { config, layers } => return Ok(Resolved { top, config, layers, documents }),
            Document::Index(candidates) => {
                let Some(best) = candidates.first() else { break };
                let (digest, content_type, bytes) = registry.manifest(best, manifest::MAX_MANIFEST).await?;
                document = manifest::document(&digest, &content_type, &bytes, platform)?;
                documents.push((digest, bytes));
            }
        }
    }
    Err(Error::unsupported(format!("index {top}"), "it is nested too deeply"))
}
