//! Unpacks one layer from compressed bytes into a folder, in one pass over two threads.
//!
//! ```text
//! download --Bytes--> [hash, inflate] --256 KiB buffers--> [hash, read tar, write files]
//! ```
//! Both channels are short: a slow disk slows the download, and memory does not grow with the layer.

mod apply;
mod folders;
mod numbers;
mod sparse;
mod tar;
mod whiteout;

pub(crate) use apply::LayerStats;
pub(crate) use folders::{Layer, folders};

use crate::error::{Error, Result};
use crate::reference::Digest;
use bytes::{Buf, Bytes};
use rustix::fs::{self, Mode, OFlags};
use sha2::{Digest as _, Sha256};
use std::io::{self, BufRead, Read};
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use tokio::sync::mpsc as async_mpsc;

/// Uncompressed bytes in one buffer: large enough that waking the other thread costs little.
const BUFFER: usize = 256 << 10;
/// Buffers that may wait for the writing thread.
const WAITING: usize = 3;

/// What the manifest and config say about a layer, and its limits.
#[derive(Debug, Clone)]
pub(crate) struct Expected {
    /// Digest of the compressed bytes.
    pub(crate) digest: Digest,
    /// Number of compressed bytes.
    pub(crate) size: u64,
    /// Digest of the uncompressed archive.
    pub(crate) diff_id: Digest,
    /// Most uncompressed bytes.
    pub(crate) max_bytes: u64,
    /// Most entries.
    pub(crate) max_entries: u64,
}

/// Unpacks `input` into `folder`, which must be empty. Blocks. Files are written but not synced.
pub(crate) fn unpack(
    input: async_mpsc::Receiver<Bytes>,
    expected: &Expected,
    folder: &Path,
) -> Result<LayerStats> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let root = fs::open(folder, flags, Mode::empty()).map_err(Error::storage("open", folder))?;
    // If a parent of the store is setgid, layers must not inherit its group.
    fs::fchown(&root, Some(fs::Uid::ROOT), Some(fs::Gid::ROOT)).map_err(Error::storage("chown", folder))?;
    fs::fchmod(&root, Mode::from_raw_mode(0o755)).map_err(Error::storage("chmod", folder))?;
    let (filled, buffers) = mpsc::sync_channel(WAITING);
    let (returned, empty) = mpsc::channel();
    thread::scope(|scope| {
        let inflate = thread::Builder::new()
            .name("inflate".to_owned())
            .spawn_scoped(scope, move || inflate(input, expected, &filled, &empty))
            .map_err(Error::storage("start thread for", folder))?;
        let mut archive = tar::Reader::new(Buffers::new(buffers, returned, expected.max_bytes));
        let written = apply::Applier::new(root).run(&mut archive, expected.max_entries);
        let mut stream = archive.into_inner();
        let complete = written.is_ok() && stream.drain().is_ok();
        let overflow = stream.overflow;
        // Dropping the stream ends the other thread if that is still sending.
        let diff_id = Some(stream.digest()).filter(|_| complete);
        let inflated = inflate.join().unwrap_or(Inflated::Failed(Error::Cancelled));
        conclude(expected, written, diff_id, overflow, inflated, folder)
    })
}

/// Reports the earliest cause: a digest mismatch explains a malformed archive, not the reverse.
fn conclude(
    expected: &Expected,
    written: Result<LayerStats, apply::ApplyError>,
    diff_id: Option<Digest>,
    overflow: bool,
    inflated: Inflated,
    folder: &Path,
) -> Result<LayerStats> {
    if let Inflated::Failed(error) = inflated {
        return Err(error);
    }
    if overflow {
        let object = format!("layer {}", expected.digest);
        return Err(Error::TooLarge { object, limit: expected.max_bytes, unit: "unpacked bytes" });
    }
    let made = written.map_err(|error| layer_error(expected, error, folder))?;
    match diff_id {
        Some(found) if found == expected.diff_id => Ok(made),
        Some(found) => Err(Error::corrupt(
            format!("layer {}", expected.digest),
            format!("it unpacks to {found}, the config says {}", expected.diff_id),
        )),
        None => Err(Error::corrupt(format!("layer {}", expected.digest), "its end is missing")),
    }
}

fn layer_error(expected: &Expected, error: apply::ApplyError, folder: &Path) -> Error {
    let object = format!("layer {}", expected.digest);
    match error {
        apply::ApplyError::System { entry, action, source } => {
            let relative = entry.trim_start_matches('/');
            Error::storage(action, &folder.join(relative))(source)
        }
        apply::ApplyError::TooMany(limit) => Error::TooLarge { object, limit, unit: "entries" },
        apply::ApplyError::Tar(tar::TarError::Io(error)) => {
            Error::corrupt(object, format!("archive: {error}"))
        }
        other => Error::corrupt(object, other),
    }
}

/// Result of the decompressing thread.
#[derive(Debug)]
enum Inflated {
    /// All bytes arrived and have the expected digest.
    Verified,
    /// The writing thread stopped first; its error tells why.
    Unwanted,
    Failed(Error),
}

