//! References to images.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// CRI `ImageSpec`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageSpec {
    /// Name, digest or id.
    pub image: String,
    /// Annotations; returned in status.
    pub annotations: BTreeMap<String, String>,
    /// The image name as the user wrote it; returned in status.
    pub user_specified_image: String,
    /// Runtime handler that the image was pulled for.
    pub runtime_handler: String,
}

/// The source of an image volume: CRI `Mount.image` and `Mount.image_sub_path`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageVolume {
    /// The image.
    pub image: ImageSpec,
    /// A file or folder in it, relative to its root; empty for the root.
    pub sub_path: String,
}
