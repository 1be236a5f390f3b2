//! Pulls an image and mounts its layers.

use super::common::archives::{exported, import};
use super::common::{CONFIG, Faulty, LAYER, MANIFEST, Node, digest_of};
use super::opinion;
use super::tree::{self, Tree};
use image::Compression;
use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::path::Path;
use sys::mount::{Attributes, FsOption};

/// A layer: the archive, and what is in the registry.
#[derive(Debug, Clone)]
pub struct Layer {
    pub plain: Vec<u8>,
    pub blob: Vec<u8>,
    /// The end of its media type.
    pub suffix: &'static str,
}

impl Layer {
    pub fn gzip(plain: Vec<u8>) -> Self {
        Self { blob: gzip(&plain), plain, suffix: "+gzip" }
    }
    pub fn plain(plain: Vec<u8>) -> Self {
        Self { blob: plain.clone(), plain, suffix: "" }
    }
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// The documents and blobs of an image.
#[derive(Debug, Default)]
pub struct Image {
    pub blobs: Vec<Vec<u8>>,
    pub manifest: Vec<u8>,
    pub media_type: String,
}

impl Image {
    pub fn new(layers: &[Layer]) -> Self {
        let diff_ids: Vec<String> = layers.iter().map(|layer| digest_of(&layer.plain)).collect();
        let config = serde_json::to_vec(&serde_json::json!({
            "architecture": "amd64", "os": "linux", "config": {},
            "rootfs": {"type": "layers", "diff_ids": diff_ids}}))
        .unwrap();
        let descriptors: Vec<_> = layers
            .iter()
            .map(|layer| {
                serde_json::json!({"mediaType": format!("{LAYER}{}", layer.suffix),
                    "digest": digest_of(&layer.blob), "size": layer.blob.len()})
            })
            .collect();
        let manifest = serde_json::to_vec(&serde_json::json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": {"mediaType": CONFIG, "digest": digest_of(&config), "size": config.len()},
            "layers": descriptors}))
        .unwrap();
        let mut blobs: Vec<_> = layers.iter().map(|layer| layer.blob.clone()).collect();
        blobs.push(config);
        Self { blobs, manifest, media_type: MANIFEST.to_owned() }
    }

    /// Pulls the image from a registry into a new store. Returns what a container would see.
    pub async fn pulled(&self) -> Tree {
        self.pulled_and_exported().await.0
    }

    /// Pulls the image, exports it, and imports that into another store. Returns what a container would see in both.
    pub async fn pulled_and_exported(&self) -> (Tree, Tree) {
        let (registry, node) = (Faulty::start().await, Node::new());
        {
            let mut shared = registry.shared.lock().unwrap();
            shared.blobs.extend(self.blobs.iter().map(|blob| (digest_of(blob), blob.clone())));
            let manifest = (self.manifest.clone(), self.media_type.clone());
            for tag in ["v1".to_owned(), digest_of(&self.manifest)] {
                shared.manifests.insert(format!("of/builder/manifests/{tag}"), manifest.clone());
            }
        }
        let record = node.store.pull(&format!("{}/of/builder:v1", registry.address), None).await.unwrap();
        let tree = merged(&record.layers_dir, &record.layers);
        let other = Node::new();
        let name = record.repo_tags[0].clone();
        let archive = exported(&node.store, &name, Compression::Gzip).await;
        assert!(archive == exported(&node.store, &name, Compression::Gzip).await, "two exports differ");
        let imported = import(&other.store, &archive, &[]).await.unwrap();
        assert_eq!(imported.len(), 1);
        assert_eq!(imported[0].name, name);
        let again = other.store.resolve(&name).unwrap();
        let tree_again = merged(&again.layers_dir, &again.layers);
        // The layers that are made again are those of the archive.
        let second = exported(&other.store, &name, Compression::Gzip).await;
        assert!(archive == second, "the export of an import differs from the export");
        for (node, id) in [(node, &record.id), (other, &again.id)] {
            node.store.remove(id).await.unwrap();
            node.assert_empty().await;
        }
        (tree, tree_again)
    }
}

/// Reads what overlayfs shows of layers, topmost first. The mount is attached nowhere, so it ends with its descriptor.
fn merged(folder: &Path, layers: &[String]) -> Tree {
    // Without an upper layer, overlayfs requires two lower ones.
    let empty = tempfile::tempdir().unwrap();
    let paths = layers.iter().map(|layer| folder.join(layer)).chain([empty.path().to_owned()]);
    // A mount option has at most 255 bytes.
    let open: Vec<_> = paths.map(|path| std::fs::File::open(path).unwrap()).collect();
    let lower: Vec<_> = open.iter().map(|file| format!("/proc/self/fd/{}", file.as_raw_fd())).collect();
    let options = [FsOption::Value("source", "corpus"), FsOption::Value("lowerdir", &lower.join(":"))];
    let mount = sys::mount::create("overlay", &options, Attributes::default()).unwrap();
    tree::read(Path::new(&format!("/proc/self/fd/{}", mount.as_raw_fd())))
}

/// Pulls an image of these layers (lowest first) and compares it with the tree that it should be, and with umoci's.
pub async fn check(name: &str, layers: &[Layer], wanted: &Tree) {
    let (found, exported) = Image::new(layers).pulled_and_exported().await;
    assert!(!wanted.is_empty(), "{name}");
    tree::assert_same(&format!("{name}, compared with what was asked for"), &found, wanted);
    tree::assert_same(&format!("{name}, exported and imported"), &exported, wanted);
    let archives: Vec<_> = layers.iter().map(|layer| layer.plain.as_slice()).collect();
    tree::assert_same(&format!("{name}, compared with umoci"), &found, &opinion::umoci(&archives, wanted));
}
