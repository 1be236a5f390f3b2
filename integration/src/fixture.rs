//! The shared fixture of a run: work folder, registry with images, binaries.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::expect::ensure;
use crate::images::catalog::{self, Entry, Layers};
use crate::registry::Registry;

/// Shared by all tests.
#[derive(Debug)]
pub(crate) struct Fixture {
    /// The work folder, removed at the end.
    work: Option<tempfile::TempDir>,
    place: PathBuf,
    /// The folder of copepod, copepod-shim and pause.
    pub(crate) bin: PathBuf,
    /// The registry.
    pub(crate) registry: Registry,
    /// Layers for building more images.
    pub(crate) layers: Layers,
    /// The pushed images.
    pub(crate) images: Vec<Entry>,
}

impl Fixture {
    /// Starts the registry, then builds and pushes all images.
    pub(crate) async fn new(bin: &Path) -> Result<Self> {
        let bin = fs::canonicalize(bin).with_context(|| bin.display().to_string())?;
        fs::create_dir_all("/var/lib/copepod-test")?;
        // Not below /tmp, which is a tmpfs on many machines: image layers need a file system with all
        // features.
        let work = tempfile::Builder::new()
            .prefix("run-")
            .tempdir_in("/var/lib/copepod-test")
            .context("work folder")?;
        let registry = Registry::start(work.path()).await?;
        let layers = tokio::task::spawn_blocking(catalog::layers).await??;
        let images = catalog::all(&layers)?;
        for e in &images {
            let digest = registry
                .push(e.name, e.tag, &e.image)
                .await
                .with_context(|| format!("push {}:{}", e.name, e.tag))?;
            ensure!(digest == e.image.manifest.digest, "registry changed the digest of {}", e.name);
        }
        let place = work.path().to_owned();
        Ok(Self { work: Some(work), place, bin, registry, layers, images })
    }

    /// The work folder.
    pub(crate) fn work(&self) -> &Path {
        &self.place
    }

    /// The image pushed as `name:tag`.
    pub(crate) fn entry(&self, name: &str, tag: &str) -> Result<&Entry> {
        self.images
            .iter()
            .find(|e| e.name == name && e.tag == tag)
            .with_context(|| format!("no image {name}:{tag}"))
    }

    /// Reference of a pushed image with tag 1, through the mirror of registry.test.
    pub(crate) fn image(name: &str) -> String {
        format!("registry.test/{name}:1")
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        drop(self.work.take());
        // The parent folder is removed unless another run uses it.
        if let Some(parent) = self.place.parent() {
            drop(fs::remove_dir(parent));
        }
    }
}
