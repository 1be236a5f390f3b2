//! The pod's log folder, which the shim writes to although it has left the host's mount namespace.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use rustix::io::Errno;

/// The log folder of a pod. Operators delete and move log folders while pods run, and kubelet makes a missing one again
/// before it creates a container. So it is looked up by its path for every file that is opened. A symlink in its place is not
/// followed: a pod that may write to the folder of all logs could lead others' files elsewhere by it.
#[derive(Debug)]
pub(crate) struct LogFolder {
    /// The root of the mount namespace in which `path` is looked up.
    host: OwnedFd,
    path: Box<str>,
    /// What the last look-up has found. It is used as long as no folder is at `path` (nothing, a symlink, a file): a folder
    /// that was moved still exists.
    found: OwnedFd,
}

impl LogFolder {
    /// Opens the folder at an absolute path in the mount namespace of the caller; it is created if it is missing.
    ///
    /// # Errors
    /// Those of [`sys::beneath::make_folder_in`].
    pub(crate) fn open(path: &str) -> io::Result<Self> {
        let host = sys::beneath::root()?;
        let found = sys::beneath::make_folder_in(host.as_fd(), path)?;
        Ok(Self { host, path: path.into(), found })
    }

    /// Opens a file below the folder for appending. A folder that was deleted is created again.
    ///
    /// # Errors
    /// Those of [`sys::beneath::append`] and [`sys::beneath::make_folder_in`].
    pub(crate) fn append(&mut self, file: &str) -> io::Result<File> {
        if let Ok(found) = sys::beneath::folder_in(self.host.as_fd(), &self.path) {
            self.found = found;
        }
        match sys::beneath::append(self.found.as_fd(), file) {
            Err(error) if is_gone(&error) => {
                self.found = sys::beneath::make_folder_in(self.host.as_fd(), &self.path)?;
                sys::beneath::append(self.found.as_fd(), file)
            }
            opened => opened,
        }
    }
}

/// Whether the folder itself was deleted. Missing folders between it and the file are no reason for this error:
/// [`sys::beneath::append`] creates them.
fn is_gone(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::NOENT | Errno::STALE))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::path::Path;

    fn write(folder: &mut LogFolder, text: &str) {
        folder.append("c/0.log").unwrap().write_all(text.as_bytes()).unwrap();
    }

    fn read(folder: &Path) -> String {
        std::fs::read_to_string(folder.join("c/0.log")).unwrap()
    }

    #[test]
    fn a_folder_that_was_deleted_is_made_again() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("pods/pod");
        let mut folder = LogFolder::open(path.to_str().unwrap()).unwrap();
        write(&mut folder, "1");
        for gone in [path.join("c"), path.clone(), temp.path().join("pods")] {
            sys::tree::remove_path(&gone).unwrap();
            write(&mut folder, "2");
            assert_eq!(read(&path), "2");
        }
    }

    #[test]
    fn a_folder_that_was_moved_is_found_where_the_path_leads() {
        let temp = tempfile::tempdir().unwrap();
        let (old, new) = (temp.path().join("pods"), temp.path().join("disk"));
        let path = old.join("pod");
        let mut folder = LogFolder::open(path.to_str().unwrap()).unwrap();
        write(&mut folder, "1");
        std::fs::rename(&old, &new).unwrap();
        write(&mut folder, "2");
        assert_eq!(read(&new.join("pod")), "12", "nothing is at the path yet");
        std::os::unix::fs::symlink(&new, &old).unwrap();
        write(&mut folder, "3");
        assert_eq!(read(&new.join("pod")), "123");
        // Another folder, as after a disk was mounted there.
        std::fs::remove_file(&old).unwrap();
        std::fs::create_dir_all(&path).unwrap();
        write(&mut folder, "4");
        assert_eq!((read(&path), read(&new.join("pod"))), ("4".into(), "123".into()));
    }

    #[test]
    fn a_symlink_in_its_place_is_not_followed() {
        let temp = tempfile::tempdir().unwrap();
        let (path, moved, other) =
            (temp.path().join("pod"), temp.path().join("moved"), temp.path().join("other"));
        let mut folder = LogFolder::open(path.to_str().unwrap()).unwrap();
        write(&mut folder, "1");
        std::fs::create_dir(&other).unwrap();
        std::fs::rename(&path, &moved).unwrap();
        std::os::unix::fs::symlink(&other, &path).unwrap();
        write(&mut folder, "2");
        assert_eq!(read(&moved), "12");
        assert!(!other.join("c").exists());
        // Nor one that is there when the pod starts.
        let error = LogFolder::open(path.to_str().unwrap()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotADirectory);
    }

    #[test]
    fn what_is_no_folder_is_not_replaced() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("pod");
        let mut folder = LogFolder::open(path.to_str().unwrap()).unwrap();
        std::fs::remove_dir(&path).unwrap();
        std::fs::write(&path, "a file").unwrap();
        folder.append("c/0.log").unwrap_err();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "a file");
    }
}
