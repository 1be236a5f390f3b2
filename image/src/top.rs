//! The manifest or index that a reference names now: from the store, if the registry says that it is one of those that
//! the store has.

use crate::error::Result;
use crate::lane::blocking;
use crate::manifest::MAX_MANIFEST;
use crate::registry::{Fetched, Registry};
use crate::store::Store;
use std::sync::Arc;

/// Fetches what the reference names. If the store knows the name, the registry is first asked for the digest alone:
/// registries count how often manifests are fetched.
pub(crate) async fn top(registry: &Registry, store: &Arc<Store>) -> Result<Fetched> {
    if store.published().find(&registry.reference().to_string()).is_some()
        && let Some(digest) = registry.current_digest().await?
    {
        let store = store.clone();
        if let Some(bytes) = blocking(move || store.document(&digest, MAX_MANIFEST)).await? {
            // The store does not know its content type. Documents without a media type are told by their members.
            return Ok(Fetched { digest, content_type: String::new(), bytes: bytes.into() });
        }
    }
    registry.resolve(MAX_MANIFEST).await
}
