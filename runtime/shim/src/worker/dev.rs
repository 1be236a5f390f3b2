//! The container's /dev: nodes, links, console.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Uid, chownat, fstat, makedev, mknodat, openat, symlinkat,
};
use rustix::io::Errno;
use sys::mount;
use sys::pty::Pty;
use wire::DeviceNode;

use super::stage::{Step, internal, invalid};
use super::tree::{self, Kind, Root};

/// The devices of every container (OCI runtime spec, default devices).
const STANDARD: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

const LINKS: [(&str, &str); 6] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
    ("core", "/proc/kcore"),
];

/// Fills a new, empty /dev, whose top folder is `dev`. `extra`: the plan's devices, which may lie outside /dev. They have
/// their owners on the host; `owner` (uid, gid) gets the standard ones. Not in a user namespace: no node can be created
/// there.
pub(super) fn populate(
    root: &Root,
    dev: BorrowedFd<'_>,
    extra: &[DeviceNode],
    owner: (u32, u32),
) -> Step<()> {
    // The umask must not change the modes of the nodes.
    let before = rustix::process::umask(Mode::empty());
    let done = nodes_and_links(root, dev, extra, owner);
    rustix::process::umask(before);
    done
}

fn nodes_and_links(root: &Root, dev: BorrowedFd<'_>, extra: &[DeviceNode], owner: (u32, u32)) -> Step<()> {
    let own = dev.try_clone_to_owned().and_then(Root::new).map_err(internal("dev", "/dev"))?;
    let standard = STANDARD.into_iter().filter(|(path, ..)| extra.iter().all(|d| d.path != *path));
    for (path, major, minor) in standard {
        let (uid, gid) = owner;
        let node = DeviceNode { path: path.to_owned(), kind: 'c', major, minor, mode: 0o666, uid, gid };
        make(root, &own, &node)?;
    }
    for node in extra {
        make(root, &own, node)?;
    }
    for (name, target) in LINKS {
        match symlinkat(target, dev, name) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(internal("dev", name)(e.into())),
        }
    }
    Ok(())
}

fn make(root: &Root, dev: &Root, node: &DeviceNode) -> Step<()> {
    let stage = format!("device {}", node.path);
    let kind = match node.kind {
        'c' => FileType::CharacterDevice,
        'b' => FileType::BlockDevice,
        'p' => FileType::Fifo,
        other => return Err(invalid(&stage, format!("unknown device type {other:?}, expected c, b or p"))),
    };
    let number = makedev(node.major, node.minor);
    let made = || -> io::Result<bool> {
        let (folder, name) = match node.path.strip_prefix("/dev") {
            Some(below) if below.starts_with('/') => dev.parent(below)?,
            _ => root.parent(&node.path)?,
        };
        match mknodat(&folder, name, kind, Mode::from_raw_mode(node.mode & 0o777), number) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(e.into()),
        }
        // Outside /dev the name may have existed in the image or a volume. Something else than the requested node must
        // not be changed.
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let there = openat(&folder, name, flags, Mode::empty())?;
        let stat = fstat(&there)?;
        if FileType::from_raw_mode(stat.st_mode) != kind || (kind != FileType::Fifo && stat.st_rdev != number)
        {
            return Ok(false);
        }
        let (uid, gid) = (Uid::from_raw(node.uid), Gid::from_raw(node.gid));
        chownat(&there, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?;
        Ok(true)
    };
    match made() {
        Ok(true) => Ok(()),
        Ok(false) => Err(invalid(&stage, "the image or a volume has something else at this path")),
        Err(e) => Err(internal(&stage, "mknod")(e)),
    }
}

/// A new terminal in the container's devpts: (master, slave). If /dev is a tmpfs of ours (`own_dev`), the slave is also
/// bound to /dev/console.
pub(super) fn console(root: &Root, own_dev: Option<OwnedFd>) -> Step<(OwnedFd, OwnedFd)> {
    let open = || -> io::Result<Pty> {
        let devpts = root.existing("/dev/pts")?.ok_or(io::ErrorKind::NotFound)?;
        sys::pty::open_in(devpts.as_fd())
    };
    let Pty { master, slave: peer } = open().map_err(internal("console", "/dev/pts/ptmx"))?;
    if let Some(dev) = own_dev {
        let bind = || -> io::Result<()> {
            let target = tree::make(dev.as_fd(), "/console", Kind::File)?;
            mount::attach(mount::clone(peer.as_fd(), false)?.as_fd(), target.as_fd())
        };
        bind().map_err(internal("console", "/dev/console"))?;
    }
    Ok((master, peer))
}
