//! Paths in the container's root file system. Image and volumes are untrusted, so each path is resolved with that root
//! as `/`. The owner of a volume may change it at any time, so a path is resolved only once: mounts, new files and
//! masks use the descriptor that results.

mod create;

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use sys::beneath::resolve;
use sys::mount::{self, Identity, open_in_root};

pub(crate) use create::make;
use create::make_plain;

/// The kind of a mount's target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A directory.
    Directory,
    /// Anything else.
    File,
}

/// The kind of an object: a folder or not.
///
/// # Errors
/// The errors of fstat(2).
pub(crate) fn kind(file: BorrowedFd<'_>) -> io::Result<Kind> {
    Ok(if file_type(file)? == FileType::Directory { Kind::Directory } else { Kind::File })
}

fn file_type(file: BorrowedFd<'_>) -> io::Result<FileType> {
    Ok(FileType::from_raw_mode(rustix::fs::fstat(file)?.st_mode))
}

/// Whether symlinks are followed on the path of a mount point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Links {
    /// They are followed within the root; a missing target is created.
    Follow,
    /// They are refused: for file systems that confine the container, such as /proc.
    Refuse,
}

/// A container's root file system.
#[derive(Debug)]
pub(crate) struct Root {
    fd: OwnedFd,
    identity: Identity,
}

impl Root {
    /// Takes a descriptor (O_PATH) of its top folder.
    ///
    /// # Errors
    /// The errors of statx(2).
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        let identity = mount::identity(fd.as_fd())?;
        Ok(Self { fd, identity })
    }

    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Whether this is the top folder itself.
    ///
    /// # Errors
    /// The errors of statx(2).
    pub(crate) fn is(&self, file: BorrowedFd<'_>) -> io::Result<bool> {
        Ok(mount::identity(file)? == self.identity)
    }

    /// Opens (O_PATH) the target of a mount; creates missing parts.
    ///
    /// # Errors
    /// InvalidInput if it is the root itself, or behind a symlink that must not be followed; as for [`make`].
    pub(crate) fn mount_point(&self, path: &str, kind: Kind, links: Links) -> io::Result<OwnedFd> {
        let found = match links {
            Links::Follow => make(self.as_fd(), path, kind)?,
            Links::Refuse => make_plain(self.as_fd(), path)?,
        };
        // A mount on the root would hide everything, and all later paths would be resolved in that mount.
        if self.is(found.as_fd())? {
            return Err(refused(format!(
                "{path} leads to the container's root, which cannot be mounted over"
            )));
        }
        Ok(found)
    }

    /// Opens a folder (O_PATH); creates missing parts. It may be the root.
    ///
    /// # Errors
    /// As for [`make`].
    pub(crate) fn folder(&self, path: &str) -> io::Result<OwnedFd> {
        make(self.as_fd(), path, Kind::Directory)
    }

    /// Opens an existing path (O_PATH); `None` if it does not exist.
    ///
    /// # Errors
    /// The errors of openat2(2).
    pub(crate) fn existing(&self, path: &str) -> io::Result<Option<OwnedFd>> {
        present(open(self.as_fd(), path, OFlags::empty()))
    }

    /// The parent folder of `path`, and the last name; the folder is created if missing.
    ///
    /// # Errors
    /// As for [`make`]; InvalidInput for `/`.
    pub(crate) fn parent<'p>(&self, path: &'p str) -> io::Result<(OwnedFd, &'p OsStr)> {
        let path = Path::new(path);
        let (Some(folder), Some(name)) = (path.parent().and_then(Path::to_str), path.file_name()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        Ok((self.folder(folder)?, name))
    }
}

