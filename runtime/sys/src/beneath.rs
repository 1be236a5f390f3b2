//! Opens files below folders that others may write to: by descriptor, and without following symlinks.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, ftruncate, mkdirat, open, openat2};
use rustix::io::Errno;
use rustix::path::Arg;

const RESOLVE: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS);
/// Attempts if the kernel cannot tell whether a `..` stayed inside.
const TRIES: usize = 100;

/// openat2(2), close-on-exec. It is retried if something was renamed or mounted while the kernel checked
/// whether a `..` leads out of `dir`.
///
/// # Errors
/// The errors of openat2(2); EAGAIN if that happened a hundred times in a row.
pub fn resolve(
    dir: BorrowedFd<'_>,
    path: impl Arg,
    flags: OFlags,
    mode: Mode,
    resolve: ResolveFlags,
) -> rustix::io::Result<OwnedFd> {
    path.into_with_c_str(|path| {
        let attempt = || openat2(dir, path, flags | OFlags::CLOEXEC, mode, resolve);
        let raced = |outcome: &Result<_, Errno>| matches!(outcome, Err(Errno::AGAIN | Errno::INTR));
        let mut tries = (0..TRIES).map(|_| attempt());
        tries.find(|outcome| !raced(outcome)).unwrap_or(Err(Errno::AGAIN))
    })
}

/// Opens a regular file for reading by a path from an administrator; symlinks are followed. Anything else is
/// an error and does not block: a FIFO would block the open, and opening a device can have any effect.
///
/// # Errors
/// InvalidInput if it is not a regular file; the errors of open(2).
pub fn regular(path: &Path) -> io::Result<File> {
    let refused = || io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file");
    if !std::fs::metadata(path)?.is_file() {
        return Err(refused());
    }
    // It may have been replaced meanwhile.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = File::from(open(path, flags, Mode::empty())?);
    if file.metadata()?.is_file() { Ok(file) } else { Err(refused()) }
}

/// Opens the root folder of the caller.
///
/// # Errors
/// The errors of open(2).
pub fn root() -> io::Result<OwnedFd> {
    Ok(open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Opens a folder by an absolute path, as a process with the root folder `root` would. Symlinks on the way are followed,
/// because operators link the parents of a folder to another disk; one in the place of the folder itself and magic links
/// are not.
///
/// # Errors
/// ENOENT if it is missing; ENOTDIR if it is a symlink; the errors of openat2(2).
pub fn folder_in(root: BorrowedFd<'_>, path: &str) -> io::Result<OwnedFd> {
    open_in(root, path.trim_end_matches('/'), OFlags::NOFOLLOW)
}

fn open_in(root: BorrowedFd<'_>, path: &str, last: OFlags) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | last;
    let within = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    Ok(resolve(root, path, flags, Mode::empty(), within)?)
}

/// Like [`folder_in`]; the folder and its parents (0755) are created if missing, but not the target of a dangling symlink.
///
/// # Errors
/// The errors of [`folder_in`] and of mkdirat(2).
pub fn make_folder_in(root: BorrowedFd<'_>, path: &str) -> io::Result<OwnedFd> {
    let path = path.trim_end_matches('/');
    let mut parent = root.try_clone_to_owned()?;
    for end in path.match_indices('/').map(|(slash, _)| slash).chain([path.len()]) {
        let part = path.get(..end).unwrap_or(path);
        let Some(name) = part.rsplit('/').next().filter(|name| !name.is_empty()) else { continue };
        let last = if end == path.len() { OFlags::NOFOLLOW } else { OFlags::empty() };
        parent = match open_in(root, part, last) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                match mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
                    Ok(()) | Err(Errno::EXIST) => open_in(root, part, last)?,
                    Err(error) => return Err(error.into()),
                }
            }
            opened => opened?,
        };
    }
    Ok(parent)
}

