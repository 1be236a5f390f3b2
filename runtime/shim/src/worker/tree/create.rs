//! Opening a path whose parts may be missing: they are created.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, mkdirat, openat, readlinkat};
use rustix::io::Errno;
use sys::beneath::resolve;
use sys::mount::open_in_root;

use super::{Kind, file_type, open, refused};

/// Maximum number of symlinks in a path, as in the kernel.
const MAX_LINKS: usize = 40;
/// Maximum number of components that are looked up for a path, including those of its symlinks.
const MAX_NAMES: usize = 4096;

/// Opens `path` in `root` (O_PATH); creates missing parts: folders with mode 0755, an empty file with 0644.
/// Symlinks are followed within the root, and the target of a dangling one is created there, as runc does.
///
/// # Errors
/// The errors of openat2(2) and mkdirat(2); ENOTDIR if a component is a file; ELOOP for a magic link.
pub(crate) fn make(root: BorrowedFd<'_>, path: &str, kind: Kind) -> io::Result<OwnedFd> {
    let names = names(path)?;
    let flags = if kind == Kind::Directory { OFlags::DIRECTORY } else { OFlags::empty() };
    match open(root, path, flags) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Walk::new(root, names).run(kind),
        other => other,
    }
}

/// Like [`make`], for a folder whose path must have no symlinks.
pub(super) fn make_plain(root: BorrowedFd<'_>, path: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let how = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS;
    if let Ok(found) = resolve(root, path, flags, Mode::empty(), how) {
        return Ok(found);
    }
    // Something is missing or is not a folder: go name by name, to create or report it.
    let mut folder = open(root, "/", OFlags::DIRECTORY)?;
    for name in names(path)? {
        folder = match openat(&folder, name, flags, Mode::empty()) {
            Ok(next) => next,
            Err(Errno::NOENT) => {
                make_one(&folder, name, Kind::Directory)?;
                openat(&folder, name, flags, Mode::empty())?
            }
            Err(Errno::NOTDIR | Errno::LOOP) => {
                let name = name.display();
                return Err(refused(format!(
                    "{name} must be an ordinary folder, and is a symbolic link or a file"
                )));
            }
            Err(e) => return Err(e.into()),
        };
    }
    Ok(folder)
}

/// A walk along a path with missing parts, name by name.
struct Walk<'r> {
    root: BorrowedFd<'r>,
    /// Names that are still to be looked up; the next one is last.
    rest: Vec<OsString>,
    /// The current folder, reached through existing folders only.
    at: PathBuf,
    links: usize,
}

impl<'r> Walk<'r> {
    fn new(root: BorrowedFd<'r>, names: Vec<&OsStr>) -> Self {
        let rest = names.into_iter().rev().map(OsStr::to_owned).collect();
        Self { root, rest, at: PathBuf::from("/"), links: 0 }
    }

    fn run(mut self, kind: Kind) -> io::Result<OwnedFd> {
        let mut folder = self.here()?;
        for _ in 0..MAX_NAMES {
            let Some(name) = self.rest.pop() else { return Ok(folder) };
            if name == ".." {
                // The root's parent is the root.
                self.at.pop();
                folder = self.here()?;
                continue;
            }
            let last = self.rest.is_empty();
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let found = match openat(&folder, &name, flags, Mode::empty()) {
                Ok(found) => found,
                Err(Errno::NOENT) => {
                    make_one(&folder, &name, if last { kind } else { Kind::Directory })?;
                    self.rest.push(name);
                    continue;
                }
                Err(e) => return Err(e.into()),
            };
            match file_type(found.as_fd())? {
                FileType::Symlink => {
                    if self.follow(&found)? {
                        folder = self.here()?;
                    }
                }
                FileType::Directory => {
                    self.at.push(name);
                    folder = found;
                }
                _ if last && kind == Kind::File => return Ok(found),
                _ => return Err(io::ErrorKind::NotADirectory.into()),
            }
        }
        Err(Errno::LOOP.into())
    }

    /// Prepends a symlink's target to the remaining names. Returns true if it is absolute, so that the walk
    /// restarts at the root.
    fn follow(&mut self, link: &OwnedFd) -> io::Result<bool> {
        self.links += 1;
        if self.links > MAX_LINKS {
            return Err(Errno::LOOP.into());
        }
        let text = readlinkat(link, "", Vec::new())?.into_bytes();
        if text.is_empty() {
            return Err(Errno::NOENT.into());
        }
        for name in text.split(|byte| *byte == b'/').rev().filter(|name| !matches!(*name, b"" | b".")) {
            self.rest.push(OsString::from_vec(name.to_vec()));
        }
        let absolute = text.starts_with(b"/");
        if absolute {
            self.at = PathBuf::from("/");
        }
        Ok(absolute)
    }

    /// Opens the current folder by its path, which had no symlinks. If a volume's owner has added one since, it still
    /// cannot lead out of the root.
    fn here(&self) -> io::Result<OwnedFd> {
        open_in_root(self.root, &self.at, OFlags::PATH | OFlags::DIRECTORY, 0)
    }
}

/// Creates a folder or an empty file. It is not an error if the name exists by now: the caller looks it up again.
fn make_one(folder: &OwnedFd, name: &OsStr, kind: Kind) -> io::Result<()> {
    let made = match kind {
        Kind::Directory => mkdirat(folder, name, Mode::from_raw_mode(0o755)),
        Kind::File => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            openat(folder, name, flags, Mode::from_raw_mode(0o644)).map(drop)
        }
    };
    match made {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

fn names(path: &str) -> io::Result<Vec<&OsStr>> {
    let mut names = Vec::new();
    for component in Path::new(path).components() {
        match component {
            Component::Normal(name) => names.push(name),
            Component::RootDir | Component::CurDir => {}
            // Not expected: paths in plans have no `..`.
            Component::ParentDir | Component::Prefix(_) => return Err(io::ErrorKind::InvalidInput.into()),
        }
    }
    Ok(names)
}
