//! The scratch root: a small tmpfs of ours that libcontainer gets as the container's root. It has nothing from an image
//! or a volume, because libcontainer works in it by path as root of the host (nodes and links in /dev, pivot_root).
//!
//! The container's root file system is one level below, at a name that libcontainer does not use. Init enters it after
//! libcontainer has done its part.
//!
//! ```text
//! /              tmpfs
//! ├── dev/       libcontainer's nodes and links
//! ├── root/      the container's root file system
//! ├── images/N   image volumes, in the worker only
//! ├── stage/N    volumes that receive mounts from the host, until init moves them to their place
//! ├── null       c 1:3, mounted on masked files
//! ├── seen/      with a user namespace: copies of the host's /proc and /sys
//! └── empty/     mounted on masked folders
//! ```

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, makedev, mkdirat, mknodat, openat, unlinkat};
use rustix::io::Errno;
use sys::mount::{self, Attributes, PropagationType};

use super::stage::{Step, internal};
use super::tree::{self, Kind, Root};

const STAGE: &str = "scratch root";
/// Size in bytes; it holds only nodes, links and mount points.
const SIZE: u64 = 1 << 20;

/// The scratch root, as the worker has created it, or as init has it after libcontainer's pivot_root.
#[derive(Debug)]
pub(super) struct Scratch {
    fd: OwnedFd,
    /// The empty folder for masks, if it is attached already.
    cover: Option<OwnedFd>,
}

impl Scratch {
    /// Creates a scratch root and attaches it at `at`. In the worker, in its own mount namespace.
    ///
    /// With `users`, the container has a user namespace: the kernel lets init mount a new proc and a new sysfs only if
    /// init's mount namespace has one that nothing hides (`mount_too_revealing`). They are gone once init leaves the
    /// scratch root.
    ///
    /// Masked paths show files of it, so they have the SELinux label of the container's files.
    pub(super) fn attach(at: &Path, users: bool, label: &str) -> Step<Self> {
        // No nodev: libcontainer opens the null device in it.
        let attributes = Attributes { nosuid: true, noexec: true, ..Attributes::default() };
        let fd = mount::labelled_tmpfs(0o755, SIZE, attributes, label).map_err(internal(STAGE, "tmpfs"))?;
        let fill = || -> io::Result<()> {
            for name in ["dev", "root", "stage", "empty"] {
                mkdirat(&fd, name, Mode::from_raw_mode(0o755))?;
            }
            mknodat(&fd, "null", FileType::CharacterDevice, Mode::from_raw_mode(0o666), makedev(1, 3))?;
            fs::create_dir_all(at)?;
            mount::attach_at(fd.as_fd(), at)?;
            for tree in ["proc", "sys"].into_iter().filter(|_| users) {
                let place = tree::make(fd.as_fd(), &format!("/seen/{tree}"), Kind::Directory)?;
                let host = mount::open_path(&Path::new("/").join(tree))?;
                mount::attach(mount::clone(host.as_fd(), false)?.as_fd(), place.as_fd())?;
            }
            Ok(())
        };
        fill().map_err(internal(STAGE, at.display()))?;
        Ok(Self { fd, cover: None })
    }

    /// The caller's root. In init, after libcontainer's pivot_root.
    pub(super) fn inherited() -> Step<Self> {
        let fd = mount::open_path(Path::new("/")).map_err(internal(STAGE, "/"))?;
        Ok(Self { fd, cover: None })
    }

    /// The path of the container's root file system, if the scratch root is attached at `at`.
    pub(super) fn root_below(at: &Path) -> PathBuf {
        at.join("root")
    }

    /// Opens (O_PATH) one of its own entries.
    pub(super) fn open(&self, name: &str) -> io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(openat(&self.fd, name, flags, Mode::empty())?)
    }

    /// Makes a copy of the container's root file system that is not locked, at its place. The kernel has locked all mounts
    /// when init got its mount namespace in a user namespace (mount_namespaces(7)), and a locked one cannot become the
    /// root. Those below it stay locked: the container cannot unmount a volume, or make a read-only one writable.
    pub(super) fn unlock_root(&self) -> Step<()> {
        mount::unlock(Path::new("/root")).map_err(internal("rootfs", "a copy that is not locked"))
    }

    /// The container's root file system.
    pub(super) fn root(&self) -> Step<Root> {
        let open = || -> io::Result<Root> {
            let root = Root::new(self.open("root")?)?;
            if mount::mount_id(root.as_fd())? == mount::mount_id(self.fd.as_fd())? {
                return Err(io::Error::other("no root file system is mounted"));
            }
            Ok(root)
        };
        open().map_err(internal("rootfs", "the container's root"))
    }

    /// Fails if something else was mounted at `at` since [`Self::attach`].
    pub(super) fn check(&self, at: &Path) -> Step<()> {
        let same = || -> io::Result<bool> {
            Ok(mount::identity(mount::open_path(at)?.as_fd())? == mount::identity(self.fd.as_fd())?)
        };
        match same() {
            Ok(true) => Ok(()),
            Ok(false) => {
                Err(internal(STAGE, at.display())(io::Error::other("something else is mounted there")))
            }
            Err(e) => Err(internal(STAGE, at.display())(e)),
        }
    }

    /// Creates the mount point of staged volume `index`. In the worker.
    pub(super) fn stage(&self, index: usize, kind: Kind) -> io::Result<OwnedFd> {
        let name = format!("stage/{index}");
        let unlink = |flags| match unlinkat(&self.fd, &name, flags) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(e),
        };
        // In a second attempt a volume's source may have changed from a folder to a file.
        unlink(AtFlags::empty()).or_else(|_| unlink(AtFlags::REMOVEDIR))?;
        tree::make(self.fd.as_fd(), &format!("/{name}"), kind)
    }

    /// Opens staged volume `index`, to move it to its target. In init.
    pub(super) fn staged(&self, index: usize) -> io::Result<OwnedFd> {
        self.open(&format!("stage/{index}"))
    }

    /// Reverts the effect of libcontainer's rootfsPropagation "shared" on mounts that must not be shared,
    /// each of which got its own peer group. Staged volumes are not changed.
    pub(super) fn unshare(&self, root: &Root) -> Step<()> {
        mount::set_propagation(self.fd.as_fd(), PropagationType::Private, false)
            // A mount that has a master on the host stays its slave; any other becomes private.
            .and_then(|()| mount::set_propagation(root.as_fd(), PropagationType::Slave, true))
            .map_err(internal("rootfs", "propagation"))
    }

    /// A mount that hides an object of this kind, not attached yet: the null device, or an empty read-only
    /// folder.
    pub(super) fn mask(&mut self, kind: Kind) -> io::Result<OwnedFd> {
        match (kind, &self.cover) {
            (Kind::File, _) => mount::clone(self.open("null")?.as_fd(), false),
            (Kind::Directory, Some(cover)) => mount::clone(cover.as_fd(), false),
            (Kind::Directory, None) => {
                let cover = mount::clone(self.open("empty")?.as_fd(), false)?;
                let all = Attributes { readonly: true, nosuid: true, nodev: true, noexec: true };
                mount::add_attributes(cover.as_fd(), all)?;
                self.cover = Some(cover.try_clone()?);
                Ok(cover)
            }
        }
    }

    /// Makes the container's root file system the caller's root and detaches the scratch root. In init, as
    /// the last use of the scratch root.
    pub(super) fn leave(self, root: BorrowedFd<'_>) -> Step<()> {
        mount::pivot_into(root).map_err(internal("rootfs", "pivot_root"))
    }
}
