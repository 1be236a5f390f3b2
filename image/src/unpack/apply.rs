//! Writes the entries of a layer below its root folder. Blocks; needs root to set owners and create device nodes.
//!
//! A path is walked one component at a time, by descriptor, and the kernel follows no symlink. If a parent is a symlink
//! of this layer, its target is read and walked in the same way, from the same root; `..` in a target returns to the
//! parent's descriptor, and is ignored at the root. So no entry can make a later one leave the root. The descriptors of
//! the last path stay open, because most entries are in the same folder as the entry before.

mod deferred;
mod write;

use self::deferred::Folders;
use self::write::times;
use super::tar::{Entry, EntryPath, Kind, MAX_DEPTH, Reader, TarError};
use super::whiteout::{AUFS_LINKS, IMPLICIT_XATTR, NameKind, OPAQUE_XATTR, is_aufs, name_kind};
use crate::space::{Reserve, Watch};
use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, XattrFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::io::{self, BufRead};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// Maximum number of symlinks that are followed for one path, as in containerd. (The kernel's limit is 40.)
const MAX_LINKS: usize = 255;
/// Maximum number of components of one path that are still to be walked. A symlink's target may add 2048.
const MAX_PENDING: usize = 4096;
/// Components of symlinks' targets that a layer may have walked, and how many more for each of its entries. Without that
/// limit an entry of one block could take a million system calls.
const WALKED: u64 = 1 << 20;
const WALKED_PER_ENTRY: u64 = 128;
/// Block size of ext4 and xfs, in bytes, for the estimate of disk space.
const BLOCK: u64 = 4096;

/// What unpacking a layer has created. Entries that a later entry replaced are included.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LayerStats {
    /// Estimated disk space, in bytes: each file in whole blocks.
    pub(crate) bytes: u64,
    /// Files, folders and other inodes.
    pub(crate) inodes: u64,
    /// Implicit folders: folders that contain entries but have no entry of their own. They are created with owner root
    /// and mode 0755, and marked by [`IMPLICIT_XATTR`]. 0 is exact; other values are an upper bound, because later
    /// entries may have removed some.
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
    /// What must stay free of the file system would be used.
    #[error("{entry:?}: write")]
    NoSpace { entry: String, source: io::Error },
    #[error("more than {0} entries")]
    TooMany(u64),
}

