//! Pins of network namespaces: a bind mount through which CNI plugins and others open the namespace by path, and which
//! keeps it until DEL has run. It is the only mount of a pod in the host's mount table. Blocking.

use rustix::mount::{UnmountFlags, mount_bind, unmount};
use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// Path of a pod's pin below `dir`: `cni-` and a UUID derived from the pod's id, so that the name is known
/// before the pin exists.
pub(crate) fn path(dir: &Path, pod: &model::PodId) -> PathBuf {
    let hex = pod.as_str();
    let part = |from: usize, to: usize| hex.get(from..to).unwrap_or_default();
    // Version 4 and variant 1, as parsers of such names expect.
    let name =
        format!("cni-{}-{}-4{}-8{}-{}", part(0, 8), part(8, 12), part(13, 16), part(17, 20), part(20, 32));
    dir.join(name)
}

/// Pins the namespace behind `netns` at `path`. On an error nothing is left.
pub(crate) fn pin(netns: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    if let Some(dir) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o755).create(dir)?;
    }
    // Remove what a crash left for the same pod.
    unpin(path)?;
    fs::OpenOptions::new().write(true).create_new(true).mode(0o444).open(path)?;
    let source = format!("/proc/self/fd/{}", netns.as_raw_fd());
    mount_bind(source.as_str(), path).map_err(|error| {
        // The first error is reported.
        drop(fs::remove_file(path));
        io::Error::from(error)
    })
}

/// Removes a pin, if it exists. The namespace stays if something else holds it.
pub(crate) fn unpin(path: &Path) -> io::Result<()> {
    use rustix::io::Errno;
    loop {
        match unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            // There should be only one mount; the loop also removes others.
            Ok(()) => {}
            // Not a mount point any more, or gone.
            Err(Errno::INVAL | Errno::NOENT) => break,
            Err(error) => return Err(error.into()),
        }
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd as _;

    #[test]
    fn names_are_uuids_of_the_pod() {
        let pod = model::PodId::from_random([0xab; 32]);
        let path = path(Path::new("/run/netns"), &pod);
        assert_eq!(path, Path::new("/run/netns/cni-abababab-abab-4bab-8bab-abababababab"));
    }

    #[test]
    fn privileged_pin_and_unpin_leave_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("netns/cni-x");
        let own = fs::File::open("/proc/self/ns/net").unwrap();
        pin(own.as_fd(), &path).unwrap();
        pin(own.as_fd(), &path).unwrap();
        use std::os::unix::fs::MetadataExt as _;
        assert_eq!(fs::metadata(&path).unwrap().ino(), own.metadata().unwrap().ino());
        unpin(&path).unwrap();
        unpin(&path).unwrap();
        assert!(!path.exists());
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(path.to_str().unwrap()));
    }
}
