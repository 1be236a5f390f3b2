//! Writing one entry into the current folder.

use super::deferred::{Deferred, Folders};
use super::{Applier, ApplyError, BLOCK, DIRECTORY, ENTER, Open, RESOLVE, Step, os, step};
use crate::unpack::tar::{Entry, Reader, TarError};
use crate::unpack::whiteout::IMPLICIT_XATTR;
use rustix::fs::{self, AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;
use std::io::{self, BufRead};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

impl Applier {
    /// Removes what an earlier entry created under this name.
    fn clear(&mut self, name: &[u8]) -> Step<()> {
        match fs::unlinkat(self.current(), os(name), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(Errno::ISDIR) => sys::tree::remove(self.current(), os(name)).map_err(|error| {
                let errno = match &error {
                    sys::tree::Error::Io { source, .. } => Errno::from_io_error(source),
                    _ => None,
                };
                ("remove folder", errno.unwrap_or(Errno::BUSY))
            }),
            Err(errno) => Err(("unlink", errno)),
        }
    }

    /// Runs `make`. If the name is taken, removes what is there and runs it once more.
    fn replacing<T>(
        &mut self,
        name: &[u8],
        what: &'static str,
        make: impl Fn(BorrowedFd<'_>) -> rustix::io::Result<T>,
    ) -> Step<T> {
        match make(self.current()) {
            Err(Errno::EXIST) => {
                self.clear(name)?;
                make(self.current()).map_err(step(what))
            }
            other => other.map_err(step(what)),
        }
    }

    pub(super) fn file<R: BufRead>(
        &mut self,
        name: &[u8],
        entry: &Entry,
        archive: &mut Reader<R>,
        system: impl Fn((&'static str, Errno)) -> ApplyError,
    ) -> Result<(), ApplyError> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = self
            .replacing(name, "create", |parent| fs::openat(parent, os(name), flags, Mode::RUSR | Mode::WUSR))
            .map_err(&system)?;
        let whole = [(0, entry.size)];
        for (offset, length) in entry.sparse.as_ref().map_or(&whole[..], |map| &map.pieces) {
            let mut done = 0;
            while done < *length {
                let data = archive.data().map_err(TarError::Io)?;
                if data.is_empty() {
                    return Err(TarError::Io(io::ErrorKind::UnexpectedEof.into()).into());
                }
                let left = usize::try_from(length - done).unwrap_or(usize::MAX);
                let data = data.get(..left).unwrap_or(data);
                let written = rustix::io::retry_on_intr(|| rustix::io::pwrite(&file, data, offset + done))
                    .map_err(|errno| system(("write", errno)))?;
                archive.consume(written);
                done += written as u64;
            }
        }
        if let Some(map) = &entry.sparse {
            fs::ftruncate(&file, map.real).map_err(|errno| system(("set size of", errno)))?;
        }
        self.stats.bytes += entry.size.div_ceil(BLOCK) * BLOCK;
        attributes(file.as_fd(), entry)
            .and_then(|()| fs::fchmod(&file, Mode::from_raw_mode(entry.mode)).map_err(step("chmod")))
            .and_then(|()| xattrs(file.as_fd(), entry))
            .and_then(|()| fs::futimens(&file, &times(entry.mtime)).map_err(step("set time")))
            .map_err(system)
    }

    /// Creates and enters a folder; an existing folder keeps its content.
    pub(super) fn folder(&mut self, name: &[u8]) -> Step<()> {
        let mut opaque = false;
        match fs::mkdirat(self.current(), os(name), Mode::RWXU) {
            Ok(()) => self.stats.bytes += BLOCK,
            Err(Errno::EXIST) => {
                let stat =
                    fs::statat(self.current(), os(name), AtFlags::SYMLINK_NOFOLLOW).map_err(step("stat"))?;
                if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
                    opaque = self.is_whiteout(name)?;
                    self.clear(name)?;
                    fs::mkdirat(self.current(), os(name), Mode::RWXU).map_err(step("mkdir"))?;
                }
            }
            Err(errno) => return Err(("mkdir", errno)),
        }
        let fd = fs::openat(self.current(), os(name), DIRECTORY, Mode::empty()).map_err(step(ENTER))?;
        if opaque {
            self.opaque(fd.as_fd())?;
        }
        self.open.push(Open::new(name.to_vec(), fd));
        Ok(())
    }

    /// Sets the current folder's attributes. Mode and time are deferred: a setgid folder would pass its group
    /// on to its content.
    pub(super) fn folder_attributes(&mut self, entry: &Entry) -> Step<()> {
        fs::fchown(self.current(), Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)))
            .map_err(step("chown"))?;
        if self.stats.implicit > 0 {
            match fs::fremovexattr(self.current(), IMPLICIT_XATTR) {
                Ok(()) => self.stats.implicit -= 1,
                Err(Errno::NODATA) => {}
                Err(errno) => return Err(("unmark", errno)),
            }
        }
        xattrs(self.current(), entry)?;
        let mut place = Folders::ROOT;
        for open in &mut self.open {
            place = *open.place.get_or_insert_with(|| self.folders.place(place, &open.name));
        }
        self.folders.defer(place, Deferred { mode: entry.mode, mtime: entry.mtime });
        Ok(())
    }

    pub(super) fn symlink(&mut self, name: &[u8], target: &[u8], entry: &Entry) -> Step<()> {
        self.replacing(name, "symlink", |parent| fs::symlinkat(os(target), parent, os(name)))?;
        self.named_attributes(name, entry)
    }

    pub(super) fn node(&mut self, name: &[u8], kind: FileType, device: u64, entry: &Entry) -> Step<()> {
        self.replacing(name, "mknod", |parent| fs::mknodat(parent, os(name), kind, Mode::RUSR, device))?;
        self.named_attributes(name, entry)?;
        // We just created it, in a folder of ours, so it is not a symlink.
        fs::chmodat(self.current(), os(name), Mode::from_raw_mode(entry.mode), AtFlags::empty())
            .map_err(step("chmod"))?;
        fs::utimensat(self.current(), os(name), &times(entry.mtime), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(step("set time"))
    }

    /// Sets owner and time of an entry that cannot be opened.
    fn named_attributes(&mut self, name: &[u8], entry: &Entry) -> Step<()> {
        let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
        fs::chownat(self.current(), os(name), Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(step("chown"))?;
        fs::utimensat(self.current(), os(name), &times(entry.mtime), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(step("set time"))
    }

    pub(super) fn link(&mut self, name: &[u8], (folder, target): &(OwnedFd, Vec<u8>)) -> Step<()> {
        let stat = fs::statat(folder, os(target), AtFlags::SYMLINK_NOFOLLOW).map_err(step(RESOLVE))?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::Directory || (kind == FileType::CharacterDevice && stat.st_rdev == 0) {
            return Err((RESOLVE, Errno::PERM));
        }
        // Both paths are the same name. Removing it to make room for the link would lose the file.
        let here = fs::fstat(self.current()).map_err(step("stat"))?;
        let there = fs::fstat(folder).map_err(step("stat"))?;
        if name == target.as_slice() && (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino) {
            return Ok(());
        }
        // Without AT_SYMLINK_FOLLOW, a symlink itself is linked, not its target.
        self.replacing(name, RESOLVE, |parent| {
            fs::linkat(folder, os(target), parent, os(name), AtFlags::empty())
        })
    }
}

/// Sets the owner first, because chown clears setuid bits and capabilities.
fn attributes(file: BorrowedFd<'_>, entry: &Entry) -> Step<()> {
    // Created by root in a folder without setgid, so it is 0:0 already, as most entries should be.
    if entry.uid == 0 && entry.gid == 0 {
        return Ok(());
    }
    fs::fchown(file, Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid))).map_err(step("chown"))
}

fn xattrs(file: BorrowedFd<'_>, entry: &Entry) -> Step<()> {
    for (name, value) in &entry.xattrs {
        match fs::fsetxattr(file, os(name), value, XattrFlags::empty()) {
            // Not every file system supports user attributes or ACLs.
            Ok(()) | Err(Errno::OPNOTSUPP) => {}
            Err(errno) => return Err(("set extended attribute", errno)),
        }
    }
    Ok(())
}

pub(super) fn times((seconds, nanoseconds): (i64, u32)) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() };
    Timestamps { last_access: time, last_modification: time }
}
