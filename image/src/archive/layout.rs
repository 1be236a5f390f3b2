//! An OCI image layout: `index.json` lists images by digest, and `blobs/<algorithm>/<digest>` has everything.

use super::members::Members;
use super::{Found, MAX_LIST, Top, check_number, parse_list};
use crate::error::{Error, Result};
use crate::manifest::MAX_MANIFEST;
use crate::reference::{Digest, Reference};
use crate::source::Fetched;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

const INDEX: &str = "index.json";
/// The annotation with a whole name, which containerd, docker and BuildKit write.
const CONTAINERD_NAME: &str = "io.containerd.image.name";
/// The annotation of the specification. It may be a tag alone, which says nothing about the repository.
const REF_NAME: &str = "org.opencontainers.image.ref.name";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";

#[derive(Debug, Deserialize)]
struct Index {
    manifests: Option<Vec<Entry>>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Entry {
    #[serde(rename = "mediaType", default, skip_serializing_if = "Option::is_none")]
    media_type: Option<String>,
    #[serde(rename = "artifactType", default, skip_serializing_if = "Option::is_none")]
    artifact_type: Option<String>,
    digest: String,
    #[serde(default)]
    size: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    platform: Option<Platform>,
    #[serde(default, skip_serializing)]
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Platform {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    variant: Option<String>,
    #[serde(rename = "os.features", default, skip_serializing_if = "Option::is_none")]
    features: Option<Vec<String>>,
}

/// The path of a blob in a layout.
pub(super) fn path(digest: &Digest) -> String {
    let algorithm = match digest {
        Digest::Sha256(_) => "sha256",
        Digest::Sha512(_) => "sha512",
    };
    format!("blobs/{algorithm}/{}", digest.hex())
}

/// The images of the layout; `None` if the archive is none. Entries of one name are one image for several platforms, and so
/// are those without a name.
pub(super) fn images(members: &Members) -> Result<Option<Vec<Found>>> {
    let Some(bytes) = members.content(INDEX, MAX_LIST)? else { return Ok(None) };
    let index: Index = parse_list(INDEX, &bytes)?;
    // In the order of the index.
    let mut groups: Vec<(Option<Reference>, Vec<Entry>)> = Vec::new();
    for entry in index.manifests.unwrap_or_default() {
        let name = name(&entry);
        match groups.iter_mut().find(|(of, _)| *of == name) {
            Some((_, entries)) => entries.push(entry),
            None => groups.push((name, vec![entry])),
        }
        check_number(groups.len())?;
    }
    // What has no name beside what has one is an attestation, or an image that was exported by its id.
    if groups.iter().any(|(name, _)| name.is_some()) {
        groups.retain(|(name, _)| name.is_some());
    }
    let mut images: Vec<Found> = Vec::new();
    for (name, entries) in groups {
        let top = top(members, &entries)?;
        match images.iter_mut().find(|image| image.top.digest == top.digest) {
            Some(image) => image.names.extend(name),
            None => images.push(Found { names: name.into_iter().collect(), top }),
        }
    }
    Ok(Some(images))
}

/// The name of an image, if an annotation has a whole one.
fn name(entry: &Entry) -> Option<Reference> {
    let annotation = |key| entry.annotations.as_ref().and_then(|all| all.get(key)).map(String::as_str);
    let whole = annotation(CONTAINERD_NAME);
    let whole = whole.or_else(|| annotation(REF_NAME).filter(|name| name.contains(['/', ':'])))?;
    // containerd lists each image of Kubernetes by its id, too.
    if Digest::parse(whole).is_some() {
        return None;
    }
    match Reference::parse(whole) {
        Ok(name) => Some(name),
        Err(error) => {
            tracing::debug!(%error, "an annotation of an archive has no name of an image");
            None
        }
    }
}

/// The manifest or index of an image with these entries, at least one.
fn top(members: &Members, entries: &[Entry]) -> Result<Top> {
    let [entry] = entries else {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct OneIndex<'a> {
            schema_version: u32,
            media_type: &'a str,
            manifests: &'a [Entry],
        }
        let index = OneIndex { schema_version: 2, media_type: OCI_INDEX, manifests: entries };
        let bytes = serde_json::to_vec(&index).map_err(|error| Error::corrupt(INDEX, error))?;
        let content_type = OCI_INDEX.to_owned();
        return Ok(Top { digest: Digest::of(&bytes), content_type, made: Some(bytes.into()) });
    };
    let digest = Digest::parse(&entry.digest).ok_or_else(|| {
        let shown: String = entry.digest.chars().take(100).collect();
        Error::corrupt("index.json of the archive", format!("{shown:?} is no sha256 or sha512 digest"))
    })?;
    let bytes = members.content(&path(&digest), MAX_MANIFEST)?.ok_or_else(|| absent(&digest))?;
    let Fetched { digest, content_type, .. } =
        verified(&digest, entry.media_type.clone().unwrap_or_default(), bytes)?;
    Ok(Top { digest, content_type, made: None })
}

/// The error for a blob that the archive does not have.
pub(super) fn absent(digest: &Digest) -> Error {
    Error::NotFound { object: format!("blob {digest}"), detail: "it is not in the archive".to_owned() }
}

/// A document whose digest was verified.
pub(super) fn verified(digest: &Digest, content_type: String, bytes: bytes::Bytes) -> Result<Fetched> {
    let found = digest.same_of(&bytes);
    if found != *digest {
        let reason = format!("the digest of its content is {found}");
        return Err(Error::corrupt(format!("blob {digest} of the archive"), reason));
    }
    Ok(Fetched { digest: *digest, content_type, bytes })
}
