//! Images for measuring pulls, the same on every machine: a large one, whose content compresses like that of real images,
//! and one of tiny layers.
//!
//! Every pull that is measured must be a first one, and compressing a large layer takes long. So a layer is made of two
//! members of a gzip stream: the first has nearly all entries, and is made once; the second has one small file with a
//! number, and the end of the archive. Layers with different numbers have different digests.

use std::io::{self, Write};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tar::{EntryType, Header};

use super::content::Content;
use super::layer::{Layer, Packing};
use super::{Blob, Image, Recipe, named};

/// The layers of the large image, lowest first: number of files, and their size in KiB.
const LARGE: [(u32, u32); 5] =
    [(3_200, 82 << 10), (8_600, 330 << 10), (3_300, 250 << 10), (2_100, 150 << 10), (500, 92 << 10)];
/// Layers of the other image.
const TINY: u64 = 12;
/// Files in a folder.
const FILES: u32 = 12;

/// An image whose layers get a number.
#[derive(Debug, Clone)]
pub(crate) struct Numbered {
    layers: Vec<Arc<First>>,
}

/// The first member of a layer, with what the hashes have read of it.
#[derive(Debug)]
struct First {
    compressed: Vec<u8>,
    of_compressed: Sha256,
    of_archive: Sha256,
}

impl Numbered {
    /// 17,700 files of 904 MiB in five layers, which have about 310 MiB when they are compressed. Takes some seconds on
    /// all processors.
    pub(crate) fn large() -> Result<Self> {
        let make = |(at, (files, kib)): (usize, (u32, u32))| {
            std::thread::spawn(move || First::new(at as u64, |archive| fill(archive, at as u64, files, kib)))
        };
        let threads: Vec<_> = LARGE.into_iter().enumerate().map(make).collect();
        let join = |thread: std::thread::JoinHandle<Result<First>>| {
            thread.join().map_err(|_| anyhow::anyhow!("making a layer panicked"))?.map(Arc::new)
        };
        Ok(Self { layers: threads.into_iter().map(join).collect::<Result<_>>()? })
    }

    /// Twelve layers of a folder and two small files.
    pub(crate) fn tiny() -> Result<Self> {
        let layer = |number| First::new(number, |archive| fill(archive, number, 2, 6)).map(Arc::new);
        Ok(Self { layers: (0..TINY).map(layer).collect::<Result<_>>()? })
    }

    /// The image with this number in each of its layers.
    pub(crate) fn image(&self, number: u64) -> Result<Image> {
        let layers = self.layers.iter().map(|first| first.layer(number)).collect::<Result<Vec<_>>>()?;
        Ok(Recipe::new(&layers, json!({"Cmd": ["/bin/sh"]})).build())
    }
}

impl First {
    /// The member with the entries that `write` writes.
    fn new(seed: u64, write: impl FnOnce(&mut Archive) -> Result<()>) -> Result<Self> {
        let mut archive = Archive::new();
        archive.entry(EntryType::Directory, &format!("layer{seed}/"), 0o755, b"")?;
        write(&mut archive)?;
        let (compressed, of_archive) = archive.finish()?;
        let of_compressed = Sha256::new_with_prefix(&compressed);
        Ok(Self { compressed, of_compressed, of_archive })
    }

    /// The layer with this number.
    fn layer(&self, number: u64) -> Result<Layer> {
        let mut last = Archive::new();
        last.entry(EntryType::Regular, "number", 0o644, number.to_string().as_bytes())?;
        last.write_all(&[0; 1024])?;
        let plain = last.read.clone();
        let (compressed, _) = last.finish()?;
        let digest = |before: &Sha256, bytes: &[u8]| named(&before.clone().chain_update(bytes).finalize());
        let (diff_id, name) = (digest(&self.of_archive, &plain), digest(&self.of_compressed, &compressed));
        let bytes = Bytes::from([self.compressed.as_slice(), &compressed].concat());
        Ok(Layer::of(Blob { digest: name, bytes }, diff_id, Packing::Gzip))
    }
}

/// Writes files with their folders. Their sizes differ as those of a distribution do: most are small, and a few have half
/// of all bytes.
fn fill(archive: &mut Archive, seed: u64, files: u32, kib: u32) -> Result<()> {
    let mut content = Content::new(seed);
    let sizes = content.sizes(files, u64::from(kib) << 10);
    for (at, size) in (0_u32..).zip(sizes) {
        let (folder, place) = (at / FILES, at % FILES);
        if place == 0 {
            archive.entry(EntryType::Directory, &format!("layer{seed}/folder{folder}/"), 0o755, b"")?;
        }
        let mode = if place % 5 == 4 { 0o755 } else { 0o644 };
        let bytes = content.file(usize::try_from(size)?);
        archive.entry(EntryType::Regular, &format!("layer{seed}/folder{folder}/file{at}"), mode, &bytes)?;
    }
    Ok(())
}

/// An archive without an end, hashed and compressed as docker and BuildKit do, at gzip's usual level.
struct Archive {
    encoder: GzEncoder<Vec<u8>>,
    hash: Sha256,
    /// The first bytes of the archive, for small ones.
    read: Vec<u8>,
}

impl Archive {
    fn new() -> Self {
        let encoder = GzEncoder::new(Vec::new(), Compression::default());
        Self { encoder, hash: Sha256::new(), read: Vec::new() }
    }

    fn entry(&mut self, kind: EntryType, name: &str, mode: u32, content: &[u8]) -> Result<()> {
        let mut header = Header::new_ustar();
        header.set_path(name).with_context(|| name.to_owned())?;
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(content.len() as u64);
        header.set_mtime(1_700_000_000);
        header.set_cksum();
        self.write_all(header.as_bytes())?;
        self.write_all(content)?;
        let rest = content.len() % 512;
        Ok(self.write_all(&[0; 512][..(512 - rest) % 512])?)
    }

    fn finish(self) -> Result<(Vec<u8>, Sha256)> {
        Ok((self.encoder.finish()?, self.hash))
    }
}

impl Write for Archive {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.hash.update(bytes);
        if self.read.len() < 4096 {
            self.read.extend_from_slice(bytes);
        }
        self.encoder.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
