//! Images.

use super::{Field, Refusal, Result};
use cri_api::v1 as cri;

/// The name in an image request: name, digest or id.
pub(crate) fn image_name(given: Option<cri::ImageSpec>) -> Result<String> {
    let field = Field::root("image");
    let cri::ImageSpec {
        image,
        // Nothing of ours acts on annotations, and the name as the user wrote it is for containers' status.
        annotations: _,
        user_specified_image: _,
        runtime_handler,
        image_ref: _,
    } = given.ok_or_else(|| field.missing())?;
    handler(&field.at("runtime_handler"), &runtime_handler)?;
    if image.is_empty() {
        return Err(field.at("image").missing());
    }
    super::plain(&field.at("image"), image)
}

/// There is one handler.
pub(super) fn handler(field: &Field<'_>, name: &str) -> Result<()> {
    if name.is_empty() {
        return Ok(());
    }
    Err(field.invalid(name, "unknown handler; only the default one, \"\", exists"))
}
