//! Walks a tree of untrusted content, with bounded descriptors and memory.
//!
//! The deepest folders of the current path are open. For the folders above them only the inode and the position in the
//! folder are kept. They are opened again as `..` of the folder below; if that has another inode, the walk ends
//! ([`Left::Lost`]). In a very deep tree the top folders are forgotten, and the walk ends there too. The caller can
//! start a new walk.

use std::collections::VecDeque;
use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use rustix::fs::{Dir, DirEntry, Mode, OFlags, ResolveFlags, fstat, openat2};
use rustix::io::{Errno, Result};

/// Maximum number of open folders.
const OPEN: usize = 16;
/// Maximum number of closed folders above them that are remembered, 40 bytes each.
const CLOSED: usize = 1 << 14;

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// For opening an entry of a folder.
const DOWN: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_XDEV);
/// For opening `..`, which RESOLVE_BENEATH refuses.
const UP: ResolveFlags = ResolveFlags::NO_SYMLINKS.union(ResolveFlags::NO_XDEV);

/// Device and inode. They identify a folder until it is removed.
type Id = (u64, u64);

/// An open folder.
#[derive(Debug)]
struct Level {
    folder: Dir,
    /// Its name in its parent; `None` for the top, and for a folder that was opened again.
    name: Option<CString>,
    /// Positions before and after the entry that was read last.
    before: i64,
    after: i64,
    failed: bool,
}

/// What is remembered of a folder that was closed.
#[derive(Debug)]
struct Closed {
    id: Id,
    before: i64,
    after: i64,
    failed: bool,
}

/// The result of leaving a folder.
#[derive(Debug)]
pub(crate) enum Left {
    /// The folder was the top: the walk is complete.
    Top,
    /// The parent is the current folder now.
    Parent {
        /// The name of the left folder in it; `None` if the parent was opened again.
        name: Option<CString>,
    },
    /// The parent was forgotten, or the left folder was moved to another one: the walk cannot continue.
    Lost,
}

/// Which entry is read next in a parent that must be opened again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// The folder that was left, a second time.
    Same,
    /// The entry after it.
    Following,
}

/// A walk. Its current folder is the deepest open one.
#[derive(Debug)]
pub(crate) struct Walk {
    /// The top first.
    open: VecDeque<Level>,
    /// The folders above those of `open`.
    closed: VecDeque<Closed>,
    /// Folders above those of `closed` were forgotten.
    forgotten: bool,
    /// The name of the top, for messages.
    top: CString,
}

impl Walk {
    /// Opens the folder `name` of `dir`; its first entry is read next.
    pub(crate) fn open(dir: BorrowedFd<'_>, name: &CStr) -> Result<Self> {
        let folder = openat2(dir, name, FOLDER, Mode::empty(), DOWN)?;
        let mut this =
            Self { open: VecDeque::new(), closed: VecDeque::new(), forgotten: false, top: name.to_owned() };
        this.push(folder, None)?;
        Ok(this)
    }

    fn push(&mut self, folder: OwnedFd, name: Option<CString>) -> Result<()> {
        let level = Level { folder: Dir::new(folder)?, name, before: 0, after: 0, failed: false };
        self.open.push_back(level);
        if self.open.len() > OPEN {
            self.close_highest();
        }
        Ok(())
    }

    /// The current folder.
    pub(crate) fn folder(&self) -> Result<BorrowedFd<'_>> {
        self.open.back().ok_or(Errno::BADF)?.folder.fd()
    }

    /// The next entry of the current folder; `None` at its end.
    pub(crate) fn read(&mut self) -> Option<Result<DirEntry>> {
        let level = self.open.back_mut()?;
        loop {
            let entry = match level.folder.read()? {
                Ok(entry) => entry,
                Err(errno) => return Some(Err(errno)),
            };
            level.before = level.after;
            level.after = entry.offset();
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                return Some(Ok(entry));
            }
        }
    }

    /// Enters a folder of the current folder. EXDEV if something is mounted on it; ELOOP or ENOTDIR if it is no folder.
    pub(crate) fn enter(&mut self, name: &CStr) -> Result<()> {
        let folder = loop {
            match openat2(self.folder()?, name, FOLDER, Mode::empty(), DOWN) {
                // The process has no free descriptor: use fewer.
                Err(Errno::MFILE | Errno::NFILE) if self.open.len() > 1 => self.close_highest(),
                opened => break opened?,
            }
        };
        self.push(folder, Some(name.to_owned()))
    }

    /// Closes the top one of the open folders and remembers it.
    fn close_highest(&mut self) {
        let Some(level) = self.open.pop_front() else { return };
        // If it cannot be read: an id that no folder has.
        let id = level.folder.stat().map_or((0, 0), |stat| (stat.st_dev, stat.st_ino));
        let Level { before, after, failed, .. } = level;
        self.closed.push_back(Closed { id, before, after, failed });
        if self.closed.len() > CLOSED {
            self.closed.pop_front();
            self.forgotten = true;
        }
    }

    /// Records that an entry of the current folder was not removed.
    pub(crate) fn fail(&mut self) {
        if let Some(level) = self.open.back_mut() {
            level.failed = true;
        }
    }

    /// Whether an entry of the current folder, or of one below it, was not removed.
    pub(crate) fn failed(&self) -> bool {
        self.open.back().is_some_and(|level| level.failed)
    }

    /// Goes from the current folder to its parent. If the folder has failed, so has the parent.
    pub(crate) fn leave(&mut self, next: Next) -> Left {
        let Some(child) = self.open.pop_back() else { return Left::Top };
        if let Some(parent) = self.open.back_mut() {
            parent.failed |= child.failed;
            return Left::Parent { name: child.name };
        }
        let Some(closed) = self.closed.pop_back() else {
            return if self.forgotten { Left::Lost } else { Left::Top };
        };
        match reopen(&child, &closed, next) {
            Ok(Some(parent)) => {
                self.open.push_back(parent);
                Left::Parent { name: None }
            }
            Ok(None) | Err(_) => Left::Lost,
        }
    }

    /// The path of the current folder or of an entry of it, from the top, for messages. Closed folders are shown as
    /// `...`.
    pub(crate) fn path(&self, entry: Option<&CStr>) -> PathBuf {
        let mut path = PathBuf::from(OsStr::from_bytes(self.top.to_bytes()));
        if !self.closed.is_empty() || self.forgotten {
            path.push("...");
        }
        for name in self.open.iter().filter_map(|level| level.name.as_deref()).chain(entry) {
            path.push(OsStr::from_bytes(name.to_bytes()));
        }
        path
    }
}

/// Opens the parent of an open folder; `None` if it is not the folder that was closed.
fn reopen(child: &Level, closed: &Closed, next: Next) -> Result<Option<Level>> {
    let parent = openat2(child.folder.fd()?, c"..", FOLDER, Mode::empty(), UP)?;
    let stat = fstat(parent.as_fd())?;
    if (stat.st_dev, stat.st_ino) != closed.id {
        return Ok(None);
    }
    let at = match next {
        Next::Same => closed.before,
        Next::Following => closed.after,
    };
    let mut folder = Dir::new(parent)?;
    folder.seek(at)?;
    let failed = closed.failed || child.failed;
    Ok(Some(Level { folder, name: None, before: at, after: at, failed }))
}
