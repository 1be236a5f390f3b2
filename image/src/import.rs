//! Imports the images of an archive.

use crate::ImageStore;
use crate::archive::{Archive, ArchiveSource, Found, MAX_ARCHIVE, MAX_TAGS};
use crate::error::{Error, Result};
use crate::lane::{for_space, unpacking};
use crate::record::Pruned;
use crate::reference::Reference;
use crate::spool::Spool;
use crate::transfers::Transfer;
use bytes::Bytes;
use std::sync::{Arc, OnceLock, Weak};
use tokio::sync::mpsc;

/// An image that was imported, under one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// Its name, normalised.
    pub name: String,
    /// Digest of its manifest or index; that of an archive of `docker save` without one is made by the import.
    pub digest: String,
    /// Digest of its config: its id.
    pub id: String,
    /// Disk space of its layers and documents, in bytes.
    pub size: u64,
    /// The id of the image that had the name before; empty if none had, or this one.
    pub replaced: String,
}

/// How far an import is. Clones share it. It does not keep the archive's disk space.
#[derive(Debug, Clone, Default)]
pub struct ImportProgress(Arc<OnceLock<Weak<Archive>>>);

impl ImportProgress {
    /// Bytes of layers that were read, of all bytes of the archive, once it has arrived and until the import ends. Layers
    /// that the store has are not read.
    pub fn unpacked(&self) -> Option<(u64, u64)> {
        self.0.get()?.upgrade().map(|archive| (archive.bytes_read(), archive.length()))
    }
}

/// A place among the imports, until the archive is deleted again.
#[derive(Debug, Clone)]
pub struct ImportPlace {
    transfer: Arc<Transfer>,
}

impl ImportPlace {
    /// Waits for `next`, the next part of the archive; `length` tells how many bytes it has. All waits for parts must go
    /// through this.
    ///
    /// # Errors
    /// [`Error::Stalled`] if the sender has sent less than 64 KiB in five minutes, or in two while another import waits. Only
    /// time that is spent here counts.
    pub async fn receive<T>(
        &self,
        next: impl Future<Output = T>,
        length: impl FnOnce(&T) -> usize,
    ) -> Result<T> {
        self.transfer.watch(next, length).await.map_err(Error::stalled("sender"))
    }
}

impl ImageStore {
    /// Waits for a place for an import. At most two run at once, and nothing of an archive should be read before: parts that
    /// wait use memory.
    ///
    /// # Errors
    /// [`Error::Cancelled`] when the store ends.
    pub async fn import_place(&self) -> Result<ImportPlace> {
        let _step = progress::enter("wait for other imports", "two imports run at once: wait, or end one");
        Ok(ImportPlace { transfer: Arc::new(self.imports.enter("imports").await?) })
    }

    /// Stores all images of an uncompressed tar archive, which arrives in parts by `input`: an OCI image layout, or what
    /// `docker save` writes. An archive with a single image may get other names than it has.
    ///
    /// If an image cannot be stored, those before it stay. Of the unfinished one, also if the future is dropped, only the
    /// complete layers stay, for an hour, as those of a failed pull do ([`ImageStore::pull`]); the archive's file goes.
    ///
    /// # Errors
    /// Any [`Error`]: those of a pull; [`Error::Unsupported`] if an image has no name, or a name with another digest than its
    /// own.
    pub async fn import(
        &self,
        place: ImportPlace,
        input: mpsc::Receiver<Bytes>,
        names: &[String],
        so_far: &ImportProgress,
    ) -> Result<Vec<Imported>> {
        self.store.ensure_writable()?;
        if names.len() > MAX_TAGS {
            let (object, limit) = ("the list of names".to_owned(), MAX_TAGS as u64);
            return Err(Error::TooLarge { object, limit, unit: "names" });
        }
        let names = names.iter().map(|name| Reference::parse(name)).collect::<Result<Vec<_>>>()?;
        let step = progress::enter("receive the archive", "the sender of the archive or the disk is slow");
        let path = self.store.new_spool_path();
        // The place goes with the archive's file, whose deletion takes a while: if it were given back earlier, a third import
        // could begin while the disk still has two archives. The thread may also work on after a cancellation.
        let held = place.transfer;
        let (archive, found) =
            unpacking(move || Archive::read(input, Spool::create(path, MAX_ARCHIVE)?.holding(held))).await?;
        drop(step);
        drop(so_far.0.set(Arc::downgrade(&archive)));
        let mut imported = Vec::new();
        for (image, names) in named(&found, &names)? {
            for name in names {
                let source = ArchiveSource::new(&archive, image, name.clone());
                let before = self.resolve(&name.to_string());
                let record = self.puller.store_from(&source).await?;
                let (digest, id) = (source.digest().to_string(), record.id.clone());
                let replaced = before.map(|before| before.id.clone()).filter(|before| *before != id);
                let (name, replaced) = (name.to_string(), replaced.unwrap_or_default());
                imported.push(Imported { name, digest, id, size: record.size, replaced });
            }
        }
        Ok(imported)
    }

