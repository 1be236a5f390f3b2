//! The pod's mount namespace: small, independent of the host's mounts, private, and removed with the shim.
//!
//! ```text
//! /              tmpfs
//! ├── proc sys dev     the host's
//! └── run
//!     ├── containers/  libcontainer's state, one folder a container (notify.sock)
//!     ├── bundles/     <id>/config.json, <id>/rootfs
//!     ├── shm          the pod's /dev/shm
//!     ├── l  rw        where workers attach layers and the writable folder, each in its own copy
//!     └── empty        the layer of an image without layers
//! ```

use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;

use sys::mount::{self, Attributes, PropagationType};

/// libcontainer's root folder.
pub(crate) const STATE: &str = "/run/containers";
/// Bundles.
pub(crate) const BUNDLES: &str = "/run/bundles";
/// The pod's /dev/shm.
pub(crate) const SHM: &str = "/run/shm";
/// Layers, in a worker.
pub(crate) const LAYERS: &str = "/run/l";
/// Upper and work, in a worker.
pub(crate) const WRITABLE: &str = "/run/rw";
/// An empty folder.
pub(crate) const EMPTY: &str = "/run/empty";

/// Size limit of state and bundles of a pod in bytes: some KiB per container.
const SIZE: u64 = 16 << 20;
/// The new root is mounted here until pivot_root: every host has this folder.
const TEMPORARY: &str = "/proc";

/// Moves from the host's mount namespace to the pod's. Called once at the shim's start, with one thread. The
/// working directory becomes `/`.
///
/// # Errors
/// The errors of the mount calls.
pub(crate) fn enter() -> io::Result<()> {
    sys::namespace::unshare_mount()?;
    // Slave, not private, so that what the host unmounts until the old root is detached is unmounted here too.
    mount::change(Path::new("/"), PropagationType::Slave, true)?;
    let root = mount::tmpfs(0o755, SIZE, Attributes { nosuid: true, nodev: true, ..Attributes::default() })?;
    let host = |path: &str, recursive| mount::clone(mount::open_path(Path::new(path))?.as_fd(), recursive);
    let trees =
        [("proc", host("/proc", false)?), ("sys", host("/sys", true)?), ("dev", host("/dev", false)?)];
    mount::attach_at(root.as_fd(), Path::new(TEMPORARY))?;
    rustix::process::chdir(TEMPORARY)?;
    for (name, tree) in &trees {
        fs::create_dir(name)?;
        mount::attach_at(tree.as_fd(), Path::new(name))?;
    }
    mount::pivot_here()?;
    rustix::process::chdir("/")?;
    mount::change(Path::new("/"), PropagationType::Private, true)?;
    for folder in [STATE, BUNDLES, SHM, LAYERS, WRITABLE, EMPTY] {
        fs::create_dir_all(folder)?;
    }
    Ok(())
}

/// Mounts the pod's /dev/shm of `size` bytes (0: half of memory), with this SELinux label or the policy's. Called once,
/// before the first container.
///
/// # Errors
/// The errors of the mount calls.
pub(crate) fn attach_shm(size: u64, label: &str) -> io::Result<()> {
    let all = Attributes { nosuid: true, nodev: true, noexec: true, readonly: false };
    let shm = mount::labelled_tmpfs(0o1777, size, all, label)?;
    mount::attach_at(shm.as_fd(), Path::new(SHM))
}
