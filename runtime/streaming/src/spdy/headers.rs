//! Header blocks: names and values, compressed with one state for the whole connection.

use flate2::{Decompress, FlushDecompress, Status};

use super::dictionary::DICTIONARY;
use super::reader::Error;

/// Maximum size of a block in bytes after decompression. Each kilobyte of deflate can become a megabyte, so the limit is
/// on what comes out, and is checked while it comes out. It also bounds the work that a frame of few bytes can ask for.
pub const MAX_BLOCK: usize = 8 * 1024;
/// Maximum number of headers of a block; clients of Kubernetes send one to three.
pub const MAX_HEADERS: usize = 32;

/// The headers that a stream was opened with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Headers(Vec<(Vec<u8>, Vec<u8>)>);

impl Headers {
    /// The value of `name` (compared without case), the first one if there are several; `None` if it is not there or
    /// no UTF-8.
    pub fn get(&self, name: &str) -> Option<&str> {
        let (_, values) = self.0.iter().find(|(given, _)| given.eq_ignore_ascii_case(name.as_bytes()))?;
        values.split(|byte| *byte == 0).next().and_then(|value| std::str::from_utf8(value).ok())
    }

    /// Reads a decompressed block:
    ///
    /// ```text
    /// count:32 | count times: length:32 | name | length:32 | values, with NUL between them
    /// ```
    ///
    /// `None` if it is malformed or has too many headers: a fault of this stream, as the compression is intact.
    pub(super) fn parse(block: &[u8]) -> Option<Self> {
        let (count, mut rest) = number(block)?;
        if count > MAX_HEADERS {
            return None;
        }
        let mut headers = Vec::new();
        for _ in 0..count {
            let (name, after) = text(rest)?;
            let (value, after) = text(after)?;
            if name.is_empty() {
                return None;
            }
            headers.push((name.to_vec(), value.to_vec()));
            rest = after;
        }
        rest.is_empty().then_some(Self(headers))
    }
}

/// A length, and what follows it.
fn number(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let (number, rest) = bytes.split_first_chunk::<4>()?;
    Some((usize::try_from(u32::from_be_bytes(*number)).ok()?, rest))
}

/// Bytes with their length before them, and what follows.
fn text(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = number(bytes)?;
    rest.split_at_checked(length)
}

/// Decompresses the blocks of one direction.
#[derive(Debug, Default)]
pub(super) struct Blocks {
    /// Made for the first block: it keeps a window of 32 KiB.
    state: Option<Decompress>,
}

impl Blocks {
    /// The bytes that `block` stands for.
    ///
    /// # Errors
    /// [`Error::Compression`] and [`Error::HeadersTooLarge`]; no later block can be read.
    pub(super) fn read(&mut self, block: &[u8]) -> Result<Vec<u8>, Error> {
        let state = self.state.get_or_insert_with(|| Decompress::new(true));
        let mut plain = Vec::with_capacity(512);
        let mut rest = block;
        loop {
            let before = (state.total_in(), plain.len());
            let status = state.decompress_vec(rest, &mut plain, FlushDecompress::None);
            let used = usize::try_from(state.total_in() - before.0).unwrap_or(usize::MAX);
            rest = rest.get(used..).ok_or(Error::Compression)?;
            match status {
                Ok(Status::Ok | Status::BufError) => {}
                Ok(Status::StreamEnd) => return Err(Error::Compression),
                Err(error) if error.needs_dictionary().is_some() => {
                    state.set_dictionary(DICTIONARY).map_err(|_| Error::Compression)?;
                    continue;
                }
                Err(_) => return Err(Error::Compression),
            }
            if plain.len() > MAX_BLOCK {
                return Err(Error::HeadersTooLarge(MAX_BLOCK));
            }
            if plain.len() == plain.capacity() {
                plain.reserve(plain.len());
            } else if rest.is_empty() {
                return Ok(plain);
            } else if used == 0 && plain.len() == before.1 {
                return Err(Error::Compression);
            }
        }
    }
}
