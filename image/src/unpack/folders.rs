//! Gives folders without an entry in their layer the owner, mode, extended attributes and time of the layer
//! below.
//!
//! An archive may hold `tmp/x` without `tmp`. A tool that unpacks layers on top of each other finds `/tmp`
//! already there. Here layers are unpacked separately and shared between images, so such a folder is created
//! as root's with mode 0755, and overlayfs would show that instead of the lower layer's 1777. To correct
//! this, the image gets one more layer on top that consists of folders with the right attributes.
//!
//! Only a folder that two layers have can differ, so only those are walked, with one descriptor per level
//! however many layers there are. Each folder is opened from its layer's root in one step that follows no
//! symlink. Blocking.

use super::apply::LayerStats;
use super::tar::allowed_xattr;
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

/// Whether symlinks are followed is up to the `ResolveFlags` of each open.
const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
/// ext4's block size: the space of one folder.
const BLOCK: u64 = 4096;
/// Linux's XATTR_SIZE_MAX and XATTR_LIST_MAX.
const MAX_XATTR: usize = 64 << 10;

/// One layer of an image.
#[derive(Debug)]
pub(crate) struct Layer {
    /// The folder it was unpacked into.
    pub(crate) folder: PathBuf,
    /// Whether it may have folders without an entry.
    pub(crate) implicit: bool,
}

/// Fills `into`, an empty folder, with those folders of `layers` (topmost first) whose attributes must
/// differ. Returns the new layer's size, and a digest that differs if the content differs; `None` if no layer
/// is needed.
pub(crate) fn folders(layers: &[Layer], into: &Path) -> Result<Option<(Digest, LayerStats)>> {
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
        out: Vec::new(),
        stats: LayerStats { bytes: BLOCK, inodes: 1, implicit: 0 },
        hasher: Sha256::new_with_prefix(b"copepod folders 1\0"),
    };
    fs::fchown(&walk.root, Some(Uid::ROOT), Some(Gid::ROOT)).map_err(Error::storage("chown", into))?;
    fs::fchmod(&walk.root, Mode::from_raw_mode(0o755)).map_err(Error::storage("chmod", into))?;
    let all: Vec<_> =
        (0..layers.len()).map(|layer| Member { layer, via_symlink: false, implicit: false }).collect();
    walk.visit(&all)?;
    let found = walk.stats.inodes > 1;
    Ok(found.then(|| (Digest::finish(walk.hasher), walk.stats)))
}

/// One layer that has the current folder.
#[derive(Debug, Clone, Copy)]
struct Member {
    layer: usize,
    /// The path leads through symlinks of this layer. Such a member only supplies attributes: overlayfs does
    /// not merge it.
    via_symlink: bool,
    implicit: bool,
}

struct Walk<'a> {
    layers: &'a [Layer],
    roots: Vec<OwnedFd>,
    root: OwnedFd,
    into: &'a Path,
    /// Path of the current folder.
    path: Vec<Vec<u8>>,
    /// The created folders on that path, from the root down.
    out: Vec<OwnedFd>,
    stats: LayerStats,
    hasher: Sha256,
}

