//! A folder into which trees are renamed, which takes no time, and in which a thread removes them in the background.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::fs::{Dir, Mode, OFlags, openat};
use rustix::io::Errno;

use super::{Error, remove, remove_path};

/// An entry that could not be removed is tried again when the thread runs after this time, and after a restart.
const RETRY: Duration = Duration::from_secs(600);
/// Maximum number of entries that are remembered as not removable.
const MAX_STUCK: usize = 1024;

/// A folder whose content is removed in the background, one tree after the other. After a restart of the process the
/// removal continues. The thread exists only while there is work.
#[derive(Clone)]
pub struct Trash {
    shared: Arc<Shared>,
}

struct Shared {
    folder: PathBuf,
    /// Prefix of the names that this process assigns.
    run: String,
    next: AtomicU64,
    report: Box<dyn Fn(&Error) + Send + Sync>,
    state: Mutex<State>,
    /// Notified when the thread ends.
    idle: Condvar,
}

#[derive(Default)]
struct State {
    /// The thread exists.
    running: bool,
    /// There is new work that the thread may have missed.
    pending: bool,
    /// Other folders to empty, except entries with the prefix of this process.
    leftovers: Vec<PathBuf>,
    /// Entries that could not be removed, and when that was tried.
    stuck: HashMap<OsString, Instant>,
    /// The guards of [`Trash::take_holding`]. Dropped once the entry is removed or cannot be.
    guards: HashMap<OsString, Box<dyn Send>>,
}

impl fmt::Debug for Trash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trash").field("folder", &self.shared.folder).finish_non_exhaustive()
    }
}

impl Trash {
    /// The trash in `folder`, which is created when it is first needed. It should be on the same file system as the
    /// trees that are moved to it. `report` is called with what could not be removed, on the thread that removes. Does
    /// not block: what an earlier process left is removed in the background.
    pub fn new(folder: PathBuf, report: impl Fn(&Error) + Send + Sync + 'static) -> Self {
        let this = Self::resting(folder, report);
        this.start(|_| {});
        this
    }

