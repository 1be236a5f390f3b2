//! What a container's root is stacked from. Layers are independent folders, so there is nothing to prepare: a
//! lease names them in overlayfs's order.

use crate::record::Lease;
use std::path::PathBuf;

impl Lease {
    /// Full paths of the lower folders, topmost first, as overlayfs wants them. For mounting, the short names
    /// in `layers` relative to `layers_dir` take less of the option page.
    pub fn lower_dirs(&self) -> Vec<PathBuf> {
        self.layers.iter().map(|layer| self.layers_dir.join(layer)).collect()
    }
}
