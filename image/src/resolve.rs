//! From a reference to the manifest and the config of an image for this node, by way of indexes.
//!
//! An index may name several images that this node can run, and registries lose some of them, as mirrors and
//! garbage collections of theirs do. So the next best is tried if one is not there, is no image, or turns out to be for
//! another processor.

use crate::error::{Error, Result};
use crate::lane::blocking;
use crate::manifest::{self, Candidate, Config, Descriptor, Document, Host};
use crate::reference::Digest;
use crate::source::{Fetched, Source};
use crate::store::Store;
use bytes::Bytes;
use std::sync::Arc;

/// Maximum number of manifests and indexes that are fetched for one image.
const MAX_DOCUMENTS: usize = 8;

/// The image that a reference leads to on this node.
#[derive(Debug)]
pub(crate) struct Resolved {
    /// The digest of the index or manifest that the reference names.
    pub(crate) top: Digest,
    /// The digest of the config.
    pub(crate) id: Digest,
    pub(crate) config: Config,
    pub(crate) config_bytes: Bytes,
    /// Lowest first.
    pub(crate) layers: Vec<Descriptor>,
    /// The manifest, and the indexes that lead to it.
    pub(crate) documents: Vec<Fetched>,
}

/// An index on the way, with its entries that were not tried yet, the next one last.
struct Level {
    index: Fetched,
    left: Vec<Candidate>,
}

/// Fetches the reference's manifest and config.
pub(crate) async fn resolve(source: &dyn Source, store: &Arc<Store>) -> Result<Resolved> {
    let host = Host::this();
    let mut fetched = top(source, store).await?;
    let top = fetched.digest;
    let (mut levels, mut certain, mut documents): (Vec<Level>, _, _) = (Vec::new(), true, 1);
    // What was wrong with the best entry.
    let mut first_error = None;
    loop {
        match read(source, store, &host, &fetched, certain).await {
            Ok(Read::Image(image)) => {
                let (id, config, config_bytes, layers) = *image;
                let documents = levels.into_iter().map(|level| level.index).chain([fetched]).collect();
                return Ok(Resolved { top, id, config, config_bytes, layers, documents });
            }
            Ok(Read::Index(mut left)) if levels.len() < manifest::MAX_INDEXES => {
                left.reverse();
                levels.push(Level { index: fetched, left });
            }
            Ok(Read::Index(_)) => {
                let error = Error::unsupported(format!("index {top}"), "it is nested too deeply");
                first_error.get_or_insert(error);
            }
            Err(error) => {
                first_error.get_or_insert(another_may_do(error)?);
            }
        }
        fetched = loop {
            let Some(level) = levels.last_mut() else {
                return Err(
                    first_error.unwrap_or_else(|| Error::unsupported(format!("index {top}"), "it is empty"))
                );
            };
            let Some(candidate) = level.left.pop() else {
                levels.pop();
                continue;
            };
            if documents == MAX_DOCUMENTS {
                let reason = format!("none of the first {MAX_DOCUMENTS} manifests is an image for {host}");
                return Err(first_error.unwrap_or_else(|| Error::unsupported(format!("index {top}"), reason)));
            }
            documents += 1;
            certain = candidate.certain;
            match document(source, store, candidate.digest).await {
                Ok(fetched) => break fetched,
                Err(error) => {
                    first_error.get_or_insert(another_may_do(error)?);
                }
            }
        };
    }
}

/// The error, if another entry of the index may serve in place of the one that has it.
fn another_may_do(error: Error) -> Result<Error> {
    match error {
        Error::NotFound { .. } | Error::Unsupported { .. } => {
            tracing::debug!(%error, "an entry of an image index cannot be used");
            Ok(error)
        }
        error => Err(error),
    }
}

/// What a document is.
enum Read {
    Index(Vec<Candidate>),
    Image(Box<(Digest, Config, Bytes, Vec<Descriptor>)>),
}

async fn read(
    source: &dyn Source,
    store: &Arc<Store>,
    host: &Host,
    fetched: &Fetched,
    certain: bool,
) -> Result<Read> {
    let (config, layers) =
        match manifest::document(&fetched.digest, &fetched.content_type, &fetched.bytes, host)? {
            Document::Index(candidates) => return Ok(Read::Index(candidates)),
            Document::Manifest { config, layers } => (config, layers),
        };
    let id = config.digest;
    let bytes = config_bytes(source, store, &config).await?;
    let config = manifest::config(&id, &bytes)?;
    match config.check_platform(&id, host) {
        Err(error) if certain => {
            tracing::warn!(%error, "the image is used nevertheless, as it was named itself or its index says that it is for this node");
        }
        checked => checked?,
    }
    Ok(Read::Image(Box::new((id, config, bytes, layers))))
}

/// The document with this digest, if the store has it.
async fn stored(store: &Arc<Store>, digest: Digest, limit: u64) -> Result<Option<Fetched>> {
    let store = store.clone();
    let bytes = blocking(move || store.document(&digest, limit)).await?;
    // The store does not know its content type. A document without a media type is told by its members.
    Ok(bytes.map(|bytes| Fetched { digest, content_type: String::new(), bytes: bytes.into() }))
}

/// What the reference names now. If the store knows the name, the registry is first asked for the digest alone: registries
/// count how often manifests are fetched.
async fn top(source: &dyn Source, store: &Arc<Store>) -> Result<Fetched> {
    if store.published().find(&source.reference().to_string()).is_some()
        && let Some(digest) = source.current_digest().await?
        && let Some(stored) = stored(store, digest, manifest::MAX_MANIFEST).await?
    {
        return Ok(stored);
    }
    source.resolve(manifest::MAX_MANIFEST).await
}

/// A manifest or index, from the store or the source.
async fn document(source: &dyn Source, store: &Arc<Store>, digest: Digest) -> Result<Fetched> {
    match stored(store, digest, manifest::MAX_MANIFEST).await? {
        Some(stored) => Ok(stored),
        None => source.manifest(&digest, manifest::MAX_MANIFEST).await,
    }
}

/// The image's config, from the store or the source.
async fn config_bytes(source: &dyn Source, store: &Arc<Store>, config: &Descriptor) -> Result<Bytes> {
    match stored(store, config.digest, manifest::MAX_CONFIG).await? {
        Some(stored) => Ok(stored.bytes),
        None => source.small_blob(config, manifest::MAX_CONFIG).await,
    }
}
