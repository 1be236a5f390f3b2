//! Unpacks one layer from compressed bytes into a folder, in one pass, with two threads.
//!
//! ```text
//! download ──Bytes──► [hash, inflate] ──256 KiB buffers──► [hash, read tar, write files]
//! ```
//! Both channels are bounded: a slow disk slows the download, and memory does not grow with the layer.
//!
//! Layers are unpacked separately and shared between images. So a folder that an archive has entries in, but no entry
//! of its own, is an *implicit* folder: its attributes depend on the layers below. [`corrections`] gives it the right
//! ones.

mod apply;
mod corrections;
mod frames;
mod gzip;
mod header;
mod numbers;
mod pax;
#[cfg(any(test, fuzzing))]
pub(crate) mod properties;
mod sparse;
mod tar;
mod whiteout;

pub(crate) use apply::LayerStats;
pub(crate) use corrections::{Layer, corrections};
pub(crate) use pax::allowed_xattr;
#[cfg(test)]
pub(crate) use tar::Entry;
pub(crate) use tar::{EntryPath, Kind, Reader as TarReader};
pub(crate) use whiteout::{IMPLICIT_XATTR, OPAQUE_XATTR};

use self::gzip::Peek as _;
use crate::digest::{Digest, Hasher};
use crate::error::{Error, Result};
use crate::space::explained;
use bytes::{Buf, Bytes};
use rustix::fs::{self, Mode, OFlags};
use std::fmt;
use std::io::{self, BufRead, Read};
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::thread;
use tokio::sync::mpsc as async_mpsc;

/// Size of a buffer of uncompressed bytes: large enough that waking the other thread costs little.
const BUFFER: usize = 256 << 10;
/// Maximum number of full buffers that wait for the writing thread.
const WAITING: usize = 3;
/// The first bytes of a gzip stream (RFC 1952) and of a zstd frame (RFC 8878).
const GZIP_MAGIC: &[u8] = &[0x1f, 0x8b];
const ZSTD_MAGIC: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
/// Those of a zstd frame without content, with which a stream may begin; its first byte is 0x50 to 0x5f. pzstd writes
/// one before each frame.
const ZSTD_SKIPPABLE: &[u8] = &[0x2a, 0x4d, 0x18];

/// What the manifest and config state about a layer, and its limits.
#[derive(Debug, Clone)]
pub(crate) struct Expected {
    /// The image that is pulled, for errors.
    pub(crate) image: String,
    /// Digest of the compressed bytes.
    pub(crate) digest: Digest,
    /// Number of compressed bytes.
    pub(crate) size: u64,
    /// Digest of the uncompressed archive.
    pub(crate) diff_id: Digest,
    /// Maximum size of the uncompressed archive, in bytes.
    pub(crate) max_bytes: u64,
    /// Maximum number of entries, and of files and folders that are created.
    pub(crate) max_entries: u64,
}

/// The transfer of a layer, as one of those that share memory. Nothing here blocks.
pub(crate) trait Sharer: fmt::Debug + Sync {
    /// Before it waits for memory: gives the transfer's place back, unless too many others have done so.
    fn leave_place(&self);
    /// Tells whether it has memory that others may wait for.
    fn set_has_memory(&self, has: bool);
    /// Called now and then by whoever waits for the memory, and is next: of the transfers that have some, cancels the one
    /// that has made no progress for longest, if that is too long.
    fn cancel_idlest_with_memory(&self);
}

/// Unpacks `input` into `folder`, which must be empty. Blocks. Files are written but not synced.
pub(crate) fn unpack(
    input: async_mpsc::Receiver<Bytes>,
    expected: &Expected,
    folder: &Path,
    sharer: &dyn Sharer,
) -> Result<LayerStats> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let root = fs::open(folder, flags, Mode::empty()).map_err(failed(expected, "open", folder))?;
    // If a parent folder of the store is setgid, the layer has inherited its group.
    fs::fchown(&root, Some(fs::Uid::ROOT), Some(fs::Gid::ROOT)).map_err(failed(expected, "chown", folder))?;
    fs::fchmod(&root, Mode::from_raw_mode(0o755)).map_err(failed(expected, "chmod", folder))?;
    let (filled, full_buffers) = mpsc::sync_channel(WAITING);
    let (emptied, empty_buffers) = mpsc::channel();
    thread::scope(|scope| {
        let inflate = thread::Builder::new()
            .name("inflate".to_owned())
            .spawn_scoped(scope, move || inflate(input, expected, &filled, &empty_buffers, sharer))
            .map_err(failed(expected, "start thread for", folder))?;
        let mut archive = tar::Reader::new(ArchiveStream::new(full_buffers, emptied, expected));
        let written = apply::Applier::new(root).run(&mut archive, expected.max_entries);
        let mut stream = archive.into_inner();
        // The diff id covers the bytes after the end-of-archive marker too.
        let complete = written.is_ok() && stream.drain().is_ok();
        let too_large = stream.too_large;
        // `digest` drops the stream, so that the other thread ends if it still has buffers to send.
        let diff_id = Some(stream.digest()).filter(|_| complete);
        let inflated = inflate.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        // The earliest cause is reported: a wrong digest explains a malformed archive, not the reverse.
        let object = || format!("layer {}", expected.digest);
        if let Inflated::Failed(error) = inflated {
            return Err(error);
        }
        if too_large {
            let (limit, unit) = (expected.max_bytes, "unpacked bytes");
            return Err(Error::TooLarge { object: object(), limit, unit });
        }
        let stats = written.map_err(|error| layer_error(expected, error, folder))?;
        match diff_id {
            Some(found) if found == expected.diff_id => Ok(stats),
            Some(found) => {
                let reason = format!("its diff id is {found}, but {} in the config", expected.diff_id);
                Err(Error::corrupt(object(), reason))
            }
            None => Err(Error::corrupt(object(), "its end is missing")),
        }
    })
}

