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

/// Its root file system, mounted only in the worker's namespace.
pub(crate) fn rootfs(id: &ContainerId) -> PathBuf {
    bundle(id).join("rootfs")
}

/// Starts init; the result of its execve is reported on its start pipe.
///
/// # Errors
/// NotFound or ConnectionRefused if init has ended.
pub(crate) fn start(id: &ContainerId) -> io::Result<()> {
    let socket = Path::new(STATE).join(id.as_str()).join("notify.sock");
    UnixStream::connect(socket)?.write_all(b"start container")
}

/// Removes the container's files. Call it only in the resident shim: in a worker's namespace the root file system and
/// volumes are mounted on the bundle. To be safe, nothing is removed recursively, so a mount would make this fail and
/// would not lose its content. Errors are ignored; the expected one is that a file does not exist.
pub(crate) fn remove(id: &ContainerId) {
    let state = Path::new(STATE).join(id.as_str());
    for file in fs::read_dir(&state).into_iter().flatten().flatten() {
        drop(fs::remove_file(file.path()));
    }
    drop(fs::remove_dir(state));
    drop(fs::remove_file(bundle(id).join("config.json")));
    drop(fs::remove_dir(rootfs(id)));
    drop(fs::remove_dir(bundle(id)));
}
