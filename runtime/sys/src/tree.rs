//! Removes and measures trees of files of containers and images, without trusting their content.
//!
//! This is the only place of the project that removes recursively. Every step goes by one name beneath an open
//! folder, with `RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV`: no symbolic link is followed, and what
//! is mounted below (a volume, the host) is never entered, also when a name is swapped meanwhile. A mount that is
//! in the way is an error, never emptied. Depth and width are the container's choice, so nothing recurses and
//! descriptors and memory are bounded: 18 descriptors, or as few as three where there are no more, and 2 MiB.
//!
//! Removal needs no new space on the file system.

mod remove;
mod trash;
mod usage;
mod walk;

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

/// Why a tree is still there, or could not be measured. Paths begin at the name that was given.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not one name, or `.` or `..`.
    #[error("{} is not the name of an entry of a folder", path.display())]
    Name {
        /// What was given.
        path: PathBuf,
    },
    /// Something is mounted inside the tree. It was not entered.
    #[error("a file system is mounted on {}: unmount it, then try again", path.display())]
    Mounted {
        /// The mount point.
        path: PathBuf,
    },
    /// Somebody goes on adding to the tree or moving folders in it.
    #[error("{} changes while it is removed: end the processes that use it", path.display())]
    Changing {
        /// The folder.
        path: PathBuf,
    },
    /// The kernel said no.
    #[error("{action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
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

    /// The same, with the tree's folder before the path.
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

/// Removes the file or tree at `path`, as [`remove`]. Only the folder that holds it is found by path, links
/// followed: it must be the caller's own. What is not there is removed.
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

/// What the file or tree at `path` takes on disk, as [`usage`]. As with [`remove_path`], the folder that holds
/// it must be the caller's own.
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

/// One name of an entry, never a path.
fn entry_name(name: &OsStr) -> Result<CString, Error> {
    let bytes = name.as_bytes();
    let odd = || Error::Name { path: name.into() };
    if bytes.is_empty() || bytes == b"." || bytes == b".." || bytes.contains(&b'/') {
        return Err(odd());
    }
    CString::new(bytes).map_err(|_| odd())
}

#[cfg(test)]
mod tests;
