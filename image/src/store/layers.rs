//! Layers: how they become visible, and durable.
//!
//! A layer becomes visible as soon as it is unpacked, so that other pulls can use it, but nothing of it is synced. All
//! layers of an image become durable at once, with one sync of the file system before the index names them
//! ([`Store::make_durable`]). So a layer that the index or a lease names is durable, because both are written later; any
//! other layer may be damaged by a power loss, and is used within the same boot only (`unfinished`).

use super::blobs::{self, Durable};
use super::layout::layer_name;
use super::{Catalog, Facts, Ingest, Pins, Store, gc, index, lock, without_duplicates};
use crate::error::{Error, Result};
use crate::reference::Digest;
use crate::unpack::{self, LayerStats};
use bytes::Bytes;
use causes::with_causes;
use std::collections::HashMap;
use std::fs::{self, File};
use std::path::PathBuf;
use std::sync::Arc;

impl Store {
    /// Whether the complete layer is in the store. It must be pinned, or it may be deleted at any time. Does not block.
    pub(crate) fn has_layer(&self, diff_id: &Digest) -> Result<bool> {
        match lock(&self.catalog).layers.get(&layer_name(diff_id)) {
            None => Ok(false),
            Some(facts) if facts.diff_id == *diff_id => Ok(true),
            Some(facts) => Err(Error::unsupported(
                format!("layer {diff_id}"),
                format!("the store has layer {}, whose diff id begins with the same digits", facts.diff_id),
            )),
        }
    }

    /// An unused path for a file that gets no name (`spool`).
    pub(crate) fn new_spool_path(&self) -> PathBuf {
        self.layout.new_ingest()
    }

    /// The folder of a layer that is in the store and pinned.
    pub(crate) fn layer_folder(&self, diff_id: &Digest) -> PathBuf {
        self.layout.layer(diff_id)
    }

    /// Creates a folder to unpack a layer into. It is deleted when the guard is dropped, unless the layer is published.
    pub(crate) fn new_ingest(&self) -> Result<Ingest> {
        let path = self.layout.new_ingest();
        fs::create_dir(&path).map_err(Error::storage("create", &path))?;
        let (trash, failed_syncs) = (self.layout.trash().clone(), lock(&self.catalog).failed_syncs);
        Ok(Ingest { path, trash, failed_syncs, published: false })
    }

    /// Makes an unpacked layer visible. Does nothing if the store has the layer. Fails if the disk has failed to write
    /// anything since the layer's folder was created: the error is reported only once, and may be about this layer.
    pub(crate) fn publish_layer(
        &self,
        mut ingest: Ingest,
        diff_id: &Digest,
        stats: LayerStats,
    ) -> Result<()> {
        let facts = Facts { diff_id: *diff_id, stats };
        let bytes = serde_json::to_vec(&facts).map_err(|error| Error::corrupt("layer facts", error))?;
        // The index or a lease names it already, because its folder or its facts were lost. Then it counts as durable, and
        // must be so. No image can get a layer that is not in the store, so this does not become true later.
        let named = index::has_layer(&lock(&self.images), diff_id) || lock(&self.catalog).is_leased(diff_id);
        let durable = if named { Durable::Yes } else { Durable::No };
        if named {
            File::open(&ingest.path)
                .and_then(|folder| rustix::fs::syncfs(&folder).map_err(Into::into))
                .map_err(Error::storage("sync", &ingest.path))?;
        }
        let _images = lock(&self.images);
        if self.has_layer(diff_id)? {
            return Ok(());
        }
        if lock(&self.catalog).failed_syncs != ingest.failed_syncs {
            let reason = "the disk has failed to write while this layer was unpacked: look at the kernel's log, then pull again";
            return Err(Error::storage("sync", &ingest.path)(std::io::Error::other(reason)));
        }
        let target = self.layout.layer(diff_id);
        // If it is leased, containers have the folder mounted: it stays and gets new facts. It is complete, as only
        // complete layers are renamed to this place.
        let stays = lock(&self.catalog).is_leased(diff_id) && target.is_dir();
        if !stays {
            gc::discard(&self.layout, &target)?;
        }
        blobs::write(&self.layout, &self.layout.facts_of(diff_id), &bytes, durable)?;
        if !stays {
            fs::rename(&ingest.path, &target).map_err(Error::storage("rename to", &target))?;
            ingest.published = true;
            if named {
                blobs::sync_folder(&self.layout.layers())?;
            }
        }
        let mut catalog = lock(&self.catalog);
        catalog.publications += 1;
        if !named {
            let number = catalog.publications;
            catalog.unsynced.insert(layer_name(diff_id), number);
        }
        catalog.layers.insert(layer_name(diff_id), facts);
        Ok(())
    }

