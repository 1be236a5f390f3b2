//! A registry as a source of images.

use super::Registry;
use super::blob::Blob;
use crate::error::Result;
use crate::manifest::Descriptor;
use crate::reference::{Digest, Reference};
use crate::source::{self, Fetched, Source};
use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt as _};

impl Source for Registry {
    fn reference(&self) -> &Reference {
        Self::reference(self)
    }

    /// The registry in the reference. Transfers from its mirrors are counted for it too.
    fn name(&self) -> &str {
        Self::name(self)
    }

    fn advice(&self) -> &'static str {
        "the registry or a mirror of it answers slowly or not at all: check it, the network between, and the mirrors in \
         certs.d/<registry>/hosts.toml"
    }

    fn current_digest(&self) -> BoxFuture<'_, Result<Option<Digest>>> {
        Self::current_digest(self).boxed()
    }

    fn resolve(&self, limit: u64) -> BoxFuture<'_, Result<Fetched>> {
        Self::resolve(self, limit).boxed()
    }

    fn manifest<'a>(&'a self, digest: &'a Digest, limit: u64) -> BoxFuture<'a, Result<Fetched>> {
        Self::manifest(self, digest, limit).boxed()
    }

    fn small_blob<'a>(&'a self, wanted: &'a Descriptor, limit: u64) -> BoxFuture<'a, Result<Bytes>> {
        Self::small_blob(self, wanted, limit).boxed()
    }

    fn blob<'a>(&'a self, wanted: &Descriptor) -> Box<dyn source::Blob + 'a> {
        Box::new(Self::blob(self, wanted))
    }
}

impl source::Blob for Blob<'_> {
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Bytes>>> {
        Self::next(self).boxed()
    }
}
