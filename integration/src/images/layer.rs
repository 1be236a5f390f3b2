//! One layer: a tar archive written entry by entry, with hostile names where tests need them, and then
//! compressed.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use tar::{Builder, EntryType, Header};

use super::{Blob, Form, digest};
use crate::isolation::command;

/// The compression of the archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Packing {
    /// gzip.
    Gzip,
    /// zstd.
    Zstd,
    /// No compression.
    Plain,
}

/// A finished layer.
#[derive(Debug, Clone)]
pub(crate) struct Layer {
    /// The compressed bytes.
    pub(crate) blob: Blob,
    /// Digest of the tar.
    pub(crate) diff_id: String,
    packing: Packing,
}

impl Layer {
    /// A layer that is compressed already.
    pub(super) fn of(blob: Blob, diff_id: String, packing: Packing) -> Self {
        Self { blob, diff_id, packing }
    }

    /// The media type in a manifest of this form.
    pub(crate) fn media_type(&self, form: Form) -> &'static str {
        match (form, self.packing) {
            (Form::Oci, Packing::Gzip) => "application/vnd.oci.image.layer.v1.tar+gzip",
            (Form::Oci, Packing::Zstd) => "application/vnd.oci.image.layer.v1.tar+zstd",
            (Form::Oci, Packing::Plain) => "application/vnd.oci.image.layer.v1.tar",
            (Form::Docker, Packing::Gzip) => "application/vnd.docker.image.rootfs.diff.tar.gzip",
            (Form::Docker, Packing::Zstd) => "application/vnd.docker.image.rootfs.diff.tar.zstd",
            (Form::Docker, Packing::Plain) => "application/vnd.docker.image.rootfs.diff.tar",
        }
    }
}

/// Writes a layer.
pub(crate) struct Writer {
    tar: Builder<Vec<u8>>,
    dirs: BTreeSet<String>,
}

impl Writer {
    /// An empty layer.
    pub(crate) fn new() -> Self {
        Self { tar: Builder::new(Vec::new()), dirs: BTreeSet::new() }
    }

    /// Writes one entry with the name exactly as given, such as `../x` or `/x`.
    pub(crate) fn raw(
        &mut self,
        kind: EntryType,
        name: &str,
        link: &str,
        mode: u32,
        owner: (u64, u64),
        content: &[u8],
    ) -> Result<()> {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(owner.0);
        header.set_gid(owner.1);
        header.set_size(content.len() as u64);
        header.set_mtime(1_700_000_000);
        if matches!(kind, EntryType::Char | EntryType::Block) {
            // A device number without a driver (devices.txt: for experiments), so opening it fails.
            header.set_device_major(240)?;
            header.set_device_minor(5)?;
        }
        let gnu = header.as_gnu_mut().context("gnu header")?;
        put(&mut gnu.name, name)?;
        put(&mut gnu.linkname, link)?;
        header.set_cksum();
        self.tar.append(&header, content)?;
        Ok(())
    }

    /// A regular file of root, with its parents.
    pub(crate) fn file(&mut self, name: &str, mode: u32, content: &[u8]) -> Result<()> {
        self.owned(name, mode, (0, 0), content)
    }

    /// A regular file with the given owner.
    pub(crate) fn owned(&mut self, name: &str, mode: u32, owner: (u64, u64), content: &[u8]) -> Result<()> {
        self.parents(name)?;
        self.raw(EntryType::Regular, name, "", mode, owner, content)
    }

    /// A directory, with its parents.
    pub(crate) fn dir(&mut self, name: &str, mode: u32) -> Result<()> {
        self.parents(name)?;
        if self.dirs.insert(name.to_owned()) {
            self.raw(EntryType::Directory, &format!("{name}/"), "", mode, (0, 0), b"")?;
        }
        Ok(())
    }

    /// A symbolic link, with its parents.
    pub(crate) fn symlink(&mut self, name: &str, target: &str) -> Result<()> {
        self.parents(name)?;
        self.raw(EntryType::Symlink, name, target, 0o777, (0, 0), b"")
    }

    /// A hard link to an earlier entry.
    pub(crate) fn hardlink(&mut self, name: &str, target: &str) -> Result<()> {
        self.parents(name)?;
        self.raw(EntryType::Link, name, target, 0o644, (0, 0), b"")
    }

    /// PAX records for the next entry.
    pub(crate) fn pax(&mut self, records: &[(&str, &str)]) -> Result<()> {
        self.tar.append_pax_extensions(records.iter().map(|(key, value)| (*key, value.as_bytes())))?;
        Ok(())
    }

    /// A file with an extended attribute in a PAX record.
    pub(crate) fn with_xattr(&mut self, name: &str, key: &str, value: &str) -> Result<()> {
        let pax = format!("SCHILY.xattr.{key}");
        self.tar.append_pax_extensions([(pax.as_str(), value.as_bytes())])?;
        self.file(name, 0o644, b"with attribute\n")
    }

    /// A file of this machine at the same path, with the shared libraries it needs.
    pub(crate) fn program(&mut self, path: &str) -> Result<()> {
        self.host_file(Path::new(path))?;
        for line in command("ldd", &[path])?.lines() {
            if let Some(library) = line.split_whitespace().find(|w| w.starts_with('/')) {
                self.host_file(Path::new(library))?;
            }
        }
        Ok(())
    }

    fn host_file(&mut self, path: &Path) -> Result<()> {
        let name = path.to_str().context("path is not UTF-8")?.trim_start_matches('/').to_owned();
        if !self.dirs.insert(name.clone()) {
            return Ok(());
        }
        let real: PathBuf = fs::canonicalize(path).with_context(|| path.display().to_string())?;
        let mode = fs::metadata(&real)?.permissions().mode() & 0o7777;
        let content = fs::read(&real).with_context(|| real.display().to_string())?;
        self.file(&name, mode, &content)
    }

    fn parents(&mut self, name: &str) -> Result<()> {
        let mut at = String::new();
        let parts: Vec<&str> = name.trim_end_matches('/').split('/').collect();
        for part in parts.iter().take(parts.len().saturating_sub(1)) {
            if !at.is_empty() {
                at.push('/');
            }
            at.push_str(part);
            if self.dirs.insert(at.clone()) {
                self.raw(EntryType::Directory, &format!("{at}/"), "", 0o755, (0, 0), b"")?;
            }
        }
        Ok(())
    }

    /// Finishes the archive and compresses it.
    pub(crate) fn finish(self, packing: Packing) -> Result<Layer> {
        let tar = self.tar.into_inner()?;
        let diff_id = digest(&tar);
        let bytes = match packing {
            Packing::Plain => tar,
            Packing::Zstd => zstd::encode_all(tar.as_slice(), 3)?,
            Packing::Gzip => {
                let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                out.write_all(&tar)?;
                out.finish()?
            }
        };
        Ok(Layer { blob: super::blob(Bytes::from(bytes)), diff_id, packing })
    }
}

fn put(field: &mut [u8], text: &str) -> Result<()> {
    field
        .get_mut(..text.len())
        .with_context(|| format!("{text} does not fit a tar header"))?
        .copy_from_slice(text.as_bytes());
    Ok(())
}