fn inflate(
    input: async_mpsc::Receiver<Bytes>,
    expected: &Expected,
    filled: &mpsc::SyncSender<Vec<u8>>,
    empty: &mpsc::Receiver<Vec<u8>>,
) -> Inflated {
    let mut source = Download { input, current: Bytes::new(), hasher: Sha256::new(), received: 0 };
    let broken = |source: Option<&Download>, error: &io::Error| {
        let object = format!("layer {}", expected.digest);
        if source.is_some_and(|source| source.received < expected.size) {
            // The sender stopped early. Its own error is the one that is reported.
            return Inflated::Failed(Error::corrupt(object, format!("it ends early: {error}")));
        }
        Inflated::Failed(Error::corrupt(object, error))
    };
    let magic = match source.fill_buf() {
        Ok(bytes) => {
            [bytes.first().copied(), bytes.get(1).copied(), bytes.get(2).copied(), bytes.get(3).copied()]
        }
        Err(error) => return broken(None, &error),
    };
    // Detected by content, as media types are often wrong.
    let result = match magic {
        [Some(0x1f), Some(0x8b), ..] => {
            pump(flate2::bufread::MultiGzDecoder::new(&mut source), filled, empty)
        }
        [Some(0x28), Some(0xb5), Some(0x2f), Some(0xfd)] => {
            zstd::stream::read::Decoder::with_buffer(&mut source)
                .and_then(|decoder| pump(decoder, filled, empty))
        }
        _ => pump(&mut source, filled, empty),
    };
    match result {
        Ok(true) => {}
        Ok(false) => return Inflated::Unwanted,
        Err(error) => return broken(Some(&source), &error),
    }
    // Bytes after the compressed stream are part of the digest too.
    if let Err(error) = io::copy(&mut source, &mut io::sink()) {
        return broken(Some(&source), &error);
    }
    let object = || format!("layer {}", expected.digest);
    if source.received != expected.size {
        let reason = format!("{} bytes instead of {}", source.received, expected.size);
        return Inflated::Failed(Error::corrupt(object(), reason));
    }
    let found = Digest::finish(source.hasher);
    if found != expected.digest {
        return Inflated::Failed(Error::corrupt(
            object(),
            format!("the bytes served have the digest {found}"),
        ));
    }
    Inflated::Verified
}

/// Copies the stream into buffers; `false` if the receiver is gone.
fn pump(
    mut decoder: impl Read,
    filled: &mpsc::SyncSender<Vec<u8>>,
    empty: &mpsc::Receiver<Vec<u8>>,
) -> io::Result<bool> {
    loop {
        let mut buffer = empty.try_recv().unwrap_or_default();
        buffer.resize(BUFFER, 0);
        let mut length = 0;
        while length < buffer.len() {
            match decoder.read(&mut buffer[length..]) {
                Ok(0) => break,
                Ok(more) => length += more,
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

/// The compressed bytes as they arrive from the network.
#[derive(Debug)]
struct Download {
    input: async_mpsc::Receiver<Bytes>,
    current: Bytes,
    hasher: Sha256,
    received: u64,
}

impl BufRead for Download {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.current.is_empty() {
            let Some(bytes) = self.input.blocking_recv() else { break };
            self.hasher.update(&bytes);
            self.received += bytes.len() as u64;
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

/// The uncompressed archive, hashed while it is read.
#[derive(Debug)]
struct Buffers {
    input: mpsc::Receiver<Vec<u8>>,
    returned: mpsc::Sender<Vec<u8>>,
    current: Vec<u8>,
    position: usize,
    hasher: Sha256,
    left: u64,
    overflow: bool,
}

impl Buffers {
    fn new(input: mpsc::Receiver<Vec<u8>>, returned: mpsc::Sender<Vec<u8>>, limit: u64) -> Self {
        let hasher = Sha256::new();
        Self { input, returned, current: Vec::new(), position: 0, hasher, left: limit, overflow: false }
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

    /// The digest of everything that was read.
    fn digest(self) -> Digest {
        Digest::finish(self.hasher)
    }
}

impl BufRead for Buffers {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.position == self.current.len()
            && let Ok(next) = self.input.recv()
        {
            let used = std::mem::replace(&mut self.current, next);
            self.position = 0;
            // A sender that has ended needs no buffers back; ignore the error.
            self.returned.send(used).ok();
            self.hasher.update(&self.current);
            match self.left.checked_sub(self.current.len() as u64) {
                Some(left) => self.left = left,
                None => {
                    self.overflow = true;
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

impl Read for Buffers {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        read_buffered(self, into)
    }
}

/// `Read::read` by what is buffered.
fn read_buffered(from: &mut impl BufRead, into: &mut [u8]) -> io::Result<usize> {
    let available = from.fill_buf()?;
    let length = available.len().min(into.len());
    into[..length].copy_from_slice(&available[..length]);
    from.consume(length);
    Ok(length)
}

#[cfg(test)]
mod tests;
