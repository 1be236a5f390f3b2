//! Files below a folder that others may write to: opened by descriptor, through no symbolic link.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, ftruncate, mkdirat, open, openat2};

const RESOLVE: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS);

/// Opens a folder by its absolute path, symbolic links followed; made (0755, with its parents) when absent.
///
/// # Errors
/// As the kernel says.
pub fn folder(path: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match open(path, flags, Mode::empty()) {
        Err(rustix::io::Errno::NOENT) => {
            use std::os::unix::fs::DirBuilderExt as _;
            std::fs::DirBuilder::new().recursive(true).mode(0o755).create(path)?;
            Ok(rustix::fs::openat(CWD, path, flags, Mode::empty())?)
        }
        opened => Ok(opened?),
    }
}

/// Opens a regular file below `dir` for appending; it (mode 0640) and its parents (0755) are made when
/// absent. What is no regular file is refused, and never waited for.
///
/// # Errors
/// ELOOP for a symbolic link anywhere, EXDEV for `..` that leads out, and as the kernel says.
pub fn append(dir: BorrowedFd<'_>, path: &str) -> io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let mode = Mode::from_raw_mode(0o640);
    let file = match openat2(dir, path, flags, mode, RESOLVE) {
        Err(rustix::io::Errno::NOENT) => {
            make_parents(dir, path)?;
            openat2(dir, path, flags, mode, RESOLVE)?
        }
        opened => opened?,
    };
    if FileType::from_raw_mode(fstat(&file)?.st_mode) != FileType::RegularFile {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{path} is no regular file")));
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
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        at = openat2(at.as_fd(), name, flags, Mode::empty(), RESOLVE)?;
    }
    Ok(())
}

/// Cuts the last `bytes` off a file, which nobody else appends to: those of a write that was cut short.
///
/// # Errors
/// As the kernel says.
pub fn take_back(file: &File, bytes: u64) -> io::Result<()> {
    let size = file.metadata()?.len();
    Ok(ftruncate(file, size.saturating_sub(bytes))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::os::unix::fs::symlink;

    #[test]
    fn follows_nothing_and_leaves_nothing() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().join("a/b");
        let dir = folder(root.to_str().unwrap()).unwrap();
        append(dir.as_fd(), "c/d/0.log").unwrap().write_all(b"12345").unwrap();
        let mut again = append(dir.as_fd(), "c/d/0.log").unwrap();
        again.write_all(b"678").unwrap();
        take_back(&again, 2).unwrap();
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
