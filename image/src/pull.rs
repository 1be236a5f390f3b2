//! Pulls: resolve the reference, choose the platform, transfer missing layers, commit the image. Calls for the same
//! reference with the same credentials share one pull.

use crate::error::{Error, Result};
use crate::lane::{blocking, for_space, unpacking};
use crate::manifest::Descriptor;
use crate::record::ImageRecord;
use crate::reference::{Digest, Reference};
use crate::registry::{Health, Registry};
use crate::resolve::{Resolved, resolve};
use crate::source::Source;
use crate::store::{NewImage, Pins, Store};
use crate::transfers::Transfers;
use crate::unpack::{Expected, unpack};
use crate::{Auth, Options};
use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt as _, Shared, WeakShared};
use futures_util::stream::{self, TryStreamExt as _};
use progress::Progress;
use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use tokio::sync::mpsc;

/// Maximum number of received parts that wait for the unpacking thread, of 64 KiB, or at most twice as much.
const WAITING: usize = 16;
/// Maximum number of layers in an image. Docker builds none with more than 127. overlayfs supports 500, but some kernels take
/// only one page of options, which is enough for 160 layers.
const MAX_LAYERS: usize = 128;
/// Maximum size of a layer's archive after decompression, in bytes.
const MAX_LAYER_BYTES: u64 = 64 << 30;
/// Maximum number of entries in a layer, and of files and folders that it creates.
const MAX_LAYER_ENTRIES: u64 = 4_000_000;

type PullResult = Result<Arc<ImageRecord>>;
/// A pull that several callers can wait for.
pub(crate) type SharedPull = Shared<BoxFuture<'static, PullResult>>;
/// The running pulls, with their progress. A pull ends when the last of its futures is dropped.
type Running = HashMap<(Reference, Option<Auth>), (WeakShared<BoxFuture<'static, PullResult>>, Progress)>;
/// By registry and diff id.
type LayerLocks = HashMap<(String, Digest), Weak<tokio::sync::Mutex<()>>>;

/// Pulls images into one store.
pub(crate) struct Puller {
    /// Replaced when the files of the registry configuration change.
    options: RwLock<Arc<Options>>,
    /// Hosts that failed lately.
    health: Arc<Health>,
    store: Arc<Store>,
    running: Mutex<Running>,
    /// A lock for each layer in transfer: two pulls from one registry transfer a common layer once. Pulls from different
    /// registries do not wait for each other: a registry may stall, or name the diff id of a layer that it does not have.
    layer_locks: Mutex<LayerLocks>,
    /// Limits the number of layers that are transferred at once.
    transfers: Arc<Transfers>,
}

impl std::fmt::Debug for Puller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Puller").field("store", &self.store).finish_non_exhaustive()
    }
}

impl Puller {
    pub(crate) fn new(options: Arc<Options>, store: Arc<Store>) -> Self {
        let per_registry = options.parallel_layers.max(1) * 2;
        let transfers = Transfers::new(per_registry, options.idle_timeout / 2, options.progress_timeout);
        Self {
            options: RwLock::new(options),
            health: Arc::default(),
            store,
            running: Mutex::default(),
            layer_locks: Mutex::default(),
            transfers: Arc::new(transfers),
        }
    }

    /// Changes the files of the registry configuration for pulls that start later.
    pub(crate) fn set_registry_files(&self, certs_dir: PathBuf, credentials_file: Option<PathBuf>) {
        let mut options = self.options.write().unwrap_or_else(PoisonError::into_inner);
        *options = Arc::new(Options { certs_dir, credentials_file, ..Options::clone(&options) });
    }

