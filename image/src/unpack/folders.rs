//! Gives folders that a layer has no entry for the owner, mode, attributes and time of the layer below.
//!
//! A tar may hold `tmp/x` without `tmp`. Whoever unpacks layers on top of each other finds `/tmp` already there.
//! Layers here are unpacked apart and shared between images, so that such a folder is root's with mode 0755, and
//! overlayfs would show that in place of the lower layer's 1777. The cure is one more layer on top of the image,
//! made of folders alone, which shows the attributes that count.
//!
//! Only folders that two layers have can differ, so only those are walked: one descriptor a level, however many
//! layers there are. Each is opened from its layer's root in one step that follows no symlink. Blocking.

use super::apply::Made;
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

/// How symlinks are met, each opening says by its `ResolveFlags`.
const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
/// ext4's block: what a folder takes.
const BLOCK: u64 = 4096;
/// Linux's XATTR_SIZE_MAX and XATTR_LIST_MAX.
const MAX_XATTR: usize = 64 << 10;

/// One layer of an image.
#[derive(Debug)]
pub(crate) struct Layer {
    /// Where it was unpacked.
    pub(crate) folder: PathBuf,
    /// It may have folders without an entry.
    pub(crate) implicit: bool,
}

/// Fills `into`, an empty folder, with the folders of `layers` (topmost first) that must look otherwise. What was
/// made, and a digest that differs where the result differs; `None` when nothing must be made.
pub(crate) fn folders(layers: &[Layer], into: &Path) -> Result<Option<(Digest, Made)>> {
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
        made: Made { bytes: BLOCK, inodes: 1, implicit: 0 },
        hasher: Sha256::new_with_prefix(b"copepod folders 1\0"),
    };
    fs::fchown(&walk.root, Some(Uid::ROOT), Some(Gid::ROOT)).map_err(Error::storage("chown", into))?;
    fs::fchmod(&walk.root, Mode::from_raw_mode(0o755)).map_err(Error::storage("chmod", into))?;
    let all: Vec<_> =
        (0..layers.len()).map(|layer| Member { layer, through: false, implicit: false }).collect();
    walk.visit(&all)?;
    let found = walk.made.inodes > 1;
    Ok(found.then(|| (Digest::finish(walk.hasher), walk.made)))
}

/// A layer's part of the folder that is looked at.
#[derive(Debug, Clone, Copy)]
struct Member {
    layer: usize,
    /// The path leads through symlinks of this layer. It only lends attributes then: overlayfs does not merge it.
    through: bool,
    implicit: bool,
}

struct Walk<'a> {
    layers: &'a [Layer],
    roots: Vec<OwnedFd>,
    root: OwnedFd,
    into: &'a Path,
    /// The folder that is looked at.
    path: Vec<Vec<u8>>,
    /// The folders on that path that were made, from the root without a gap.
    out: Vec<OwnedFd>,
    made: Made,
    hasher: Sha256,
}

impl Walk<'_> {
    /// Looks at the folder that `members` (topmost first) make together, and at all below it. Not deeper than a
    /// layer's folders are, 257.
    fn visit(&mut self, members: &[Member]) -> Result<()> {
        // An implicit folder shows what the topmost explicit one below says; without one it is as it should be.
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
            // The lowest has nothing below to take attributes from.
            if at + 1 < members.len() && self.layers[member.layer].implicit {
                self.children(members, member.layer)?;
            }
        }
        // All within is made: modes, default access lists and times do no harm any more.
        if !self.path.is_empty() && self.out.len() == self.path.len() {
            let (from, Some(to)) = (self.open(source)?, self.out.pop()) else { return Ok(()) };
            self.copy(from.as_fd(), to.as_fd())?;
        }
        Ok(())
    }

    /// Visits the folders that `layer` has here, unless a layer above it that is also walked has them too.
    fn children(&mut self, members: &[Member], layer: usize) -> Result<()> {
        let member = Member { layer, through: false, implicit: false };
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

    /// Which of the parent's members have the folder at `self.path`, as overlayfs merges it. One more may lend
    /// attributes: a layer that has a symlink there. containerd takes those of the folder that it leads to.
    fn members(&self, parents: &[Member]) -> Result<Vec<Member>> {
        let mut found: Vec<Member> = Vec::new();
        for parent in parents {
            let member = Member { implicit: false, ..*parent };
            let opened = match self.try_open(&member) {
                Err(Errno::LOOP) if !found.is_empty() => {
                    let through = Member { through: true, ..member };
                    self.try_open(&through).map(|fd| (through, fd))
                }
                other => other.map(|fd| (member, fd)),
            };
            match opened {
                Ok((member, fd)) => {
                    let implicit = self.has(fd.as_fd(), IMPLICIT_XATTR)?;
                    found.push(Member { implicit, ..member });
                    if member.through || self.has(fd.as_fd(), OPAQUE_XATTR)? {
                        break;
                    }
                }
                Err(Errno::NOENT) => {}
                // A file, a whiteout or a symlink hides all below.
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
        let how = if member.through {
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

    /// Whether it looks as a folder without an entry does.
    fn is_plain(&self, folder: BorrowedFd<'_>) -> Result<bool> {
        let stat = fs::fstat(folder).map_err(|errno| self.failed("stat", errno))?;
        Ok((stat.st_uid, stat.st_gid, stat.st_mode & 0o7777) == (0, 0, 0o755)
            && self.xattrs(folder)?.is_empty())
    }

    /// Those that an image may set, sorted.
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

    /// Makes the folder at `self.path` and those above it.
    fn make(&mut self) -> Result<()> {
        while let Some(name) = self.path.get(self.out.len()) {
            let parent = self.out.last().unwrap_or(&self.root);
            let name = OsStr::from_bytes(name);
            fs::mkdirat(parent, name, Mode::RWXU).map_err(|errno| self.failed("mkdir", errno))?;
            let made = fs::openat(parent, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty());
            self.out.push(made.map_err(|errno| self.failed("open", errno))?);
            self.made.inodes += 1;
            self.made.bytes += BLOCK;
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
        // Each text with its length, so that two results never read the same.
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
