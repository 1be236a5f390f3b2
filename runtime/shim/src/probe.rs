//! `copepod-shim probe-user-namespaces FOLDER`: whether the containers of this node can have a user namespace, with their
//! images' layers below FOLDER. The daemon runs it at its start. It does what a create does, with an empty image, and
//! leaves nothing: its mounts end with its mount namespace.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, fstat, mkdirat, openat};
use sys::clone::Flags;
use sys::mount::{self, Attributes, FsOption};
use sys::namespace::Namespaces;

use crate::podns::{self, LAYERS, WRITABLE};

/// The mapping that is tried. Which ids it has makes no difference: nothing is written outside a tmpfs.
const HOST: u32 = 100_000;
const LENGTH: u32 = 65_536;
/// A file in the lower folder.
const SAMPLE: &str = "sample";
/// Size of each tmpfs in bytes.
const SIZE: u64 = 1 << 20;

/// What does not work, and why.
type Reason = String;

fn because(what: impl std::fmt::Display) -> impl FnOnce(io::Error) -> Reason {
    let what = what.to_string();
    move |error| format!("{what}: {error}")
}

/// Prints why containers cannot have a user namespace; nothing if they can.
pub(crate) fn run(folder: &Path) -> io::Result<()> {
    match works(folder) {
        Ok(()) => Ok(()),
        Err(reason) => io::stdout().write_all(reason.as_bytes()),
    }
}

fn works(folder: &Path) -> Result<(), Reason> {
    let at = folder.display();
    let source = mount::open_path(folder).map_err(because(&at))?;
    let store = mount::clone(source.as_fd(), false).map_err(because(&at))?;
    let users = namespace().map_err(because(
        "this host does not allow a user namespace (is the sysctl user.max_user_namespaces 0?)",
    ))?;
    let users = users.get("user").ok_or("the kernel has made no user namespace")?;
    mount::idmap(store.as_fd(), users).map_err(because(format_args!(
        "the file system of {at} cannot be id-mapped; put images and containers on one that can (ext4, xfs, btrfs)"
    )))?;
    podns::enter().map_err(because("mount namespace"))?;
    let lower = lower(users).map_err(because(
        "tmpfs, which has secrets and tokens of service accounts, cannot be id-mapped (Linux 6.3 can do that)",
    ))?;
    overlay(lower.as_fd()).map_err(because("overlayfs does not accept id-mapped layers (Linux 5.19 does)"))
}

/// Creates a user namespace. The process that was created with it has ended when this returns.
fn namespace() -> io::Result<Namespaces> {
    let (wait, go) = sys::scm::pipe()?;
    let mut go = Some(go);
    let child = sys::clone::clone3_pidfd(Flags::NEWUSER, None, || {
        drop(go.take());
        // Until the other end is closed.
        i32::from(rustix::io::read(&wait, &mut [0u8]).is_err())
    })?;
    let made =
        sys::userns::write_mapping(child.pid, HOST, HOST, LENGTH).and_then(|()| Namespaces::of(child.pid));
    drop(go);
    rustix::process::waitid(
        rustix::process::WaitId::PidFd(child.pidfd.as_fd()),
        rustix::process::WaitIdOptions::EXITED,
    )?;
    made
}

/// An id-mapped tmpfs with one file.
fn lower(users: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let lower = mount::tmpfs(0o755, SIZE, Attributes::default())?;
    create(&lower, SAMPLE)?;
    mount::idmap(lower.as_fd(), users)?;
    Ok(lower)
}

fn create(folder: &OwnedFd, name: &str) -> io::Result<OwnedFd> {
    Ok(openat(folder, name, OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC, Mode::from_raw_mode(0o644))?)
}

/// Mounts an overlay on this folder: its file must belong to the mapped root, and the overlay must be writable.
fn overlay(lower: BorrowedFd<'_>) -> io::Result<()> {
    let writable = mount::tmpfs(0o755, SIZE, Attributes::default())?;
    for name in ["upper", "work"] {
        mkdirat(&writable, name, Mode::from_raw_mode(0o755))?;
    }
    mount::attach_at(lower, Path::new(LAYERS))?;
    mount::attach_at(writable.as_fd(), Path::new(WRITABLE))?;
    let (upper, work) = (format!("{WRITABLE}/upper"), format!("{WRITABLE}/work"));
    let options = [
        FsOption::Value("source", "overlay"),
        FsOption::Value("lowerdir", LAYERS),
        FsOption::Value("upperdir", &upper),
        FsOption::Value("workdir", &work),
    ];
    let overlay = mount::create("overlay", &options, Attributes::default())?;
    let sample = openat(&overlay, SAMPLE, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let owner = fstat(File::from(sample))?.st_uid;
    if owner != HOST {
        return Err(io::Error::other(format!("a file of its layers belongs to {owner} instead of {HOST}")));
    }
    create(&overlay, "new")?;
    Ok(())
}
