//! Writes one entry into the current folder, by its type.

use super::deferred::{Deferred, Folders};
use super::{Applier, ApplyError, BLOCK, DIRECTORY, ENTER, Open, RESOLVE, Step, os, remove_tree, step};
use crate::unpack::tar::{Entry, Reader, TarError};
use crate::unpack::whiteout::IMPLICIT_XATTR;
use rustix::fs::{self, AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;
use std::io::{self, BufRead};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

impl Applier {
    /// Removes what an earlier entry has created under this name.
    fn remove(&mut self, name: &[u8]) -> Step<()> {
        match fs::unlinkat(self.current(), os(name), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(Errno::ISDIR) => remove_tree(self.current(), name),
            Err(errno) => Err(("unlink", errno)),
        }
    }

    /// Creates something under `name` by `create`. What an earlier entry has created there is removed first.
    fn replace<T>(
        &mut self,
        name: &[u8],
        action: &'static str,
        create: impl Fn(BorrowedFd<'_>) -> rustix::io::Result<T>,
    ) -> Step<T> {
        match create(self.current()) {
            Err(Errno::EXIST) => {
                self.remove(name)?;
                create(self.current()).map_err(step(action))
            }
            other => other.map_err(step(action)),
        }
    }

    /// Creates a file and writes its content.
    pub(super) fn file<R: BufRead>(
        &mut self,
        name: &[u8],
        entry: &Entry,
        archive: &mut Reader<R>,
        system: impl Fn((&'static str, Errno)) -> ApplyError,
    ) -> Result<(), ApplyError> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // chown(2) would clear setuid and setgid.
        let is_plain = entry.mode & !0o777 == 0;
        let mode = if is_plain { Mode::from_raw_mode(entry.mode) } else { Mode::RUSR | Mode::WUSR };
        let file = self
            .replace(name, "create", |parent| fs::openat(parent, os(name), flags, mode))
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
                self.ensure_space(data.len() as u64, entry)?;
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
        set_owner(file.as_fd(), entry)
            .and_then(|()| set_mode(file.as_fd(), entry.mode))
            .and_then(|()| set_xattrs(file.as_fd(), entry))
            .and_then(|()| fs::futimens(&file, &times(entry.mtime)).map_err(step("set time")))
            .map_err(system)
    }

    /// Creates a folder and makes it the current one. An existing folder keeps its content.
    pub(super) fn folder(&mut self, name: &[u8]) -> Step<()> {
        // A whiteout of this layer deletes the folder of lower layers.
        let mut opaque = false;
        match fs::mkdirat(self.current(), os(name), Mode::RWXU) {
            Ok(()) => self.stats.bytes += BLOCK,
            Err(Errno::EXIST) => {
                let stat =
                    fs::statat(self.current(), os(name), AtFlags::SYMLINK_NOFOLLOW).map_err(step("stat"))?;
                if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
                    opaque = self.is_whiteout(name)?;
                    self.remove(name)?;
                    fs::mkdirat(self.current(), os(name), Mode::RWXU).map_err(step("mkdir"))?;
                }
            }
            Err(errno) => return Err(("mkdir", errno)),
        }
        let fd = fs::openat(self.current(), os(name), DIRECTORY, Mode::empty()).map_err(step(ENTER))?;
        if opaque {
            self.make_opaque(fd.as_fd())?;
        }
        self.open.push(Open::new(name.to_vec(), fd));
        Ok(())
    }

    /// Sets the attributes of the current folder. Mode and time are deferred: writing the content would change the
    /// time, and a setgid folder would pass its group on to the content.
    pub(super) fn folder_attributes(&mut self, entry: &Entry) -> Step<()> {
        fs::fchown(self.current(), Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)))
            .map_err(step("chown"))?;
        if self.stats.implicit > 0 {
            match fs::fremovexattr(self.current(), IMPLICIT_XATTR) {
                Ok(()) => self.stats.implicit -= 1,
                Err(Errno::NODATA) => {}
                Err(errno) => return Err(("remove attribute of", errno)),
            }
        }
        set_xattrs(self.current(), entry)?;
        let mut index = Folders::ROOT;
        for open in &mut self.open {
            index = *open.index.get_or_insert_with(|| self.folders.index(index, &open.name));
        }
        self.folders.defer(index, Deferred { mode: entry.mode, mtime: entry.mtime });
        Ok(())
    }

    /// Creates a symlink.
    pub(super) fn symlink(&mut self, name: &[u8], target: &[u8], entry: &Entry) -> Step<()> {
        self.replace(name, "create symlink", |parent| fs::symlinkat(os(target), parent, os(name)))?;
        self.set_attributes_by_name(name, entry)
    }

    /// Creates a device node or a fifo.
    pub(super) fn node(&mut self, name: &[u8], kind: FileType, device: u64, entry: &Entry) -> Step<()> {
        self.replace(name, "create device or fifo", |parent| {
            fs::mknodat(parent, os(name), kind, Mode::RUSR, device)
        })?;
        self.set_attributes_by_name(name, entry)?;
        // chmod follows symlinks, but this is the node that was created above: nobody else writes to the layer.
        fs::chmodat(self.current(), os(name), Mode::from_raw_mode(entry.mode), AtFlags::empty())
            .map_err(step("chmod"))?;
        fs::utimensat(self.current(), os(name), &times(entry.mtime), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(step("set time"))
    }

    /// Sets owner and time of an entry that must not be opened.
    fn set_attributes_by_name(&mut self, name: &[u8], entry: &Entry) -> Step<()> {
        let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
        fs::chownat(self.current(), os(name), Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(step("chown"))?;
        fs::utimensat(self.current(), os(name), &times(entry.mtime), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(step("set time"))
    }

    /// Creates a hard link to the name `target` in `folder`.
    pub(super) fn link(&mut self, name: &[u8], (folder, target): &(OwnedFd, Vec<u8>)) -> Step<()> {
        let stat = fs::statat(folder, os(target), AtFlags::SYMLINK_NOFOLLOW).map_err(step(RESOLVE))?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::Directory || (kind == FileType::CharacterDevice && stat.st_rdev == 0) {
            return Err((RESOLVE, Errno::PERM));
        }
        // Both paths lead to the same name: replacing it would lose the file.
        let here = fs::fstat(self.current()).map_err(step("stat"))?;
        let there = fs::fstat(folder).map_err(step("stat"))?;
        if name == target.as_slice() && (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino) {
            return Ok(());
        }
        // Without AT_SYMLINK_FOLLOW, linkat(2) links a symlink itself and not its target.
        self.replace(name, RESOLVE, |parent| {
            fs::linkat(folder, os(target), parent, os(name), AtFlags::empty())
        })
    }
}

/// Sets the owner. To be called before mode and extended attributes are set, because chown(2) clears setuid bits and
/// capabilities.
fn set_owner(file: BorrowedFd<'_>, entry: &Entry) -> Step<()> {
    // It was created by root in a folder without setgid, so it has this owner already.
    if entry.uid == 0 && entry.gid == 0 {
        return Ok(());
    }
    fs::fchown(file, Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid))).map_err(step("chown"))
}

/// Sets the mode of a file, unless it has got it when it was created: the umask or an ACL of its folder may have changed
/// it. Asking costs a tenth of setting, which changes the inode in the file system's journal.
fn set_mode(file: BorrowedFd<'_>, mode: u32) -> Step<()> {
    let stat = fs::fstat(file).map_err(step("stat"))?;
    if stat.st_mode & 0o7777 == mode {
        return Ok(());
    }
    fs::fchmod(file, Mode::from_raw_mode(mode)).map_err(step("chmod"))
}

/// Sets the extended attributes, except those that the file system does not support.
fn set_xattrs(file: BorrowedFd<'_>, entry: &Entry) -> Step<()> {
    for (name, value) in &entry.xattrs {
        match fs::fsetxattr(file, os(name), value, XattrFlags::empty()) {
            // Such as user attributes or ACLs.
            Ok(()) | Err(Errno::OPNOTSUPP) => {}
            Err(errno) => return Err(("set extended attribute", errno)),
        }
    }
    Ok(())
}

/// The arguments of utimensat(2).
pub(super) fn times((seconds, nanoseconds): (i64, u32)) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() };
    Timestamps { last_access: time, last_modification: time }
}
