//! The layers of a container's root file system. Layers are independent folders, so nothing has to be
//! prepared: a lease lists them in the order that overlayfs expects.

use crate::record::Lease;
use std::path::PathBuf;

impl Lease {
    /// Full paths of the lower folders, topmost first, as overlayfs expects them. For mounting, the names in
    /// `layers`, relative to `layers_dir`, take less of the page of mount options.
    pub fn lower_dirs(&self) -> Vec<PathBuf> {
        self.layers.iter().map(|layer| self.layers_dir.join(layer)).collect()
    }
}
