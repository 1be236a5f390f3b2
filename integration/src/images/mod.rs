//! Builds test images: archive, compression, config and manifest, in OCI or docker form.

pub(crate) mod catalog;
mod content;
pub(crate) mod large;
pub(crate) mod layer;

use bytes::Bytes;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use layer::Layer;

/// A blob with its digest.
#[derive(Debug, Clone)]
pub(crate) struct Blob {
    /// `sha256:<hex>`.
    pub(crate) digest: String,
    /// The content.
    pub(crate) bytes: Bytes,
}

/// A manifest or index.
#[derive(Debug, Clone)]
pub(crate) struct Manifest {
    /// `sha256:<hex>`.
    pub(crate) digest: String,
    /// Its media type.
    pub(crate) media_type: String,
    /// The JSON.
    pub(crate) bytes: Bytes,
}

/// Everything that is pushed for one name.
#[derive(Debug, Clone)]
pub(crate) struct Image {
    /// Layers and configs.
    pub(crate) blobs: Vec<Blob>,
    /// Manifests that an index refers to.
    pub(crate) children: Vec<Manifest>,
    /// What the tag points to.
    pub(crate) manifest: Manifest,
    /// Digest of the config, which is the image's id.
    pub(crate) id: String,
}

/// The two families of media types.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// OCI image specification.
    Oci,
    /// Docker's schema 2.
    Docker,
}

/// `sha256:<hex>` of some bytes.
pub(crate) fn digest(bytes: &[u8]) -> String {
    named(&Sha256::digest(bytes))
}

/// `sha256:<hex>` of a hash.
fn named(hash: &[u8]) -> String {
    hash.iter().fold(String::from("sha256:"), |text, b| text + &format!("{b:02x}"))
}

/// What an image is built from.
#[derive(Debug, Clone)]
pub(crate) struct Recipe {
    /// Media types to use.
    pub(crate) form: Form,
    /// Layers, lowest first.
    pub(crate) layers: Vec<Layer>,
    /// The `config` object: Entrypoint, Cmd, Env, User, WorkingDir, StopSignal, Volumes, Labels.
    pub(crate) config: Value,
    /// `architecture` of the image.
    pub(crate) architecture: &'static str,
}

impl Recipe {
    /// An amd64 OCI image of these layers.
    pub(crate) fn new(layers: &[Layer], config: Value) -> Self {
        Self { form: Form::Oci, layers: layers.to_vec(), config, architecture: "amd64" }
    }

    /// Uses docker's media types.
    pub(crate) fn docker(mut self) -> Self {
        self.form = Form::Docker;
        self
    }

    /// Builds it.
    pub(crate) fn build(&self) -> Image {
        let (manifest_type, config_type) = match self.form {
            Form::Oci => {
                ("application/vnd.oci.image.manifest.v1+json", "application/vnd.oci.image.config.v1+json")
            }
            Form::Docker => (
                "application/vnd.docker.distribution.manifest.v2+json",
                "application/vnd.docker.container.image.v1+json",
            ),
        };
        let diff_ids: Vec<&str> = self.layers.iter().map(|l| l.diff_id.as_str()).collect();
        let history: Vec<Value> =
            self.layers.iter().map(|_| json!({"created_by": "copepod tests"})).collect();
        let config = json!({
            "architecture": self.architecture, "os": "linux", "created": "2026-01-01T00:00:00Z",
            "config": self.config, "rootfs": {"type": "layers", "diff_ids": diff_ids}, "history": history,
        });
        let config = blob(Bytes::from(config.to_string()));
        let layers: Vec<Value> = self
            .layers
            .iter()
            .map(|l| json!({"mediaType": l.media_type(self.form), "digest": l.blob.digest, "size": l.blob.bytes.len()}))
            .collect();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": manifest_type,
            "config": {"mediaType": config_type, "digest": config.digest, "size": config.bytes.len()},
            "layers": layers,
        });
        let id = config.digest.clone();
        let blobs = self.layers.iter().map(|l| l.blob.clone()).chain([config]).collect();
        Image { blobs, children: Vec::new(), manifest: manifest_of(manifest_type, &manifest), id }
    }
}

/// An index (OCI) or manifest list (docker) of images with their platforms; the id is that of the first one.
pub(crate) fn index(form: Form, images: &[(Image, Value)]) -> Image {
    let media_type = match form {
        Form::Oci => "application/vnd.oci.image.index.v1+json",
        Form::Docker => "application/vnd.docker.distribution.manifest.list.v2+json",
    };
    let entries: Vec<Value> = images
        .iter()
        .map(|(i, platform)| {
            json!({"mediaType": i.manifest.media_type, "digest": i.manifest.digest, "size": i.manifest.bytes.len(), "platform": platform})
        })
        .collect();
    let list = json!({"schemaVersion": 2, "mediaType": media_type, "manifests": entries});
    Image {
        blobs: images.iter().flat_map(|(i, _)| i.blobs.clone()).collect(),
        children: images.iter().map(|(i, _)| i.manifest.clone()).collect(),
        manifest: manifest_of(media_type, &list),
        id: images.first().map(|(i, _)| i.id.clone()).unwrap_or_default(),
    }
}

fn manifest_of(media_type: &str, value: &Value) -> Manifest {
    let bytes = Bytes::from(value.to_string());
    Manifest { digest: digest(&bytes), media_type: media_type.to_owned(), bytes }
}

fn blob(bytes: Bytes) -> Blob {
    Blob { digest: digest(&bytes), bytes }
}