/// For `map_err`: adds the layer, the action and the path to the error of a system call.
fn failed<E: Into<io::Error>>(
    expected: &Expected,
    action: &'static str,
    path: &Path,
) -> impl FnOnce(E) -> Error {
    let (image, layer, path) = (expected.image.clone(), expected.digest.to_string(), path.to_owned());
    move |source| {
        let source = Arc::new(explained(source.into(), &path));
        Error::Layer { image, layer, action, path, source }
    }
}

/// The crate's error for an entry that could not be written.
fn layer_error(expected: &Expected, error: apply::ApplyError, folder: &Path) -> Error {
    let object = format!("layer {}", expected.digest);
    let path = |entry: &str| folder.join(entry.trim_start_matches('/'));
    // The way to an entry may lead over symlinks of the layer, out of the folder.
    let full = |source: io::Error| explained(source, folder);
    match error {
        apply::ApplyError::System { entry, action, source } => {
            failed(expected, action, &path(&entry))(full(source.into()))
        }
        apply::ApplyError::NoSpace { entry, source } => {
            failed(expected, "write", &path(&entry))(full(source))
        }
        apply::ApplyError::TooMany(limit) => Error::TooLarge { object, limit, unit: "entries" },
        apply::ApplyError::Tar(tar::TarError::Io(error)) => {
            Error::corrupt(object, format!("archive: {error}"))
        }
        other => Error::corrupt(object, other),
    }
}

/// Result of the inflating thread.
#[derive(Debug)]
enum Inflated {
    /// All bytes arrived and have the expected digest.
    Verified,
    /// The writing thread has stopped before the end; its error tells why.
    Stopped,
    Failed(Error),
}

/// How the bytes of a layer are compressed. Detected from the content, as media types are often wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    Gzip,
    Zstd,
    None,
}

impl Compression {
    /// Number of first bytes that tell the compression.
    pub(crate) const MAGIC: usize = ZSTD_MAGIC.len();

    pub(crate) fn of(first_bytes: &[u8]) -> Self {
        if first_bytes.starts_with(GZIP_MAGIC) {
            Self::Gzip
        } else if first_bytes.starts_with(ZSTD_MAGIC) || is_skippable(first_bytes) {
            Self::Zstd
        } else {
            Self::None
        }
    }
}

fn is_skippable(first_bytes: &[u8]) -> bool {
    matches!(first_bytes, [0x50..=0x5f, rest @ ..] if rest.starts_with(ZSTD_SKIPPABLE))
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gzip => "gzip stream",
            Self::Zstd => "zstd stream",
            Self::None => "uncompressed archive",
        })
    }
}

/// Hashes and decompresses the download.
fn inflate(
    input: async_mpsc::Receiver<Bytes>,
    expected: &Expected,
    filled: &mpsc::SyncSender<Vec<u8>>,
    empty_buffers: &mpsc::Receiver<Vec<u8>>,
    sharer: &dyn Sharer,
) -> Inflated {
    let (current, hasher) = (Bytes::new(), expected.digest.hasher());
    let mut source = Download { input, current, hasher, received: 0, size: expected.size };
    let compression = Compression::of(source.peek(Compression::MAGIC));
    let broken = |source: &Download, error: &io::Error| {
        let object = format!("layer {}", expected.digest);
        if error.kind() == io::ErrorKind::ResourceBusy {
            return Inflated::Failed(Error::Busy { object, reason: error.to_string() });
        }
        if source.received < expected.size {
            // If the download has failed, the caller of `unpack` reports its error instead of this one.
            let reason = format!("it ends after {} of {} bytes: {error}", source.received, expected.size);
            return Inflated::Failed(Error::corrupt(object, reason));
        }
        Inflated::Failed(Error::corrupt(object, format!("{compression}: {error}")))
    };
    let result = match compression {
        Compression::Gzip => fill_buffers(gzip::Members::new(&mut source), filled, empty_buffers),
        Compression::Zstd => frames::Frames::new(&mut source, &frames::ROOM, sharer)
            .and_then(|frames| fill_buffers(frames, filled, empty_buffers)),
        Compression::None => fill_buffers(&mut source, filled, empty_buffers),
    };
    match result {
        Ok(true) => {}
        Ok(false) => return Inflated::Stopped,
        Err(error) => return broken(&source, &error),
    }
    // The digest covers the bytes after the compressed stream too.
    if let Err(error) = io::copy(&mut source, &mut io::sink()) {
        return broken(&source, &error);
    }
    let object = || format!("layer {}", expected.digest);
    if source.received != expected.size {
        let reason = format!("it has {} bytes instead of {}", source.received, expected.size);
        return Inflated::Failed(Error::corrupt(object(), reason));
    }
    let found = source.hasher.finish();
    if found != expected.digest {
        return Inflated::Failed(Error::corrupt(object(), format!("the digest of its content is {found}")));
    }
    Inflated::Verified
}

