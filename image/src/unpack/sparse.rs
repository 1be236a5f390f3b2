//! Sparse files in GNU tar's formats: type `S` with a map in the header, and PAX formats 0.0, 0.1 and 1.0
//! with a map in records or before the content (GNU tar manual, "Storing Sparse Files"). Pure: accesses no
//! file.
//!
//! A map uses no disk space, so only its numbers are checked: it must be in order, within the file, and as
//! long as the file's content in the archive.

use std::io::{self, Read};
use tar::{GnuExtSparseHeader, GnuHeader, GnuSparseHeader};

/// Most pieces of one file. GNU tar lists one for every run of non-zero blocks.
pub(super) const MAX_PIECES: usize = 65_536;
/// Largest file, in bytes: ext4's with blocks of 4 KiB.
pub(super) const MAX_REAL: u64 = 16 << 40;

const BLOCK: usize = 512;
const BAD: &str = "its sparse map is malformed";
const TOO_MANY: &str = "its sparse map has over 65536 pieces";

/// The positions of a file's content; the rest is holes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Map {
    /// The file's size in bytes, holes included.
    pub(crate) real: u64,
    /// Offset and length of each piece, in bytes, in order.
    pub(crate) pieces: Vec<(u64, u64)>,
}

/// Why a map is invalid.
#[derive(Debug)]
pub(super) enum Bad {
    Io(io::Error),
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
    /// A map for `content` bytes in the archive.
    fn new(real: u64, pieces: Vec<(u64, u64)>, content: u64) -> Result<Self, &'static str> {
        if real > MAX_REAL {
            return Err("its size with holes is over 16 TiB");
        }
        let (mut end, mut sum) = (0, 0_u64);
        for (offset, length) in &pieces {
            if *offset < end {
                return Err("its sparse map is not in order");
            }
            end =
                offset.checked_add(*length).filter(|end| *end <= real).ok_or("its sparse map exceeds it")?;
            // It is less than `end`, which is below the limit.
            sum += length;
        }
        if sum != content {
            return Err("its sparse map does not fit its content");
        }
        Ok(Self { real, pieces })
    }
}

fn push(pieces: &mut Vec<(u64, u64)>, piece: (u64, u64)) -> Result<(), &'static str> {
    if pieces.len() == MAX_PIECES {
        return Err(TOO_MANY);
    }
    pieces.push(piece);
    Ok(())
}

/// The records whose key begins with `GNU.sparse.`, of one entry.
#[derive(Debug, Default)]
pub(super) struct Records {
    version: (u64, u64),
    /// The file's name, if the header has a substitute.
    pub(super) name: Option<Vec<u8>>,
    real: Option<u64>,
    /// The pieces listed so far.
    count: Option<u64>,
    /// Offset of the piece whose length comes next.
    offset: Option<u64>,
    pieces: Vec<(u64, u64)>,
}

impl Records {
    /// Takes one record; `key` is without the prefix. Unknown keys are ignored.
    pub(super) fn take(&mut self, key: &[u8], value: &[u8]) -> Result<(), &'static str> {
        let number = || super::numbers::number(value).ok_or(BAD);
        match key {
            b"major" => self.version.0 = number()?,
            b"minor" => self.version.1 = number()?,
            b"name" => self.name = (!value.is_empty()).then(|| value.to_vec()),
            b"size" | b"realsize" => self.real = Some(number()?),
            b"numblocks" => self.count = Some(number()?),
            b"offset" => {
                let before = self.offset.replace(number()?);
                if before.is_some() {
                    return Err(BAD);
                }
            }
            b"numbytes" => push(&mut self.pieces, (self.offset.take().ok_or(BAD)?, number()?))?,
            b"map" => {
                // The last value of a key is used.
                self.pieces.clear();
                let mut numbers = value.split(|byte| *byte == b',').map(super::numbers::number);
                while let Some(offset) = numbers.next() {
                    let length = numbers.next().flatten();
                    push(&mut self.pieces, (offset.ok_or(BAD)?, length.ok_or(BAD)?))?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// The map of a file with `size` bytes in the archive, and how many of them were read from `input` for
    /// it.
    pub(super) fn map(self, input: &mut impl Read, size: u64) -> Result<(Map, u64), Bad> {
        let real = self.real.ok_or("its size with holes is missing")?;
        match self.version {
            (0, 0 | 1) => {
                if self.offset.is_some() || self.count.is_some_and(|count| count != self.pieces.len() as u64)
                {
                    return Err(BAD.into());
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

/// Decimal numbers, one per line, in whole blocks.
struct Lines<'a, R> {
    input: &'a mut R,
    block: [u8; BLOCK],
    at: usize,
    /// Remaining bytes of the entry after the blocks that were read.
    left: u64,
}

impl<R: Read> Lines<'_, R> {
    fn number(&mut self) -> Result<u64, Bad> {
        let mut value: Option<u64> = None;
        loop {
            if self.at == BLOCK {
                self.left = self.left.checked_sub(BLOCK as u64).ok_or("its sparse map has no end")?;
                self.input.read_exact(&mut self.block)?;
                self.at = 0;
            }
            let byte = self.block[self.at];
            self.at += 1;
            value = match (byte, value) {
                (b'\n', Some(value)) => return Ok(value),
                (b'0'..=b'9', value) => {
                    let tens = value.unwrap_or(0).checked_mul(10);
                    Some(tens.and_then(|tens| tens.checked_add(u64::from(byte - b'0'))).ok_or(BAD)?)
                }
                _ => return Err(BAD.into()),
            };
        }
    }
}

/// The map of an entry of type `S` with `size` bytes of content; the part that does not fit into its header
/// is read from `input`.
pub(super) fn old(header: &GnuHeader, input: &mut impl Read, size: u64) -> Result<Map, Bad> {
    let mut pieces = Vec::new();
    let take = |pieces: &mut Vec<(u64, u64)>, entries: &[GnuSparseHeader]| -> Result<(), &'static str> {
        // The first empty one ends the map.
        for entry in entries.iter().take_while(|entry| !entry.is_empty()) {
            let number = |field| super::numbers::field(field).ok_or(BAD);
            push(pieces, (number(&entry.offset)?, number(&entry.numbytes)?))?;
        }
        Ok(())
    };
    take(&mut pieces, &header.sparse)?;
    let mut more = header.isextended != [0];
    while more {
        let mut extension = GnuExtSparseHeader::new();
        input.read_exact(extension.as_mut_bytes())?;
        // An extension without a piece is refused: there could be any number of them.
        let before = pieces.len();
        take(&mut pieces, extension.sparse())?;
        if pieces.len() == before {
            return Err(BAD.into());
        }
        more = extension.isextended != [0];
    }
    let real = super::numbers::field(&header.realsize).ok_or(BAD)?;
    Ok(Map::new(real, pieces, size)?)
}