/// Opens a regular file below `dir` for appending; it (mode 0640) and its parents (0755) are created if
/// missing. Anything but a regular file is refused without blocking.
///
/// # Errors
/// ELOOP for a symlink anywhere, EXDEV if `..` leads out; the errors of the system calls.
pub fn append(dir: BorrowedFd<'_>, path: &str) -> io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let mode = Mode::from_raw_mode(0o640);
    let file = match resolve(dir, path, flags, mode, RESOLVE) {
        Err(Errno::NOENT) => {
            make_parents(dir, path)?;
            resolve(dir, path, flags, mode, RESOLVE)?
        }
        opened => opened?,
    };
    if FileType::from_raw_mode(fstat(&file)?.st_mode) != FileType::RegularFile {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{path} is not a regular file")));
    }
    Ok(file.into())
}

fn make_parents(dir: BorrowedFd<'_>, path: &str) -> io::Result<()> {
    let mut at = dir.try_clone_to_owned()?;
    let Some((parents, _)) = path.rsplit_once('/') else { return Ok(()) };
    for name in parents.split('/').filter(|name| !name.is_empty() && *name != ".") {
        if name == ".." {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{path} has '..'")));
        }
        match mkdirat(&at, name, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        at = resolve(at.as_fd(), name, flags, Mode::empty(), RESOLVE)?;
    }
    Ok(())
}

/// Truncates the last `bytes` of a file that has no other writer, after an incomplete write.
///
/// # Errors
/// The errors of the system calls.
pub fn truncate_end(file: &File, bytes: u64) -> io::Result<()> {
    let size = file.metadata()?.len();
    Ok(ftruncate(file, size.saturating_sub(bytes))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::os::unix::fs::symlink;

    #[test]
    fn folders_within_a_root() {
        let temp = tempfile::tempdir().unwrap();
        let root = File::open(temp.path()).unwrap();
        assert_eq!(folder_in(root.as_fd(), "/a/b").unwrap_err().kind(), io::ErrorKind::NotFound);
        for _ in 0..2 {
            make_folder_in(root.as_fd(), "/a//b/").unwrap();
            assert!(temp.path().join("a/b").is_dir());
        }
        symlink("/a/b", temp.path().join("link")).unwrap();
        make_folder_in(root.as_fd(), "/link/c").unwrap();
        assert!(temp.path().join("a/b/c").is_dir());
        folder_in(root.as_fd(), "/link/../../../a/b/c").unwrap();
        for path in ["/link", "/link/"] {
            folder_in(root.as_fd(), path).unwrap_err();
            make_folder_in(root.as_fd(), path).unwrap_err();
        }
        symlink("/missing", temp.path().join("dangling")).unwrap();
        std::fs::write(temp.path().join("file"), "").unwrap();
        for path in ["/dangling", "/dangling/x", "/file", "/file/x"] {
            make_folder_in(root.as_fd(), path).unwrap_err();
        }
        assert!(!temp.path().join("missing").exists());
    }

    #[test]
    fn follows_nothing_and_leaves_nothing() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().join("a/b");
        std::fs::create_dir_all(&root).unwrap();
        let dir = File::open(&root).unwrap();
        append(dir.as_fd(), "c/d/0.log").unwrap().write_all(b"12345").unwrap();
        let mut again = append(dir.as_fd(), "c/d/0.log").unwrap();
        again.write_all(b"678").unwrap();
        truncate_end(&again, 2).unwrap();
        assert_eq!(std::fs::read(root.join("c/d/0.log")).unwrap(), b"123456");

        let outside = temp.path().join("outside");
        std::fs::create_dir(&outside).unwrap();
        symlink(&outside, root.join("link")).unwrap();
        symlink(outside.join("file"), root.join("file")).unwrap();
        for path in
            ["link/0.log", "link/x/0.log", "file", "../outside/0.log", "c/../../0.log", "/etc/x.log", "c", ""]
        {
            assert!(append(dir.as_fd(), path).is_err(), "{path}");
        }
        nix::unistd::mkfifo(&root.join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(append(dir.as_fd(), "fifo").is_err());
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
    }
}
