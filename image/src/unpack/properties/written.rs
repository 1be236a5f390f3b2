//! Writes entries as an archive again, in two ways that share as little as possible: with PAX records, and with GNU's
//! entries and numbers in base 256. Both must be read as the same entries.

use super::BLOCK;
use crate::unpack::sparse::Map;
use crate::unpack::tar::{Entry, EntryPath, Kind};
use tar::Header;

/// How an archive is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Pax,
    Gnu,
}

/// An archive of entries with their content.
pub(super) fn written(entries: &[(Entry, Vec<u8>)], format: Format) -> Vec<u8> {
    let mut archive = Vec::new();
    for (entry, content) in entries {
        match format {
            Format::Pax => pax(entry, content, &mut archive),
            Format::Gnu => gnu(entry, content, &mut archive),
        }
    }
    archive.resize(archive.len() + 2 * BLOCK, 0);
    archive
}

/// An entry of an extension's type with this content.
pub(super) fn extension(kind: u8, content: &[u8]) -> Vec<u8> {
    let mut header = Raw::new(kind, Format::Gnu);
    header.number(124..136, content.len() as i128);
    let mut bytes = Vec::new();
    header.end(&mut bytes);
    padded(content, &mut bytes);
    bytes
}

fn pax(entry: &Entry, content: &[u8], archive: &mut Vec<u8>) {
    let mut records = Records(Vec::new());
    let map = entry.sparse.as_ref().map(map_before_content);
    let path = path(&entry.path);
    match &entry.sparse {
        None => records.add("path", &path),
        Some(sparse) => {
            records.add("path", b"GNUSparseFile.0/x");
            records.add("GNU.sparse.major", b"1");
            records.add("GNU.sparse.minor", b"0");
            records.add("GNU.sparse.name", &path);
            records.add("GNU.sparse.realsize", sparse.real.to_string().as_bytes());
        }
    }
    if let Some(link) = link(&entry.kind) {
        records.add("linkpath", &link);
    }
    let map = map.unwrap_or_default();
    records.add("size", (map.len() + content.len()).to_string().as_bytes());
    records.add("uid", entry.uid.to_string().as_bytes());
    records.add("gid", entry.gid.to_string().as_bytes());
    let mut header = Raw::new(kind(entry), Format::Pax);
    match entry.mtime {
        // A record cannot say it: its digits without the minus are no 64-bit number.
        (seconds @ i64::MIN, 0) => header.number(136..148, seconds.into()),
        time => records.add("mtime", seconds(time).as_bytes()),
    }
    records.xattrs(entry);
    archive.extend(extension(b'x', &records.0));
    header.put(0, b"substitute");
    header.put(100, format!("{:07o}\0", entry.mode).as_bytes());
    header.device(&entry.kind);
    header.end(archive);
    padded(&[&map[..], content].concat(), archive);
}

fn gnu(entry: &Entry, content: &[u8], archive: &mut Vec<u8>) {
    let mut records = Records(Vec::new());
    if entry.mtime.1 != 0 {
        records.add("mtime", seconds(entry.mtime).as_bytes());
    }
    records.xattrs(entry);
    if !records.0.is_empty() {
        archive.extend(extension(b'x', &records.0));
    }
    archive.extend(extension(b'L', &[&path(&entry.path)[..], b"\0"].concat()));
    if let Some(link) = link(&entry.kind) {
        archive.extend(extension(b'K', &link));
    }
    let mut header = Raw::new(if entry.sparse.is_some() { b'S' } else { kind(entry) }, Format::Gnu);
    header.number(100..108, entry.mode.into());
    header.number(108..116, entry.uid.into());
    header.number(116..124, entry.gid.into());
    header.number(124..136, content.len() as i128);
    header.number(136..148, entry.mtime.0.into());
    header.device(&entry.kind);
    let extensions = entry.sparse.as_ref().map(|map| header.map(map)).unwrap_or_default();
    header.end(archive);
    archive.extend(extensions);
    padded(content, archive);
}

fn path(path: &EntryPath) -> Vec<u8> {
    let joined = path.components().join(&b'/');
    if joined.is_empty() { b".".to_vec() } else { joined }
}

fn link(kind: &Kind) -> Option<Vec<u8>> {
    match kind {
        Kind::Symlink(target) => Some(target.clone()),
        Kind::HardLink(target) => Some(path(target)),
        _ => None,
    }
}

