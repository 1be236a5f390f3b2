//! Removal of a tree.

use std::ffi::{CStr, OsStr};
use std::os::fd::{AsFd as _, BorrowedFd};

use rustix::fs::{
    AtFlags, FileType, IFlags, Mode, OFlags, ioctl_getflags, ioctl_setflags, openat, statat, unlinkat,
};
use rustix::io::Errno;

use super::walk::{Left, Next, Walk};
use super::{Error, entry_name};

/// How often folders that were emptied and are not empty may be gone through again, all together.
const AGAIN: u32 = 10_000;
/// How often one name may be another kind of thing than it was a moment ago. Who swaps it all the time wins
/// about every second turn, so this many are never lost by chance.
const TURNS: u32 = 1_000;
/// How often the walk may begin anew: each time it has removed 16,000 levels of a deeper tree, or somebody
/// moves folders about.
const RESTARTS: u32 = 1000;

/// Removes the entry `name` of `dir`: a file, or a folder with all it holds. What is not there is removed.
/// What cannot be removed does not keep the rest.
///
/// Blocks for as long as the tree is large; needs no space on the file system. A file or folder that is
/// immutable or append-only (chattr) is made removable first.
///
/// # Errors
/// The first of what stays.
pub fn remove(dir: BorrowedFd<'_>, name: &OsStr) -> Result<(), Error> {
    let entry = entry_name(name)?;
    let mut remover = Remover { first: None, removed: 0, emptied: false, again: 0 };
    for _ in 0..RESTARTS {
        let kind = match statat(dir, &*entry, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => FileType::from_raw_mode(stat.st_mode),
            Err(Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(Error::io("look at", name.as_ref(), errno)),
        };
        match take(dir, &entry, kind) {
            Ok(Taken::Gone) => return Ok(()),
            Ok(Taken::Folder) => {}
            Err(errno) => return Err(Error::io("remove", name.as_ref(), errno)),
        }
        let mut walk = match Walk::open(dir, &entry) {
            Ok(walk) => walk,
            // Swapped meanwhile: look again.
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

#[derive(Debug)]
struct Remover {
    /// The first failure.
    first: Option<Error>,
    removed: u64,
    /// The next entry is a folder that was emptied a moment ago.
    emptied: bool,
    again: u32,
}

impl Remover {
    /// Removes what the walk meets, until it is at its end.
    fn empty(&mut self, walk: &mut Walk) {
        loop {
            match walk.read() {
                Some(Ok(entry)) => self.entry(walk, entry.file_name(), entry.file_type()),
                Some(Err(errno)) => {
                    self.note(walk, "list", None, errno);
                    // What was not listed stays.
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

    /// Goes up and removes the folder that is empty now; false when there is nowhere to go.
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
        for _ in 0..TURNS {
            match walk.folder().and_then(|folder| take(folder, name, kind)) {
                Ok(Taken::Gone) => {
                    self.removed += 1;
                    return;
                }
                Ok(Taken::Folder) if emptied && self.again >= AGAIN => break,
                Ok(Taken::Folder) => match walk.enter(name) {
                    Ok(()) => {
                        self.again += u32::from(emptied);
                        return;
                    }
                    Err(Errno::NOENT) => return,
                    // It was a folder a moment ago.
                    Err(Errno::NOTDIR | Errno::LOOP) => kind = FileType::Symlink,
                    Err(errno) => return self.note(walk, "open", Some(name), errno),
                },
                Err(Errno::AGAIN) => break,
                Err(errno) => return self.note(walk, "remove", Some(name), errno),
            }
        }
        self.changing(walk, name);
    }

    fn note(&mut self, walk: &mut Walk, action: &'static str, name: Option<&CStr>, errno: Errno) {
        walk.fail();
        if self.first.is_none() {
            self.first = Some(Error::io(action, &walk.path(name), errno));
        }
    }

    fn changing(&mut self, walk: &mut Walk, name: &CStr) {
        walk.fail();
        if self.first.is_none() {
            self.first = Some(Error::Changing { path: walk.path(Some(name)) });
        }
    }
}

enum Taken {
    /// Removed, by us or by somebody else.
    Gone,
    /// A folder that is not empty.
    Folder,
}

/// Removes a name of a folder, whatever it is by now, unless it is a folder that holds something. EAGAIN when
/// it was another thing at every one of [`TURNS`] tries.
fn take(folder: BorrowedFd<'_>, name: &CStr, kind: FileType) -> rustix::io::Result<Taken> {
    let mut is_folder = kind == FileType::Directory;
    let mut thawed = false;
    // Its kind may change between two steps.
    for _ in 0..TURNS {
        let flags = if is_folder { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        match unlinkat(folder, name, flags) {
            Ok(()) | Err(Errno::NOENT) => return Ok(Taken::Gone),
            Err(Errno::NOTEMPTY | Errno::EXIST) if is_folder => return Ok(Taken::Folder),
            Err(Errno::NOTDIR) if is_folder => is_folder = false,
            Err(Errno::ISDIR) if !is_folder => is_folder = true,
            Err(Errno::PERM) if !thawed => {
                thawed = true;
                thaw(folder, name);
            }
            Err(errno) => return Err(errno),
        }
    }
    Err(Errno::AGAIN)
}

/// Takes the attributes that forbid removal from a folder and one of its entries, as far as that works: the
/// removal that is tried next says whether it did.
fn thaw(folder: BorrowedFd<'_>, name: &CStr) {
    let clear = |fd: BorrowedFd<'_>| {
        let frozen = IFlags::IMMUTABLE | IFlags::APPEND;
        if let Ok(flags) = ioctl_getflags(fd)
            && flags.intersects(frozen)
        {
            ioctl_setflags(fd, flags.difference(frozen)).ok();
        }
    };
    clear(folder);
    // Opened as a place first: a device must not be opened, and only files and folders have attributes.
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let Ok(place) = openat(folder, name, flags, Mode::empty()) else { return };
    let kind = rustix::fs::fstat(&place).map(|stat| FileType::from_raw_mode(stat.st_mode));
    if matches!(kind, Ok(FileType::RegularFile | FileType::Directory)) {
        use std::os::fd::AsRawFd as _;
        let path = format!("/proc/self/fd/{}", place.as_raw_fd());
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        if let Ok(file) = openat(rustix::fs::CWD, path, flags, Mode::empty()) {
            clear(file.as_fd());
        }
    }
}
