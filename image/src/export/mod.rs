//! Writes images as an OCI image layout in a tar archive, which is one of `docker save` too.
//!
//! The compressed layers of a pull are not kept: they would take a third of the disk space of the unpacked ones once more,
//! on every node, for a command that few need. So the layers are made again ([`layer`]), always the same ones, but not
//! those of the registry: manifest, config and layers have other digests. The config differs in `rootfs.diff_ids` alone.
//!
//! A layer's digest stands before its content, so each is made in a file without a name first (`spool`).

mod blob;
mod header;
mod layer;

use crate::ImageStore;
use crate::error::{Error, Result};
use crate::lane::unpacking;
use crate::manifest;
use crate::record::ImageRecord;
use crate::reference::{Digest, Reference};
use crate::store::Store;
use crate::transfers::Transfer;
use blob::{Blob, Writer};
use bytes::Bytes;
use header::{Item, encode, padding};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::sync::Arc;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// Maximum number of images of one archive.
const MAX_IMAGES: usize = 64;
/// Bytes of a layer that are sent at once.
const PART: usize = 256 << 10;

/// How the layers of an export are compressed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    #[default]
    None,
    /// gzip.
    Gzip,
}

/// An image as it was exported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exported {
    /// The names in the archive; empty for an image without a tag.
    pub names: Vec<String>,
    /// Digest of its manifest in the archive.
    pub digest: String,
    /// Digest of its config in the archive: its id where it is imported.
    pub id: String,
}

impl ImageStore {
    /// Writes images to `output` as a tar archive. An image that is named by a tag has that name alone in the archive, one
    /// that is named by an id all its tags. If `output` is closed, it is cancelled. At most two exports run at once;
    /// others wait.
    ///
    /// # Errors
    /// [`Error::NotFound`] for an unknown name, [`Error::Cancelled`], [`Error::TooLarge`], [`Error::Storage`],
    /// [`Error::Threads`]; [`Error::Stalled`] if less than 64 KiB are taken in five minutes, or in two while another export
    /// waits.
    pub async fn export(
        &self,
        names: &[String],
        compression: Compression,
        output: mpsc::Sender<Bytes>,
    ) -> Result<Vec<Exported>> {
        let step = progress::enter("wait for other exports", "two exports run at once: wait, or end one");
        let place = self.exports.enter("exports").await?;
        drop(step);
        if names.is_empty() {
            return Err(Error::unsupported("the export", "it names no image"));
        }
        if names.len() > MAX_IMAGES {
            let limit = MAX_IMAGES as u64;
            return Err(Error::TooLarge { object: "the list of images".to_owned(), limit, unit: "images" });
        }
        let mut images: Vec<(Arc<ImageRecord>, Vec<String>)> = Vec::new();
        for name in names {
            let image = self.resolve(name).ok_or_else(|| Error::NotFound {
                object: format!("image {name}"),
                detail: "it is not on this node".to_owned(),
            })?;
            let tag = Reference::parse(name).ok().map(|reference| reference.to_string());
            let tag = tag.filter(|tag| image.repo_tags.contains(tag));
            let tags = tag.map_or_else(|| image.repo_tags.clone(), |tag| vec![tag]);
            match images.iter_mut().find(|(of, _)| of.id == image.id) {
                Some((_, known)) => known.extend(tags),
                None => images.push((image, tags)),
            }
        }
        let (store, runtime) = (self.store.clone(), Handle::current());
        let _step = progress::enter("write the archive", "the disk or the reader of the archive is slow");
        unpacking(move || {
            let (layers, written) = (BTreeMap::new(), BTreeSet::new());
            Export { store, compression, output, place, runtime, layers, written }.run(images)
        })
        .await
    }
}

/// A running export. Blocks.
struct Export {
    store: Arc<Store>,
    compression: Compression,
    output: mpsc::Sender<Bytes>,
    /// Its place among the exports, for as long as the thread works.
    place: Transfer,
    /// For time limits.
    runtime: Handle,
    /// What became of each layer, by its diff id in the store. Images share layers.
    layers: BTreeMap<Digest, Blob>,
    /// The blobs that are in the archive.
    written: BTreeSet<Digest>,
}

impl Export {
    fn run(mut self, images: Vec<(Arc<ImageRecord>, Vec<String>)>) -> Result<Vec<Exported>> {
        let (mut index, mut docker, mut exported) = (Vec::new(), Vec::new(), Vec::new());
        self.member("oci-layout", json!({"imageLayoutVersion": "1.0.0"}).to_string().as_bytes())?;
        for (image, mut names) in images {
            names.sort();
            names.dedup();
            let (manifest, config, layers) = self.image(&image)?;
            let path = |digest: &Digest| format!("blobs/sha256/{}", digest.hex());
            let entry = |annotations: Value| json!({"mediaType": OCI_MANIFEST, "digest": manifest.0, "size": manifest.1, "annotations": annotations});
            if names.is_empty() {
                index.push(entry(json!({})));
            }
            for name in &names {
                index.push(entry(json!({
                    "io.containerd.image.name": name,
                    "org.opencontainers.image.ref.name": name,
                })));
            }
            let layers: Vec<String> = layers.iter().map(path).collect();
            docker.push(json!({"Config": path(&config), "RepoTags": names, "Layers": layers}));
            exported.push(Exported { names, digest: manifest.0.to_string(), id: config.to_string() });
        }
        let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": index});
        self.member("index.json", index.to_string().as_bytes())?;
        self.member("manifest.json", Value::from(docker).to_string().as_bytes())?;
        self.send(Bytes::from_static(&[0; 1024]))?;
        Ok(exported)
    }

