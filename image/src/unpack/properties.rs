//! What must hold for any bytes as the archive of a layer: for the fuzz target `layer`, and for the test that replays
//! its seeds.

use super::numbers::signed;
use super::pax::allowed_xattr;
use super::tar::{Entry, EntryPath, Kind, MAX_DEPTH, Reader, TarError};
use std::io::{self, BufRead, Read};
use tar::Header;

mod unpacked;
mod written;

pub(crate) use self::unpacked::unpacked;
use self::written::{Format, written};

const BLOCK: usize = 512;

/// An archive from its beginning to its end, or to where it is refused.
struct Reading {
    /// Each with its content.
    entries: Vec<(Entry, Vec<u8>)>,
    error: Option<TarError>,
    /// Bytes of the archive that were read.
    read: usize,
}

/// Any archive. The first byte says how it is tried: with its own checksums or with right ones, and in pieces of which
/// size.
pub(crate) fn archive(data: &[u8]) {
    let Some((how, bytes)) = data.split_first() else { return };
    let bytes = if how & 1 == 0 { with_right_checksums(bytes) } else { bytes.to_vec() };
    bytes.chunks_exact(BLOCK).for_each(numbers_as_another_reader_has_them);
    let whole = read(&bytes, usize::MAX);
    for (entry, content) in &whole.entries {
        check(entry, content);
    }
    let piece = usize::from(how >> 1) + 1;
    same(&whole, &read(&bytes, piece), "in pieces");
    let shorter = read(&bytes[..bytes.len() * piece / 128], usize::MAX);
    assert!(whole.entries.starts_with(&shorter.entries), "a part of it has other entries");
    let global = written::extension(b'g', b"16 comment=long\n");
    same(&whole, &read(&[&global[..], &bytes].concat(), usize::MAX), "after a global header");
    for format in [Format::Pax, Format::Gnu] {
        let again = read(&written(&whole.entries, format), usize::MAX);
        assert!(again.error.is_none(), "written as {format:?}: {:?}", again.error);
        assert_eq!(again.entries, whole.entries, "written as {format:?}");
    }
}

fn same(one: &Reading, other: &Reading, with: &str) {
    assert_eq!(one.entries, other.entries, "{with}");
    let text = |reading: &Reading| reading.error.as_ref().map(ToString::to_string);
    assert_eq!(text(one), text(other), "{with}");
}

/// Reads an archive that arrives in pieces of `piece` bytes.
fn read(bytes: &[u8], piece: usize) -> Reading {
    let mut reader = Reader::new(Pieces { bytes, at: 0, piece });
    let mut entries = Vec::new();
    let error = loop {
        let entry = match reader.next() {
            Ok(Some(entry)) => entry,
            Ok(None) => break None,
            Err(error) => break Some(error),
        };
        match content(&mut reader) {
            Ok(content) => entries.push((entry, content)),
            Err(error) => break Some(error.into()),
        }
    };
    Reading { entries, error, read: reader.into_inner().at }
}

fn content<R: BufRead>(reader: &mut Reader<R>) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    loop {
        let part = reader.data()?;
        if part.is_empty() {
            return Ok(content);
        }
        content.extend_from_slice(part);
        let length = part.len();
        reader.consume(length);
    }
}

/// Bytes that arrive in pieces.
struct Pieces<'a> {
    bytes: &'a [u8],
    at: usize,
    piece: usize,
}

impl BufRead for Pieces<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        let end = (self.at / self.piece + 1).saturating_mul(self.piece);
        Ok(&self.bytes[self.at..end.min(self.bytes.len())])
    }

    fn consume(&mut self, length: usize) {
        self.at += length;
    }
}

impl Read for Pieces<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        super::read_buffered(self, into)
    }
}

/// The archive with the right checksum in every header that the reader comes to: a fuzzer does not find them.
fn with_right_checksums(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    loop {
        let Reading { error, read, .. } = read(&bytes, usize::MAX);
        let is_checksum =
            |error| matches!(error, TarError::Entry { reason, .. } if reason.contains("checksum"));
        if !error.is_some_and(is_checksum) {
            return bytes;
        }
        let mut header = Header::new_old();
        let block = &mut bytes[read - BLOCK..read];
        header.as_mut_bytes().copy_from_slice(block);
        header.set_cksum();
        assert_ne!(block, header.as_bytes(), "a checksum that is right is refused");
        block.copy_from_slice(header.as_bytes());
    }
}

/// Compares the numbers of a header with what the tar crate reads, which knows fewer forms.
fn numbers_as_another_reader_has_them(block: &[u8]) {
    let mut header = Header::new_old();
    header.as_mut_bytes().copy_from_slice(block);
    let old = header.as_old();
    let fields = [
        (&old.mode[..], header.mode().map(u64::from)),
        (&old.uid[..], header.uid()),
        (&old.gid[..], header.gid()),
        (&old.mtime[..], header.mtime()),
    ];
    for (field, theirs) in fields {
        // Negative numbers are large ones there.
        if let (Some(ours @ 0..), Ok(theirs)) = (signed(field), theirs) {
            assert_eq!(i128::from(ours), i128::from(theirs), "{}", field.escape_ascii());
        }
    }
}

/// What unpacking relies on.
fn check(entry: &Entry, content: &[u8]) {
    check_path(&entry.path);
    match &entry.kind {
        Kind::HardLink(target) => check_path(target),
        Kind::Symlink(target) => {
            assert!((1..4096).contains(&target.len()) && !target.contains(&0), "{entry:?}");
        }
        _ => {}
    }
    assert!(entry.kind == Kind::File || (entry.size == 0 && entry.sparse.is_none()), "{entry:?}");
    assert_eq!(entry.size, content.len() as u64);
    assert!(entry.mode <= 0o7777 && entry.uid != u32::MAX && entry.gid != u32::MAX, "{entry:?}");
    assert!(entry.mtime.1 < 1_000_000_000, "{entry:?}");
    assert!(
        entry.xattrs.len() <= 64 && entry.xattrs.iter().all(|(name, _)| allowed_xattr(name)),
        "{entry:?}"
    );
    if let Some(map) = &entry.sparse {
        let (mut end, mut sum) = (0, 0);
        for (offset, length) in &map.pieces {
            assert!(
                *offset >= end && offset.checked_add(*length).is_some_and(|end| end <= map.real),
                "{map:?}"
            );
            (end, sum) = (offset + length, sum + length);
        }
        assert_eq!(sum, entry.size);
    }
}

fn check_path(path: &EntryPath) {
    let parts = path.components();
    assert!(parts.len() <= MAX_DEPTH);
    for part in parts {
        assert!((1..=255).contains(&part.len()) && !part.contains(&b'/') && !part.contains(&0), "{path:?}");
        assert!(part != b"." && part != b"..", "{path:?}");
    }
}
