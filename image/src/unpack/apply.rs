//! Writes entries below one opened folder. Blocking; needs root to set owners and create device nodes.
//!
//! Paths are walked one component at a time, by descriptor, and the kernel never follows a symlink. If a
//! parent is a symlink of this layer, its target is read and walked from the same root in the same way. `..`
//! closes the innermost descriptor and does nothing at the root. So no entry can lead a later one outside.
//! The descriptors of the current path are kept open, because most entries share their parent with the
//! previous one.

mod deferred;
mod write;

use self::deferred::Folders;
use self::write::times;
use super::tar::{Entry, EntryPath, Kind, MAX_DEPTH, Reader, TarError};
use super::whiteout::{IMPLICIT_XATTR, NameKind, OPAQUE_XATTR, name_kind};
use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, XattrFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::io::BufRead;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// Symlinks followed for one path. containerd allows as many; the kernel stops at 40.
const MAX_LINKS: usize = 255;
/// Components still to be walked for one path: a symlink's target may add 2048.
const MAX_PENDING: usize = 4096;
/// Block size of ext4 and xfs: file sizes are rounded up to it.
const BLOCK: u64 = 4096;

/// What unpacking a layer created.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LayerStats {
    /// Bytes on disk.
    pub(crate) bytes: u64,
    /// Files, folders and other inodes.
    pub(crate) inodes: u64,
    /// Folders that contain entries but have none themselves. They are created as root's with mode 0755 and
    /// marked, so that the attributes of the same folder in a lower layer can be used. Some may have been
    /// removed again: 0 is exact, other values are an upper bound.
    pub(crate) implicit: u64,
}