    fn options(&self) -> Arc<Options> {
        self.options.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Starts a pull, or joins a running one with the same reference and credentials. Credentials must be equal, so that no
    /// caller gets an image by the login of another. The pull is cancelled when the last of its futures is dropped. Also
    /// returns its progress, for each caller to follow.
    pub(crate) fn pull(self: &Arc<Self>, reference: Reference, auth: Option<Auth>) -> (SharedPull, Progress) {
        let auth = auth.filter(|auth| *auth != Auth::default());
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.retain(|_, (pull, _)| pull.upgrade().is_some_and(|pull| pull.peek().is_none()));
        let key = (reference, auth);
        if let Some((pull, progress)) = running.get(&key)
            && let Some(pull) = pull.upgrade()
        {
            return (pull, progress.clone());
        }
        let (this, (reference, auth)) = (self.clone(), key.clone());
        let progress = Progress::default();
        // In a scope of its own: whichever caller polls it, all of them follow it.
        let pull = async move { this.run(reference, auth).await };
        let pull = progress.clone().scope(pull).boxed().shared();
        if let Some(weak) = pull.downgrade() {
            running.insert(key, (weak, progress.clone()));
        }
        (pull, progress)
    }

    /// One pull.
    async fn run(&self, reference: Reference, auth: Option<Auth>) -> PullResult {
        let (options, health) = (self.options(), self.health.clone());
        let registry = blocking(move || Registry::new(&options, &reference, auth.as_ref(), health)).await?;
        self.store_from(&registry).await
    }

    /// Stores the image of a source.
    pub(crate) async fn store_from(&self, source: &dyn Source) -> PullResult {
        let started = std::time::Instant::now();
        let (reference, parallel_layers) = (source.reference(), self.options().parallel_layers.max(1));
        let step = progress::enter("fetch the manifest", source.advice());
        let resolved = resolve(source, &self.store).await?;
        drop(step);
        let layers = Self::pair_layers(&resolved)?;
        let (config_digest, diff_ids) = (resolved.id, resolved.config.diff_ids.clone());
        let documents = resolved.documents.iter().map(|document| (document.digest, document.bytes.clone()));
        let documents: Vec<(Digest, Bytes)> =
            documents.chain([(config_digest, resolved.config_bytes.clone())]).collect();
        let pinned = documents.iter().map(|(digest, _)| *digest).collect();
        let (store, of_image) = (self.store.clone(), diff_ids.clone());
        let pins = Arc::new(blocking(move || Ok(store.begin_pull(&of_image, pinned))).await?);
        let transferred = async {
            let step = progress::enter("transfer the layers", source.advice());
            stream::iter(layers.into_iter().map(Ok))
                .try_for_each_concurrent(parallel_layers, |(layer, diff_id)| {
                    self.layer_with_room(source, pins.clone(), layer, diff_id)
                })
                .await?;
            drop(step);
            self.store_image(reference, &resolved.top, config_digest, diff_ids, documents, pins.clone()).await
        };
        let record = transferred.await.inspect_err(|error| {
            if error.is_full() {
                pins.give_up();
            }
        })?;
        tracing::info!(image = record.id, ms = started.elapsed().as_millis(), "image pulled");
        Ok(record)
    }

    /// Makes the layers durable, then the image visible.
    async fn store_image(
        &self,
        reference: &Reference,
        top: &Digest,
        config: Digest,
        diff_ids: Vec<Digest>,
        documents: Vec<(Digest, Bytes)>,
        pins: Arc<Pins>,
    ) -> PullResult {
        let _step = progress::enter(
            "store the image",
            "the disk of the image store may hang: look at the kernel's log",
        );
        let (store, pinned) = (self.store.clone(), pins.clone());
        // Not on the store's lane: it walks the folders of the layers, which an image can have millions of, and syncs all
        // that is to be written to the disk.
        let (layers, added, documents, durable_documents) = unpacking(move || {
            let (layers, added) = store.overlay_layers(&diff_ids)?;
            let durable_documents = store.make_durable(&layers, &documents)?;
            // As in `layer`: this thread works on after a cancellation.
            drop(pinned);
            Ok((layers, added, documents, durable_documents))
        })
        .await?;
        let (store, reference, top) = (self.store.clone(), reference.clone(), *top);
        blocking(move || {
            let image = NewImage { config, layers, documents: &documents, durable_documents };
            let record = store.commit(&reference, &top, image)?;
            pins.succeed();
            added.succeed();
            Ok(record)
        })
        .await
    }

    /// Like [`Puller::layer`]. If the disk is full, the layers of failed pulls are given up, and the layer is transferred
    /// once more.
    async fn layer_with_room(
        &self,
        source: &dyn Source,
        pins: Arc<Pins>,
        layer: Descriptor,
        diff_id: Digest,
    ) -> Result<()> {
        let before = self.store.times_given_up();
        let result = self.layer(source, pins.clone(), layer.clone(), diff_id).await;
        if !result.as_ref().is_err_and(Error::is_full) {
            return result;
        }
        let store = self.store.clone();
        if for_space(move || store.make_room(before)).await? {
            self.layer(source, pins, layer, diff_id).await
        } else {
            result
        }
    }

    /// The layers with their diff ids, without duplicates. The largest come first, so that no long transfer runs alone
    /// at the end.
    fn pair_layers(resolved: &Resolved) -> Result<Vec<(Descriptor, Digest)>> {
        let (object, diff_ids) = (|| format!("image {}", resolved.id), &resolved.config.diff_ids);
        let (in_manifest, in_config) = (resolved.layers.len(), diff_ids.len());
        if in_manifest != in_config {
            let reason = format!("its manifest has {in_manifest} layers, its config {in_config}");
            return Err(Error::corrupt(object(), reason));
        }
        if in_config > MAX_LAYERS {
            return Err(Error::TooLarge { object: object(), limit: MAX_LAYERS as u64, unit: "layers" });
        }
        let mut seen = BTreeSet::new();
        let pairs = resolved.layers.iter().cloned().zip(diff_ids.iter().copied());
        let mut layers: Vec<_> = pairs.filter(|(_, diff_id)| seen.insert(*diff_id)).collect();
        layers.sort_by_key(|(layer, _)| std::cmp::Reverse(layer.size));
        Ok(layers)
    }

    /// Transfers, unpacks and publishes a layer, unless it is in the store.
    async fn layer(
        &self,
        source: &dyn Source,
        pins: Arc<Pins>,
        layer: Descriptor,
        diff_id: Digest,
    ) -> Result<()> {
        let lock = self.layer_lock(source.name(), diff_id);
        let _alone = lock.lock().await;
        if self.store.has_layer(&diff_id)? {
            return Ok(());
        }
        let _step = progress::enter(format!("layer {}", layer.digest), source.advice());
        let transfer = self.transfers.enter(source.name()).await?;
        let expected = Expected {
            image: source.reference().to_string(),
            digest: layer.digest,
            size: layer.size,
            diff_id,
            max_bytes: MAX_LAYER_BYTES,
            max_entries: MAX_LAYER_ENTRIES,
        };
        let (store, place) = (self.store.clone(), transfer.place().clone());
        let start = move || {
            let (feed, input) = mpsc::channel::<Bytes>(WAITING);
            // If the input ends early, this fails and deletes its folder.
            let unpacked = tokio::spawn(unpacking(move || {
                let ingest = store.new_ingest()?;
                let stats = unpack(input, &expected, ingest.path(), &place)?;
                store.publish_layer(ingest, &expected.diff_id, stats)?;
                // A cancelled pull does not end this thread. Its pins last until here, so that what was published is known when
                // the pull is settled (`Pins::drop`): it is kept, or collected.
                drop(pins);
                Ok(())
            }));
            (feed, unpacked)
        };
        let mut blob = source.blob(&layer);
        // A thread is used only once the host has sent something.
        let mut part = transfer.next(blob.next(), part_length).await?;
        let (feed, unpacked) = start();
        let downloaded = async {
            while let Some(bytes) = part {
                if feed.send(bytes).await.is_err() {
                    break;
                }
                part = transfer.next(blob.next(), part_length).await?;
            }
            Ok(())
        }
        .await;
        drop(feed);
        let unpacked = unpacked.await.map_err(|_| Error::Cancelled)?;
        // If the download failed, its error is the cause of the other.
        downloaded.and(unpacked)
    }

    fn layer_lock(&self, registry: &str, diff_id: Digest) -> Arc<tokio::sync::Mutex<()>> {
        let mut layer_locks = self.layer_locks.lock().unwrap_or_else(PoisonError::into_inner);
        layer_locks.retain(|_, lock| lock.strong_count() > 0);
        let key = (registry.to_owned(), diff_id);
        if let Some(lock) = layer_locks.get(&key).and_then(Weak::upgrade) {
            return lock;
        }
        let lock = Arc::default();
        layer_locks.insert(key, Arc::downgrade(&lock));
        lock
    }
}

fn part_length(part: &Option<Bytes>) -> usize {
    part.as_ref().map_or(0, Bytes::len)
}
