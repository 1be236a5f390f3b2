//! One daemon for each pair of folders. The kernel drops the locks with the process, however it ends.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use crate::{Error, Layout};

/// Proof that no other daemon works on the layout; released when dropped.
#[derive(Debug)]
pub struct Lock {
    /// Held, never read: descriptors carry the locks, and are closed on execve.
    _held: [File; 2],
}

/// Takes the locks of both folders of `layout`, making the folders when they are absent.
///
/// # Errors
/// [`Error::Locked`] at once when another daemon holds one: it never waits.
pub fn acquire(layout: &Layout) -> Result<Lock, Error> {
    layout.create()?;
    let root = take(&layout.root_lock())?;
    let run = take(&layout.run_lock())?;
    Ok(Lock { _held: [root, run] })
}

fn take(path: &Path) -> Result<File, Error> {
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
        .map_err(Error::io("open", path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            // Only for the message: an unreadable holder changes nothing.
            if (&file).take(20).read_to_string(&mut holder).is_err() || holder.is_empty() {
                holder = "unknown".to_owned();
            }
            return Err(Error::Locked { path: path.to_path_buf(), holder: holder.trim_end().to_owned() });
        }
        Err(TryLockError::Error(source)) => return Err(Error::io("lock", path)(source)),
    }
    note_holder(&mut file).map_err(Error::io("write", path))?;
    Ok(file)
}

/// Leaves our pid in the file, for the message of whoever comes second.
fn note_holder(file: &mut File) -> std::io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{}", std::process::id())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_daemon_is_refused_and_told_by_whom() {
        let dir = tempfile::tempdir().unwrap();
        let layout =
            |root: &str, run: &str| Layout::new(dir.path().join(root), dir.path().join(run)).unwrap();
        let first = acquire(&layout("root", "run")).unwrap();
        for other in [layout("root", "run"), layout("root", "run2"), layout("root2", "run")] {
            match acquire(&other) {
                Err(Error::Locked { holder, .. }) => assert_eq!(holder, std::process::id().to_string()),
                other => panic!("{other:?}"),
            }
        }
        drop(first);
        drop(acquire(&layout("root", "run")).unwrap());
    }
}
