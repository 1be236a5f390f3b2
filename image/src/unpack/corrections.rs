//! Gives implicit folders the owner, mode, extended attributes and time that the same folder has in lower layers.
//!
//! An archive may have an entry `tmp/x` and none for `tmp`. A snapshotter that unpacks each layer on top of the ones
//! below finds `/tmp` there. This store unpacks layers separately and shares them between images: it creates `tmp` with
//! owner root and mode 0755, and overlayfs would show these instead of 1777 of a lower layer. So the image gets an
//! additional layer on top, which consists of folders with the right attributes.
//!
//! Only folders that at least two layers have are walked, because no other can be wrong. A walk keeps two descriptors
//! open for each level, however many layers there are. Each folder is opened from its layer's root by one system call
//! that follows no symlink, or none that leaves the layer (`Member::via_symlink`). Blocks.

use super::apply::LayerStats;
use super::pax::allowed_xattr;
use super::whiteout::{IMPLICIT_XATTR, OPAQUE_XATTR};
use crate::error::{Error, Result};
use crate::reference::Digest;
use rustix::buffer::spare_capacity;
use rustix::fs::{self, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Uid, XattrFlags};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Without NOFOLLOW: the `ResolveFlags` of each open decide whether symlinks are followed.
const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
/// Disk space of a folder, in bytes: a block of ext4.
const BLOCK: u64 = 4096;
/// Linux's XATTR_SIZE_MAX and XATTR_LIST_MAX.
const MAX_XATTR: usize = 64 << 10;

/// One layer of an image.
#[derive(Debug)]
pub(crate) struct Layer {
    /// The folder it was unpacked into.
    pub(crate) folder: PathBuf,
    /// Whether it may have implicit folders.
    pub(crate) implicit: bool,
}

/// Creates in `into`, an empty folder, the folders that correct the attributes of `layers` (topmost first). Returns the
/// id and size of this layer; the id is a digest of its content, and takes the place of a diff id. `None` if the
/// attributes are right without it.
pub(crate) fn corrections(layers: &[Layer], into: &Path) -> Result<Option<(Digest, LayerStats)>> {
    let Some(topmost) = layers.iter().position(|layer| layer.implicit) else { return Ok(None) };
    if topmost + 1 == layers.len() {
        return Ok(None);
    }
    let open = |path: &Path| {
        fs::open(path, DIRECTORY | OFlags::NOFOLLOW, Mode::empty()).map_err(Error::storage("open", path))
    };
    let mut walk = Walk {
        layers,
        roots: layers.iter().map(|layer| open(&layer.folder)).collect::<Result<_>>()?,
        root: open(into)?,
        into,
        path: Vec::new(),
        created: Vec::new(),
        stats: LayerStats { bytes: BLOCK, inodes: 1, implicit: 0 },
        hasher: Sha256::new_with_prefix(b"copepod folders 1\0"),
    };
    fs::fchown(&walk.root, Some(Uid::ROOT), Some(Gid::ROOT)).map_err(Error::storage("chown", into))?;
    fs::fchmod(&walk.root, Mode::from_raw_mode(0o755)).map_err(Error::storage("chmod", into))?;
    let members: Vec<_> =
        (0..layers.len()).map(|layer| Member { layer, via_symlink: false, implicit: false }).collect();
    walk.run(members)?;
    let needed = walk.stats.inodes > 1;
    Ok(needed.then(|| (Digest::finish(walk.hasher), walk.stats)))
}

/// The current folder in one layer.
#[derive(Debug, Clone, Copy)]
struct Member {
    /// Index of the layer.
    layer: usize,
    /// The path leads through symlinks of this layer. overlayfs does not merge such a folder, but its attributes are
    /// the right ones for implicit folders above it.
    via_symlink: bool,
    implicit: bool,
}

/// A folder that is being visited.
struct Level {
    /// The layers that have it, topmost first. Never empty.
    members: Vec<Member>,
    /// Where its attributes come from.
    source: Member,
    /// Layers in which it is still to be listed, to find the folders in it; the last one is listed first.
    unread: Vec<usize>,
    /// The entries that are left of the layer that is being listed.
    entries: Option<Dir>,
}

/// The walk through the folders of all layers.
struct Walk<'a> {
    layers: &'a [Layer],
    /// The layers' root folders.
    roots: Vec<OwnedFd>,
    /// The new layer's root folder, and its path.
    root: OwnedFd,
    into: &'a Path,
    /// Path of the current folder.
    path: Vec<Vec<u8>>,
    /// The folders of the new layer on that path, from the outermost on: as many as were created so far.
    created: Vec<OwnedFd>,
    stats: LayerStats,
    hasher: Sha256,
}

