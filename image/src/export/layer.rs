//! Makes the archive of a layer again from the folder into which it was unpacked. The same folder gives the same archive:
//! names are sorted, and the members have nothing that the image did not have.
//!
//! Whiteouts and opaque folders become those of archives again (`unpack::whiteout`). An implicit folder gets no member, as in
//! the archive that was pulled, so that its attributes come from the layers below here and elsewhere. The root folder gets
//! one only if its attributes are not the usual ones: that proves that the pulled archive had an entry for it, whose time the
//! folder has. With the usual ones its time may be that of the unpacking, and the archives of two nodes would differ.

use super::header::{Item, encode, padding};
use crate::error::{Error, Result};
use crate::unpack::{IMPLICIT_XATTR, OPAQUE_XATTR, allowed_xattr};
use rustix::buffer::spare_capacity;
use rustix::fs::{self, AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read as _, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use tar::EntryType;

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// A device that is opened by mistake must not block.
const FILE: OFlags = OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);
const OPAQUE: &[u8] = b".wh..wh..opq";
const WHITEOUT: &[u8] = b".wh.";
/// Linux's XATTR_SIZE_MAX and XATTR_LIST_MAX.
const MAX_XATTR: usize = 64 << 10;
/// Maximum number of open folders, one for each level. Unpacking allows 256.
const MAX_DEPTH: usize = 300;
/// Maximum size of the names that wait to be visited, and of the paths of files with several names, in bytes.
const MAX_NAMES: usize = 64 << 20;
/// Bytes of a file that are read at once.
const READ: usize = 128 << 10;

/// Writes the archive of the layer in `folder`.
pub(super) fn write(folder: &Path, out: &mut dyn Write) -> Result<()> {
    let root = fs::open(folder, FOLDER, Mode::empty()).map_err(Error::storage("open", folder))?;
    let mut walk = Walk { folder, out, path: Vec::new(), names: 0, linked: HashMap::new() };
    walk.root(root.as_fd())?;
    let mut levels = vec![walk.list(root)?];
    while let Some(level) = levels.last_mut() {
        let Some(name) = level.names.next() else {
            levels.pop();
            // The folder's name and the slash behind it.
            walk.leave();
            continue;
        };
        walk.names -= name.len();
        let deeper = walk.visit(level.folder.as_fd(), &name)?;
        if let Some(folder) = deeper {
            if levels.len() == MAX_DEPTH {
                return Err(walk.too_large(MAX_DEPTH as u64, "levels of folders"));
            }
            levels.push(walk.list(folder)?);
        }
    }
    walk.put(&[0; 1024])
}

/// A folder whose names are not visited all.
struct Level {
    folder: OwnedFd,
    names: std::vec::IntoIter<Vec<u8>>,
}

struct Walk<'a> {
    /// The layer's folder, for errors.
    folder: &'a Path,
    out: &'a mut dyn Write,
    /// The path of the current folder, with a slash at its end; empty for the root.
    path: Vec<u8>,
    /// Size of the names of all levels that are not visited, and of the paths in `linked`.
    names: usize,
    /// The first path of each file with several names, by inode.
    linked: HashMap<u64, Vec<u8>>,
}

