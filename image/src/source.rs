//! Where an image comes from. A pull works on any source: a registry (`registry`), or an archive (`archive`).
//!
//! Calls are dynamic, so that the code of a pull exists once. What a source returns is not trusted: `resolve` parses it
//! with limits, and a layer's digests are verified while it is unpacked.

use crate::error::Result;
use crate::manifest::Descriptor;
use crate::reference::{Digest, Reference};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use std::fmt::Debug;

/// A manifest, index or config.
#[derive(Debug)]
pub(crate) struct Fetched {
    pub(crate) digest: Digest,
    /// As the source states it; empty if it does not.
    pub(crate) content_type: String,
    pub(crate) bytes: Bytes,
}

/// The image of one name, and all that belongs to it. Documents that are asked for by digest have that digest.
pub(crate) trait Source: Debug + Send + Sync {
    /// The image's name.
    fn reference(&self) -> &Reference;

    /// Whose transfers are counted together, such as the registry of the name.
    fn name(&self) -> &str;

    /// What an operator can do if it takes too long.
    fn advice(&self) -> &'static str;

    /// The digest that the name has now, without the document. `None` if that is as much work as [`Self::resolve`].
    fn current_digest(&self) -> BoxFuture<'_, Result<Option<Digest>>>;

    /// The manifest or index of the name, of at most `limit` bytes.
    fn resolve(&self, limit: u64) -> BoxFuture<'_, Result<Fetched>>;

    /// A manifest or index by digest, of at most `limit` bytes.
    fn manifest<'a>(&'a self, digest: &'a Digest, limit: u64) -> BoxFuture<'a, Result<Fetched>>;

    /// A blob of at most `limit` bytes, in memory.
    fn small_blob<'a>(&'a self, wanted: &'a Descriptor, limit: u64) -> BoxFuture<'a, Result<Bytes>>;

    /// Starts the transfer of a layer. Its digest is not verified.
    fn blob<'a>(&'a self, wanted: &Descriptor) -> Box<dyn Blob + 'a>;
}

/// The transfer of one layer.
pub(crate) trait Blob: Send {
    /// Waits for the next bytes, never empty; `None` after as many bytes as were stated.
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Bytes>>>;
}
