//! Walks a cgroup and all below it. A container with a writable hierarchy decides how many there are and how deep. So a
//! walk does not recurse, uses at most three descriptors at any depth, and visits a limited number.

use std::ffi::{CStr, CString};
use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, openat2, unlinkat};
use rustix::io::Errno;

/// Maximum number of folders that one walk visits, in a second or two. If there are more, [`each_folder`] fails with
/// E2BIG; [`prune`] reduces their number.
pub(super) const MAX_FOLDERS: usize = 1 << 18;
/// Maximum number of names that are read ahead in one folder.
const NAMES: usize = 1_024;
/// Maximum number of names that are read ahead on all levels of a walk together. With that many, each deeper level
/// reads one at a time.
const MAX_NAMES: usize = 10_000;

/// Whether the error means that a cgroup was removed: ENOENT, or ENODEV for a file that was opened before.
pub fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV))
}

/// Whether the error means that there are more cgroups than the walk may visit: 262,144, unless the function has a limit of
/// its own.
pub fn is_too_many(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::E2BIG)
}

/// Opens a folder below `at`. EXDEV if something is mounted on it.
fn enter(at: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    openat2(at, name, flags, Mode::empty(), ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS)
}

/// At most `max` names of folders in a folder, from the position `from` on, and the position for the next call; `None`
/// after the last name.
fn next_folders(
    at: BorrowedFd<'_>,
    from: Option<i64>,
    max: usize,
) -> io::Result<(Vec<CString>, Option<i64>)> {
    let mut names = Vec::new();
    let mut dir = Dir::read_from(at)?;
    if let Some(offset) = from {
        dir.seek(offset)?;
    }
    while let Some(entry) = dir.read() {
        let entry = match entry {
            Ok(entry) => entry,
            // Removed while it was being read.
            Err(Errno::NOENT) => break,
            Err(error) => return Err(error.into()),
        };
        let name = entry.file_name();
        // The link count would tell whether there are folders, but not every cgroup file system keeps it.
        if entry.file_type() == FileType::Directory && name != c"." && name != c".." {
            names.push(name.to_owned());
            if names.len() >= max {
                return Ok((names, Some(entry.offset())));
            }
        }
    }
    Ok((names, None))
}

