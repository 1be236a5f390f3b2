//! Reads a tar stream entry by entry: ustar, GNU long names, PAX and sparse files. Pure: accesses no file.
//!
//! Every length in the archive is checked before memory is allocated for it, and every path is parsed into
//! components that cannot leave the folder they are joined to.

use super::numbers::{field, number, until_nul};
use super::sparse::{self, Bad, Map};
use std::io::{self, BufRead, Read};
use tar::{EntryType, Header};

const BLOCK: usize = 512;
/// Linux's PATH_MAX: a longer path could not be opened again.
const MAX_PATH: usize = 4096;
/// Linux's NAME_MAX.
const MAX_COMPONENT: usize = 255;
/// Each level of a path may hold one descriptor open during unpacking.
pub(super) const MAX_DEPTH: usize = 256;
/// All PAX records of one entry together. The kernel limits one extended attribute to 64 KiB.
const MAX_PAX: u64 = 1 << 20;
/// Extended attributes of one entry.
const MAX_XATTRS: usize = 64;

/// A path from the layer's root without `.`, `..`, empty parts or NUL; the empty list is the root itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EntryPath(Vec<Vec<u8>>);

impl EntryPath {
    /// Parses a name from an archive. Every name is relative to the layer's root, with or without a leading
    /// slash. `..` removes the component before it without looking at the disk; at the root it removes
    /// nothing. containerd does the same.
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

    /// Parent components and last name; `None` for the root.
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
    /// Target as written in the archive; stored, never followed.
    Symlink(Vec<u8>),
    /// Path of another entry of the same layer.
    HardLink(EntryPath),
    CharDevice(u32, u32),
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
    /// Bytes of content that follow; 0 for all but files.
    pub(crate) size: u64,
    /// The positions of the content, for a file with holes.
    pub(crate) sparse: Option<Map>,
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

fn refuse(name: &[u8], reason: &'static str) -> TarError {
    TarError::Entry { entry: String::from_utf8_lossy(&name[..name.len().min(200)]).into_owned(), reason }
}

/// The entries of a stream. Read a file's content with [`Reader::data`] before calling `next`; unread content
/// is skipped.
#[derive(Debug)]
pub(crate) struct Reader<R> {
    input: R,
    /// Unread content of the current entry, and the padding after it.
    remaining: u64,
    padding: u64,
}

/// Extension records, which apply to the next entry.
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

    /// The next entry, or `None` at the end mark or the end of the stream.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>, TarError> {
        self.skip()?;
        let mut extensions = Extensions::default();
        loop {
            let Some(header) = self.header()? else { return Ok(None) };
            let size = field(&header.as_old().size)
                .ok_or_else(|| refuse(&header.path_bytes(), "its size is unreadable"))?;
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

    /// The next part of the current file's content; empty at its end.
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

    /// Marks bytes that [`Reader::data`] returned as consumed.
    pub(crate) fn consume(&mut self, length: usize) {
        self.input.consume(length);
        self.remaining = self.remaining.saturating_sub(length as u64);
    }

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

    fn header(&mut self) -> Result<Option<Header>, TarError> {
        let mut header = Header::new_old();
        if self.input.fill_buf()?.is_empty() {
            return Ok(None);
        }
        self.input.read_exact(header.as_mut_bytes())?;
        let bytes = header.as_bytes();
        if bytes.iter().all(|b| *b == 0) {
            return Ok(None);
        }
        let sum: u32 = bytes
            .iter()
            .enumerate()
            .map(|(at, b)| {
                // The checksum is computed with its own eight bytes as blanks.
                if (148..156).contains(&at) { u32::from(b' ') } else { u32::from(*b) }
            })
            .sum();
        if header.cksum().ok() != Some(sum) {
            return Err(refuse(&header.path_bytes(), "its header's checksum is wrong"));
        }
        Ok(Some(header))
    }

    /// The whole content of an extension entry.
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

    fn entry(&mut self, header: &Header, size: u64, mut extensions: Extensions) -> Result<Entry, TarError> {
        let mut records = extensions.sparse.take();
        // The header has another name, for readers without support for sparse files.
        let name = records.as_mut().and_then(|records| records.name.take()).or(extensions.path);
        let name = name.unwrap_or_else(|| header.path_bytes().into_owned());
        let old = header.as_old();
        let wrong = |reason| refuse(&name, reason);
        let link = || extensions.link.or_else(|| header.link_name_bytes().map(|link| link.into_owned()));
        let kind = kind_of(header, &name, link).map_err(wrong)?;
        let size = extensions.size.unwrap_or(size);
        // Announced content follows any type of header and must be skipped.
        self.remaining = match header.entry_type() {
            EntryType::Regular | EntryType::Continuous => size,
            // Old archives state the size of a link's target, but no content follows.
            EntryType::Link | EntryType::Symlink => 0,
            _ => size,
        };
        self.padding = pad(self.remaining);
        let sparse = self.sparse(header, &kind, records).map_err(|bad| match bad {
            Bad::Io(error) => error.into(),
            Bad::Map(reason) => wrong(reason),
        })?;
        let size = self.remaining;
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
            size: if kind == Kind::File { size } else { 0 },
            sparse,
            kind,
            mode: field(&old.mode)
                .and_then(|mode| u32::try_from(mode & 0o7777).ok())
                .ok_or_else(|| wrong("its mode is unreadable"))?,
            uid: id(extensions.uid, &old.uid)?,
            gid: id(extensions.gid, &old.gid)?,
            mtime,
            xattrs: extensions.xattrs,
        })
    }

    /// The map of a sparse file, which may be at the beginning of its content.
    fn sparse(
        &mut self,
        header: &Header,
        kind: &Kind,
        records: Option<sparse::Records>,
    ) -> Result<Option<Map>, Bad> {
        match (header.entry_type(), records) {
            (EntryType::GNUSparse, None) => {
                let header = header.as_gnu().ok_or("it is sparse, and no GNU header")?;
                sparse::old(header, &mut self.input, self.remaining).map(Some)
            }
            (EntryType::Regular | EntryType::Continuous, Some(records)) if *kind == Kind::File => {
                let (map, read) = records.map(&mut self.input, self.remaining)?;
                self.remaining -= read;
                Ok(Some(map))
            }
            (_, Some(_)) => Err("it is sparse, and no file".into()),
            (_, None) => Ok(None),
        }
    }
}

/// What an entry is, or why it is refused. `link` gives its link's target.
fn kind_of(
    header: &Header,
    name: &[u8],
    link: impl FnOnce() -> Option<Vec<u8>>,
) -> Result<Kind, &'static str> {
    let device = || match (header.device_major(), header.device_minor()) {
        (Ok(major), Ok(minor)) => Ok((major.unwrap_or(0), minor.unwrap_or(0))),
        _ => Err("its device number is unreadable"),
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

fn pad(size: u64) -> u64 {
    let block = BLOCK as u64;
    (block - size % block) % block
}

/// Parses PAX records, `<length> <key>=<value>\n`, where the length includes itself. Values may be empty or
/// binary.
fn pax(mut records: &[u8], into: &mut Extensions) -> Result<(), &'static str> {
    const BAD: &str = "its PAX records are malformed";
    // Some writers pad the block to its announced size.
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
                    into.sparse.get_or_insert_default().take(key, value)?;
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

/// Whether an image may set this extended attribute. overlayfs's own are dropped, because they could point
/// into another layer, and so are labels of the host's security modules. Neither is an error: the image runs
/// without them.
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
    // Before 1970 the fraction counts backwards; it is dropped, as no file needs that precision.
    Some(if whole < 0 { (whole, 0) } else { (whole, nanoseconds) })
}
