//! The images of a container: of its root file system and of its image volumes. Each is leased, so that its layers stay
//! while the container exists, even if the image is removed.

use super::Context;
use crate::error::{Error, ErrorKind};
use image::{ImageRecord, Lease};
use model::{ContainerRecord, ImageOfContainer};
use spec::ImageLayers;
use std::sync::Arc;
use wire::LayerSource;

/// What an operator can do if the image store takes too long.
pub(super) const STORE: &str = "the disk of the image store may hang: look at the kernel's log";

/// Looks up and leases the image of the container's root file system, and puts it into the record.
pub(super) async fn of_root(
    context: &Context,
    record: &mut ContainerRecord,
) -> Result<(Arc<ImageRecord>, Lease), Error> {
    let requested = &record.config.image.image;
    let image = context.images.resolve(requested).ok_or_else(|| {
        Error::new(ErrorKind::NotFound, format!("image {requested:?} is not on this node: pull it first"))
    })?;
    let _step = progress::enter("lease the image", STORE);
    let lease = context.images.lease_for(&image.id, record.id.as_str()).await?;
    record.image = ImageOfContainer {
        id: image.id.clone(),
        digested: image.repo_digests.first().cloned().unwrap_or_else(|| image.id.clone()),
    };
    Ok((image, lease))
}

/// Looks up and leases the images of image volumes, and puts their ids into the record. The owner of such a lease is the
/// container's id with a number, so that `ImageStore::release` of the id releases it too.
pub(super) async fn of_volumes(
    context: &Context,
    record: &mut ContainerRecord,
) -> Result<ImageLayers, Error> {
    let mut layers = ImageLayers::new();
    for mount in &record.config.mounts {
        let Some(volume) = &mount.image else { continue };
        let failed = |error: Error| {
            error.context(format!("volume {}", mount.container_path)).with_kind(ErrorKind::ImageVolume)
        };
        let requested = &volume.image.image;
        let image = context.images.resolve(requested).ok_or_else(|| {
            let text = format!("image {requested:?} is not on this node: pull it first");
            failed(Error::new(ErrorKind::ImageVolume, text))
        })?;
        record.volume_images.push(image.id.clone());
        if !layers.contains_key(&image.id) {
            let part = format!("{}_{}", record.id, layers.len());
            let _step = progress::enter("lease the image of a volume", STORE);
            let lease = context.images.lease_for(&image.id, &part).await;
            let folders = lease.map_err(|error| failed(error.into()))?.layers;
            layers.insert(image.id.clone(), folders.into_iter().map(LayerSource::Folder).collect());
        }
    }
    Ok(layers)
}
