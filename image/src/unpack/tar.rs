//! Reads a tar stream entry by entry: ustar, GNU long names, PAX and sparse files. Pure: accesses no file.
//!
//! Every length in the archive is checked before memory is allocated for it. Every path is parsed into components none
//! of which leads upwards.

use super::numbers::{field, number, until_nul};
use super::sparse::{self, Bad, Map};
use std::io::{self, BufRead, Read};
use tar::{EntryType, Header};

const BLOCK: usize = 512;
/// Linux's PATH_MAX: a longer path could not be opened again.
const MAX_PATH: usize = 4096;
/// Linux's NAME_MAX.
const MAX_COMPONENT: usize = 255;
/// Maximum number of components. Unpacking may keep a descriptor open for each.
pub(super) const MAX_DEPTH: usize = 256;
/// Maximum size of an entry's PAX records, in bytes. The kernel limits one extended attribute to 64 KiB.
const MAX_PAX: u64 = 1 << 20;
/// Maximum number of extended attributes of an entry.
const MAX_XATTRS: usize = 64;

/// A path from the layer's root: components without `.`, `..`, empty ones and NUL. The root itself has none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EntryPath(Vec<Vec<u8>>);

impl EntryPath {
    /// Parses a name from an archive. It is relative to the layer's root, also with a leading slash. `..` removes the
    /// component before it, whatever that is on disk; at the root it is ignored. containerd does the same.
    pub(crate) fn parse(raw: &[u8]) -> Result<Self, &'static str> {
        if raw.len() > MAX_PATH {
            return Err("its path is longer than 4096 bytes");
        }
        if raw.contains(&0) {
            return Err("its path has a NUL");
        }
        let mut parts = Vec::new();
        for part in raw.split(|b| *b == b'/') {
            match part {
                b"" | b"." => {}
                b".." => drop(parts.pop()),
                _ if part.len() > MAX_COMPONENT => return Err("its path has a component over 255 bytes"),
                _ => parts.push(part.to_vec()),
            }
        }
        if parts.len() > MAX_DEPTH {
            return Err("its path is deeper than 256 folders");
        }
        Ok(Self(parts))
    }

    /// The components of the parent folder, and the last one; `None` for the root.
    pub(crate) fn split(&self) -> Option<(&[Vec<u8>], &[u8])> {
        self.0.split_last().map(|(name, parents)| (parents, name.as_slice()))
    }

    pub(crate) fn components(&self) -> &[Vec<u8>] {
        &self.0
    }
}

/// The type of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Directory,
    /// Target as in the archive.
    Symlink(Vec<u8>),
    /// Path of another entry of the same layer.
    HardLink(EntryPath),
    /// Major and minor number.
    CharDevice(u32, u32),
    /// Major and minor number.
    BlockDevice(u32, u32),
    Fifo,
}