impl Walk<'_> {
    /// Visits the folder that `members` (topmost first) make up, and the folders in it. Images decide on the depth, up to
    /// 256 levels, so it does not recurse.
    fn run(&mut self, members: Vec<Member>) -> Result<()> {
        let mut levels = vec![self.enter(members)?];
        while let Some(level) = levels.last_mut() {
            match self.next_folder(level)? {
                Some(members) => levels.push(self.enter(members)?),
                None => {
                    self.leave(level.source)?;
                    levels.pop();
                    self.path.pop();
                }
            }
        }
        Ok(())
    }

    /// Begins the visit of the current folder, which these members make up.
    fn enter(&mut self, members: Vec<Member>) -> Result<Level> {
        // An implicit folder gets the attributes of the topmost explicit member. Without one, it is right already.
        let topmost = members[0];
        let explicit = members.iter().find(|member| !member.implicit);
        let source = explicit.copied().unwrap_or(topmost);
        if topmost.implicit && !source.implicit {
            let found = self.open(&source)?;
            if !self.is_default(found.as_fd())? {
                self.create()?;
            }
        }
        // The last member is not listed: no layer below it shows anything in this folder, so a folder that this member has
        // here has nothing to be corrected by.
        let above = &members[..members.len() - 1];
        let implicit = above.iter().map(|member| member.layer).filter(|layer| self.layers[*layer].implicit);
        let unread = implicit.rev().collect();
        Ok(Level { members, source, unread, entries: None })
    }

    /// Finds the next folder to visit in the current one. It becomes the current folder; its members are returned. `None`
    /// if there is no more.
    fn next_folder(&mut self, level: &mut Level) -> Result<Option<Vec<Member>>> {
        while let Some(layer) = level.unread.last().copied() {
            let entries = match &mut level.entries {
                Some(entries) => entries,
                None => level.entries.insert(self.list(layer)?),
            };
            let Some(entry) = entries.read() else {
                level.entries = None;
                level.unread.pop();
                continue;
            };
            let entry = entry.map_err(|errno| self.failed("list", errno))?;
            let name = entry.file_name().to_bytes();
            let may_be_folder = matches!(entry.file_type(), FileType::Directory | FileType::Unknown);
            if name == b"." || name == b".." || !may_be_folder {
                continue;
            }
            self.path.push(name.to_vec());
            let members = self.members(&level.members)?;
            // A folder that several of the layers have is visited once, when the first of them is read.
            let first = members.iter().position(|member| self.layers[member.layer].implicit);
            if first.is_some_and(|at| members[at].layer == layer && at + 1 < members.len()) {
                return Ok(Some(members));
            }
            self.path.pop();
        }
        Ok(None)
    }

    /// Ends the visit of the current folder: its content is complete, so mode, default ACL and time can be set.
    fn leave(&mut self, source: Member) -> Result<()> {
        if !self.path.is_empty() && self.created.len() == self.path.len() {
            let (from, Some(to)) = (self.open(&source)?, self.created.pop()) else { return Ok(()) };
            self.copy_attributes(from.as_fd(), to.as_fd())?;
        }
        Ok(())
    }

    /// Lists the current folder in a layer.
    fn list(&self, layer: usize) -> Result<Dir> {
        let folder = self.open(&Member { layer, via_symlink: false, implicit: false })?;
        Dir::new(folder).map_err(|errno| self.failed("list", errno))
    }

    /// Those of the parent's members that have the folder at `self.path` and that overlayfs merges. If the next layer
    /// has a symlink there, the folder that it leads to is the last member, because containerd uses its attributes.
    fn members(&self, parents: &[Member]) -> Result<Vec<Member>> {
        let mut found: Vec<Member> = Vec::new();
        for parent in parents {
            let member = Member { implicit: false, ..*parent };
            let opened = match self.try_open(&member) {
                Err(Errno::LOOP) if !found.is_empty() => {
                    let via_symlink = Member { via_symlink: true, ..member };
                    self.try_open(&via_symlink).map(|fd| (via_symlink, fd))
                }
                other => other.map(|fd| (member, fd)),
            };
            match opened {
                Ok((member, fd)) => {
                    let implicit = self.has(fd.as_fd(), IMPLICIT_XATTR)?;
                    found.push(Member { implicit, ..member });
                    if member.via_symlink || self.has(fd.as_fd(), OPAQUE_XATTR)? {
                        break;
                    }
                }
                Err(Errno::NOENT) => {}
                // A file, a whiteout or a symlink hides what lower layers have.
                Err(Errno::NOTDIR | Errno::LOOP) => break,
                Err(errno) => return Err(self.failed("open", errno)),
            }
        }
        Ok(found)
    }

    /// Opens the current folder in a layer.
    fn open(&self, member: &Member) -> Result<OwnedFd> {
        self.try_open(member).map_err(|errno| self.failed("open", errno))
    }

    fn try_open(&self, member: &Member) -> rustix::io::Result<OwnedFd> {
        let how = if member.via_symlink {
            ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS
        } else {
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS
        };
        let path = self.path.join(&b'/');
        let path = if path.is_empty() { b".".to_vec() } else { path };
        let root = self.roots[member.layer].as_fd();
        sys::beneath::resolve(root, OsStr::from_bytes(&path), DIRECTORY, Mode::empty(), how)
    }

    /// Whether a folder has an extended attribute.
    fn has(&self, folder: BorrowedFd<'_>, name: &str) -> Result<bool> {
        match fs::fgetxattr(folder, name, &mut [0; 1][..]) {
            Ok(_) | Err(Errno::RANGE) => Ok(true),
            Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(false),
            Err(errno) => Err(self.failed("read attribute of", errno)),
        }
    }

    /// Whether a folder's attributes are those with which implicit folders are created.
    fn is_default(&self, folder: BorrowedFd<'_>) -> Result<bool> {
        let stat = fs::fstat(folder).map_err(|errno| self.failed("stat", errno))?;
        Ok((stat.st_uid, stat.st_gid, stat.st_mode & 0o7777) == (0, 0, 0o755)
            && self.xattrs(folder)?.is_empty())
    }

    /// The extended attributes that an image may set: names and values, sorted.
    fn xattrs(&self, folder: BorrowedFd<'_>) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let mut names = Vec::with_capacity(MAX_XATTR);
        match fs::flistxattr(folder, spare_capacity(&mut names)) {
            Ok(_) => {}
            Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
            Err(errno) => return Err(self.failed("list attributes of", errno)),
        }
        let mut found = Vec::new();
        for name in names.split(|b| *b == 0).filter(|name| allowed_xattr(name)) {
            let mut value = Vec::with_capacity(MAX_XATTR);
            fs::fgetxattr(folder, OsStr::from_bytes(name), spare_capacity(&mut value))
                .map_err(|errno| self.failed("read attribute of", errno))?;
            found.push((name.to_vec(), value));
        }
        found.sort();
        Ok(found)
    }

    /// Creates the current folder and its parents in the new layer, unless they exist.
    fn create(&mut self) -> Result<()> {
        while let Some(name) = self.path.get(self.created.len()) {
            let parent = self.created.last().unwrap_or(&self.root);
            let name = OsStr::from_bytes(name);
            fs::mkdirat(parent, name, Mode::RWXU).map_err(|errno| self.failed("mkdir", errno))?;
            let made = fs::openat(parent, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty());
            self.created.push(made.map_err(|errno| self.failed("open", errno))?);
            self.stats.inodes += 1;
            self.stats.bytes += BLOCK;
        }
        Ok(())
    }

    /// Copies a folder's attributes, and adds them to the new layer's digest.
    fn copy_attributes(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<()> {
        let failed = |action| move |errno| (action, errno);
        let stat = fs::fstat(from).map_err(|errno| self.failed("stat", errno))?;
        let xattrs = self.xattrs(from)?;
        let mode = stat.st_mode & 0o7777;
        let time =
            fs::Timespec { tv_sec: stat.st_mtime, tv_nsec: i64::try_from(stat.st_mtime_nsec).unwrap_or(0) };
        let times = fs::Timestamps { last_access: time, last_modification: time };
        let done = (|| {
            fs::fchown(to, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))
                .map_err(failed("chown"))?;
            for (name, value) in &xattrs {
                fs::fsetxattr(to, OsStr::from_bytes(name), value, XattrFlags::empty())
                    .map_err(failed("set attribute of"))?;
            }
            fs::fchmod(to, Mode::from_raw_mode(mode)).map_err(failed("chmod"))?;
            fs::futimens(to, &times).map_err(failed("set time of"))
        })();
        done.map_err(|(action, errno)| self.failed(action, errno))?;
        // Each value is hashed with its length, so that no two lists of values have the same digest.
        let mut hash = |bytes: &[u8]| {
            self.hasher.update((bytes.len() as u64).to_le_bytes());
            self.hasher.update(bytes);
        };
        hash(&self.path.join(&b'/'));
        hash(format!("{}:{}:{mode:o}:{}.{}", stat.st_uid, stat.st_gid, time.tv_sec, time.tv_nsec).as_bytes());
        for (name, value) in &xattrs {
            hash(name);
            hash(value);
        }
        Ok(())
    }

    /// The error of a system call for the current folder.
    fn failed(&self, action: &'static str, errno: Errno) -> Error {
        Error::storage(action, &self.into.join(OsStr::from_bytes(&self.path.join(&b'/'))))(errno)
    }
}
