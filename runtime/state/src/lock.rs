//! The lock that allows only one daemon for a pair of folders.
//!
//! Each folder has a lock file with two locks. The fcntl(2) lock decides: it belongs to the process, so the kernel
//! releases it when the daemon ends, and a child that hangs between fork and execve (a CNI plugin on a hung file system)
//! does not hold it. The flock(2) lock is for early builds that know no other. A child that hangs does hold it, so a held
//! flock is respected only if a running daemon has the file open.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, fcntl_lock};

use crate::{Error, Layout};

/// How long to wait for a daemon that is stopping: its lock is released when its process ends.
const DAEMON_LIMIT: Duration = Duration::from_secs(2);
/// How long to wait for children of a daemon that has ended. They hold the flock until they call execve. If one hangs,
/// this daemon runs without the flock, which only early builds check.
const CHILDREN_LIMIT: Duration = Duration::from_millis(100);
/// Time between two attempts.
const STEP: Duration = Duration::from_millis(10);

/// The locks of both folders. No other daemon uses them until this is dropped.
#[derive(Debug)]
pub struct Lock {
    files: [LockFile; 2],
}

/// One lock file. This process must not open it again: closing any descriptor of a file releases the fcntl locks that the
/// process has on it.
#[derive(Debug)]
struct LockFile(File);

impl Drop for Lock {
    /// Closing the files is not enough: children that share the flock would keep it.
    fn drop(&mut self) {
        for LockFile(file) in &self.files {
            // An error does not matter: the descriptor is closed next.
            file.unlock().ok();
            fcntl_lock(file, FlockOperation::NonBlockingUnlock).ok();
        }
    }
}

/// Creates the folders of `layout` that are missing ([`Layout::create`]), and takes the locks of both top folders. Waits
/// two seconds for a daemon that is stopping. Blocking.
///
/// # Errors
/// [`Error::Locked`] if another daemon holds one; the errors of [`Layout::create`].
pub fn acquire(layout: &Layout) -> Result<Lock, Error> {
    layout.create()?;
    let until = Instant::now() + DAEMON_LIMIT;
    let root = take(&layout.root_lock(), until)?;
    let run = take(&layout.run_lock(), until)?;
    Ok(Lock { files: [root, run] })
}

fn take(path: &Path, until: Instant) -> Result<LockFile, Error> {
    let (file, writable) = open(path)?;
    let began = Instant::now();
    loop {
        match try_take(path, &file, writable)? {
            Attempt::Locked => break,
            Attempt::HeldByChildren if began.elapsed() >= CHILDREN_LIMIT => break,
            Attempt::HeldByDaemon(pid) if Instant::now() >= until => {
                let holder = pid.map_or_else(|| "unknown".to_owned(), |pid| pid.to_string());
                return Err(Error::Locked { path: path.to_path_buf(), holder });
            }
            Attempt::HeldByChildren | Attempt::HeldByDaemon(_) => sleep(STEP),
        }
    }
    if writable {
        // For users, and for the error of a second daemon. It is written in place, which needs no space on the disk.
        drop(file.write_all_at(format!("{:<19}\n", std::process::id()).as_bytes(), 0));
    }
    Ok(LockFile(file))
}

/// On a read-only file system the file is opened for reading, which suffices for flock(2).
fn open(path: &Path) -> Result<(File, bool), Error> {
    let with = |writable: bool| {
        OpenOptions::new()
            .read(true)
            .write(writable)
            .create(writable)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(path)
    };
    match with(true) {
        Ok(file) => Ok((file, true)),
        Err(error) if error.raw_os_error() == Some(libc::EROFS) => match with(false) {
            Ok(file) => Ok((file, false)),
            Err(error) => Err(Error::io("open", path)(error)),
        },
        Err(error) => Err(Error::io("open", path)(error)),
    }
}

/// The result of an attempt to take both locks of a file.
enum Attempt {
    /// This process has them.
    Locked,
    /// A running daemon has one; its pid, if the file names it.
    HeldByDaemon(Option<u32>),
    /// Children of a daemon that has ended have the flock, and nobody has the fcntl lock.
    HeldByChildren,
}