/// Sends the decompressed stream in buffers; `false` if the writing thread has stopped.
fn fill_buffers(
    mut decoder: impl Read,
    filled: &mpsc::SyncSender<Vec<u8>>,
    empty_buffers: &mpsc::Receiver<Vec<u8>>,
) -> io::Result<bool> {
    loop {
        let mut buffer = empty_buffers.try_recv().unwrap_or_default();
        buffer.resize(BUFFER, 0);
        let mut length = 0;
        while length < buffer.len() {
            match decoder.read(&mut buffer[length..]) {
                Ok(0) => break,
                Ok(read) => length += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if length == 0 {
            return Ok(true);
        }
        buffer.truncate(length);
        if filled.send(buffer).is_err() {
            return Ok(false);
        }
    }
}

/// The compressed bytes as they arrive from the network. Hashes what it reads.
#[derive(Debug)]
struct Download {
    input: async_mpsc::Receiver<Bytes>,
    current: Bytes,
    hasher: Hasher,
    received: u64,
    /// How many bytes must come.
    size: u64,
}

impl Download {
    /// Waits for the next bytes and hashes them; `None` at the end.
    fn receive(&mut self) -> Option<Bytes> {
        let bytes = self.input.blocking_recv()?;
        self.hasher.update(&bytes);
        self.received += bytes.len() as u64;
        Some(bytes)
    }
}

impl gzip::Peek for Download {
    /// A registry may send the bytes in several chunks.
    fn peek(&mut self, length: usize) -> &[u8] {
        while self.current.len() < length {
            let Some(bytes) = self.receive() else { break };
            let is_first = self.current.is_empty();
            self.current = if is_first { bytes } else { [&self.current[..], &bytes[..]].concat().into() };
        }
        &self.current[..self.current.len().min(length)]
    }

    fn is_cut_off(&self) -> bool {
        self.received < self.size && self.input.is_closed() && self.input.is_empty()
    }
}

impl BufRead for Download {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.current.is_empty() {
            let Some(bytes) = self.receive() else { break };
            self.current = bytes;
        }
        Ok(&self.current)
    }

    fn consume(&mut self, length: usize) {
        self.current.advance(length);
    }
}

impl Read for Download {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        read_buffered(self, into)
    }
}

/// The uncompressed archive. Hashes what it reads.
#[derive(Debug)]
struct ArchiveStream {
    input: mpsc::Receiver<Vec<u8>>,
    /// Takes buffers back for reuse.
    emptied: mpsc::Sender<Vec<u8>>,
    current: Vec<u8>,
    position: usize,
    hasher: Hasher,
    /// Bytes that may still come.
    left: u64,
    too_large: bool,
}

impl ArchiveStream {
    fn new(input: mpsc::Receiver<Vec<u8>>, emptied: mpsc::Sender<Vec<u8>>, expected: &Expected) -> Self {
        let (hasher, limit) = (expected.diff_id.hasher(), expected.max_bytes);
        Self { input, emptied, current: Vec::new(), position: 0, hasher, left: limit, too_large: false }
    }

    /// Reads to the end of the stream.
    fn drain(&mut self) -> io::Result<()> {
        loop {
            let length = self.fill_buf()?.len();
            if length == 0 {
                return Ok(());
            }
            self.consume(length);
        }
    }

    /// The digest of what was read.
    fn digest(self) -> Digest {
        self.hasher.finish()
    }
}

impl BufRead for ArchiveStream {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.position == self.current.len()
            && let Ok(next) = self.input.recv()
        {
            let used = std::mem::replace(&mut self.current, next);
            self.position = 0;
            // An error means that the other thread has ended and needs no more buffers.
            self.emptied.send(used).ok();
            self.hasher.update(&self.current);
            match self.left.checked_sub(self.current.len() as u64) {
                Some(left) => self.left = left,
                None => {
                    self.too_large = true;
                    self.current.clear();
                    return Err(io::Error::other("too many unpacked bytes"));
                }
            }
        }
        Ok(&self.current[self.position..])
    }

    fn consume(&mut self, length: usize) {
        self.position = (self.position + length).min(self.current.len());
    }
}

impl Read for ArchiveStream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        read_buffered(self, into)
    }
}

/// `Read::read` in terms of `BufRead`.
fn read_buffered(from: &mut impl BufRead, into: &mut [u8]) -> io::Result<usize> {
    let available = from.fill_buf()?;
    let length = available.len().min(into.len());
    into[..length].copy_from_slice(&available[..length]);
    from.consume(length);
    Ok(length)
}

#[cfg(test)]
mod tests;
