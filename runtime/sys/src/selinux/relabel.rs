//! Gives a volume a label: a file, or a folder with everything in it.
//!
//! A folder gets its label after everything in it. So a folder that has the label already is complete, and is not entered:
//! a volume that fits costs one system call whatever its size, and a walk that was interrupted continues where it ended.
//! What is created in a labelled folder inherits the label; what is moved there from elsewhere keeps its own.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, openat2};
use rustix::io::Errno;

use super::{check, label_of, set};
use crate::tree::walk::{Left, Next, Walk};

/// For opening an entry of a folder: the entry itself, on the same mount.
const ENTRY: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const DOWN: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_MAGICLINKS).union(ResolveFlags::NO_XDEV);

/// What a volume needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Relabelled {
    /// Its top has the label already.
    Fits,
    /// Its files have it now.
    Done {
        /// The number of files that had another label.
        changed: u64,
    },
    /// Its file system has no labels of files.
    Unsupported,
}

/// Where relabelling ended, and why.
#[derive(Debug, thiserror::Error)]
#[error("{}: {source}", path.display())]
pub struct RelabelError {
    /// The path from the top of the volume, which is `.`.
    pub path: PathBuf,
    /// The error of the system call.
    pub source: io::Error,
}

/// Gives `top`, which may have been opened with O_PATH, and everything in it a label. Symlinks are labelled, not followed;
/// what is on another file system is left alone. Files that are removed meanwhile are no error.
///
/// # Errors
/// PermissionDenied: the policy does not allow it. ReadOnlyFilesystem. The tree is changed so that the walk is lost.
pub fn relabel(top: BorrowedFd<'_>, label: &str) -> Result<Relabelled, RelabelError> {
    let at_top = |source: io::Error| RelabelError { path: PathBuf::from("."), source };
    check(label).map_err(at_top)?;
    if fits(top, label) {
        return Ok(Relabelled::Fits);
    }
    let kind = fstat(top).map_err(|errno| at_top(errno.into()))?.st_mode;
    let mut changed = 0;
    let outcome = if FileType::from_raw_mode(kind).is_dir() {
        below(top, label, &mut changed)
    } else {
        changed = 1;
        set(top, label).map_err(|errno| at_top(errno.into()))
    };
    match outcome {
        Ok(()) => Ok(Relabelled::Done { changed }),
        Err(error) if Errno::from_io_error(&error.source) == Some(Errno::OPNOTSUPP) => {
            Ok(Relabelled::Unsupported)
        }
        Err(error) => Err(error),
    }
}

fn fits(file: BorrowedFd<'_>, label: &str) -> bool {
    label_of(file).is_ok_and(|have| have == label.as_bytes())
}

fn below(top: BorrowedFd<'_>, label: &str, changed: &mut u64) -> Result<(), RelabelError> {
    let failed = |path, errno: Errno| RelabelError { path, source: errno.into() };
    let mut walk = Walk::open(top, c".").map_err(|errno| failed(PathBuf::from("."), errno))?;
    loop {
        match walk.read() {
            Some(Ok(entry)) => {
                let name = entry.file_name();
                match visit(&mut walk, name, label) {
                    Ok(labelled) => *changed += u64::from(labelled),
                    Err(Errno::NOENT) => {}
                    Err(errno) => return Err(failed(walk.path(Some(name)), errno)),
                }
            }
            Some(Err(errno)) => return Err(failed(walk.path(None), errno)),
            None => {
                let done = walk.folder().and_then(|folder| set(folder, label));
                done.map_err(|errno| failed(walk.path(None), errno))?;
                *changed += 1;
                match walk.leave(Next::Following) {
                    Left::Top => return Ok(()),
                    Left::Parent { .. } => {}
                    // Moved or too deep: the label of its top says that it is not complete.
                    Left::Lost => return Err(failed(walk.path(None), Errno::STALE)),
                }
            }
        }
    }
}