impl Walk<'_> {
    /// Visits the folder that `members` (topmost first) make up, and everything below it. The depth is
    /// limited to 257, like that of a layer's folders.
    fn visit(&mut self, members: &[Member]) -> Result<()> {
        // An implicit folder gets the attributes of the topmost explicit one below it. If there is none, it
        // is right already.
        let source = match members.first() {
            Some(first) if first.implicit => members.iter().find(|member| !member.implicit).unwrap_or(first),
            Some(first) => first,
            None => return Ok(()),
        };
        if members.first().is_some_and(|first| first.implicit) && !source.implicit {
            let found = self.open(source)?;
            if !self.is_plain(found.as_fd())? {
                self.make()?;
            }
        }
        for (at, member) in members.iter().enumerate() {
            // Nothing lies below the lowest member, so it has no attributes to take.
            if at + 1 < members.len() && self.layers[member.layer].implicit {
                self.children(members, member.layer)?;
            }
        }
        // Everything inside is complete, so mode, default ACL and time can be set now.
        if !self.path.is_empty() && self.out.len() == self.path.len() {
            let (from, Some(to)) = (self.open(source)?, self.out.pop()) else { return Ok(()) };
            self.copy(from.as_fd(), to.as_fd())?;
        }
        Ok(())
    }

    /// Visits the subfolders of `layer`, except those that a higher visited layer also has.
    fn children(&mut self, members: &[Member], layer: usize) -> Result<()> {
        let member = Member { layer, via_symlink: false, implicit: false };
        let dir = self.open(&member)?;
        let mut entries = Dir::new(dir).map_err(|errno| self.failed("list", errno))?;
        while let Some(entry) = entries.read() {
            let entry = entry.map_err(|errno| self.failed("list", errno))?;
            let name = entry.file_name().to_bytes();
            if name == b"."
                || name == b".."
                || !matches!(entry.file_type(), FileType::Directory | FileType::Unknown)
            {
                continue;
            }
            self.path.push(name.to_vec());
            let below = self.members(members)?;
            let walked = below.iter().position(|member| self.layers[member.layer].implicit);
            if walked.is_some_and(|at| below[at].layer == layer && at + 1 < below.len()) {
                self.visit(&below)?;
            }
            self.path.pop();
        }
        Ok(())
    }

    /// The parent's members that have the folder at `self.path`, as overlayfs merges them. Below them, a
    /// layer that has a symlink there may supply attributes: containerd uses those of the folder that the
    /// symlink leads to.
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
                // A file, a whiteout or a symlink hides everything below it.
                Err(Errno::NOTDIR | Errno::LOOP) => break,
                Err(errno) => return Err(self.failed("open", errno)),
            }
        }
        Ok(found)
    }

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

    fn has(&self, folder: BorrowedFd<'_>, name: &str) -> Result<bool> {
        match fs::fgetxattr(folder, name, &mut [0; 1][..]) {
            Ok(_) | Err(Errno::RANGE) => Ok(true),
            Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(false),
            Err(errno) => Err(self.failed("read attribute of", errno)),
        }
    }

    /// Whether its attributes are those of a folder without an entry.
    fn is_plain(&self, folder: BorrowedFd<'_>) -> Result<bool> {
        let stat = fs::fstat(folder).map_err(|errno| self.failed("stat", errno))?;
        Ok((stat.st_uid, stat.st_gid, stat.st_mode & 0o7777) == (0, 0, 0o755)
            && self.xattrs(folder)?.is_empty())
    }

    /// The extended attributes that an image may set, sorted.
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

    /// Creates the folder at `self.path` and its missing parents.
    fn make(&mut self) -> Result<()> {
        while let Some(name) = self.path.get(self.out.len()) {
            let parent = self.out.last().unwrap_or(&self.root);
            let name = OsStr::from_bytes(name);
            fs::mkdirat(parent, name, Mode::RWXU).map_err(|errno| self.failed("mkdir", errno))?;
            let made = fs::openat(parent, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty());
            self.out.push(made.map_err(|errno| self.failed("open", errno))?);
            self.stats.inodes += 1;
            self.stats.bytes += BLOCK;
        }
        Ok(())
    }

    fn copy(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<()> {
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
        // Each value is hashed with its length, so that different results cannot hash equally.
        let mut text = |bytes: &[u8]| {
            self.hasher.update((bytes.len() as u64).to_le_bytes());
            self.hasher.update(bytes);
        };
        text(&self.path.join(&b'/'));
        text(format!("{}:{}:{mode:o}:{}.{}", stat.st_uid, stat.st_gid, time.tv_sec, time.tv_nsec).as_bytes());
        for (name, value) in &xattrs {
            text(name);
            text(value);
        }
        Ok(())
    }

    fn failed(&self, action: &'static str, errno: Errno) -> Error {
        Error::storage(action, &self.into.join(OsStr::from_bytes(&self.path.join(&b'/'))))(errno)
    }
}