/// One validated entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) path: EntryPath,
    pub(crate) kind: Kind,
    /// Permission bits with setuid, setgid and sticky.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Seconds since 1970 and nanoseconds.
    pub(crate) mtime: (i64, u32),
    /// Bytes of content in the archive; 0 for all but files.
    pub(crate) size: u64,
    /// For a sparse file: where its content belongs.
    pub(crate) sparse: Option<Map>,
    /// Names and values; only those of [`allowed_xattr`].
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Why a stream is not a valid layer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TarError {
    #[error("reading the archive")]
    Io(#[from] io::Error),
    #[error("{entry:?}: {reason}")]
    Entry { entry: String, reason: &'static str },
}

/// The error for an entry, with its name cut to a printable length.
fn refuse(name: &[u8], reason: &'static str) -> TarError {
    TarError::Entry { entry: String::from_utf8_lossy(&name[..name.len().min(200)]).into_owned(), reason }
}

/// Reads the entries of a stream. [`Reader::next`] returns an entry, then [`Reader::data`] returns its content. Content
/// that was not read is skipped.
#[derive(Debug)]
pub(crate) struct Reader<R> {
    input: R,
    /// Bytes of the current entry's content that were not read yet.
    remaining: u64,
    /// Bytes after it, up to the next block.
    padding: u64,
}

/// Values of PAX records and GNU long names. They apply to the next entry and override its header.
#[derive(Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<(i64, u32)>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    sparse: Option<sparse::Records>,
}

impl<R: BufRead> Reader<R> {
    pub(crate) fn new(input: R) -> Self {
        Self { input, remaining: 0, padding: 0 }
    }

    /// Returns the underlying stream, to read what follows the end of the archive.
    pub(crate) fn into_inner(self) -> R {
        self.input
    }

    /// Reads the next entry; `None` at the end-of-archive marker or at the end of the stream.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>, TarError> {
        self.skip()?;
        let mut extensions = Extensions::default();
        loop {
            let Some(header) = self.header()? else { return Ok(None) };
            let size = field(&header.as_old().size)
                .ok_or_else(|| refuse(&header.path_bytes(), "its size is not a number"))?;
            match header.entry_type() {
                EntryType::XHeader => {
                    let records = self.contents(&header, size, MAX_PAX)?;
                    pax(&records, &mut extensions).map_err(|reason| refuse(&header.path_bytes(), reason))?;
                }
                EntryType::XGlobalHeader => {
                    self.contents(&header, size, MAX_PAX)?;
                }
                EntryType::GNULongName => {
                    extensions.path = Some(until_nul(self.contents(&header, size, MAX_PATH as u64 + 1)?));
                }
                EntryType::GNULongLink => {
                    extensions.link = Some(until_nul(self.contents(&header, size, MAX_PATH as u64 + 1)?));
                }
                _ => return self.entry(&header, size, extensions).map(Some),
            }
        }
    }

    /// Reads the next part of the current entry's content; empty at its end.
    pub(crate) fn data(&mut self) -> io::Result<&[u8]> {
        if self.remaining == 0 {
            return Ok(&[]);
        }
        let buffer = self.input.fill_buf()?;
        if buffer.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let length = usize::try_from(self.remaining).map_or(buffer.len(), |left| left.min(buffer.len()));
        Ok(&buffer[..length])
    }

    /// Marks bytes that [`Reader::data`] has returned as read.
    pub(crate) fn consume(&mut self, length: usize) {
        self.input.consume(length);
        self.remaining = self.remaining.saturating_sub(length as u64);
    }

    /// Skips the rest of the current entry.
    fn skip(&mut self) -> io::Result<()> {
        let mut left = self.remaining.saturating_add(self.padding);
        (self.remaining, self.padding) = (0, 0);
        while left > 0 {
            let available = self.input.fill_buf()?.len();
            if available == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let step = usize::try_from(left).map_or(available, |left| left.min(available));
            self.input.consume(step);
            left -= step as u64;
        }
        Ok(())
    }

    /// Reads a header; `None` at the end-of-archive marker or at the end of the stream.
    fn header(&mut self) -> Result<Option<Header>, TarError> {
        let mut header = Header::new_old();
        if self.input.fill_buf()?.is_empty() {
            return Ok(None);
        }
        self.input.read_exact(header.as_mut_bytes()).map_err(|error| match error.kind() {
            kind @ io::ErrorKind::UnexpectedEof => io::Error::new(kind, "it ends within an entry's header"),
            _ => error,
        })?;
        let bytes = header.as_bytes();
        if bytes.iter().all(|b| *b == 0) {
            return Ok(None);
        }
        let sum: u32 = bytes
            .iter()
            .enumerate()
            .map(|(at, b)| {
                // The checksum's own eight bytes count as blanks.
                if (148..156).contains(&at) { u32::from(b' ') } else { u32::from(*b) }
            })
            .sum();
        if header.cksum().ok() != Some(sum) {
            return Err(refuse(&header.path_bytes(), "its header's checksum is wrong"));
        }
        Ok(Some(header))
    }

    /// Reads the content of an extension, at most `limit` bytes.
    fn contents(&mut self, header: &Header, size: u64, limit: u64) -> Result<Vec<u8>, TarError> {
        if size > limit {
            return Err(refuse(&header.path_bytes(), "its extended header is too large"));
        }
        let mut contents = Vec::new();
        self.input.by_ref().take(size).read_to_end(&mut contents)?;
        if contents.len() as u64 != size {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        self.padding = pad(size);
        self.skip()?;
        Ok(contents)
    }

    /// The entry of a header and the extensions before it.
    fn entry(&mut self, header: &Header, size: u64, mut extensions: Extensions) -> Result<Entry, TarError> {
        let mut records = extensions.sparse.take();
        // A sparse file has its name here. Its header has a substitute, for readers without support for sparse files.
        let name = records.as_mut().and_then(|records| records.name.take()).or(extensions.path);
        let name = name.unwrap_or_else(|| header.path_bytes().into_owned());
        let old = header.as_old();
        let wrong = |reason| refuse(&name, reason);
        let link = || extensions.link.or_else(|| header.link_name_bytes().map(|link| link.into_owned()));
        let kind = kind_of(header, &name, link).map_err(wrong)?;
        // Only files have content. Other headers may state a size, such as that of a link's target, but no content
        // follows: containerd (Go's archive/tar) and libarchive read them in this way.
        self.remaining = if kind == Kind::File { extensions.size.unwrap_or(size) } else { 0 };
        self.padding = pad(self.remaining);
        let sparse = self.sparse(header, &kind, records).map_err(|bad| match bad {
            Bad::Io(error) => error.into(),
            Bad::Map(reason) => wrong(reason),
        })?;
        let id = |extended: Option<u64>, own: &[u8]| {
            extended
                .or_else(|| field(own))
                .and_then(|id| u32::try_from(id).ok())
                .filter(|id| *id != u32::MAX)
                .ok_or_else(|| wrong("its owner is not a 32-bit id"))
        };
        let mtime = match extensions.mtime {
            Some(mtime) => mtime,
            None => (field(&old.mtime).and_then(|s| i64::try_from(s).ok()).unwrap_or(0), 0),
        };
        Ok(Entry {
            path: EntryPath::parse(&name).map_err(wrong)?,
            size: self.remaining,
            sparse,
            kind,
            mode: field(&old.mode)
                .and_then(|mode| u32::try_from(mode & 0o7777).ok())
                .ok_or_else(|| wrong("its mode is not a number"))?,
            uid: id(extensions.uid, &old.uid)?,
            gid: id(extensions.gid, &old.gid)?,
            mtime,
            xattrs: extensions.xattrs,
        })
    }

    /// The map of a sparse file, `None` for other entries. It may be at the beginning of the content.
    fn sparse(
        &mut self,
        header: &Header,
        kind: &Kind,
        records: Option<sparse::Records>,
    ) -> Result<Option<Map>, Bad> {
        match (header.entry_type(), records) {
            (EntryType::GNUSparse, None) => {
                let header = header.as_gnu().ok_or("it is a sparse file without a GNU header")?;
                sparse::old(header, &mut self.input, self.remaining).map(Some)
            }
            (EntryType::Regular | EntryType::Continuous, Some(records)) if *kind == Kind::File => {
                let (map, read) = records.map(&mut self.input, self.remaining)?;
                self.remaining -= read;
                Ok(Some(map))
            }
            (_, Some(_)) => Err("it has a sparse map, but is not a file".into()),
            (_, None) => Ok(None),
        }
    }
}

/// The type of an entry, or why it is refused. `link` returns the target of a link.
fn kind_of(
    header: &Header,
    name: &[u8],
    link: impl FnOnce() -> Option<Vec<u8>>,
) -> Result<Kind, &'static str> {
    let device = || match (header.device_major(), header.device_minor()) {
        (Ok(major), Ok(minor)) => Ok((major.unwrap_or(0), minor.unwrap_or(0))),
        _ => Err("its device number is not a number"),
    };
    Ok(match header.entry_type() {
        // Before POSIX, a folder was a file whose name ended in a slash.
        EntryType::Regular if name.ends_with(b"/") => Kind::Directory,
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => Kind::File,
        EntryType::Directory => Kind::Directory,
        EntryType::Symlink => {
            let target = link().unwrap_or_default();
            if target.is_empty() || target.len() >= MAX_PATH || target.contains(&0) {
                return Err("its symlink target is empty, too long or has a NUL");
            }
            Kind::Symlink(target)
        }
        EntryType::Link => {
            let target = link().unwrap_or_default();
            Kind::HardLink(EntryPath::parse(&target).map_err(|_| "its hard link's target is not a path")?)
        }
        EntryType::Char => device().map(|(major, minor)| Kind::CharDevice(major, minor))?,
        EntryType::Block => device().map(|(major, minor)| Kind::BlockDevice(major, minor))?,
        EntryType::Fifo => Kind::Fifo,
        _ => return Err("its type is unknown"),
    })
}

