//! An image of an archive as a source of a pull.

use super::layout::{absent, path, verified};
use super::members::Extent;
use super::{Archive, Found, Top};
use crate::error::{Error, Result};
use crate::lane::blocking;
use crate::manifest::Descriptor;
use crate::reference::{Digest, Reference};
use crate::source::{Blob, Fetched, Source};
use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt as _, ready};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Bytes of a layer that are read at once.
const READ: usize = 64 << 10;

/// One image of an archive, under one name.
#[derive(Debug)]
pub(crate) struct ArchiveSource {
    archive: Arc<Archive>,
    reference: Reference,
    top: Top,
}

impl ArchiveSource {
    /// The image `found` of the archive, under the name `reference`.
    pub(crate) fn new(archive: &Arc<Archive>, found: &Found, reference: Reference) -> Self {
        Self { archive: archive.clone(), reference, top: found.top.clone() }
    }

    /// The digest of the image's manifest or index.
    pub(crate) fn digest(&self) -> &Digest {
        &self.top.digest
    }

    /// A blob of at most `limit` bytes, verified.
    async fn document(&self, digest: Digest, limit: u64) -> Result<Fetched> {
        let archive = self.archive.clone();
        blocking(move || {
            let extent = archive.blob(&digest)?.ok_or_else(|| absent(&digest))?;
            verified(&digest, String::new(), archive.members.bytes(extent, &path(&digest), limit)?)
        })
        .await
    }
}

impl Source for ArchiveSource {
    fn reference(&self) -> &Reference {
        &self.reference
    }

    fn name(&self) -> &str {
        "archives"
    }

    fn advice(&self) -> &'static str {
        "the disk of the image store is slow or hangs: look at the kernel's log"
    }

    fn current_digest(&self) -> BoxFuture<'_, Result<Option<Digest>>> {
        ready(Ok(None)).boxed()
    }

    fn resolve(&self, limit: u64) -> BoxFuture<'_, Result<Fetched>> {
        async move {
            let Top { digest, content_type, made } = self.top.clone();
            let bytes = match made {
                Some(bytes) => bytes,
                None => self.document(digest, limit).await?.bytes,
            };
            Ok(Fetched { digest, content_type, bytes })
        }
        .boxed()
    }

    fn manifest<'a>(&'a self, digest: &'a Digest, limit: u64) -> BoxFuture<'a, Result<Fetched>> {
        self.document(*digest, limit).boxed()
    }

    fn small_blob<'a>(&'a self, wanted: &'a Descriptor, limit: u64) -> BoxFuture<'a, Result<Bytes>> {
        async move { Ok(self.document(wanted.digest, limit).await?.bytes) }.boxed()
    }

    fn blob<'a>(&'a self, wanted: &Descriptor) -> Box<dyn Blob + 'a> {
        Box::new(Reading { source: self, wanted: wanted.clone(), left: None })
    }
}

/// A layer that is being read.
struct Reading<'a> {
    source: &'a ArchiveSource,
    wanted: Descriptor,
    /// What is left of it; `None` before the first read.
    left: Option<Extent>,
}

impl Reading<'_> {
    async fn read(&mut self) -> Result<Option<Bytes>> {
        let Descriptor { digest, size } = self.wanted;
        let left = match self.left {
            Some(left) => left,
            None => self.source.archive.blob(&digest)?.ok_or_else(|| absent(&digest))?,
        };
        if self.left.is_none() && left.size != size {
            let reason = format!("it has {} bytes instead of {size}, as the manifest states", left.size);
            return Err(Error::corrupt(format!("layer {digest} of the archive"), reason));
        }
        let length = usize::try_from(left.size).map_or(READ, |size| size.min(READ));
        if length == 0 {
            return Ok(None);
        }
        let archive = self.source.archive.clone();
        let bytes = blocking(move || archive.members.spool.read(left.offset, length)).await?;
        if bytes.is_empty() {
            return Err(Error::corrupt("the archive", "it ends within a layer"));
        }
        let read = bytes.len() as u64;
        self.left = Some(Extent { offset: left.offset + read, size: left.size - read });
        self.source.archive.read.fetch_add(read, Ordering::Relaxed);
        Ok(Some(bytes))
    }
}

impl Blob for Reading<'_> {
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Bytes>>> {
        self.read().boxed()
    }
}