    /// Like [`Trash::new`], but what an earlier process left stays until there is other work, such as
    /// [`Trash::leftovers`].
    pub fn resting(folder: PathBuf, report: impl Fn(&Error) + Send + Sync + 'static) -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let shared = Shared {
            folder,
            run: format!("{:x}-", since.as_nanos()),
            next: AtomicU64::new(0),
            report: Box::new(report),
            state: Mutex::default(),
            idle: Condvar::new(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// A name that is not used by this or an earlier process: for incomplete files, which [`Trash::leftovers`] removes
    /// after a restart.
    pub fn unique_name(&self) -> String {
        format!("{}{}", self.shared.run, self.shared.next.fetch_add(1, Ordering::Relaxed))
    }

    /// Moves a file or tree to the trash, where it is removed in the background. It is not an error if it does not
    /// exist. Usually the rename needs no space on the file system. If it needs some and there is none, or if the trash
    /// is on another file system, the tree is removed where it is, which blocks.
    ///
    /// # Errors
    /// The tree, or a part of it, is still where it was.
    pub fn take(&self, path: &Path) -> Result<(), Error> {
        self.take_holding(path, ())
    }

    /// Like [`Trash::take`]. `guard` is dropped once the whole tree is removed or could not be, so that somebody can
    /// wait for its space.
    ///
    /// # Errors
    /// As [`Trash::take`].
    pub fn take_holding(&self, path: &Path, guard: impl Send + 'static) -> Result<(), Error> {
        let mut made = false;
        loop {
            let name = self.unique_name();
            match rustix::fs::rename(path, self.shared.folder.join(&name)) {
                Ok(()) => {
                    self.start(|state| {
                        // The thread may have found and removed the entry already. Then `guard` is dropped at the end
                        // of its next round.
                        state.guards.insert(name.into(), Box::new(guard));
                    });
                    return Ok(());
                }
                Err(Errno::NOENT) => match fs::symlink_metadata(path) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                    _ if made => return remove_path(path),
                    _ => {
                        made = true;
                        drop(fs::DirBuilder::new().mode(0o700).create(&self.shared.folder));
                    }
                },
                Err(Errno::NOSPC | Errno::DQUOT | Errno::XDEV) => return remove_path(path),
                Err(errno) => return Err(Error::io("move to the trash", path, errno)),
            }
        }
    }

    /// Removes in the background what earlier processes left in `folder`: all entries except those with a
    /// [`Trash::unique_name`] of this process.
    pub fn leftovers(&self, folder: PathBuf) {
        self.start(|state| state.leftovers.push(folder));
    }

    /// Waits until the trees in the trash are removed or could not be, but not longer than `limit`.
    pub fn wait(&self, limit: Duration) {
        let state = self.shared.state();
        // Without a thread there is nothing to wait for.
        drop(self.shared.idle.wait_timeout_while(state, limit, |state| state.running));
    }

    /// Removes what is in the trash, on the calling thread. Blocks.
    pub fn empty(&self) {
        self.shared.empty(&self.shared.folder, None);
    }

    /// Adds work to the state, and starts the thread unless it exists.
    fn start(&self, add: impl FnOnce(&mut State)) {
        let mut state = self.shared.state();
        add(&mut state);
        state.pending = true;
        if state.running {
            return;
        }
        let shared = Arc::clone(&self.shared);
        match std::thread::Builder::new().name("trash".to_owned()).spawn(move || shared.run()) {
            Ok(_) => state.running = true,
            // The next call tries again.
            Err(source) => {
                let left = std::mem::take(&mut state.guards);
                drop(state);
                drop(left);
                let path = self.shared.folder.clone();
                (self.shared.report)(&Error::Io { action: "start a thread to empty", path, source });
            }
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        loop {
            let leftovers = {
                let mut state = self.state();
                if !std::mem::take(&mut state.pending) {
                    state.running = false;
                    // Those of entries that were removed before `guard` was added, or that could not be listed.
                    let left = std::mem::take(&mut state.guards);
                    self.idle.notify_all();
                    drop(state);
                    drop(left);
                    return;
                }
                std::mem::take(&mut state.leftovers)
            };
            for folder in leftovers {
                self.empty(&folder, Some(&self.run));
            }
            self.empty(&self.folder, None);
        }
    }

    /// Removes the entries of a folder, except those with the prefix `keep`.
    fn empty(&self, folder: &Path, keep: Option<&str>) {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = openat(rustix::fs::CWD, folder, flags, Mode::empty())
            .and_then(|dir| Ok((Dir::read_from(&dir)?, dir)));
        let (entries, dir) = match opened {
            Ok(opened) => opened,
            Err(Errno::NOENT) => return,
            Err(errno) => return (self.report)(&Error::io("open", folder, errno)),
        };
        for entry in entries {
            let entry = match entry {
                Ok(entry) => entry,
                Err(errno) => return (self.report)(&Error::io("list", folder, errno)),
            };
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") || keep.is_some_and(|keep| name.starts_with(keep.as_bytes())) {
                continue;
            }
            let name = OsStr::from_bytes(name);
            if self.state().stuck.get(name).is_some_and(|tried| tried.elapsed() < RETRY) {
                continue;
            }
            let removed = remove(dir.as_fd(), name);
            let mut state = self.state();
            let guard = state.guards.remove(name);
            match removed {
                Ok(()) => {
                    state.stuck.remove(name);
                }
                Err(error) => {
                    if state.stuck.len() >= MAX_STUCK {
                        state.stuck.clear();
                    }
                    state.stuck.insert(name.to_owned(), Instant::now());
                    drop(state);
                    (self.report)(&error.below(folder));
                }
            }
            drop(guard);
        }
    }
}
