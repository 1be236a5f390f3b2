//! Converts images.

use super::{Field, Result};
use cri_api::v1 as cri;
use image::{Auth, ConfigDocument, ImageRecord, Usage};
use model::ImageSpec;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// The image of a request: name, digest or id.
pub(crate) fn image_name(given: Option<cri::ImageSpec>) -> Result<String> {
    let field = Field::root("image");
    let cri::ImageSpec {
        image,
        // Annotations are not used here, and the name that the user wrote is for the status of containers.
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

/// The image of a container or of an image volume.
pub(super) fn spec(field: &Field<'_>, given: Option<cri::ImageSpec>) -> Result<ImageSpec> {
    let cri::ImageSpec {
        image,
        annotations,
        user_specified_image,
        runtime_handler,
        // Set by runtimes, in the status of image volumes.
        image_ref: _,
    } = given.ok_or_else(|| field.missing())?;
    if image.is_empty() {
        return Err(field.at("image").missing());
    }
    handler(&field.at("runtime_handler"), &runtime_handler)?;
    Ok(ImageSpec {
        image: super::plain(&field.at("image"), image)?,
        annotations: super::map(&field.at("annotations"), annotations)?,
        user_specified_image,
        runtime_handler,
    })
}

/// Only the default handler exists.
pub(super) fn handler(field: &Field<'_>, name: &str) -> Result<()> {
    if name.is_empty() {
        return Ok(());
    }
    Err(field.invalid(name, "unknown handler; only the default one, \"\", exists"))
}

/// The name to look up; `None` lists all images.
pub(crate) fn image_filter(given: Option<cri::ImageFilter>) -> Result<Option<String>> {
    let spec = given.and_then(|cri::ImageFilter { image }| image);
    // crictl sends a filter without a name for "all images".
    spec.filter(|spec| !spec.image.is_empty()).map(|spec| image_name(Some(spec))).transpose()
}

/// Name and credentials.
pub(crate) fn pull_request(given: cri::PullImageRequest) -> Result<(String, Option<Auth>)> {
    let cri::PullImageRequest {
        image,
        auth,
        // The sandbox could select policies and credentials by namespace; there are none.
        sandbox_config: _,
    } = given;
    let auth = auth.map(|auth| {
        let cri::AuthConfig { username, password, auth, server_address, identity_token, registry_token } =
            auth;
        Auth { username, password, auth, server_address, identity_token, registry_token }
    });
    Ok((image_name(image)?, auth))
}

/// An image as kubelet's garbage collector sees it: identified by its id.
pub(crate) fn image(record: &ImageRecord) -> cri::Image {
    cri::Image {
        id: record.id.clone(),
        repo_tags: record.repo_tags.clone(),
        repo_digests: record.repo_digests.clone(),
        // Clients treat zero as an error.
        size: record.size.max(1),
        uid: record.uid.map(|uid| cri::Int64Value { value: uid.into() }),
        username: record.username.clone().unwrap_or_default(),
        spec: Some(cri::ImageSpec { image: record.id.clone(), ..Default::default() }),
        pinned: record.pinned,
    }
}

/// The file system of images and of containers' writable layers, with what `images` and `layers` use on it.
/// Both have the same mount point, because kubelet takes two mount points for two file systems. kubelet
/// dereferences `used_bytes` without a check and calls stat on the mount point, so that must be a folder
/// which always exists: the image store.
pub(crate) fn image_fs(mountpoint: &Path, images: &Usage, layers: &Usage) -> cri::ImageFsInfoResponse {
    let filesystem = |usage: &Usage| cri::FilesystemUsage {
        timestamp: crate::clock::now(),
        fs_id: Some(cri::FilesystemIdentifier { mountpoint: mountpoint.display().to_string() }),
        used_bytes: Some(cri::UInt64Value { value: usage.bytes }),
        inodes_used: Some(cri::UInt64Value { value: usage.inodes }),
    };
    cri::ImageFsInfoResponse {
        image_filesystems: vec![filesystem(images)],
        container_filesystems: vec![filesystem(layers)],
    }
}

/// For `crictl inspecti`: the image's config document as it was pulled, under the name that containerd and CRI-O give it.
/// Without the document, the part of it that the record has.
pub(crate) fn image_info(record: &ImageRecord, document: Option<&ConfigDocument>) -> HashMap<String, String> {
    let mut info = serde_json::json!({
        "chainID": document.map(|document| &document.chain_id),
        "id": record.id,
        "labels": record.config.labels,
        "layers": record.layers,
    })
    .to_string();
    // The document was parsed when it was pulled. It may have megabytes and is therefore not parsed again.
    let config = document.map_or_else(|| stored_config(record), |document| document.json.clone());
    // Without the closing brace.
    info.pop();
    info.push_str(",\"imageSpec\":");
    info.push_str(&config);
    info.push('}');
    [("info".to_owned(), info)].into()
}

/// A config document with what the record has of it.
fn stored_config(record: &ImageRecord) -> String {
    let image::ImageConfig { entrypoint, cmd, env, user, working_dir, stop_signal, volumes, labels } =
        &record.config;
    let volumes: BTreeMap<_, _> = volumes.iter().map(|volume| (volume, serde_json::json!({}))).collect();
    serde_json::json!({ "config": {
        "Entrypoint": entrypoint,
        "Cmd": cmd,
        "Env": env,
        "User": user,
        "WorkingDir": working_dir,
        "StopSignal": stop_signal,
        "Volumes": volumes,
        "Labels": labels,
    } })
    .to_string()
}
