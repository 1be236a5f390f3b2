//! The members of a tar archive, and where in a file each is.

use crate::error::{Error, Result};
use crate::spool::Spool;
use crate::unpack::{EntryPath, Kind, TarReader};
use bytes::{Buf as _, Bytes};
use std::cell::Cell;
use std::collections::HashMap;
use std::io::{self, BufRead, Read};
use std::rc::Rc;
use std::sync::Arc;
use tokio::sync::mpsc;

/// Maximum number of members. An image has at most four a layer, and there are at most 128 layers.
pub(super) const MAX_MEMBERS: usize = 32_768;
/// Maximum size of the names of all members and of the targets of links, in bytes.
const MAX_NAMES: usize = 4 << 20;
/// Maximum number of bytes that follow the end of the archive.
const MAX_REST: usize = 64 << 20;
/// Maximum number of links from one member to the next. `docker save` uses one.
const MAX_LINKS: usize = 8;

/// Where a member's content is in the spool, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) offset: u64,
    pub(super) size: u64,
}

#[derive(Debug)]
enum Member {
    File(Extent),
    /// The name of another member: of a hard link, or what a symlink leads to.
    Link(String),
}

/// All members of an archive that can be of use.
#[derive(Debug)]
pub(super) struct Members {
    pub(super) spool: Arc<Spool>,
    /// By name without `.`, `..` and double slashes. Of equal names the last counts, as when an archive is extracted.
    members: HashMap<String, Member>,
}

impl Members {
    /// Where the content of a member is; `None` if there is no such file.
    pub(super) fn find(&self, name: &str) -> Result<Option<Extent>> {
        let mut name = name;
        for _ in 0..=MAX_LINKS {
            match self.members.get(name) {
                None => return Ok(None),
                Some(Member::File(extent)) => return Ok(Some(*extent)),
                Some(Member::Link(target)) => name = target,
            }
        }
        Err(wrong(name, "it leads through too many links"))
    }

    /// The content of a member of at most `limit` bytes; `None` if there is no such file.
    pub(super) fn content(&self, name: &str, limit: u64) -> Result<Option<Bytes>> {
        self.find(name)?.map(|extent| self.bytes(extent, name, limit)).transpose()
    }

    /// The content of `name`, which is at `extent`, of at most `limit` bytes.
    pub(super) fn bytes(&self, extent: Extent, name: &str, limit: u64) -> Result<Bytes> {
        let length = usize::try_from(extent.size).ok().filter(|_| extent.size <= limit).ok_or_else(|| {
            Error::TooLarge { object: format!("{name} of the archive"), limit, unit: "bytes" }
        })?;
        self.spool.read(extent.offset, length)
    }
}

/// The error for a member.
fn wrong(name: &str, reason: &str) -> Error {
    let name: String = name.chars().take(200).collect();
    Error::corrupt(format!("{name:?} of the archive"), reason)
}

/// Reads a tar stream to its end into the spool.
pub(super) fn read(input: mpsc::Receiver<Bytes>, spool: Spool) -> Result<Members> {
    let position = Rc::new(Cell::new(0));
    let tee = Tee { input, current: Bytes::new(), spool, position: position.clone(), failure: None };
    let mut reader = TarReader::new(tee);
    let listed = list(&mut reader, &position);
    let mut tee = reader.into_inner();
    // An error of the disk shows as one of the archive.
    if let Some(failure) = tee.failure.take() {
        return Err(failure);
    }
    let members = listed?;
    // Writers fill the last record. The sender may wait for the rest to be taken.
    let mut rest = 0;
    while let Some(bytes) = tee.input.blocking_recv() {
        rest += bytes.len();
        if rest > MAX_REST {
            let (object, unit) = ("the archive".to_owned(), "bytes after its end");
            return Err(Error::TooLarge { object, limit: MAX_REST as u64, unit });
        }
    }
    Ok(Members { spool: Arc::new(tee.spool), members })
}

fn list(reader: &mut TarReader<Tee>, position: &Cell<u64>) -> Result<HashMap<String, Member>> {
    let (mut members, mut count, mut names) = (HashMap::new(), 0, 0);
    while let Some(entry) =
        reader.next().map_err(|error| Error::corrupt("the archive", causes::with_causes(&error)))?
    {
        count += 1;
        let path = entry.path.components().join(&b'/');
        let link = match &entry.kind {
            Kind::Symlink(target) => Some(target_of(&path, target)),
            Kind::HardLink(target) => Some(Some(target.clone())),
            _ => None,
        };
        names +=
            path.len() + link.iter().flatten().flat_map(EntryPath::components).map(Vec::len).sum::<usize>();
        if count > MAX_MEMBERS || names > MAX_NAMES {
            let (limit, unit) = if count > MAX_MEMBERS {
                (MAX_MEMBERS as u64, "members")
            } else {
                (MAX_NAMES as u64, "bytes of names")
            };
            return Err(Error::TooLarge { object: "the archive".to_owned(), limit, unit });
        }
        // All names that are looked up are text.
        let Ok(name) = String::from_utf8(path) else { continue };
        let member = match (&entry.kind, link) {
            (Kind::File, _) if entry.sparse.is_some() => {
                return Err(wrong(&name, "it is a sparse file, which no archive of images has"));
            }
            (Kind::File, _) => Member::File(Extent { offset: position.get(), size: entry.size }),
            (_, Some(Some(target))) => match String::from_utf8(target.components().join(&b'/')) {
                Ok(target) => Member::Link(target),
                Err(_) => continue,
            },
            _ => continue,
        };
        members.insert(name, member);
    }
    Ok(members)
}

/// What a symlink leads to, as a name in the archive; `None` if it is no path.
fn target_of(path: &[u8], target: &[u8]) -> Option<EntryPath> {
    if target.first() == Some(&b'/') {
        return EntryPath::parse(target).ok();
    }
    let parent = path.iter().rposition(|b| *b == b'/').map_or(&b""[..], |slash| &path[..slash]);
    EntryPath::parse(&[parent, b"/", target].concat()).ok()
}

/// The stream. What is read of it is written to the spool.
#[derive(Debug)]
struct Tee {
    input: mpsc::Receiver<Bytes>,
    current: Bytes,
    spool: Spool,
    /// Number of bytes that were consumed.
    position: Rc<Cell<u64>>,
    /// Why the spool could not be written.
    failure: Option<Error>,
}

impl BufRead for Tee {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.current.is_empty() {
            let Some(bytes) = self.input.blocking_recv() else { break };
            if let Err(error) = self.spool.append(&bytes) {
                self.failure = Some(error);
                return Err(io::Error::other("the archive cannot be stored"));
            }
            self.current = bytes;
        }
        Ok(&self.current)
    }

    fn consume(&mut self, length: usize) {
        self.current.advance(length);
        self.position.set(self.position.get() + length as u64);
    }
}

impl Read for Tee {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let length = available.len().min(into.len());
        into[..length].copy_from_slice(&available[..length]);
        self.consume(length);
        Ok(length)
    }
}
