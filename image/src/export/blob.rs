//! Writes the archive of one layer into a spool and computes its digests.

use super::Compression;
use crate::error::{Error, Result};
use crate::reference::Digest;
use crate::spool::Spool;
use flate2::write::GzEncoder;
use sha2::{Digest as _, Sha256};
use std::io::{self, Write};
use std::path::PathBuf;

/// Maximum size of a layer, in bytes: that of a pull.
const MAX_LAYER: u64 = 64 << 30;

/// A layer that is complete.
#[derive(Debug, Clone)]
pub(super) struct Blob {
    /// Of its bytes.
    pub(super) digest: Digest,
    /// Of the uncompressed archive.
    pub(super) diff_id: Digest,
    /// Number of bytes.
    pub(super) size: u64,
}

/// Takes the uncompressed archive.
pub(super) struct Writer {
    plain: Sha256,
    out: Out,
}

enum Out {
    Plain(Box<Sink>),
    Gzip(Box<GzEncoder<Sink>>),
}

/// The compressed bytes.
struct Sink {
    spool: Spool,
    hasher: Sha256,
    failure: Option<Error>,
}

impl Writer {
    /// The spool is made at `path`, and has no name.
    pub(super) fn new(path: PathBuf, compression: Compression) -> Result<Self> {
        let sink = Sink { spool: Spool::create(path, MAX_LAYER)?, hasher: Sha256::new(), failure: None };
        let out = match compression {
            Compression::None => Out::Plain(Box::new(sink)),
            // Its header has neither a name nor a time.
            Compression::Gzip => Out::Gzip(Box::new(GzEncoder::new(sink, flate2::Compression::default()))),
        };
        Ok(Self { plain: Sha256::new(), out })
    }

    /// Ends the layer. `made`: whether all was written to it.
    pub(super) fn finish(self, made: Result<()>) -> Result<(Spool, Blob)> {
        let sink = match self.out {
            Out::Plain(sink) => *sink,
            Out::Gzip(mut encoder) => {
                let path = encoder.get_ref().spool.path().to_owned();
                let ended = encoder.try_finish();
                if let Some(failure) = encoder.get_mut().failure.take() {
                    return Err(failure);
                }
                made.clone()?;
                ended.and_then(|()| encoder.finish()).map_err(Error::storage("compress", &path))?
            }
        };
        // The error of the spool says more than that of who wrote to it.
        if let Some(failure) = sink.failure {
            return Err(failure);
        }
        made?;
        let (digest, diff_id) = (Digest::finish(sink.hasher), Digest::finish(self.plain));
        let size = sink.spool.length();
        Ok((sink.spool, Blob { digest, diff_id, size }))
    }
}

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = match &mut self.out {
            Out::Plain(sink) => sink.write(bytes),
            Out::Gzip(encoder) => encoder.write(bytes),
        }?;
        self.plain.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Err(error) = self.spool.append(bytes) {
            self.failure.get_or_insert(error);
            return Err(io::Error::other("the temporary file cannot be written"));
        }
        self.hasher.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