/// Why an entry could not be written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApplyError {
    #[error(transparent)]
    Tar(#[from] TarError),
    #[error("{entry:?}: {reason}")]
    Entry { entry: String, reason: &'static str },
    #[error("{entry:?}: {action}")]
    System { entry: String, action: &'static str, source: Errno },
    #[error("more than {0} entries")]
    TooMany(u64),
}

impl ApplyError {
    /// A failed system call. Some errors mean that the archive is wrong.
    fn of(entry: &Entry, (action, source): (&'static str, Errno)) -> Self {
        let reason = match (action, source) {
            (ENTER, Errno::NOTDIR) => "a parent of it is neither a folder nor a symlink to one",
            (ENTER | RESOLVE, Errno::LOOP) => "its path has too many symlinks",
            (ENTER | RESOLVE, Errno::NAMETOOLONG) => "its path leads deeper than 256 folders",
            (RESOLVE, Errno::NOTDIR | Errno::NOENT | Errno::PERM) => {
                "its hard link leads to nothing in this layer"
            }
            _ => return Self::System { entry: shown(entry), action, source },
        };
        Self::Entry { entry: shown(entry), reason }
    }
}

fn shown(entry: &Entry) -> String {
    String::from_utf8_lossy(&entry.path.components().join(&b'/')).into_owned()
}

/// An open folder of the current path.
#[derive(Debug)]
struct Open {
    name: Vec<u8>,
    fd: OwnedFd,
    /// Its index in [`Folders`], once that was looked up.
    place: Option<usize>,
}

impl Open {
    fn new(name: Vec<u8>, fd: OwnedFd) -> Self {
        Self { name, fd, place: None }
    }
}

/// Unpacks one layer.
#[derive(Debug)]
pub(crate) struct Applier {
    root: OwnedFd,
    /// The open folders of the current path below the root.
    open: Vec<Open>,
    folders: Folders,
    stats: LayerStats,
}

type Step<T> = Result<T, (&'static str, Errno)>;

fn step(action: &'static str) -> impl Fn(Errno) -> (&'static str, Errno) {
    move |errno| (action, errno)
}

fn os(name: &[u8]) -> &OsStr {
    OsStr::from_bytes(name)
}

impl Applier {
    /// `root` must be an empty folder that nothing else writes to.
    pub(crate) fn new(root: OwnedFd) -> Self {
        Self { root, open: Vec::new(), folders: Folders::new(), stats: LayerStats::default() }
    }

    /// Writes the whole archive.
    pub(crate) fn run<R: BufRead>(
        mut self,
        archive: &mut Reader<R>,
        max_entries: u64,
    ) -> Result<LayerStats, ApplyError> {
        let mut entries = 0;
        while let Some(entry) = archive.next()? {
            entries += 1;
            // Folders without an entry take as much disk space as those with one.
            if entries > max_entries || self.stats.inodes > max_entries {
                return Err(ApplyError::TooMany(max_entries));
            }
            self.entry(&entry, archive)?;
        }
        self.finish()
    }

    fn entry<R: BufRead>(&mut self, entry: &Entry, archive: &mut Reader<R>) -> Result<(), ApplyError> {
        let system = |failed| ApplyError::of(entry, failed);
        let Some((parents, name)) = entry.path.split() else {
            // The root stays a folder whatever the entry says; containerd skips such entries.
            if entry.kind == Kind::Directory {
                self.open.clear();
                self.folder_attributes(entry).map_err(system)?;
            }
            return Ok(());
        };
        let hidden = name_kind(name).map_err(|reason| ApplyError::Entry { entry: shown(entry), reason })?;
        // Resolved before the entry's own parents, because this walk changes the current folder.
        let target = match &entry.kind {
            Kind::HardLink(target) if hidden == NameKind::Plain && *target != entry.path => {
                Some(self.target(target).map_err(system)?)
            }
            _ => None,
        };
        self.enter(parents, Missing::Make).map_err(system)?;
        match hidden {
            NameKind::Plain => {}
            NameKind::Ignored => return Ok(()),
            NameKind::Opaque => return self.opaque(self.current()).map_err(system),
            NameKind::Whiteout(name) => return self.hide(name).map_err(system),
        }
        self.stats.inodes += 1;
        match &entry.kind {
            Kind::File => return self.file(name, entry, archive, system),
            Kind::Directory => self.folder(name).and_then(|()| self.folder_attributes(entry)),
            Kind::Symlink(target) => self.symlink(name, target, entry),
            Kind::HardLink(_) => {
                self.stats.inodes -= 1;
                target.map_or(Ok(()), |target| self.link(name, &target))
            }
            Kind::CharDevice(major, minor) => {
                self.node(name, FileType::CharacterDevice, fs::makedev(*major, *minor), entry)
            }
            Kind::BlockDevice(major, minor) => {
                self.node(name, FileType::BlockDevice, fs::makedev(*major, *minor), entry)
            }
            Kind::Fifo => self.node(name, FileType::Fifo, 0, entry),
        }
        .map_err(system)
    }

    /// The innermost folder of the current path.
    fn current(&self) -> BorrowedFd<'_> {
        self.open.last().map_or(self.root.as_fd(), |open| open.fd.as_fd())
    }

    /// Makes `path` the current folder. Symlinks in it are followed within the root.
    fn enter(&mut self, path: &[Vec<u8>], missing: Missing) -> Step<()> {
        // The open folders were reached without symlinks and stay open until another path is entered.
        let shared = self.open.iter().zip(path).take_while(|(open, wanted)| open.name == **wanted).count();
        self.open.truncate(shared);
        // Reversed: the next component is last.
        let mut pending: Vec<Vec<u8>> = path[shared..].iter().rev().cloned().collect();
        let mut links = 0;
        while let Some(name) = pending.pop() {
            if name == b".." {
                self.open.pop();
                continue;
            }
            let fd = match fs::openat(self.current(), os(&name), DIRECTORY, Mode::empty()) {
                Ok(fd) => fd,
                Err(Errno::NOENT) if missing == Missing::Make => self.implicit(&name)?,
                Err(Errno::NOTDIR | Errno::LOOP) => match self.kind(&name)? {
                    FileType::Symlink => {
                        links += 1;
                        if links > MAX_LINKS {
                            return Err((ENTER, Errno::LOOP));
                        }
                        self.follow(&name, &mut pending)?;
                        continue;
                    }
                    // A whiteout of this same layer: the lower folder is deleted, so the new one starts
                    // empty.
                    FileType::CharacterDevice if missing == Missing::Make && self.is_whiteout(&name)? => {
                        fs::unlinkat(self.current(), os(&name), AtFlags::empty()).map_err(step("unlink"))?;
                        let fd = self.implicit(&name)?;
                        self.opaque(fd.as_fd())?;
                        fd
                    }
                    _ => return Err((ENTER, Errno::NOTDIR)),
                },
                Err(errno) => return Err((ENTER, errno)),
            };
            if self.open.len() == MAX_DEPTH {
                return Err((ENTER, Errno::NAMETOOLONG));
            }
            self.open.push(Open::new(name, fd));
        }
        Ok(())
    }

    /// Prepends a symlink's target to the components still to be walked; an absolute one starts at the root.
    fn follow(&mut self, name: &[u8], pending: &mut Vec<Vec<u8>>) -> Step<()> {
        let target = fs::readlinkat(self.current(), os(name), Vec::new()).map_err(step(ENTER))?;
        let target = target.as_bytes();
        if target.first() == Some(&b'/') {
            self.open.clear();
        }
        let parts = target.split(|b| *b == b'/').filter(|part| !matches!(part, [] | [b'.']));
        pending.extend(parts.rev().map(<[u8]>::to_vec));
        if pending.len() > MAX_PENDING { Err((ENTER, Errno::NAMETOOLONG)) } else { Ok(()) }
    }

    /// Creates a folder that has no entry in the archive, or none yet.
    fn implicit(&mut self, name: &[u8]) -> Step<OwnedFd> {
        fs::mkdirat(self.current(), os(name), Mode::RWXU).map_err(step("mkdir"))?;
        self.stats.inodes += 1;
        self.stats.implicit += 1;
        let fd = fs::openat(self.current(), os(name), DIRECTORY, Mode::empty()).map_err(step(ENTER))?;
        // mkdir applies the umask, so the mode is set again.
        fs::fchmod(&fd, Mode::from_raw_mode(0o755)).map_err(step("chmod"))?;
        fs::fsetxattr(&fd, IMPLICIT_XATTR, b"y", XattrFlags::empty()).map_err(step("mark as implicit"))?;
        Ok(fd)
    }

    fn kind(&self, name: &[u8]) -> Step<FileType> {
        let stat = fs::statat(self.current(), os(name), AtFlags::SYMLINK_NOFOLLOW).map_err(step(ENTER))?;
        Ok(FileType::from_raw_mode(stat.st_mode))
    }

    fn is_whiteout(&self, name: &[u8]) -> Step<bool> {
        let stat = fs::statat(self.current(), os(name), AtFlags::SYMLINK_NOFOLLOW).map_err(step("stat"))?;
        Ok(FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0)
    }

    fn opaque(&self, folder: BorrowedFd<'_>) -> Step<()> {
        fs::fsetxattr(folder, OPAQUE_XATTR, b"y", XattrFlags::empty()).map_err(step("mark as opaque"))
    }

    /// A whiteout only concerns lower layers: what this layer itself has under that name stays.
    fn hide(&mut self, name: &[u8]) -> Step<()> {
        match fs::mknodat(self.current(), os(name), FileType::CharacterDevice, Mode::empty(), 0) {
            Ok(()) => {
                self.stats.inodes += 1;
                Ok(())
            }
            Err(Errno::EXIST) => match fs::openat(self.current(), os(name), DIRECTORY, Mode::empty()) {
                Ok(folder) => self.opaque(folder.as_fd()),
                Err(_) => Ok(()),
            },
            Err(errno) => Err(("make whiteout", errno)),
        }
    }

    /// The target of a hard link: a folder and the name in it. Its parents may be symlinks of this layer.
    fn target(&mut self, path: &EntryPath) -> Step<(OwnedFd, Vec<u8>)> {
        let Some((parents, name)) = path.split() else { return Err((RESOLVE, Errno::PERM)) };
        self.enter(parents, Missing::Fail).map_err(|(_, errno)| (RESOLVE, errno))?;
        let folder =
            self.current().try_clone_to_owned().map_err(|_| ("duplicate descriptor", Errno::MFILE))?;
        Ok((folder, name.to_vec()))
    }

    /// Sets the deferred attributes of folders.
    fn finish(mut self) -> Result<LayerStats, ApplyError> {
        let folders = std::mem::replace(&mut self.folders, Folders::new());
        folders.each(|path, deferred| {
            let at = |action, source| ApplyError::System {
                entry: String::from_utf8_lossy(&path.join(&b'/')).into_owned(),
                action,
                source,
            };
            let shared =
                self.open.iter().zip(path).take_while(|(open, wanted)| open.name == **wanted).count();
            self.open.truncate(shared);
            for name in &path[shared..] {
                match fs::openat(self.current(), os(name), DIRECTORY, Mode::empty()) {
                    Ok(fd) => self.open.push(Open::new(name.to_vec(), fd)),
                    // A later entry replaced the folder.
                    Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
                    Err(errno) => return Err(at(ENTER, errno)),
                }
            }
            fs::fchmod(self.current(), Mode::from_raw_mode(deferred.mode)).map_err(|e| at("chmod", e))?;
            fs::futimens(self.current(), &times(deferred.mtime)).map_err(|e| at("set time", e))
        })?;
        Ok(self.stats)
    }
}

/// What to do if a parent folder does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Missing {
    Make,
    Fail,
}

const ENTER: &str = "enter folder";
const RESOLVE: &str = "hard link";