/// Labels an entry of the current folder, or enters it if it is a folder. Whether it was labelled.
fn visit(walk: &mut Walk, name: &CStr, label: &str) -> rustix::io::Result<bool> {
    let Some(entry) = open(walk, name)? else { return Ok(false) };
    if fits(entry.as_fd(), label) {
        return Ok(false);
    }
    if FileType::from_raw_mode(fstat(&entry)?.st_mode).is_dir() {
        return match walk.enter(name) {
            // It was replaced meanwhile, or something was mounted on it.
            Ok(()) | Err(Errno::LOOP | Errno::NOTDIR | Errno::XDEV) => Ok(false),
            Err(errno) => Err(errno),
        };
    }
    set(entry.as_fd(), label).map(|()| true)
}

/// Opens an entry; `None` if something is mounted on it.
fn open(walk: &Walk, name: &CStr) -> rustix::io::Result<Option<OwnedFd>> {
    match openat2(walk.folder()?, name, ENTRY, Mode::empty(), DOWN) {
        Err(Errno::XDEV) => Ok(None),
        opened => opened.map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    const LABEL: &str = "u:r:container_file_t:s0:c1,c2";

    fn top(path: &Path) -> OwnedFd {
        rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap()
    }

    fn label(path: &Path) -> Option<String> {
        let file = rustix::fs::open(path, ENTRY, Mode::empty()).unwrap();
        label_of(file.as_fd()).ok().map(|label| String::from_utf8(label).unwrap())
    }

    /// Without SELinux a tmpfs takes any value of the attribute.
    fn folder() -> Option<tempfile::TempDir> {
        if crate::selinux::is_enabled() {
            println!("not checked: the policy of this host may not know the label");
            return None;
        }
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        fs::create_dir_all(dir.path().join("volume/a/b")).unwrap();
        for name in ["volume/a/b/file", "volume/file", "outside"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        symlink("../outside", dir.path().join("volume/link")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            dir.path().join("volume/pipe"),
            FileType::Fifo,
            Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        Some(dir)
    }

    #[test]
    fn everything_in_a_volume_is_labelled_and_nothing_outside() {
        let Some(dir) = folder() else { return };
        let volume = dir.path().join("volume");
        let opened = top(&volume);
        assert_eq!(relabel(opened.as_fd(), LABEL).unwrap(), Relabelled::Done { changed: 7 });
        for name in ["", "a", "a/b", "a/b/file", "file", "link", "pipe"] {
            assert_eq!(label(&volume.join(name)).as_deref(), Some(LABEL), "{name}");
        }
        assert_eq!(label(&dir.path().join("outside")), None);
        assert_eq!(relabel(opened.as_fd(), LABEL).unwrap(), Relabelled::Fits);
        let file = top(&dir.path().join("outside"));
        assert_eq!(relabel(file.as_fd(), LABEL).unwrap(), Relabelled::Done { changed: 1 });
    }

    #[test]
    fn folders_that_fit_are_not_entered() {
        let Some(dir) = folder() else { return };
        let volume = dir.path().join("volume");
        // As after a walk that was interrupted.
        super::super::set_path(&volume.join("a"), LABEL).unwrap();
        relabel(top(&volume).as_fd(), LABEL).unwrap();
        assert_eq!(label(&volume.join("a/b")), None);
        assert_eq!(label(&volume.join("file")).as_deref(), Some(LABEL));
    }

    #[test]
    fn deep_trees_are_labelled_to_their_end() {
        let Some(dir) = folder() else { return };
        let names = vec!["d"; 100];
        let deepest = dir.path().join("volume").join(names.join("/"));
        fs::create_dir_all(&deepest).unwrap();
        relabel(top(&dir.path().join("volume")).as_fd(), LABEL).unwrap();
        assert_eq!(label(&deepest).as_deref(), Some(LABEL));
        assert_eq!(label(dir.path()), None);
    }

    #[test]
    fn a_file_system_without_labels_is_no_error() {
        // procfs takes no extended attributes.
        let opened = top(Path::new("/proc/self/status"));
        assert_eq!(relabel(opened.as_fd(), LABEL).unwrap(), Relabelled::Unsupported);
    }
}
