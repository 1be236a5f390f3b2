//! Sparse files in GNU tar's formats: type `S` with a map in the header, and PAX formats 0.0, 0.1 and 1.0
//! with a map in records or before the content (GNU tar manual, "Storing Sparse Files"). Pure: accesses no
//! file.
//!
//! Holes use no disk space, so the size of a file is not limited by its content. The pieces of a map must be in order
//! and within the file, and have together as many bytes as the file has in the archive.

use std::io::{self, Read};
use tar::{GnuExtSparseHeader, GnuHeader, GnuSparseHeader};

/// Maximum number of pieces of one file. GNU tar lists one for every run of non-zero blocks.
pub(super) const MAX_PIECES: usize = 65_536;
/// Maximum size of a file with its holes, in bytes: ext4's limit with blocks of 4 KiB.
pub(super) const MAX_REAL: u64 = 16 << 40;

const BLOCK: usize = 512;
const MALFORMED: &str = "its sparse map is malformed";
const TOO_MANY: &str = "its sparse map has over 65536 pieces";

/// Where the content of a sparse file belongs; the rest is holes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Map {
    /// The file's size with its holes, in bytes.
    pub(crate) real: u64,
    /// Offset and length of each piece of content, in bytes, in order.
    pub(crate) pieces: Vec<(u64, u64)>,
}

/// Why a map could not be read.
#[derive(Debug)]
pub(super) enum Bad {
    Io(io::Error),
    /// It is invalid.
    Map(&'static str),
}

impl From<io::Error> for Bad {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<&'static str> for Bad {
    fn from(reason: &'static str) -> Self {
        Self::Map(reason)
    }
}

impl Map {
    /// Checks and creates a map for a file with `content` bytes in the archive.
    fn new(real: u64, pieces: Vec<(u64, u64)>, content: u64) -> Result<Self, &'static str> {
        if real > MAX_REAL {
            return Err("its size with holes is over 16 TiB");
        }
        let (mut end, mut sum) = (0, 0_u64);
        for (offset, length) in &pieces {
            if *offset < end {
                return Err("its sparse map is not in order");
            }
            end = offset
                .checked_add(*length)
                .filter(|end| *end <= real)
                .ok_or("its sparse map exceeds its size")?;
            // It cannot overflow: pieces do not overlap, so the sum is at most `end`.
            sum += length;
        }
        if sum != content {
            return Err("its sparse map does not have as many bytes as its content");
        }
        Ok(Self { real, pieces })
    }
}

/// Adds a piece, unless there are too many.
fn push(pieces: &mut Vec<(u64, u64)>, piece: (u64, u64)) -> Result<(), &'static str> {
    if pieces.len() == MAX_PIECES {
        return Err(TOO_MANY);
    }
    pieces.push(piece);
    Ok(())
}

/// The PAX records of an entry whose keys begin with `GNU.sparse.`.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Records {
    /// Major and minor version of the format; (0, 0) stands for 0.0 and 0.1.
    version: (u64, u64),
    /// The file's name: the header has a substitute.
    pub(super) name: Option<Vec<u8>>,
    real: Option<u64>,
    /// The stated number of pieces.
    count: Option<u64>,
    /// In format 0.0: the offset of the piece whose length comes next.
    offset: Option<u64>,
    /// The pieces so far.
    pieces: Vec<(u64, u64)>,
}