fn try_take(path: &Path, file: &File, writable: bool) -> Result<Attempt, Error> {
    if writable {
        match fcntl_lock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::ACCESS) => {
                return Ok(Attempt::HeldByDaemon(pid_in(file)));
            }
            Err(error) => return Err(Error::io("lock", path)(error.into())),
        }
    }
    match file.try_lock() {
        Ok(()) => return Ok(Attempt::Locked),
        Err(TryLockError::WouldBlock) => {}
        Err(TryLockError::Error(source)) => return Err(Error::io("lock", path)(source)),
    }
    match running_holder(file).map_err(Error::io("look for the holder of", path))? {
        None => Ok(Attempt::HeldByChildren),
        Some(pid) => {
            if writable {
                // An early build holds the flock. While waiting for it, hold neither lock: two daemons that wait for
                // each other would both fail.
                fcntl_lock(file, FlockOperation::NonBlockingUnlock)
                    .map_err(|error| Error::io("unlock", path)(error.into()))?;
            }
            Ok(Attempt::HeldByDaemon(Some(pid)))
        }
    }
}

/// The pid in the file, which its last holder wrote.
fn pid_in(file: &File) -> Option<u32> {
    let mut bytes = [0; 20];
    let length = file.read_at(&mut bytes, 0).ok()?;
    std::str::from_utf8(bytes.get(..length)?).ok()?.trim().parse().ok()
}

/// The daemon that took the flock, if it is running: the pid in the file, or one that /proc/locks has for the file's inode
/// number, if that process has the file open. A child of a daemon that has ended is neither.
fn running_holder(file: &File) -> io::Result<Option<u32>> {
    let facts = file.metadata()?;
    let mut suspects: BTreeSet<u32> = pid_in(file).into_iter().collect();
    // `1: FLOCK  ADVISORY  WRITE 8237 08:02:131 0 EOF`. The device is not compared: stat may give another one.
    for line in fs::read_to_string("/proc/locks")?.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, "FLOCK", _, _, pid, place, ..] = words.as_slice() else { continue };
        if place.rsplit(':').next() == Some(facts.ino().to_string().as_str()) {
            suspects.extend(pid.parse::<u32>());
        }
    }
    suspects.remove(&std::process::id());
    Ok(suspects.into_iter().find(|pid| has_open(*pid, (facts.dev(), facts.ino()))))
}

fn has_open(pid: u32, file: (u64, u64)) -> bool {
    let Ok(fds) = fs::read_dir(PathBuf::from(format!("/proc/{pid}/fd"))) else { return false };
    fds.flatten().any(|fd| fs::metadata(fd.path()).is_ok_and(|it| (it.dev(), it.ino()) == file))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    fn layout(dir: &Path) -> Layout {
        Layout::new(dir.join("root"), dir.join("run")).unwrap()
    }

    /// A shell with the path of the file as its argument.
    fn other(script: &str, file: &Path) -> std::process::Child {
        Command::new("sh")
            .args(["-c", script, "sh"])
            .arg(file)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    }

    #[test]
    fn a_running_daemon_of_an_early_build_is_detected_by_its_flock() {
        let dir = tempfile::tempdir().unwrap();
        let layout = layout(dir.path());
        drop(acquire(&layout).unwrap());
        // Takes the lock as early builds of version 0.1.0 do: flock(2), and its pid in the file.
        let script = "exec 9<>\"$1\"; flock -x 9 && echo $$ >&9 && echo taken && read end";
        let mut daemon = other(script, &layout.run_lock());
        let mut word = [0; 6];
        std::io::Read::read_exact(daemon.stdout.as_mut().unwrap(), &mut word).unwrap();
        match acquire(&layout) {
            Err(Error::Locked { holder, .. }) => assert_eq!(holder, daemon.id().to_string()),
            other => panic!("{other:?}"),
        }
        drop(daemon.stdin.take());
        daemon.wait().unwrap();
        drop(acquire(&layout).unwrap());
    }

    #[test]
    fn children_of_a_daemon_that_has_ended_do_not_count() {
        let dir = tempfile::tempdir().unwrap();
        let layout = layout(dir.path());
        layout.create().unwrap();
        // A child keeps the descriptor with the flock, as between fork and execve.
        let file = File::create(layout.root_lock()).unwrap();
        file.lock().unwrap();
        let mut child = Command::new("sleep").arg("100").stdin(Stdio::from(file)).spawn().unwrap();
        let lock = acquire(&layout).unwrap();
        drop(lock);
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn the_flock_is_taken_for_early_builds_and_released_for_all_processes_that_share_it() {
        let dir = tempfile::tempdir().unwrap();
        let layout = layout(dir.path());
        let lock = acquire(&layout).unwrap();
        let probe = File::open(layout.run_lock()).unwrap();
        assert!(matches!(probe.try_lock(), Err(TryLockError::WouldBlock)));
        let shared = lock.files[1].0.try_clone().unwrap();
        drop(lock);
        probe.try_lock().unwrap();
        drop(shared);
    }
}
