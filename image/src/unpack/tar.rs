//! Reads a tar stream entry by entry: v7, ustar, star, GNU and PAX, with sparse files. Pure: accesses no file.
//!
//! It accepts what Go's archive/tar accepts, by which other runtimes read layers. Types of entries for which they have no
//! use are refused by them and here: Solaris' extended headers (`X`), and GNU's volumes, dumps and multi-volume files.
//!
//! Every length in the archive is checked before memory is allocated for it. Every path is parsed into components none
//! of which leads upwards.

use super::header;
use super::numbers::{signed, unsigned, until_nul};
use super::pax::{self, MAX_PAX, Records};
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

/// What the extensions before an entry's header say. It overrides the header.
#[derive(Default)]
struct Extensions {
    pax: Records,
    /// GNU long name and long link target. They override the PAX records, as in Go.
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
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
            let size = unsigned(&header.as_old().size)
                .ok_or_else(|| refuse(&header::name(&header), "its size is not a number"))?;
            match header.entry_type() {
                EntryType::XHeader => {
                    let bytes = self.contents(&header, size, MAX_PAX)?;
                    extensions.pax =
                        pax::parse(&bytes).map_err(|reason| refuse(&header::name(&header), reason))?;
                }
                // Other runtimes ignore its records, and it separates the extensions before it from the next entry.
                EntryType::XGlobalHeader => {
                    self.contents(&header, size, MAX_PAX)?;
                    extensions = Extensions::default();
                }
                EntryType::GNULongName => {
                    extensions.name = self.text(&header, size)?;
                }
                EntryType::GNULongLink => {
                    extensions.link = self.text(&header, size)?;
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

    /// Skips the rest of the current entry. The padding of the last one may be missing, as some writers leave it out.
    fn skip(&mut self) -> io::Result<()> {
        if self.discard(self.remaining)? > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.discard(self.padding)?;
        (self.remaining, self.padding) = (0, 0);
        Ok(())
    }

    /// Discards bytes. Returns how many are missing at the end of the stream.
    fn discard(&mut self, mut left: u64) -> io::Result<u64> {
        while left > 0 {
            let available = self.input.fill_buf()?.len();
            if available == 0 {
                break;
            }
            let step = usize::try_from(left).map_or(available, |left| left.min(available));
            self.input.consume(step);
            left -= step as u64;
        }
        Ok(left)
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
        if !header::is_checksum_right(&header) {
            return Err(refuse(&header::name(&header), "its header's checksum is wrong"));
        }
        Ok(Some(header))
    }

    /// Reads the content of an extension, at most `limit` bytes.
    fn contents(&mut self, header: &Header, size: u64, limit: u64) -> Result<Vec<u8>, TarError> {
        if size > limit {
            return Err(refuse(&header::name(header), "its extended header is too large"));
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

    /// Reads the content of a GNU long name; `None` if it is empty.
    fn text(&mut self, header: &Header, size: u64) -> Result<Option<Vec<u8>>, TarError> {
        let text = until_nul(self.contents(header, size, MAX_PATH as u64 + 1)?);
        Ok(Some(text).filter(|text| !text.is_empty()))
    }

    /// The entry of a header and the extensions before it.
    fn entry(&mut self, header: &Header, size: u64, extensions: Extensions) -> Result<Entry, TarError> {
        let Extensions { pax: mut extended, name, link } = extensions;
        let mut records = extended.sparse.take();
        // A sparse file has its name here. Its header has a substitute, for readers without support for sparse files.
        let name = records.as_mut().and_then(|records| records.name.take()).or(name).or(extended.path.take());
        let name = name.unwrap_or_else(|| header::name(header));
        let link = link.or(extended.link.take());
        let link = || link.unwrap_or_else(|| until_nul(header.as_old().linkname.to_vec()));
        let old = header.as_old();
        let wrong = |reason| refuse(&name, reason);
        let kind = kind_of(header, &name, link).map_err(wrong)?;
        // Only files have content. Other headers may state a size, such as that of a link's target, but no content
        // follows: containerd (Go's archive/tar) and libarchive read them in this way.
        self.remaining = if kind == Kind::File { extended.size.unwrap_or(size) } else { 0 };
        self.padding = pad(self.remaining);
        let sparse = self.sparse(header, &kind, records).map_err(|bad| match bad {
            Bad::Io(error) => error.into(),
            Bad::Map(reason) => wrong(reason),
        })?;
        let id = |extended: Option<i64>, own: &[u8]| {
            extended.or_else(|| signed(own)).and_then(id).ok_or_else(|| wrong("its owner is not a 32-bit id"))
        };
        let mtime = extended.mtime.unwrap_or_else(|| (signed(&old.mtime).unwrap_or(0), 0));
        Ok(Entry {
            path: EntryPath::parse(&name).map_err(wrong)?,
            size: self.remaining,
            sparse,
            kind,
            mode: signed(&old.mode)
                .and_then(|mode| u32::try_from(mode & 0o7777).ok())
                .ok_or_else(|| wrong("its mode is not a number"))?,
            uid: id(extended.uid, &old.uid)?,
            gid: id(extended.gid, &old.gid)?,
            mtime,
            xattrs: extended.xattrs,
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
fn kind_of(header: &Header, name: &[u8], link: impl FnOnce() -> Vec<u8>) -> Result<Kind, &'static str> {
    let device = || header::device(header).ok_or("its device number is not a number");
    Ok(match header.entry_type() {
        // Before POSIX, the type of files was NUL, and a folder was a file whose name ended in a slash.
        EntryType::Regular if name.ends_with(b"/") && header.as_old().linkflag == [0] => Kind::Directory,
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => Kind::File,
        EntryType::Directory => Kind::Directory,
        EntryType::Symlink => {
            let target = link();
            if target.is_empty() || target.len() >= MAX_PATH || target.contains(&0) {
                return Err("its symlink target is empty, too long or has a NUL");
            }
            Kind::Symlink(target)
        }
        EntryType::Link => {
            let target = link();
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

/// The id that chown(2) gets for a number of an archive: old systems had -2 for nobody. -1 is no id, and larger numbers
/// would become those of other users.
fn id(number: i64) -> Option<u32> {
    let id =
        if number < 0 { i32::try_from(number).ok()?.cast_unsigned() } else { u32::try_from(number).ok()? };
    Some(id).filter(|id| *id != u32::MAX)
}