/// Bytes from the end of the content to the next block.
fn pad(size: u64) -> u64 {
    let block = BLOCK as u64;
    (block - size % block) % block
}

/// Parses PAX records, `<length> <key>=<value>\n`. The length is that of the whole record, its own digits included.
/// Values may be empty or binary.
fn pax(mut records: &[u8], into: &mut Extensions) -> Result<(), &'static str> {
    const BAD: &str = "its PAX records are malformed";
    // Some writers fill the rest of the block with NUL.
    while records.first().is_some_and(|b| *b != 0) {
        let space = records.iter().take(20).position(|b| *b == b' ').ok_or(BAD)?;
        let length: usize = number(&records[..space]).and_then(|n| usize::try_from(n).ok()).ok_or(BAD)?;
        if length <= space + 1 || length > records.len() || records[length - 1] != b'\n' {
            return Err(BAD);
        }
        let record = &records[space + 1..length - 1];
        records = &records[length..];
        let equals = record.iter().position(|b| *b == b'=').ok_or(BAD)?;
        let (key, value) = (&record[..equals], &record[equals + 1..]);
        match key {
            b"path" => into.path = (!value.is_empty()).then(|| value.to_vec()),
            b"linkpath" => into.link = (!value.is_empty()).then(|| value.to_vec()),
            b"size" if !value.is_empty() => into.size = Some(number(value).ok_or(BAD)?),
            b"uid" if !value.is_empty() => into.uid = Some(number(value).ok_or(BAD)?),
            b"gid" if !value.is_empty() => into.gid = Some(number(value).ok_or(BAD)?),
            b"mtime" if !value.is_empty() => into.mtime = Some(seconds(value).ok_or(BAD)?),
            _ => {
                if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
                    into.sparse.get_or_insert_default().add(key, value)?;
                } else if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    if into.xattrs.len() == MAX_XATTRS {
                        return Err("it has too many extended attributes");
                    }
                    if allowed_xattr(name) {
                        into.xattrs.push((name.to_vec(), value.to_vec()));
                    }
                }
            }
        }
    }
    Ok(())
}

/// Whether an image may set this extended attribute. Others are dropped without an error, because the image runs
/// without them: overlayfs's own could refer to another layer, and labels of security modules are the host's.
pub(super) fn allowed_xattr(name: &[u8]) -> bool {
    if name.len() > 255 || name.contains(&0) || name.starts_with(b"user.overlay.") {
        return false;
    }
    matches!(
        name,
        b"security.capability" | b"security.ima" | b"system.posix_acl_access" | b"system.posix_acl_default"
    ) || name.strip_prefix(b"user.").is_some_and(|rest| !rest.is_empty())
}

/// Parses a PAX time, such as `1234.5678`; it may be negative.
fn seconds(value: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(value).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let whole: i64 = whole.parse().ok()?;
    let mut nanoseconds = 0;
    for at in 0..9 {
        let digit = fraction.as_bytes().get(at).copied().unwrap_or(b'0');
        nanoseconds = nanoseconds * 10 + u32::from(digit.is_ascii_digit().then(|| digit - b'0')?);
    }
    // Before 1970 the fraction would have to be subtracted; it is dropped, as nobody needs that precision.
    Some(if whole < 0 { (whole, 0) } else { (whole, nanoseconds) })
}
