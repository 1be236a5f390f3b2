//! Images in an archive: a tar of an OCI image layout (image-spec, "OCI Image Layout"), or what `docker save` writes, in its
//! old form (`<id>/layer.tar`) and its new one, which is an OCI layout too.
//!
//! ```text
//! stream ──► members     one pass: written to a file without a name (`spool`), with a list of where each member is
//!        ──► layout      index.json: the images, by name            ┐
//!        ──► docker      manifest.json: the images, with a manifest ├─► source: each image as a source of a pull
//!                        that is made for each                      ┘
//! ```
//! Members come in any order: that of `docker save` which lists the images is often the last. Nothing is extracted: names of
//! members are keys of a map. The content is not trusted; what is read into memory has limits, and layers are verified
//! like those of registries.

mod docker;
mod layout;
mod members;
mod source;
#[cfg(test)]
mod tests;

pub(crate) use source::ArchiveSource;

use crate::error::{Error, Result};
use crate::lane::Closing;
use crate::reference::{Digest, Reference, Selector};
use crate::spool::Spool;
use bytes::Bytes;
use members::{Extent, Members};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::mpsc;

/// Maximum size of an uncompressed archive, in bytes.
pub(crate) const MAX_ARCHIVE: u64 = 128 << 30;
/// Maximum size of index.json and manifest.json, in bytes.
const MAX_LIST: u64 = 1 << 20;
/// Maximum number of JSON objects in them, which bounds the memory of what they are parsed into.
const MAX_OBJECTS: usize = 16_384;
/// Maximum number of images of one archive.
const MAX_IMAGES: usize = 256;
/// Maximum number of names of all images of one archive: each is a pull of its own, with a write of the image index.
pub(crate) const MAX_TAGS: usize = 1024;

/// An image of an archive.
#[derive(Debug)]
pub(crate) struct Found {
    /// As the archive names it.
    pub(crate) names: Vec<Reference>,
    top: Top,
}

/// The manifest or index of an image.
#[derive(Debug, Clone)]
struct Top {
    digest: Digest,
    /// As the archive states it; empty if it does not.
    content_type: String,
    /// One that the import has made, from a list of the archive. Others are read when they are needed: those of all images
    /// together may be large.
    made: Option<Bytes>,
}

impl Found {
    /// Fails if a name has a digest that is not the one of this image's manifest or index.
    pub(crate) fn check_name(&self, name: &Reference) -> Result<()> {
        match name.selector() {
            Selector::Digest(digest) if *digest != self.top.digest => {
                let reason = format!("the digest of the image in the archive is {}", self.top.digest);
                Err(Error::unsupported(format!("the name {name}"), reason))
            }
            Selector::Digest(_) | Selector::Tag(_) => Ok(()),
        }
    }
}

/// An archive that was read to its end.
#[derive(Debug)]
pub(crate) struct Archive {
    members: Members,
    /// Of `docker save`: where configs and layers are, whose members are not named by their digests.
    blobs: HashMap<Digest, Extent>,
    /// Bytes of blobs that were read, for progress.
    read: AtomicU64,
    /// The file of many GiB: to delete its content takes seconds. Dropped after `members`.
    _closing: Closing<Arc<Spool>>,
}

impl Archive {
    /// Reads a tar stream into `spool`, and finds the images in it. Blocks.
    pub(crate) fn read(input: mpsc::Receiver<Bytes>, spool: Spool) -> Result<(Arc<Self>, Vec<Found>)> {
        let members = members::read(input, spool)?;
        let closing = Closing::new(members.spool.clone());
        let mut archive = Self { members, blobs: HashMap::new(), read: AtomicU64::new(0), _closing: closing };
        let of_layout = layout::images(&archive.members)?;
        // `docker save` writes both lists. Only one may have the names.
        let named = of_layout.as_ref().is_some_and(|found| found.iter().any(|image| !image.names.is_empty()));
        let mut found = match of_layout {
            Some(found) if named => found,
            other => match docker::images(&archive.members, &mut archive.blobs)? {
                Some(found) => found,
                None => other.ok_or_else(|| {
                    let reason =
                        "it has neither index.json (an OCI image layout) nor manifest.json (docker save)";
                    Error::unsupported("the archive", reason)
                })?,
            },
        };
        if found.is_empty() {
            return Err(Error::unsupported("the archive", "it lists no image"));
        }
        check_names(&mut found)?;
        Ok((Arc::new(archive), found))
    }

    /// Number of bytes of the archive.
    pub(crate) fn length(&self) -> u64 {
        self.members.spool.length()
    }

    /// Number of bytes of blobs that were read so far.
    pub(crate) fn bytes_read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    /// Where a blob is.
    fn blob(&self, digest: &Digest) -> Result<Option<Extent>> {
        match self.blobs.get(digest) {
            Some(extent) => Ok(Some(*extent)),
            None => self.members.find(&layout::path(digest)),
        }
    }
}

/// Parses a list of images.
fn parse_list<'a, T: serde::Deserialize<'a>>(name: &str, bytes: &'a [u8]) -> Result<T> {
    if bytes.iter().filter(|byte| **byte == b'{').count() > MAX_OBJECTS {
        let object = format!("{name} of the archive");
        return Err(Error::TooLarge { object, limit: MAX_OBJECTS as u64, unit: "objects" });
    }
    serde_json::from_slice(bytes).map_err(|error| Error::corrupt(format!("{name} of the archive"), error))
}

/// Drops the repeated names of each image. Fails if there are too many, or if one has a digest that is not the image's: who
/// uses such a name relies on its content.
fn check_names(found: &mut [Found]) -> Result<()> {
    for image in &mut *found {
        let mut seen = HashSet::new();
        image.names.retain(|name| seen.insert(name.clone()));
        image.names.iter().try_for_each(|name| image.check_name(name))?;
    }
    if found.iter().map(|image| image.names.len()).sum::<usize>() > MAX_TAGS {
        let (object, limit) = ("the archive".to_owned(), MAX_TAGS as u64);
        return Err(Error::TooLarge { object, limit, unit: "names of images" });
    }
    Ok(())
}

/// The error for too many images.
fn check_number(images: usize) -> Result<()> {
    if images > MAX_IMAGES {
        return Err(Error::TooLarge {
            object: "the archive".to_owned(),
            limit: MAX_IMAGES as u64,
            unit: "images",
        });
    }
    Ok(())
}
