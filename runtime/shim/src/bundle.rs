//! A container's files in the pod's mount namespace: its bundle, and libcontainer's state with the socket that init
//! waits on.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use model::ContainerId;

use crate::podns::{BUNDLES, STATE};

/// A container's bundle.
pub(crate) fn bundle(id: &ContainerId) -> PathBuf {
    Path::new(BUNDLES).join(id.as_str())
}

/// Its root file system, seen only in the worker's namespace.
pub(crate) fn rootfs(id: &ContainerId) -> PathBuf {
    bundle(id).join("rootfs")
}

/// Lets init go on to execve; whether that worked is told on its report pipe.
///
/// # Errors
/// NotFound or ConnectionRefused when init is gone; WouldBlock never in practice (one connection is made).
pub(crate) fn start(id: &ContainerId) -> io::Result<()> {
    let socket = Path::new(STATE).join(id.as_str()).join("notify.sock");
    UnixStream::connect(socket)?.write_all(b"start container")
}

/// Removes the container's files in the pod's namespace: for the resident shim alone, where the root's folder is
/// empty. In a worker's namespace the root and its volumes are mounted there. So nothing is removed recursively
/// either: with a mount in the way this fails instead of emptying a volume. What is gone already is no error,
/// and nothing here can be other than gone or ours, so failures are not told.
pub(crate) fn forget(id: &ContainerId) {
    let state = Path::new(STATE).join(id.as_str());
    for file in fs::read_dir(&state).into_iter().flatten().flatten() {
        drop(fs::remove_file(file.path()));
    }
    drop(fs::remove_dir(state));
    drop(fs::remove_file(bundle(id).join("config.json")));
    drop(fs::remove_dir(rootfs(id)));
    drop(fs::remove_dir(bundle(id)));
}