/// `None` if it does not exist.
fn present(found: io::Result<OwnedFd>) -> io::Result<Option<OwnedFd>> {
    match found {
        Ok(fd) => Ok(Some(fd)),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Opens (O_PATH) the relative `path` in one of our file systems; symlinks must not lead out of it. `None` if
/// it does not exist.
///
/// # Errors
/// The errors of openat2(2); EXDEV for a symlink that leads out.
pub(crate) fn beneath(top: BorrowedFd<'_>, path: &str) -> io::Result<Option<OwnedFd>> {
    if path.is_empty() {
        return Ok(Some(top.try_clone_to_owned()?));
    }
    let how = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    present(resolve(top, path, OFlags::PATH, Mode::empty(), how).map_err(Into::into))
}

fn refused(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, message)
}

/// Opens an existing path (O_PATH).
fn open(root: BorrowedFd<'_>, path: &str, flags: OFlags) -> io::Result<OwnedFd> {
    open_in_root(root, Path::new(path), OFlags::PATH | flags, 0)
}

/// Whether `path` is `top` or below it.
pub(crate) fn is_at_or_below(path: &str, top: &str) -> bool {
    Path::new(path).starts_with(top)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn root(dir: &tempfile::TempDir) -> Root {
        Root::new(mount::open_path(dir.path()).unwrap()).unwrap()
    }

    #[test]
    fn nothing_leads_out_of_the_root() {
        let outside = tempfile::tempdir().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let root = root(&dir);
        symlink(outside.path(), dir.path().join("abs")).unwrap();
        symlink("../../../../..", dir.path().join("up")).unwrap();
        root.folder("/up/a/b").unwrap();
        assert!(dir.path().join("a/b").is_dir());
        root.mount_point("/x/y/file", Kind::File, Links::Follow).unwrap();
        assert!(dir.path().join("x/y/file").is_file());
        // An absolute symlink is relative to the root: its target is created there.
        root.folder("/abs/inside").unwrap();
        let inside = dir.path().join(outside.path().strip_prefix("/").unwrap());
        assert!(inside.join("inside").is_dir());
        assert!(root.folder("/a/../b").is_err());
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
    }

    #[test]
    fn targets_of_dangling_links_are_created() {
        let dir = tempfile::tempdir().unwrap();
        let root = root(&dir);
        let at = |name: &str| dir.path().join(name);
        for folder in ["etc", "var", "run/deep"] {
            std::fs::create_dir_all(at(folder)).unwrap();
        }
        symlink("../srv/systemd/stub", at("etc/resolv.conf")).unwrap();
        symlink("/srv/run", at("var/run")).unwrap();
        symlink("../../../../one/two/../three", at("run/deep/chain")).unwrap();
        symlink("loop", at("loop")).unwrap();
        root.mount_point("/etc/resolv.conf", Kind::File, Links::Follow).unwrap();
        assert!(at("srv/systemd/stub").is_file());
        root.mount_point("/var/run/secrets/x", Kind::Directory, Links::Follow).unwrap();
        assert!(at("srv/run/secrets/x").is_dir());
        root.folder("/run/deep/chain/four").unwrap();
        assert!(at("one/three/four").is_dir());
        for path in ["/loop", "/loop/x"] {
            assert!(root.folder(path).is_err(), "{path}");
        }
        std::fs::write(at("file"), "").unwrap();
        symlink("file", at("to-file")).unwrap();
        assert!(root.folder("/to-file/x").is_err());
    }

    #[test]
    fn the_root_is_never_a_mount_point_and_own_folders_are_no_links() {
        let dir = tempfile::tempdir().unwrap();
        // This root is an ordinary folder, not the root of a mount as in a container, so its inode identifies it.
        let root = root(&dir);
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir(at("bin")).unwrap();
        for (name, target) in
            [("slash", "/"), ("dot", "."), ("up", "bin/.."), ("far", "../../.."), ("twice", "slash")]
        {
            symlink(target, at(name)).unwrap();
            for kind in [Kind::Directory, Kind::File] {
                let path = format!("/{name}");
                assert!(root.mount_point(&path, kind, Links::Follow).is_err(), "{name}");
                assert!(root.mount_point(&path, kind, Links::Refuse).is_err(), "{name}");
            }
        }
        symlink("bin", at("proc")).unwrap();
        std::fs::write(at("sys"), "").unwrap();
        for path in ["/proc", "/sys", "/proc/x"] {
            assert!(root.mount_point(path, Kind::Directory, Links::Refuse).is_err(), "{path}");
        }
        root.mount_point("/dev/pts", Kind::Directory, Links::Refuse).unwrap();
        assert!(at("dev/pts").is_dir() && !at("bin/x").exists());
    }

    #[test]
    fn a_file_system_of_ours_is_not_left() {
        let dir = tempfile::tempdir().unwrap();
        let top = mount::open_path(dir.path()).unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir(at("a")).unwrap();
        symlink("a", at("inside")).unwrap();
        symlink("/etc", at("outside")).unwrap();
        assert!(beneath(top.as_fd(), "inside").unwrap().is_some());
        assert!(beneath(top.as_fd(), "").unwrap().is_some());
        assert!(beneath(top.as_fd(), "absent/x").unwrap().is_none());
        assert!(beneath(top.as_fd(), "outside").is_err());
    }

    #[test]
    fn prefixes_are_of_whole_names() {
        assert!(is_at_or_below("/dev", "/dev") && is_at_or_below("/dev/x", "/dev"));
        assert!(!is_at_or_below("/devices", "/dev"));
    }
}
