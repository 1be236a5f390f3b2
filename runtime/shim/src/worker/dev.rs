//! The container's /dev: nodes, links, console.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid, chmodat, chownat, makedev, mknodat, symlinkat};
use rustix::pty::{ioctl_tiocgptpeer, unlockpt};
use sys::mount;
use wire::DeviceNode;

use super::stage::{Step, internal, invalid};
use super::tree::{self, Kind};

/// What every container has (OCI runtime spec, default devices).
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

/// Fills a new, empty /dev.
pub(super) fn populate(root: BorrowedFd<'_>, extra: &[DeviceNode]) -> Step<()> {
    // Modes are given exactly.
    let before = rustix::process::umask(Mode::empty());
    let done = nodes_and_links(root, extra);
    rustix::process::umask(before);
    done
}

fn nodes_and_links(root: BorrowedFd<'_>, extra: &[DeviceNode]) -> Step<()> {
    let standard = STANDARD.into_iter().filter(|(path, ..)| extra.iter().all(|d| d.path != *path));
    for (path, major, minor) in standard {
        let node = DeviceNode { path: path.to_owned(), kind: 'c', major, minor, mode: 0o666, uid: 0, gid: 0 };
        make(root, &node)?;
    }
    for node in extra {
        make(root, node)?;
    }
    let dev = tree::make(root, "/dev", Kind::Directory).map_err(internal("dev", "/dev"))?;
    for (name, target) in LINKS {
        match symlinkat(target, &dev, name) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(e) => return Err(internal("dev", name)(e.into())),
        }
    }
    Ok(())
}

fn make(root: BorrowedFd<'_>, node: &DeviceNode) -> Step<()> {
    let stage = format!("device {}", node.path);
    let kind = match node.kind {
        'c' => FileType::CharacterDevice,
        'b' => FileType::BlockDevice,
        'p' => FileType::Fifo,
        other => return Err(invalid(&stage, format!("{other:?} is no kind of device"))),
    };
    let made = || -> io::Result<()> {
        let (folder, name) = tree::parent(root, &node.path)?;
        let mode = Mode::from_raw_mode(node.mode & 0o7777);
        mknodat(&folder, name, kind, mode, makedev(node.major, node.minor))?;
        let (uid, gid) = (Uid::from_raw(node.uid), Gid::from_raw(node.gid));
        chownat(&folder, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        // After chown, which clears set-id bits. Nobody else can have put a symlink there yet.
        Ok(chmodat(&folder, name, mode, AtFlags::empty())?)
    };
    made().map_err(internal(&stage, "mknod"))
}

/// A new terminal in the container's devpts: (master, the container's side). The latter is also bound to
/// /dev/console where /dev is the container's own.
pub(super) fn console(root: BorrowedFd<'_>, own_dev: bool) -> Step<(OwnedFd, OwnedFd)> {
    let open = || -> io::Result<(OwnedFd, OwnedFd)> {
        let flags = OFlags::RDWR | OFlags::NOCTTY;
        let master = mount::open_in_root(root, std::path::Path::new("/dev/pts/ptmx"), flags, 0)?;
        unlockpt(&master)?;
        let peer = ioctl_tiocgptpeer(
            &master,
            rustix::pty::OpenptFlags::RDWR
                | rustix::pty::OpenptFlags::NOCTTY
                | rustix::pty::OpenptFlags::CLOEXEC,
        )?;
        Ok((master, peer))
    };
    let (master, peer) = open().map_err(internal("console", "/dev/pts/ptmx"))?;
    if own_dev {
        let target =
            tree::make(root, "/dev/console", Kind::File).map_err(internal("console", "/dev/console"))?;
        let tree = mount::clone(peer.as_fd(), false).map_err(internal("console", "/dev/console"))?;
        mount::attach(tree.as_fd(), target.as_fd()).map_err(internal("console", "/dev/console"))?;
    }
    Ok((master, peer))
}