    /// The image's layers as overlayfs must stack them, lowest first, each once. If an implicit folder would hide the
    /// attributes of a lower layer's folder, a layer that corrects this is added on top (see [`unpack::corrections`]).
    /// All layers must be in the store and pinned. The returned pins protect the added layer until the image is
    /// committed.
    pub(crate) fn overlay_layers(self: &Arc<Self>, diff_ids: &[Digest]) -> Result<(Vec<Digest>, Pins)> {
        let mut layers = without_duplicates(diff_ids.iter().copied());
        let sources: Vec<unpack::Layer> = {
            let catalog = lock(&self.catalog);
            let source = |layer: &Digest| {
                let facts = catalog.layers.get(&layer_name(layer));
                let implicit = facts.is_some_and(|facts| facts.stats.implicit > 0);
                unpack::Layer { folder: self.layout.layer(layer), implicit }
            };
            layers.iter().rev().map(source).collect()
        };
        if sources.iter().all(|layer| !layer.implicit) {
            return Ok((layers, self.pin(Vec::new())));
        }
        let ingest = self.new_ingest()?;
        let Some((id, stats)) = unpack::corrections(&sources, ingest.path())? else {
            return Ok((layers, self.pin(Vec::new())));
        };
        let pins = self.pin(vec![id]);
        if !self.has_layer(&id)? {
            self.publish_layer(ingest, &id, stats)?;
        }
        layers.push(id);
        Ok((layers, pins))
    }

    /// Makes the layers of an image durable, with one sync of the file system, unless they are. If a sync is
    /// needed, the image's documents are written before it, so that they need none of their own. Returns whether the documents
    /// are durable now: `false` if the layers were so already. The layers must be pinned.
    ///
    /// # Errors
    /// If the disk has failed to write anything since the last sync, no layer since then can be trusted: the store forgets
    /// them, and other pulls that need one of them, or that unpack one, fail too.
    pub(crate) fn make_durable(&self, layers: &[Digest], documents: &[(Digest, Bytes)]) -> Result<bool> {
        let names: Vec<String> = layers.iter().map(layer_name).collect();
        let is_durable = |catalog: &Catalog| !names.iter().any(|name| catalog.unsynced.contains_key(name));
        if is_durable(&lock(&self.catalog)) {
            return Ok(false);
        }
        for (digest, bytes) in documents {
            blobs::put(&self.layout, digest, bytes, Durable::No)?;
        }
        let folder = lock(&self.sync);
        let pending = {
            let catalog = lock(&self.catalog);
            if is_durable(&catalog) {
                // Another pull has synced them meanwhile, perhaps before the documents were written.
                return Ok(false);
            }
            catalog.unsynced.clone()
        };
        self.synced(&pending, rustix::fs::syncfs(&*folder))?;
        Ok(true)
    }

    /// The file system was synced, with this result. `pending`: the layers that were not durable before, as in the
    /// catalog. The caller holds `sync`.
    pub(super) fn synced(
        &self,
        pending: &HashMap<String, u64>,
        result: rustix::io::Result<()>,
    ) -> Result<()> {
        let Err(errno) = result else {
            let mut catalog = lock(&self.catalog);
            catalog.unsynced.retain(|name, number| pending.get(name) != Some(number));
            return Ok(());
        };
        // No layer is published meanwhile. Those that were published since the sync may be damaged, too.
        let _images = lock(&self.images);
        let forgotten = {
            let mut catalog = lock(&self.catalog);
            catalog.failed_syncs += 1;
            let forgotten = std::mem::take(&mut catalog.unsynced);
            catalog.layers.retain(|name, _| !forgotten.contains_key(name));
            forgotten
        };
        // Without facts they are not complete, also for a daemon that starts later.
        for name in forgotten.keys() {
            let facts = self.layout.facts().join(format!("{name}.json"));
            if let Err(error) = gc::discard(&self.layout, &facts) {
                tracing::warn!(error = with_causes(&error), "cannot delete the facts of a layer");
            }
        }
        Err(Error::storage("sync", &self.layout.layers())(errno))
    }
}
