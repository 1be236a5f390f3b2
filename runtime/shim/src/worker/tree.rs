//! Paths in a root file system that is the image's and hostile: each is resolved as if its root were `/`, and
//! what is found is held by descriptor from then on.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, mkdirat, openat};
use rustix::io::Errno;
use sys::mount::open_in_root;

/// What a mount needs to be attached to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A directory.
    Directory,
    /// Anything else.
    File,
}

/// Directory, or not.
///
/// # Errors
/// Those of fstat(2).
pub(crate) fn kind(file: BorrowedFd<'_>) -> io::Result<Kind> {
    let mode = rustix::fs::fstat(file)?.st_mode;
    Ok(if FileType::from_raw_mode(mode) == FileType::Directory { Kind::Directory } else { Kind::File })
}

/// Opens `path` in `root` (O_PATH), making what is missing: directories 0755, a file 0644 and empty.
/// Symlinks that exist are followed within the root.
///
/// # Errors
/// Those of openat2(2) and mkdirat(2); ENOTDIR where a file stands in the way.
pub(crate) fn make(root: BorrowedFd<'_>, path: &str, kind: Kind) -> io::Result<OwnedFd> {
    let names: Vec<&OsStr> = names(path)?;
    let Some((last, parents)) = names.split_last() else { return open(root, "/", OFlags::DIRECTORY) };
    let mut folder = open(root, "/", OFlags::DIRECTORY)?;
    let mut walked = PathBuf::from("/");
    for name in parents {
        folder = step(root, &folder, &mut walked, name)?;
    }
    match kind {
        Kind::Directory => step(root, &folder, &mut walked, last),
        Kind::File => {
            walked.push(last);
            let walked = walked.to_str().ok_or(io::ErrorKind::InvalidInput)?;
            match open(root, walked, OFlags::empty()) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                other => return other,
            }
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            // EXCL follows no symlink: one that dangles is an error.
            drop(openat(&folder, *last, flags, Mode::from_raw_mode(0o644))?);
            open(root, walked, OFlags::empty())
        }
    }
}

fn step(root: BorrowedFd<'_>, folder: &OwnedFd, walked: &mut PathBuf, name: &OsStr) -> io::Result<OwnedFd> {
    walked.push(name);
    let path = walked.to_str().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
    match open(root, &path, OFlags::DIRECTORY) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        other => return other,
    }
    match mkdirat(folder, name, Mode::from_raw_mode(0o755)) {
        // EEXIST: a symlink that dangles, which the next open reports.
        Ok(()) | Err(Errno::EXIST) => open(root, &path, OFlags::DIRECTORY),
        Err(e) => Err(e.into()),
    }
}

/// Opens what is there (O_PATH).
///
/// # Errors
/// Those of openat2(2).
pub(crate) fn open(root: BorrowedFd<'_>, path: &str, flags: OFlags) -> io::Result<OwnedFd> {
    open_in_root(root, Path::new(path), OFlags::PATH | flags, 0)
}

/// The folder that holds `path`'s last name, and that name; the folder is made where missing.
///
/// # Errors
/// As [`make`]; InvalidInput for `/`.
pub(crate) fn parent<'p>(root: BorrowedFd<'_>, path: &'p str) -> io::Result<(OwnedFd, &'p OsStr)> {
    let path = Path::new(path);
    let (Some(folder), Some(name)) = (path.parent().and_then(Path::to_str), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    Ok((make(root, folder, Kind::Directory)?, name))
}

fn names(path: &str) -> io::Result<Vec<&OsStr>> {
    let mut names = Vec::new();
    for component in Path::new(path).components() {
        match component {
            Component::Normal(name) => names.push(name),
            Component::RootDir | Component::CurDir => {}
            // Plans hold clean paths.
            Component::ParentDir | Component::Prefix(_) => return Err(io::ErrorKind::InvalidInput.into()),
        }
    }
    Ok(names)
}

/// Is `path` `top` or below it?
pub(crate) fn is_at_or_below(path: &str, top: &str) -> bool {
    Path::new(path).starts_with(top)
}

/// Opens a folder for reading by a plain path.
///
/// # Errors
/// Those of open(2).
pub(crate) fn root_at(path: &str) -> io::Result<OwnedFd> {
    let fd = sys::mount::open_path(Path::new(path))?;
    match kind(fd.as_fd())? {
        Kind::Directory => Ok(fd),
        Kind::File => Err(io::ErrorKind::NotADirectory.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn nothing_leads_out_of_the_root() {
        let outside = tempfile::tempdir().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let root = root_at(dir.path().to_str().unwrap()).unwrap();
        symlink(outside.path(), dir.path().join("abs")).unwrap();
        symlink("../../../../..", dir.path().join("up")).unwrap();
        symlink("nowhere", dir.path().join("dangling")).unwrap();
        make(root.as_fd(), "/up/a/b", Kind::Directory).unwrap();
        assert!(dir.path().join("a/b").is_dir());
        make(root.as_fd(), "/x/y/file", Kind::File).unwrap();
        assert!(dir.path().join("x/y/file").is_file());
        // An absolute symlink is absolute in the root: its target is not there and is not made.
        assert!(make(root.as_fd(), "/abs/evil", Kind::Directory).is_err());
        assert!(make(root.as_fd(), "/dangling/evil", Kind::Directory).is_err());
        assert!(make(root.as_fd(), "/dangling", Kind::File).is_err());
        assert!(make(root.as_fd(), "/a/../b", Kind::Directory).is_err());
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
    }

    #[test]
    fn prefixes_are_of_whole_names() {
        assert!(is_at_or_below("/dev", "/dev") && is_at_or_below("/dev/x", "/dev"));
        assert!(!is_at_or_below("/devices", "/dev"));
    }
}