impl ApplyError {
    /// A failed system call for an entry. Some errors show that the archive is invalid.
    fn of(entry: &Entry, (action, source): (&'static str, Errno)) -> Self {
        let reason = match (action, source) {
            (ENTER, Errno::NOTDIR) => "one of its parents is neither a folder nor a symlink to one",
            (ENTER | RESOLVE, Errno::LOOP) => "its path leads through too many symlinks",
            (ENTER | RESOLVE, Errno::NAMETOOLONG) => "its path is deeper than 256 folders",
            (RESOLVE, Errno::NOTDIR | Errno::NOENT | Errno::PERM) => {
                "its hard link's target is not a file of this layer"
            }
            _ => return Self::System { entry: shown(entry), action, source },
        };
        Self::Entry { entry: shown(entry), reason }
    }
}

/// The path of an entry, for errors.
fn shown(entry: &Entry) -> String {
    String::from_utf8_lossy(&entry.path.components().join(&b'/')).into_owned()
}

/// An open folder of the current path.
#[derive(Debug)]
struct Open {
    name: Vec<u8>,
    fd: OwnedFd,
    /// Its index in [`Folders`], once it was needed.
    index: Option<usize>,
}

impl Open {
    fn new(name: Vec<u8>, fd: OwnedFd) -> Self {
        Self { name, fd, index: None }
    }
}

/// Unpacks one layer.
#[derive(Debug)]
pub(crate) struct Applier {
    root: OwnedFd,
    /// The current path: its folders below the root, from the outermost to the innermost.
    open: Vec<Open>,
    folders: Folders,
    stats: LayerStats,
    /// What is left of [`WALKED`].
    may_walk: u64,
    space: Watch,
}

/// The result of system calls; an error has the action, for [`ApplyError::System`].
type Step<T> = Result<T, (&'static str, Errno)>;

/// For `map_err`: adds the action to the error of a system call.
fn step(action: &'static str) -> impl Fn(Errno) -> (&'static str, Errno) {
    move |errno| (action, errno)
}

fn os(name: &[u8]) -> &OsStr {
    OsStr::from_bytes(name)
}

/// Removes a file or a folder with its content. It is not an error if it does not exist.
fn remove_tree(parent: BorrowedFd<'_>, name: &[u8]) -> Step<()> {
    sys::tree::remove(parent, os(name)).map_err(|error| {
        let errno = match &error {
            sys::tree::Error::Io { source, .. } => Errno::from_io_error(source),
            _ => None,
        };
        ("remove folder", errno.unwrap_or(Errno::BUSY))
    })
}

impl Applier {
    /// `root` must be an empty folder that nothing else writes to.
    pub(crate) fn new(root: OwnedFd) -> Self {
        let (folders, stats) = (Folders::new(), LayerStats::default());
        let space = Watch::new(Reserve::OF_LAYERS);
        Self { root, open: Vec::new(), folders, stats, may_walk: WALKED, space }
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
            // Implicit folders count too: one entry may create many.
            if entries > max_entries || self.stats.inodes > max_entries {
                return Err(ApplyError::TooMany(max_entries));
            }
            self.may_walk += WALKED_PER_ENTRY;
            self.entry(&entry, archive)?;
        }
        self.finish()
    }

    /// To be called before so many bytes are written for an entry.
    fn ensure_space(&mut self, bytes: u64, entry: &Entry) -> Result<(), ApplyError> {
        let checked = self.space.before(bytes, &self.root);
        checked.map_err(|source| ApplyError::NoSpace { entry: shown(entry), source })
    }

    /// Writes one entry.
    fn entry<R: BufRead>(&mut self, entry: &Entry, archive: &mut Reader<R>) -> Result<(), ApplyError> {
        let system = |failed| ApplyError::of(entry, failed);
        self.ensure_space(BLOCK, entry)?;
        let Some((parents, name)) = entry.path.split() else {
            // The root is always a folder. Entries of another type for it are skipped, as in containerd.
            if entry.kind == Kind::Directory {
                self.open.clear();
                self.folder_attributes(entry).map_err(system)?;
            }
            return Ok(());
        };
        // Only the files that hard links lead to are needed.
        if parents.first().is_some_and(|first| is_aufs(first) && first != AUFS_LINKS) {
            return Ok(());
        }
        let name_kind =
            name_kind(name).map_err(|reason| ApplyError::Entry { entry: shown(entry), reason })?;
        // Resolved before the entry's own parents are entered, because this changes the current folder.
        let target = match &entry.kind {
            Kind::HardLink(target) if name_kind == NameKind::Plain && *target != entry.path => {
                Some(self.link_target(target).map_err(system)?)
            }
            _ => None,
        };
        self.enter(parents, Missing::Create).map_err(system)?;
        match name_kind {
            NameKind::Plain => {}
            NameKind::Ignored => return Ok(()),
            NameKind::Opaque => return self.make_opaque(self.current()).map_err(system),
            NameKind::Whiteout(name) => return self.whiteout(name).map_err(system),
        }
        self.stats.inodes += 1;
        match &entry.kind {
            Kind::File => return self.file(name, entry, archive, system),
            Kind::Directory => self.folder(name).and_then(|()| self.folder_attributes(entry)),
            Kind::Symlink(target) => self.symlink(name, target, entry),
            Kind::HardLink(_) => {
                // It has the inode of its target.
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

    /// Makes `path` the current path. Symlinks in it are followed within the root.
    fn enter(&mut self, path: &[Vec<u8>], missing: Missing) -> Step<()> {
        // The open folders have the names of the path on disk, without symlinks. Those that both paths share stay open.
        let shared = self.open.iter().zip(path).take_while(|(open, wanted)| open.name == **wanted).count();
        self.open.truncate(shared);
        // In reverse order: the next component is the last one.
        let mut pending: Vec<Vec<u8>> = path[shared..].iter().rev().cloned().collect();
        let mut links = 0;
        while let Some(name) = pending.pop() {
            if name == b".." {
                self.open.pop();
                continue;
            }
            let fd = match fs::openat(self.current(), os(&name), DIRECTORY, Mode::empty()) {
                Ok(fd) => fd,
                Err(Errno::NOENT) if missing == Missing::Create => self.create_implicit(&name)?,
                Err(Errno::NOTDIR | Errno::LOOP) => match self.file_type(&name)? {
                    FileType::Symlink => {
                        links += 1;
                        if links > MAX_LINKS {
                            return Err((ENTER, Errno::LOOP));
                        }
                        self.follow(&name, &mut pending)?;
                        continue;
                    }
                    // A whiteout of this layer deletes the folder of lower layers, so the new one must not show their
                    // content.
                    FileType::CharacterDevice if missing == Missing::Create && self.is_whiteout(&name)? => {
                        fs::unlinkat(self.current(), os(&name), AtFlags::empty()).map_err(step("unlink"))?;
                        let fd = self.create_implicit(&name)?;
                        self.make_opaque(fd.as_fd())?;
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

    /// Adds a symlink's target to the components that are still to be walked. An absolute target starts at the root.
    fn follow(&mut self, name: &[u8], pending: &mut Vec<Vec<u8>>) -> Step<()> {
        let target = fs::readlinkat(self.current(), os(name), Vec::new()).map_err(step(ENTER))?;
        let target = target.as_bytes();
        if target.first() == Some(&b'/') {
            self.open.clear();
        }
        let parts = target.split(|b| *b == b'/').filter(|part| !matches!(part, [] | [b'.']));
        let before = pending.len();
        pending.extend(parts.rev().map(<[u8]>::to_vec));
        let walked = 1 + (pending.len() - before) as u64;
        self.may_walk = self.may_walk.checked_sub(walked).ok_or((ENTER, Errno::LOOP))?;
        if pending.len() > MAX_PENDING { Err((ENTER, Errno::NAMETOOLONG)) } else { Ok(()) }
    }

    /// Creates a folder that has no entry in the archive so far.
    fn create_implicit(&mut self, name: &[u8]) -> Step<OwnedFd> {
        fs::mkdirat(self.current(), os(name), Mode::RWXU).map_err(step("mkdir"))?;
        self.stats.inodes += 1;
        self.stats.implicit += 1;
        self.space.count(BLOCK);
        let fd = fs::openat(self.current(), os(name), DIRECTORY, Mode::empty()).map_err(step(ENTER))?;
        // mkdir(2) applies the umask, chmod(2) does not.
        fs::fchmod(&fd, Mode::from_raw_mode(0o755)).map_err(step("chmod"))?;
        fs::fsetxattr(&fd, IMPLICIT_XATTR, b"y", XattrFlags::empty()).map_err(step("set attribute of"))?;
        Ok(fd)
    }

    fn file_type(&self, name: &[u8]) -> Step<FileType> {
        let stat = fs::statat(self.current(), os(name), AtFlags::SYMLINK_NOFOLLOW).map_err(step(ENTER))?;
        Ok(FileType::from_raw_mode(stat.st_mode))
    }

    /// Whether this name of the current folder is a whiteout of overlayfs: a character device 0:0.
    fn is_whiteout(&self, name: &[u8]) -> Step<bool> {
        let stat = fs::statat(self.current(), os(name), AtFlags::SYMLINK_NOFOLLOW).map_err(step("stat"))?;
        Ok(FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0)
    }

    /// Makes a folder hide its content in lower layers.
    fn make_opaque(&self, folder: BorrowedFd<'_>) -> Step<()> {
        fs::fsetxattr(folder, OPAQUE_XATTR, b"y", XattrFlags::empty()).map_err(step("set attribute of"))
    }

    /// Deletes a name of lower layers. What this layer itself has under that name stays, and a folder becomes opaque.
    fn whiteout(&mut self, name: &[u8]) -> Step<()> {
        match fs::mknodat(self.current(), os(name), FileType::CharacterDevice, Mode::empty(), 0) {
            Ok(()) => {
                self.stats.inodes += 1;
                Ok(())
            }
            Err(Errno::EXIST) => match fs::openat(self.current(), os(name), DIRECTORY, Mode::empty()) {
                Ok(folder) => self.make_opaque(folder.as_fd()),
                Err(_) => Ok(()),
            },
            Err(errno) => Err(("create whiteout", errno)),
        }
    }

    /// The target of a hard link: a folder, and the name in it. Its parents may be symlinks of this layer.
    fn link_target(&mut self, path: &EntryPath) -> Step<(OwnedFd, Vec<u8>)> {
        let Some((parents, name)) = path.split() else { return Err((RESOLVE, Errno::PERM)) };
        self.enter(parents, Missing::Fail).map_err(|(_, errno)| (RESOLVE, errno))?;
        let folder =
            self.current().try_clone_to_owned().map_err(|_| ("duplicate descriptor", Errno::MFILE))?;
        Ok((folder, name.to_vec()))
    }

    /// Sets the attributes of folders that were deferred.
    fn finish(mut self) -> Result<LayerStats, ApplyError> {
        // The hard links into it keep its files.
        remove_tree(self.root.as_fd(), AUFS_LINKS).map_err(|(action, source)| {
            let entry = String::from_utf8_lossy(AUFS_LINKS).into_owned();
            ApplyError::System { entry, action, source }
        })?;
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
                    // A later entry has replaced the folder.
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
    Create,
    Fail,
}

/// The action of opening a parent folder.
const ENTER: &str = "open parent of";
/// The action of finding and linking a hard link's target.
const RESOLVE: &str = "create hard link";