impl Records {
    /// Adds a record; `key` is without the prefix. Unknown keys are ignored.
    pub(super) fn add(&mut self, key: &[u8], value: &[u8]) -> Result<(), &'static str> {
        let number = || super::numbers::number(value).ok_or(MALFORMED);
        match key {
            b"major" => self.version.0 = number()?,
            b"minor" => self.version.1 = number()?,
            b"name" => self.name = (!value.is_empty()).then(|| value.to_vec()),
            b"size" | b"realsize" => self.real = Some(number()?),
            b"numblocks" => self.count = Some(number()?),
            b"offset" => {
                let before = self.offset.replace(number()?);
                if before.is_some() {
                    return Err(MALFORMED);
                }
            }
            b"numbytes" => push(&mut self.pieces, (self.offset.take().ok_or(MALFORMED)?, number()?))?,
            b"map" => {
                // A repeated key overrides the earlier one.
                self.pieces.clear();
                let mut numbers = value.split(|byte| *byte == b',').map(super::numbers::number);
                while let Some(offset) = numbers.next() {
                    let length = numbers.next().flatten();
                    push(&mut self.pieces, (offset.ok_or(MALFORMED)?, length.ok_or(MALFORMED)?))?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// The map of a file with `size` bytes in the archive, and the number of those bytes that were read from `input`
    /// because they belong to the map (format 1.0).
    pub(super) fn map(self, input: &mut impl Read, size: u64) -> Result<(Map, u64), Bad> {
        let real = self.real.ok_or("its size with holes is missing")?;
        match self.version {
            (0, 0 | 1) => {
                if self.offset.is_some() || self.count.is_some_and(|count| count != self.pieces.len() as u64)
                {
                    return Err(MALFORMED.into());
                }
                Ok((Map::new(real, self.pieces, size)?, 0))
            }
            (1, 0) => {
                let mut lines = Lines { input, block: [0; BLOCK], at: BLOCK, left: size };
                let count = lines.number()?;
                let mut pieces = Vec::new();
                for _ in 0..count {
                    push(&mut pieces, (lines.number()?, lines.number()?))?;
                }
                let left = lines.left;
                Ok((Map::new(real, pieces, left)?, size - left))
            }
            _ => Err("its sparse format is unknown".into()),
        }
    }
}

/// Reads decimal numbers, one in each line, from whole blocks.
struct Lines<'a, R> {
    input: &'a mut R,
    block: [u8; BLOCK],
    at: usize,
    /// Bytes of the entry after the blocks that were read.
    left: u64,
}

impl<R: Read> Lines<'_, R> {
    /// The number in the next line.
    fn number(&mut self) -> Result<u64, Bad> {
        let mut value: Option<u64> = None;
        loop {
            if self.at == BLOCK {
                self.left =
                    self.left.checked_sub(BLOCK as u64).ok_or("its sparse map exceeds its content")?;
                self.input.read_exact(&mut self.block)?;
                self.at = 0;
            }
            let byte = self.block[self.at];
            self.at += 1;
            value = match (byte, value) {
                (b'\n', Some(value)) => return Ok(value),
                (b'0'..=b'9', value) => {
                    let tens = value.unwrap_or(0).checked_mul(10);
                    Some(tens.and_then(|tens| tens.checked_add(u64::from(byte - b'0'))).ok_or(MALFORMED)?)
                }
                _ => return Err(MALFORMED.into()),
            };
        }
    }
}

/// The map of an entry of type `S` with `size` bytes of content. A part of it is in the header, the rest is read from
/// `input`.
pub(super) fn old(header: &GnuHeader, input: &mut impl Read, size: u64) -> Result<Map, Bad> {
    let mut pieces = Vec::new();
    let take = |pieces: &mut Vec<(u64, u64)>, entries: &[GnuSparseHeader]| -> Result<(), &'static str> {
        // The first empty entry ends the map.
        for entry in entries.iter().take_while(|entry| !entry.is_empty()) {
            let number = |field| super::numbers::unsigned(field).ok_or(MALFORMED);
            push(pieces, (number(&entry.offset)?, number(&entry.numbytes)?))?;
        }
        Ok(())
    };
    take(&mut pieces, &header.sparse)?;
    let mut more = header.isextended != [0];
    while more {
        let mut extension = GnuExtSparseHeader::new();
        input.read_exact(extension.as_mut_bytes())?;
        // An extension without a piece is refused, because an archive could have any number of them.
        let before = pieces.len();
        take(&mut pieces, extension.sparse())?;
        if pieces.len() == before {
            return Err(MALFORMED.into());
        }
        more = extension.isextended != [0];
    }
    let real = super::numbers::unsigned(&header.realsize).ok_or(MALFORMED)?;
    Ok(Map::new(real, pieces, size)?)
}