fn kind(entry: &Entry) -> u8 {
    match entry.kind {
        Kind::File => b'0',
        Kind::HardLink(_) => b'1',
        Kind::Symlink(_) => b'2',
        Kind::CharDevice(..) => b'3',
        Kind::BlockDevice(..) => b'4',
        Kind::Directory => b'5',
        Kind::Fifo => b'6',
    }
}

/// A time as PAX has it: a number with a fraction.
fn seconds((seconds, nanoseconds): (i64, u32)) -> String {
    if seconds >= 0 || nanoseconds == 0 {
        return format!("{seconds}.{nanoseconds:09}");
    }
    format!("-{}.{:09}", (seconds + 1).unsigned_abs(), 1_000_000_000 - nanoseconds)
}

/// The map of PAX format 1.0.
fn map_before_content(map: &Map) -> Vec<u8> {
    let mut text = format!("{}\n", map.pieces.len());
    for (offset, length) in &map.pieces {
        text.push_str(&format!("{offset}\n{length}\n"));
    }
    let mut bytes = Vec::new();
    padded(text.as_bytes(), &mut bytes);
    bytes
}

fn padded(content: &[u8], archive: &mut Vec<u8>) {
    archive.extend_from_slice(content);
    archive.resize(archive.len().next_multiple_of(BLOCK), 0);
}

/// PAX records.
struct Records(Vec<u8>);

impl Records {
    fn add(&mut self, key: &str, value: &[u8]) {
        self.add_bytes(key.as_bytes(), value);
    }

    fn xattrs(&mut self, entry: &Entry) {
        for (name, value) in &entry.xattrs {
            self.add_bytes(&[b"SCHILY.xattr.", &name[..]].concat(), value);
        }
    }

    fn add_bytes(&mut self, key: &[u8], value: &[u8]) {
        let rest = key.len() + value.len() + 3;
        let length =
            (1..).map(|digits| rest + digits).find(|length| length.to_string().len() + rest == *length);
        self.0.extend(format!("{} ", length.unwrap_or_default()).as_bytes());
        self.0.extend([key, b"=", value, b"\n"].concat());
    }
}

/// A header, field by field.
struct Raw(Header);

impl Raw {
    fn new(kind: u8, format: Format) -> Self {
        let mut raw = Self(Header::new_old());
        raw.put(156, &[kind]);
        raw.put(257, if format == Format::Pax { b"ustar\x0000" } else { b"ustar  \0" });
        raw
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0.as_mut_bytes()[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// A number in base 256.
    fn number(&mut self, field: std::ops::Range<usize>, number: i128) {
        let bytes = number.to_be_bytes();
        self.put(field.start, &bytes[bytes.len() - field.len()..]);
        self.0.as_mut_bytes()[field.start] |= 0x80;
    }

    fn device(&mut self, kind: &Kind) {
        if let Kind::CharDevice(major, minor) | Kind::BlockDevice(major, minor) = kind {
            self.number(329..337, (*major).into());
            self.number(337..345, (*minor).into());
        }
    }

    /// The map of a sparse file. Returns the blocks with what has no room in the header.
    fn map(&mut self, map: &Map) -> Vec<u8> {
        let piece = |raw: &mut Self, at: usize, (offset, length): (u64, u64)| {
            raw.number(at..at + 12, offset.into());
            raw.number(at + 12..at + 24, length.into());
        };
        self.number(483..495, map.real.into());
        let (own, more) = map.pieces.split_at(map.pieces.len().min(4));
        for (number, pair) in own.iter().enumerate() {
            piece(self, 386 + 24 * number, *pair);
        }
        self.put(482, &[u8::from(!more.is_empty())]);
        let (mut blocks, count) = (Vec::new(), more.chunks(21).len());
        for (number, pairs) in more.chunks(21).enumerate() {
            let mut block = Self(Header::new_old());
            block.0.as_mut_bytes().fill(0);
            for (number, pair) in pairs.iter().enumerate() {
                piece(&mut block, 24 * number, *pair);
            }
            block.put(504, &[u8::from(number + 1 < count)]);
            blocks.extend_from_slice(block.0.as_bytes());
        }
        blocks
    }

    fn end(mut self, archive: &mut Vec<u8>) {
        self.0.set_cksum();
        archive.extend_from_slice(self.0.as_bytes());
    }
}
