//! Decompresses gzip streams (RFC 1952) of several members.
//!
//! What follows the last member and is none is ignored, as by gzip(1) and by unpigz, which other runtimes use if it is
//! installed. The digest covers it all the same.
//!
//! The members' frames are read here and not by flate2, whose checksum takes an eighth of the time of the whole
//! decompression with zlib-rs.

use super::GZIP_MAGIC;
use flate2::{Decompress, FlushDecompress, Status};
use std::io::{self, BufRead, Read};

/// Bits of a header's flags: what follows the fixed part.
const HAS_CHECKSUM: u8 = 1 << 1;
const HAS_EXTRA: u8 = 1 << 2;
const HAS_NAME: u8 = 1 << 3;
const HAS_COMMENT: u8 = 1 << 4;
/// The only method of compression.
const DEFLATE: u8 = 8;

/// A stream that can show its first bytes without consuming them.
pub(super) trait Peek: BufRead {
    /// The next `length` bytes, or fewer at the end of the stream.
    fn peek(&mut self, length: usize) -> &[u8];

    /// Whether what is missing will never come, since the download was given up.
    fn is_cut_off(&self) -> bool;
}

/// Reads the content of all members.
pub(super) struct Members<'a, R> {
    input: &'a mut R,
    inflate: Decompress,
    /// Of the current member's content so far.
    checksum: crc32fast::Hasher,
    place: Place,
}

/// Where in the stream the next byte is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    BeforeMember,
    InMember,
    End,
}

impl<'a, R: Peek> Members<'a, R> {
    /// `input` must begin with a member.
    pub(super) fn new(input: &'a mut R) -> Self {
        let (inflate, checksum) = (Decompress::new(false), crc32fast::Hasher::new());
        Self { input, inflate, checksum, place: Place::BeforeMember }
    }

    /// Reads a member's header. Reserved flags are ignored, as by Go, and so is the header's own checksum.
    fn begin(&mut self) -> io::Result<()> {
        let mut fixed = [0; 10];
        self.input.read_exact(&mut fixed)?;
        let [_, _, method, flags, ..] = fixed;
        if method != DEFLATE {
            return Err(invalid("its method of compression is unknown"));
        }
        if flags & HAS_EXTRA != 0 {
            let mut length = [0; 2];
            self.input.read_exact(&mut length)?;
            self.pass(u16::from_le_bytes(length).into())?;
        }
        for text in [HAS_NAME, HAS_COMMENT] {
            if flags & text != 0 {
                self.pass_text()?;
            }
        }
        if flags & HAS_CHECKSUM != 0 {
            self.pass(2)?;
        }
        self.inflate.reset(false);
        self.checksum.reset();
        self.place = Place::InMember;
        Ok(())
    }

    /// Passes over so many bytes.
    fn pass(&mut self, bytes: u64) -> io::Result<()> {
        let passed = io::copy(&mut self.input.by_ref().take(bytes), &mut io::sink())?;
        if passed == bytes { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }

    /// Passes over a text of any length, and the NUL at its end.
    fn pass_text(&mut self) -> io::Result<()> {
        loop {
            let available = self.input.fill_buf()?;
            if available.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let end = available.iter().position(|byte| *byte == 0);
            let length = end.map_or(available.len(), |end| end + 1);
            self.input.consume(length);
            if end.is_some() {
                return Ok(());
            }
        }
    }

    /// Decompresses a part of the current member, whose end it checks. 0 if it only made progress with the input.
    fn inflate(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let input = self.input.fill_buf()?;
        let is_end = input.is_empty();
        let flush = if is_end { FlushDecompress::Finish } else { FlushDecompress::None };
        let before = (self.inflate.total_in(), self.inflate.total_out());
        let status =
            self.inflate.decompress(input, into, flush).map_err(|_| invalid("its data is malformed"))?;
        let length = |now: u64, before: u64| usize::try_from(now - before).unwrap_or_default();
        self.input.consume(length(self.inflate.total_in(), before.0));
        let written = length(self.inflate.total_out(), before.1);
        self.checksum.update(into.get(..written).unwrap_or_default());
        if status == Status::StreamEnd {
            self.end()?;
        } else if is_end && written == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(written)
    }

    /// Reads a member's trailer: the checksum, and the length modulo 2^32.
    fn end(&mut self) -> io::Result<()> {
        let mut trailer = [0; 8];
        self.input.read_exact(&mut trailer)?;
        let stated = u64::from_le_bytes(trailer);
        let length = self.inflate.total_out() & u64::from(u32::MAX);
        if stated != length << 32 | u64::from(self.checksum.clone().finalize()) {
            return Err(invalid("its checksum or length is wrong"));
        }
        let is_last = !self.input.peek(GZIP_MAGIC.len()).starts_with(GZIP_MAGIC);
        self.place = if is_last { Place::End } else { Place::BeforeMember };
        Ok(())
    }
}

fn invalid(reason: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

impl<R: Peek> Read for Members<'_, R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while !into.is_empty() {
            match self.place {
                Place::End => break,
                Place::BeforeMember => self.begin()?,
                Place::InMember => match self.inflate(into)? {
                    0 => {}
                    written => return Ok(written),
                },
            }
        }
        Ok(0)
    }
}
