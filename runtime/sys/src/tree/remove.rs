//! Removal of a tree.

use std::ffi::{CStr, OsStr};
use std::os::fd::{AsFd as _, BorrowedFd};

use rustix::fs::{
    AtFlags, FileType, IFlags, Mode, OFlags, ioctl_getflags, ioctl_setflags, openat, statat, unlinkat,
};
use rustix::io::Errno;

use super::walk::{Left, Next, Walk};
use super::{Error, entry_name};

/// How many folders of one tree, in total, may be entered again because they were not empty after they had been
/// emptied.
const MAX_REENTERED: u32 = 10_000;
/// How many times the type of one name may change while it is being removed. A process that swaps a file and a folder
/// all the time makes about every second attempt fail, so this many failures in a row do not happen by chance.
const MAX_ATTEMPTS: u32 = 1_000;
/// How many times the walk may start again from the top: once for every 16,000 levels of a deep tree, and when a
/// process moves folders.
const MAX_WALKS: u32 = 1000;

/// Removes the entry `name` of `dir`: a file, or a folder with its content. If one entry cannot be removed, the others
/// are removed all the same. It is not an error if `name` does not exist.
///
/// Blocks, for long if the tree is large. Needs no space on the file system. The immutable and append-only attributes
/// (chattr(1)) are cleared first.
///
/// # Errors
/// The first entry that could not be removed.
pub fn remove(dir: BorrowedFd<'_>, name: &OsStr) -> Result<(), Error> {
    let entry = entry_name(name)?;
    let mut remover = Remover { first: None, removed: 0, emptied: false, reentered: 0 };
    for _ in 0..MAX_WALKS {
        let kind = match statat(dir, &*entry, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => FileType::from_raw_mode(stat.st_mode),
            Err(Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(Error::io("stat", name.as_ref(), errno)),
        };
        match unlink(dir, &entry, kind) {
            Ok(Unlinked::Gone) => return Ok(()),
            Ok(Unlinked::NotEmpty) => {}
            Err(errno) => return Err(Error::io("remove", name.as_ref(), errno)),
        }
        let mut walk = match Walk::open(dir, &entry) {
            Ok(walk) => walk,
            // It was replaced meanwhile: start again.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
            Err(errno) => return Err(Error::io("open", name.as_ref(), errno)),
        };
        let before = remover.removed;
        remover.empty(&mut walk);
        if let Some(error) = remover.first {
            return Err(error);
        }
        if remover.removed == before {
            break;
        }
    }
    Err(Error::Changing { path: name.into() })
}

/// Removes a tree during one or several walks.
#[derive(Debug)]
struct Remover {
    /// The first failure.
    first: Option<Error>,
    /// Number of removed entries.
    removed: u64,
    /// The next entry is a folder that was just emptied.
    emptied: bool,
    /// Number of folders that were entered again after they had been emptied.
    reentered: u32,
}

impl Remover {
    /// Removes the entries that the walk finds, until its end.
    fn empty(&mut self, walk: &mut Walk) {
        loop {
            match walk.read() {
                Some(Ok(entry)) => self.entry(walk, entry.file_name(), entry.file_type()),
                Some(Err(errno)) => {
                    // Entries that were not listed are not removed.
                    self.fail(walk, "list", None, errno);
                    if !self.leave(walk) {
                        return;
                    }
                }
                None => {
                    if !self.leave(walk) {
                        return;
                    }
                }
            }
        }
    }

    /// Goes to the parent folder and removes the folder that was just emptied. Returns false at the end of the walk.
    fn leave(&mut self, walk: &mut Walk) -> bool {
        let failed = walk.failed();
        match walk.leave(if failed { Next::Following } else { Next::Same }) {
            Left::Top | Left::Lost => false,
            Left::Parent { name } => {
                self.emptied = !failed;
                if let Some(name) = name.filter(|_| !failed) {
                    self.entry(walk, &name, FileType::Directory);
                }
                true
            }
        }
    }

    /// Removes one entry of the current folder, or enters it.
    fn entry(&mut self, walk: &mut Walk, name: &CStr, kind: FileType) {
        let emptied = std::mem::take(&mut self.emptied);
        let mut kind = kind;
        for _ in 0..MAX_ATTEMPTS {
            match walk.folder().and_then(|folder| unlink(folder, name, kind)) {
                Ok(Unlinked::Gone) => {
                    self.removed += 1;
                    return;
                }
                Ok(Unlinked::NotEmpty) if emptied && self.reentered >= MAX_REENTERED => break,
                Ok(Unlinked::NotEmpty) => match walk.enter(name) {
                    Ok(()) => {
                        self.reentered += u32::from(emptied);
                        return;
                    }
                    Err(Errno::NOENT) => return,
                    // It has been replaced since, and is no folder any more.
                    Err(Errno::NOTDIR | Errno::LOOP) => kind = FileType::Symlink,
                    Err(errno) => return self.fail(walk, "open", Some(name), errno),
                },
                Err(Errno::AGAIN) => break,
                Err(errno) => return self.fail(walk, "remove", Some(name), errno),
            }
        }
        self.fail_changing(walk, name);
    }

    /// Records that an entry, or the whole current folder, could not be removed.
    fn fail(&mut self, walk: &mut Walk, action: &'static str, name: Option<&CStr>, errno: Errno) {
        walk.fail();
        if self.first.is_none() {
            self.first = Some(Error::io(action, &walk.path(name), errno));
        }
    }

    /// Records that an entry was replaced again and again.
    fn fail_changing(&mut self, walk: &mut Walk, name: &CStr) {
        walk.fail();
        if self.first.is_none() {
            self.first = Some(Error::Changing { path: walk.path(Some(name)) });
        }
    }
}

enum Unlinked {
    /// It does not exist any more.
    Gone,
    /// It is a folder that is not empty.
    NotEmpty,
}

/// Removes an entry, unless it is a folder that is not empty. `kind` is its type as listed; it may be another one by
/// now. EAGAIN if the type changed in each of [`MAX_ATTEMPTS`] attempts.
fn unlink(folder: BorrowedFd<'_>, name: &CStr, kind: FileType) -> rustix::io::Result<Unlinked> {
    let mut is_folder = kind == FileType::Directory;
    let mut cleared = false;
    for _ in 0..MAX_ATTEMPTS {
        let flags = if is_folder { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        match unlinkat(folder, name, flags) {
            Ok(()) | Err(Errno::NOENT) => return Ok(Unlinked::Gone),
            Err(Errno::NOTEMPTY | Errno::EXIST) if is_folder => return Ok(Unlinked::NotEmpty),
            Err(Errno::NOTDIR) if is_folder => is_folder = false,
            Err(Errno::ISDIR) if !is_folder => is_folder = true,
            Err(Errno::PERM) if !cleared => {
                cleared = true;
                clear_attributes(folder, name);
            }
            Err(errno) => return Err(errno),
        }
    }
    Err(Errno::AGAIN)
}

/// Clears the attributes of a folder and of one of its entries that forbid removal. Errors are ignored, because the
/// next attempt to remove the entry reports them.
fn clear_attributes(folder: BorrowedFd<'_>, name: &CStr) {
    let clear = |fd: BorrowedFd<'_>| {
        let forbidding = IFlags::IMMUTABLE | IFlags::APPEND;
        if let Ok(flags) = ioctl_getflags(fd)
            && flags.intersects(forbidding)
        {
            ioctl_setflags(fd, flags.difference(forbidding)).ok();
        }
    };
    clear(folder);
    // First with O_PATH: only files and folders have attributes, and opening a device can have any effect.
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let Ok(found) = openat(folder, name, flags, Mode::empty()) else { return };
    let kind = rustix::fs::fstat(&found).map(|stat| FileType::from_raw_mode(stat.st_mode));
    if matches!(kind, Ok(FileType::RegularFile | FileType::Directory)) {
        use std::os::fd::AsRawFd as _;
        let path = format!("/proc/self/fd/{}", found.as_raw_fd());
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        if let Ok(file) = openat(rustix::fs::CWD, path, flags, Mode::empty()) {
            clear(file.as_fd());
        }
    }
}