/// Calls `each` with the folder and all below it, parents first. Folders that are removed meanwhile are
/// skipped.
///
/// # Errors
/// E2BIG after [`MAX_FOLDERS`], if there are more; EXDEV if something is mounted on one; the errors of `each` and of
/// the system calls.
pub(super) fn each_folder(
    dir: BorrowedFd<'_>,
    each: &mut impl FnMut(BorrowedFd<'_>) -> io::Result<()>,
) -> io::Result<()> {
    visit(dir, MAX_FOLDERS, &mut |folder| each(folder).map(ControlFlow::Continue))
}

/// Like [`each_folder`], until `each` returns `Break`, and for at most `max` folders.
pub(super) fn visit(
    dir: BorrowedFd<'_>,
    max: usize,
    each: &mut impl FnMut(BorrowedFd<'_>) -> io::Result<ControlFlow<()>>,
) -> io::Result<()> {
    struct Level {
        /// Names that are still to be visited; the next one is last.
        names: Vec<CString>,
        /// The position after these names, if there are more.
        more: Option<i64>,
    }
    if each(dir)?.is_break() {
        return Ok(());
    }
    let (names, more) = next_folders(dir, None, NAMES)?;
    let (mut visited, mut kept) = (1, names.len());
    let mut levels = vec![Level { names, more }];
    let mut at = enter(dir, c".")?;
    while let Some(level) = levels.last_mut() {
        let Some(name) = level.names.pop() else {
            if let Some(offset) = level.more.take() {
                let (names, more) = next_folders(at.as_fd(), Some(offset), room(kept))?;
                kept += names.len();
                *level = Level { names, more };
                continue;
            }
            levels.pop();
            if !levels.is_empty() {
                at = enter(at.as_fd(), c"..")?;
            }
            continue;
        };
        kept = kept.saturating_sub(1);
        if visited >= max {
            return Err(io::Error::from_raw_os_error(libc::E2BIG));
        }
        let below = match enter(at.as_fd(), &name) {
            Ok(below) => below,
            Err(Errno::NOENT) => continue,
            Err(error) => return Err(error.into()),
        };
        visited += 1;
        match each(below.as_fd()) {
            Ok(ControlFlow::Break(())) => return Ok(()),
            Err(error) if !is_gone(&error) => return Err(error),
            _ => {}
        }
        let (names, more) = next_folders(below.as_fd(), None, room(kept))?;
        kept += names.len();
        levels.push(Level { names, more });
        at = below;
    }
    Ok(())
}

/// How many names may be read ahead while `kept` names are kept: few if the tree is wide on many levels.
fn room(kept: usize) -> usize {
    MAX_NAMES.saturating_sub(kept).clamp(1, NAMES)
}

/// Removes all folders below `dir`, but not `dir`, children first; any number, at any depth. If a folder is busy,
/// `retry` is called: it is tried again on true, and left on false.
///
/// # Errors
/// EBUSY if a folder was left; the errors of the system calls.
pub fn prune(dir: BorrowedFd<'_>, retry: &mut impl FnMut() -> bool) -> io::Result<()> {
    struct Level {
        /// Its name in the parent folder.
        name: CString,
        /// Names of folders in it that are still to be removed.
        names: Vec<CString>,
        /// A folder in it was left, so it cannot be removed either.
        stayed: bool,
        /// There are more names than these.
        more: bool,
    }
    let level = |at: BorrowedFd<'_>, name: CString| -> io::Result<Level> {
        let (names, more) = next_folders(at, None, NAMES)?;
        Ok(Level { name, names, stayed: false, more: more.is_some() })
    };
    let mut at = enter(dir, c".")?;
    let mut levels = vec![level(at.as_fd(), CString::default())?];
    while let Some(top) = levels.last_mut() {
        if let Some(name) = top.names.pop() {
            match unlinkat(&at, &name, AtFlags::REMOVEDIR) {
                Ok(()) | Err(Errno::NOENT) => {}
                // Emulated cgroup file systems return ENOTEMPTY.
                Err(Errno::BUSY | Errno::NOTEMPTY) => match enter(at.as_fd(), &name) {
                    Ok(below) => {
                        let inner = level(below.as_fd(), name)?;
                        if inner.names.is_empty() {
                            // It has no folders, so it is busy because of processes, which may be ending.
                            top.stayed |= !remove_one(at.as_fd(), &inner.name, retry)?;
                        } else {
                            levels.push(inner);
                            at = below;
                        }
                    }
                    Err(Errno::NOENT) => {}
                    Err(error) => return Err(error.into()),
                },
                Err(error) => return Err(error.into()),
            }
            continue;
        }
        if top.more && !top.stayed {
            // Read from the start again: the folders that were read before are removed.
            let (names, more) = next_folders(at.as_fd(), None, NAMES)?;
            (top.names, top.more) = (names, more.is_some());
            continue;
        }
        let Some(done) = levels.pop() else { break };
        let Some(above) = levels.last_mut() else {
            let busy = io::Error::from_raw_os_error(libc::EBUSY);
            return if done.stayed { Err(busy) } else { Ok(()) };
        };
        at = enter(at.as_fd(), c"..")?;
        above.stayed |= done.stayed || !remove_one(at.as_fd(), &done.name, retry)?;
    }
    Ok(())
}

/// Removes a folder without folders in it. Returns false if it is busy and `retry` returned false.
fn remove_one(at: BorrowedFd<'_>, name: &CStr, retry: &mut impl FnMut() -> bool) -> io::Result<bool> {
    loop {
        match unlinkat(at, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => return Ok(true),
            Err(Errno::BUSY) if retry() => {}
            Err(Errno::BUSY) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{File, create_dir_all};
    use std::os::fd::OwnedFd;

    fn open(path: &std::path::Path) -> OwnedFd {
        File::open(path).unwrap().into()
    }

    fn count(dir: &OwnedFd) -> io::Result<usize> {
        let mut count = 0;
        each_folder(dir.as_fd(), &mut |_| {
            count += 1;
            Ok(())
        })
        .map(|()| count)
    }

    /// Creates folders that are nested deeper than any limit of paths, stacks or descriptor tables.
    fn deep(root: &std::path::Path, levels: usize) {
        let mut at = open(root);
        for _ in 0..levels {
            rustix::fs::mkdirat(&at, c"d", Mode::from_raw_mode(0o755)).unwrap();
            at = enter(at.as_fd(), c"d").unwrap();
        }
    }

    #[test]
    fn depth_costs_no_descriptors_and_no_stack() {
        let temp = tempfile::tempdir().unwrap();
        deep(temp.path(), 2_000);
        let dir = open(temp.path());
        let before = std::fs::read_dir("/proc/self/fd").unwrap().count();
        let mut max = 0;
        each_folder(dir.as_fd(), &mut |_| {
            max = max.max(std::fs::read_dir("/proc/self/fd").unwrap().count());
            Ok(())
        })
        .unwrap();
        // Other tests of this process open some too.
        assert!(max < before + 50, "{before} then {max}");
        assert_eq!(count(&dir).unwrap(), 2_001);
        prune(dir.as_fd(), &mut || false).unwrap();
        assert_eq!(count(&dir).unwrap(), 1);
    }

    #[test]
    fn wide_trees_are_walked_in_pieces() {
        let temp = tempfile::tempdir().unwrap();
        for n in 0..3 * NAMES {
            create_dir_all(temp.path().join(format!("c{n}/below"))).unwrap();
        }
        let dir = open(temp.path());
        assert_eq!(count(&dir).unwrap(), 1 + 6 * NAMES);
        let mut seen = 0;
        let mut some = |max| {
            visit(dir.as_fd(), max, &mut |_| {
                seen += 1;
                Ok(if seen == 5_000 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
            })
        };
        // It fails after as many as are allowed, unless the callback ends it before.
        assert!(is_too_many(&some(4_000).unwrap_err()));
        some(4_000).unwrap();
        assert_eq!(seen, 5_000);
        prune(dir.as_fd(), &mut || false).unwrap();
        assert_eq!(count(&dir).unwrap(), 1);
    }

    #[test]
    fn names_in_memory_are_bounded() {
        assert_eq!((room(0), room(MAX_NAMES - 7), room(MAX_NAMES), room(usize::MAX)), (NAMES, 7, 1, 1));
    }

    #[test]
    fn parents_come_first_and_each_once() {
        let temp = tempfile::tempdir().unwrap();
        for path in ["a/b/c", "a/d", "e", "f/g/h/i"] {
            create_dir_all(temp.path().join(path)).unwrap();
        }
        let mut seen = Vec::new();
        each_folder(open(temp.path()).as_fd(), &mut |folder| {
            let link = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&folder));
            let path = std::fs::read_link(link).unwrap();
            seen.push(path.strip_prefix(temp.path()).unwrap().to_path_buf());
            Ok(())
        })
        .unwrap();
        assert_eq!(seen.len(), 10);
        for (place, path) in seen.iter().enumerate().skip(1) {
            assert!(seen[..place].contains(&path.parent().unwrap().to_path_buf()), "{path:?} in {seen:?}");
        }
    }
}