impl Walk<'_> {
    /// The root folder.
    fn root(&mut self, root: BorrowedFd<'_>) -> Result<()> {
        let stat = fs::fstat(root).map_err(|errno| self.failed("stat", errno))?;
        let xattrs = self.xattrs(root)?;
        let usual = (stat.st_uid, stat.st_gid, stat.st_mode & 0o7777) == (0, 0, 0o755) && xattrs.is_empty();
        if !usual {
            self.member(&stat, b"./", EntryType::Directory, &[], &xattrs)?;
        }
        self.opaque(root)
    }

    /// The names in the current folder, sorted, because their order on disk is any.
    fn list(&mut self, folder: OwnedFd) -> Result<Level> {
        let entries = Dir::read_from(&folder).map_err(|errno| self.failed("list", errno))?;
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|errno| self.failed("list", errno))?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(name.to_vec());
                self.count(name.len())?;
            }
        }
        names.sort_unstable();
        Ok(Level { folder, names: names.into_iter() })
    }

    fn leave(&mut self) {
        self.path.pop();
        let parent = self.path.iter().rposition(|b| *b == b'/').map_or(0, |slash| slash + 1);
        self.path.truncate(parent);
    }

    /// Writes what has this name in the current folder. Returns it if it is a folder, which becomes the current one.
    fn visit(&mut self, parent: BorrowedFd<'_>, name: &[u8]) -> Result<Option<OwnedFd>> {
        let os = OsStr::from_bytes(name);
        let stat =
            fs::statat(parent, os, AtFlags::SYMLINK_NOFOLLOW).map_err(|errno| self.failed("stat", errno))?;
        let path = [&self.path[..], name].concat();
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::Directory {
            let folder =
                fs::openat(parent, os, FOLDER, Mode::empty()).map_err(|errno| self.failed("open", errno))?;
            self.path.extend_from_slice(name);
            self.path.push(b'/');
            if !self.has(folder.as_fd(), IMPLICIT_XATTR)? {
                let xattrs = self.xattrs(folder.as_fd())?;
                let path = self.path.clone();
                self.member(&stat, &path, EntryType::Directory, &[], &xattrs)?;
            }
            self.opaque(folder.as_fd())?;
            return Ok(Some(folder));
        }
        if kind == FileType::CharacterDevice && stat.st_rdev == 0 {
            let marked = [&self.path[..], WHITEOUT, name].concat();
            self.put(&encode(&Item::file(&marked, 0)))?;
            return Ok(None);
        }
        if stat.st_nlink > 1 {
            if let Some(first) = self.linked.get(&stat.st_ino).cloned() {
                self.member(&stat, &path, EntryType::Link, &first, &[])?;
                return Ok(None);
            }
            self.count(path.len())?;
            self.linked.insert(stat.st_ino, path.clone());
        }
        match kind {
            FileType::RegularFile => self.file(parent, os, &path)?,
            FileType::Symlink => {
                let target = fs::readlinkat(parent, os, Vec::new())
                    .map_err(|errno| self.failed("read the link", errno))?;
                self.member(&stat, &path, EntryType::Symlink, target.as_bytes(), &[])?;
            }
            FileType::CharacterDevice => self.member(&stat, &path, EntryType::Char, &[], &[])?,
            FileType::BlockDevice => self.member(&stat, &path, EntryType::Block, &[], &[])?,
            FileType::Fifo => self.member(&stat, &path, EntryType::Fifo, &[], &[])?,
            // No archive has one.
            _ => {}
        }
        Ok(None)
    }

    /// Writes a file with its content.
    fn file(&mut self, parent: BorrowedFd<'_>, name: &OsStr, path: &[u8]) -> Result<()> {
        let file =
            fs::openat(parent, name, FILE, Mode::empty()).map_err(|errno| self.failed("open", errno))?;
        let stat = fs::fstat(&file).map_err(|errno| self.failed("stat", errno))?;
        let xattrs = self.xattrs(file.as_fd())?;
        self.member(&stat, path, EntryType::Regular, &[], &xattrs)?;
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let (mut file, mut buffer, mut left) = (File::from(file), vec![0; READ], size);
        while left > 0 {
            let length = usize::try_from(left).map_or(READ, |left| left.min(READ));
            let here = || self.folder.join(OsStr::from_bytes(path));
            file.read_exact(&mut buffer[..length]).map_err(|error| Error::storage("read", &here())(error))?;
            self.put(&buffer[..length])?;
            left -= length as u64;
        }
        self.put(&[0; 512][..padding(size)])
    }

    /// Writes the header of a member.
    fn member(
        &mut self,
        stat: &Stat,
        path: &[u8],
        kind: EntryType,
        link: &[u8],
        xattrs: &[(Vec<u8>, Vec<u8>)],
    ) -> Result<()> {
        let size = if kind == EntryType::Regular { u64::try_from(stat.st_size).unwrap_or(0) } else { 0 };
        let is_device = matches!(kind, EntryType::Char | EntryType::Block);
        let item = Item {
            name: path,
            kind,
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime: (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or(0)),
            size,
            link,
            device: if is_device { (fs::major(stat.st_rdev), fs::minor(stat.st_rdev)) } else { (0, 0) },
            xattrs,
        };
        self.put(&encode(&item))
    }

    /// Writes the mark of an opaque folder, if it is one, which is the current one.
    fn opaque(&mut self, folder: BorrowedFd<'_>) -> Result<()> {
        if self.has(folder, OPAQUE_XATTR)? {
            let mark = [&self.path[..], OPAQUE].concat();
            self.put(&encode(&Item::file(&mark, 0)))?;
        }
        Ok(())
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).map_err(Error::storage("write the archive of", self.folder))
    }

    /// Counts names that are kept in memory.
    fn count(&mut self, length: usize) -> Result<()> {
        self.names += length;
        if self.names > MAX_NAMES { Err(self.too_large(MAX_NAMES as u64, "bytes of names")) } else { Ok(()) }
    }

    fn too_large(&self, limit: u64, unit: &'static str) -> Error {
        Error::TooLarge { object: format!("layer {}", self.folder.display()), limit, unit }
    }

    /// Whether a folder has an extended attribute.
    fn has(&self, folder: BorrowedFd<'_>, name: &str) -> Result<bool> {
        match fs::fgetxattr(folder, name, &mut [0; 1][..]) {
            Ok(_) | Err(Errno::RANGE) => Ok(true),
            Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(false),
            Err(errno) => Err(self.failed("read attribute of", errno)),
        }
    }

    /// The extended attributes that an image may have: names and values, sorted.
    fn xattrs(&self, file: BorrowedFd<'_>) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let mut names = Vec::with_capacity(MAX_XATTR);
        match fs::flistxattr(file, spare_capacity(&mut names)) {
            Ok(_) => {}
            Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
            Err(errno) => return Err(self.failed("list attributes of", errno)),
        }
        let mut found = Vec::new();
        for name in names.split(|b| *b == 0).filter(|name| allowed_xattr(name) && !name.contains(&b'=')) {
            let mut value = Vec::with_capacity(MAX_XATTR);
            fs::fgetxattr(file, OsStr::from_bytes(name), spare_capacity(&mut value))
                .map_err(|errno| self.failed("read attribute of", errno))?;
            found.push((name.to_vec(), value));
        }
        found.sort();
        Ok(found)
    }

    /// The error of a system call in the current folder.
    fn failed(&self, action: &'static str, errno: Errno) -> Error {
        Error::storage(action, &self.folder.join(OsStr::from_bytes(&self.path)))(errno)
    }
}