    /// Removes the images that are neither pinned nor leased to a container, and the layers that nothing needs, and waits up
    /// to 90 s for their disk space. With `dry_run` it only tells what it would remove.
    ///
    /// # Errors
    /// As those of [`Self::remove`]. What was removed before stays removed.
    pub async fn prune(&self, dry_run: bool) -> Result<Pruned> {
        let _step = progress::enter("remove unused images", "the disk of the image store is slow or hangs");
        let store = self.store.clone();
        // It may wait long for the space.
        for_space(move || store.prune(dry_run)).await
    }
}

/// The images with their names: those of the archive, or `names` if there are any.
fn named<'a>(found: &'a [Found], names: &'a [Reference]) -> Result<Vec<(&'a Found, &'a [Reference])>> {
    let refused = |reason: String| Error::unsupported("the archive", reason);
    match (found, names) {
        ([image], [_, ..]) => {
            names.iter().try_for_each(|name| image.check_name(name))?;
            Ok(vec![(image, names)])
        }
        (_, [_, ..]) => {
            Err(refused(format!("it has {} images, which cannot all have the given name", found.len())))
        }
        (found, []) => {
            let all: Vec<_> = found.iter().map(|image| (image, &image.names[..])).collect();
            if all.iter().any(|(_, names)| names.is_empty()) {
                let which = if found.len() == 1 { "its image" } else { "one of its images" };
                return Err(refused(format!("it has no name for {which}: give one (--tag)")));
            }
            Ok(all)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Options;
    use std::time::Duration;
    use tokio::time::{Instant, sleep};

    /// With a clock that jumps to the next timer.
    #[tokio::test(start_paused = true)]
    async fn who_sends_single_bytes_loses_the_place() {
        let folder = tempfile::tempdir().unwrap();
        let store = ImageStore::open(Options::new(folder.path(), folder.path())).unwrap();
        let trickle = async |place: &ImportPlace| loop {
            let byte = sleep(Duration::from_secs(70));
            if let Err(error) = place.receive(byte, |()| 1).await {
                return error;
            }
        };
        let (first, second) = (store.import_place().await.unwrap(), store.import_place().await.unwrap());
        let begun = Instant::now();
        let error = trickle(&first).await;
        assert!(matches!(error, Error::Stalled { who: "sender", .. }), "{error}");
        assert_eq!(begun.elapsed().as_secs(), 300);
        // Earlier if another import waits.
        let begun = Instant::now();
        let third = store.import_place();
        let error = async {
            let error = trickle(&second).await;
            drop(second);
            error
        };
        let (third, error) = tokio::join!(third, error);
        assert!(error.to_string().contains("while others wait"), "{error}");
        assert!((120..300).contains(&begun.elapsed().as_secs()));
        // One that makes progress stays, however slow it is.
        let third = third.unwrap();
        for _ in 0..100 {
            third.receive(sleep(Duration::from_secs(70)), |()| 32 << 10).await.unwrap();
        }
    }
}
