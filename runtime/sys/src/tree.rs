//! Removes and measures trees of files of containers and images, without trusting their content.
//!
//! This is the only place of the project that removes recursively. Each step looks up one name in an open folder, with
//! `RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV`. So no symlink is followed and no mount is entered (a
//! volume, the host), even if somebody replaces the name meanwhile. A mount inside the tree is an error; it is never
//! emptied. The container chooses depth and width, so the code does not recurse, and it is bounded: it uses at most 18
//! descriptors, or as few as three if the process has no more, and 2 MiB of memory.
//!
//! Removal needs no new space on the file system.

mod remove;
mod trash;
mod usage;
pub(crate) mod walk;

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;

pub use remove::remove;
pub use trash::Trash;
pub use usage::Usage;
use usage::usage;

/// Why a tree was not removed completely, or could not be measured. Paths begin with the name that the caller passed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The name has a slash or is empty, `.` or `..`.
    #[error("{} is not the name of an entry of a folder", path.display())]
    Name {
        /// The name.
        path: PathBuf,
    },
    /// Something is mounted inside the tree. It was not entered.
    #[error("a file system is mounted on {}: unmount it, then try again", path.display())]
    Mounted {
        /// The mount point.
        path: PathBuf,
    },
    /// A process keeps adding to the tree or moving folders in it.
    #[error("{} changes while it is removed: end the processes that use it", path.display())]
    Changing {
        /// The folder.
        path: PathBuf,
    },
    /// A system call failed.
    #[error("{action} {}: {source}", path.display())]
    Io {
        /// The action, for example `remove`.
        action: &'static str,
        /// Its object.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
}

impl Error {
    fn io(action: &'static str, path: &Path, errno: Errno) -> Self {
        match errno {
            Errno::XDEV | Errno::BUSY => Self::Mounted { path: path.to_owned() },
            _ => Self::Io { action, path: path.to_owned(), source: errno.into() },
        }
    }

    /// The same error, with `folder` before its path.
    fn below(mut self, folder: &Path) -> Self {
        let (Self::Name { path } | Self::Mounted { path } | Self::Changing { path } | Self::Io { path, .. }) =
            &mut self;
        *path = folder.join(&*path);
        self
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        let kind = match &error {
            Error::Name { .. } => io::ErrorKind::InvalidInput,
            Error::Mounted { .. } | Error::Changing { .. } => io::ErrorKind::ResourceBusy,
            Error::Io { source, .. } => source.kind(),
        };
        Self::new(kind, error)
    }
}

/// Like [`remove`], for the file or tree at `path`. Its parent folder is opened by path, and symlinks on that path are
/// followed, so the parent must belong to the caller. It is not an error if `path` does not exist.
///
/// # Errors
/// As [`remove`].
pub fn remove_path(path: &Path) -> Result<(), Error> {
    let (parent, name) = split(path)?;
    match open_folder(parent) {
        Ok(folder) => remove(folder.as_fd(), name).map_err(|error| error.below(parent)),
        Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(Error::io("open", parent, errno)),
    }
}

/// Like [`usage`], for the file or tree at `path`. As for [`remove_path`], its parent folder must belong to the caller.
///
/// # Errors
/// As [`usage`].
pub fn usage_path(path: &Path, until: std::time::Instant) -> Result<Usage, Error> {
    let (parent, name) = split(path)?;
    let folder = open_folder(parent).map_err(|errno| Error::io("open", parent, errno))?;
    usage(folder.as_fd(), name, until).map_err(|error| error.below(parent))
}

fn split(path: &Path) -> Result<(&Path, &OsStr), Error> {
    path.parent().zip(path.file_name()).ok_or_else(|| Error::Name { path: path.to_owned() })
}

fn open_folder(path: &Path) -> rustix::io::Result<rustix::fd::OwnedFd> {
    openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// Checks that `name` is the name of an entry and not a path.
fn entry_name(name: &OsStr) -> Result<CString, Error> {
    let bytes = name.as_bytes();
    let invalid = || Error::Name { path: name.into() };
    if bytes.is_empty() || bytes == b"." || bytes == b".." || bytes.contains(&b'/') {
        return Err(invalid());
    }
    CString::new(bytes).map_err(|_| invalid())
}

#[cfg(test)]
mod tests;
