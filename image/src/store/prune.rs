//! Removal of what nothing uses.

use super::{Store, Unlisted, gc, lock};
use crate::error::Result;
use crate::record::{ImageRecord, Pruned};
use crate::reference::Digest;
use std::sync::Arc;

impl Store {
    /// Removes the images that are neither pinned nor leased, and the layers that only they or failed pulls need, and waits
    /// for their disk space. With `dry_run` it only tells what it would remove.
    pub(crate) fn prune(&self, dry_run: bool) -> Result<Pruned> {
        let images: Vec<_> =
            self.published().images.iter().filter(|image| self.is_unused(image)).cloned().collect();
        let bytes = self.only_of(&images);
        if !dry_run {
            self.give_up_unfinished();
            let mut removed = Unlisted::default();
            // A container may have leased one meanwhile.
            let unlisted = images.iter().filter(|image| self.is_unused(image)).try_for_each(|image| {
                let unlisted = self.unlist(&image.id)?;
                removed.full = unlisted.and_then(|unlisted| unlisted.full).or_else(|| removed.full.take());
                Ok(())
            });
            // Also after a failure, for those before it.
            self.collect()?;
            self.wait_for_space(removed);
            unlisted?;
        }
        Ok(Pruned { images, bytes })
    }

    fn is_unused(&self, image: &ImageRecord) -> bool {
        let is_of = |lease: &super::lease::Stored| lease.image.to_string() == image.id;
        !image.pinned && !lock(&self.catalog).leases.values().any(is_of)
    }

    /// Bytes of the layers that nothing but these images needs.
    fn only_of(&self, images: &[Arc<ImageRecord>]) -> u64 {
        let mut entries = lock(&self.images).clone();
        for id in images.iter().filter_map(|image| Digest::parse(&image.id)) {
            entries.remove(&id);
        }
        let catalog = lock(&self.catalog);
        // Pulls that run have pinned their layers.
        let stays = gc::Reachable::new(&entries, &catalog.leases, catalog.pins.keys());
        let gone = catalog.layers.iter().filter(|(name, _)| !stays.has_layer(name));
        gone.map(|(_, facts)| facts.stats.bytes).sum()
    }
}
