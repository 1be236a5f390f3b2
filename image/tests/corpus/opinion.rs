//! What umoci, whose reader is Go's archive/tar, makes of the same archives.

use super::common::{CONFIG, LAYER, MANIFEST, digest_of};
use super::tree::{self, Tree};
use std::fs;
use std::path::Path;
use std::process::Command;

/// Runs a program, which must succeed, and returns what it prints.
pub fn run(program: &str, arguments: &[&str]) -> Vec<u8> {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}; `make deps` installs it"));
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// Writes an OCI layout of uncompressed layers (lowest first) with the tag `t`.
pub fn layout(folder: &Path, archives: &[&[u8]]) {
    let blobs = folder.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let put = |bytes: &[u8], media_type: &str| {
        let digest = digest_of(bytes);
        fs::write(blobs.join(digest.strip_prefix("sha256:").unwrap()), bytes).unwrap();
        serde_json::json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
    };
    let layers: Vec<_> = archives.iter().map(|bytes| put(bytes, LAYER)).collect();
    let diff_ids: Vec<_> = layers.iter().map(|layer| layer["digest"].clone()).collect();
    let config = serde_json::json!({"architecture": "amd64", "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": diff_ids}});
    let config = put(config.to_string().as_bytes(), CONFIG);
    let manifest =
        serde_json::json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers});
    let mut manifest = put(manifest.to_string().as_bytes(), MANIFEST);
    manifest["annotations"] = serde_json::json!({"org.opencontainers.image.ref.name": "t"});
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [manifest]});
    fs::write(folder.join("index.json"), index.to_string()).unwrap();
    fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion": "1.0.0"}"#).unwrap();
}

/// What umoci unpacks. Times are left out where `wanted` has none, and of the folder around: unlike containerd, umoci
/// does not set the time of a folder again after it has created a folder in it that has no entry.
pub fn umoci(archives: &[&[u8]], wanted: &Tree) -> Tree {
    let folder = tempfile::tempdir().unwrap();
    let (image, root) = (folder.path().join("image"), folder.path().join("root"));
    layout(&image, archives);
    run("umoci", &["raw", "unpack", "--image", &format!("{}:t", image.display()), root.to_str().unwrap()]);
    let mut tree = tree::read(&root);
    for (path, _) in wanted.iter().filter(|(_, entry)| entry.mtime.is_none()) {
        let around = path.rsplit_once('/').map_or("", |(folder, _)| folder);
        for path in [path.as_str(), around] {
            tree.entry(path.to_owned()).and_modify(|entry| entry.mtime = None);
        }
    }
    tree
}