    /// Writes the blobs of an image. Returns digest and size of its manifest, the digest of its config and those of its
    /// layers.
    fn image(&mut self, image: &ImageRecord) -> Result<((Digest, usize), Digest, Vec<Digest>)> {
        let gone =
            || Error::NotFound { object: format!("image {}", image.id), detail: "it was removed".to_owned() };
        let id = Digest::parse(&image.id).ok_or_else(gone)?;
        let document = self.store.document(&id, manifest::MAX_CONFIG)?.ok_or_else(gone)?;
        let diff_ids = manifest::config(&id, &document)?.diff_ids;
        // A removal of the image does not delete them before they are written.
        let _pins = self.store.pin(diff_ids.clone());
        let layers = diff_ids.iter().map(|diff_id| self.layer(diff_id)).collect::<Result<Vec<Blob>>>()?;
        let diff_ids: Vec<Digest> = layers.iter().map(|layer| layer.diff_id).collect();
        let config = rewritten(&id, &document, &diff_ids)?;
        let config_digest = self.blob(&config)?;
        let suffix = match self.compression {
            Compression::None => "",
            Compression::Gzip => "+gzip",
        };
        let descriptors = layers.iter().map(|layer| {
            json!({"mediaType": format!("{OCI_LAYER}{suffix}"), "digest": layer.digest, "size": layer.size})
        });
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {"mediaType": OCI_CONFIG, "digest": config_digest, "size": config.len()},
            "layers": descriptors.collect::<Vec<_>>(),
        });
        let manifest = manifest.to_string();
        let digest = self.blob(manifest.as_bytes())?;
        Ok(((digest, manifest.len()), config_digest, layers.iter().map(|layer| layer.digest).collect()))
    }

    /// Writes a layer, unless it is written.
    fn layer(&mut self, diff_id: &Digest) -> Result<Blob> {
        if let Some(known) = self.layers.get(diff_id) {
            return Ok(known.clone());
        }
        if !self.store.has_layer(diff_id)? {
            let detail = "it is not in the image store any more: pull the image again".to_owned();
            return Err(Error::NotFound { object: format!("layer {diff_id}"), detail });
        }
        let mut writer = Writer::new(self.store.new_spool_path(), self.compression)?;
        let mut wanted = Wanted { writer: &mut writer, output: &self.output };
        let made = layer::write(&self.store.layer_folder(diff_id), &mut wanted);
        if self.output.is_closed() {
            return Err(Error::Cancelled);
        }
        let (spool, blob) = writer.finish(made)?;
        if self.written.insert(blob.digest) {
            self.begin(&format!("blobs/sha256/{}", blob.digest.hex()), blob.size)?;
            let mut done = 0;
            while done < blob.size {
                let part = spool.read(done, PART)?;
                if part.is_empty() {
                    let cut = io::Error::from(io::ErrorKind::UnexpectedEof);
                    return Err(Error::storage("read", spool.path())(cut));
                }
                done += part.len() as u64;
                self.send(part)?;
            }
            self.end(blob.size)?;
        }
        self.layers.insert(*diff_id, blob.clone());
        Ok(blob)
    }

    /// Writes a document by its digest.
    fn blob(&mut self, bytes: &[u8]) -> Result<Digest> {
        let digest = Digest::of(bytes);
        if self.written.insert(digest) {
            self.member(&format!("blobs/sha256/{}", digest.hex()), bytes)?;
        }
        Ok(digest)
    }

    /// Writes a member of the archive.
    fn member(&mut self, name: &str, content: &[u8]) -> Result<()> {
        self.begin(name, content.len() as u64)?;
        content.chunks(PART).try_for_each(|part| self.send(Bytes::copy_from_slice(part)))?;
        self.end(content.len() as u64)
    }

    fn begin(&mut self, name: &str, size: u64) -> Result<()> {
        self.send(encode(&Item::file(name.as_bytes(), size)).into())
    }

    fn end(&mut self, size: u64) -> Result<()> {
        self.send(Bytes::from_static(&[0; 512]).slice(..padding(size)))
    }

    /// Sends the next bytes of the archive, when they are wanted.
    fn send(&mut self, bytes: Bytes) -> Result<()> {
        let length = bytes.len();
        let sent = self.place.watch(self.output.send(bytes), |_| length);
        let sent = self.runtime.block_on(sent).map_err(Error::stalled("reader"))?;
        sent.map_err(|_| Error::Cancelled)
    }
}

/// A layer that is made for as long as somebody takes the archive. Without a reader the export must give its place to the
/// next one.
struct Wanted<'a> {
    writer: &'a mut Writer,
    output: &'a mpsc::Sender<Bytes>,
}

impl Write for Wanted<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.output.is_closed() {
            return Err(io::Error::other("nobody reads the archive any longer"));
        }
        self.writer.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

/// A config with other diff ids. All else stays, members without a meaning here included.
fn rewritten(id: &Digest, document: &[u8], diff_ids: &[Digest]) -> Result<Vec<u8>> {
    let corrupt = |error| Error::corrupt(format!("config {id}"), error);
    let mut config: serde_json::Map<String, Value> = serde_json::from_slice(document).map_err(corrupt)?;
    // Readers in Go take the name in any case.
    config.retain(|name, _| !name.eq_ignore_ascii_case("rootfs"));
    config.insert("rootfs".to_owned(), json!({"type": "layers", "diff_ids": diff_ids}));
    serde_json::to_vec(&config).map_err(corrupt)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_is_made_for_as_long_as_somebody_reads() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = Writer::new(folder.path().join("x"), Compression::None).unwrap();
        let (output, parts) = mpsc::channel(1);
        let mut wanted = Wanted { writer: &mut writer, output: &output };
        wanted.write_all(b"1").unwrap();
        drop(parts);
        assert!(wanted.write_all(b"2").is_err());
        assert_eq!(writer.finish(Ok(())).unwrap().1.size, 1);
    }
}
