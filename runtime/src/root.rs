//! Checks the durable folder: whether it accepts writes, for the condition RuntimeReady and for calls that
//! create something. Folders below it that are file systems of their own (images, for example) are checked as well.
//!
//! Pods can be listed and removed without writes, but not created. The kernel may make a file system read-only at any
//! time (after a disk error) without notice, so the only way to find out is to write.

use crate::error::{Error, ErrorKind};
use crate::lanes;
use futures_util::future::BoxFuture;
use state::Layout;
use state::probe::{self, Refusal};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::timeout;

/// Time between two checks while the folder accepts writes.
const CHECK_INTERVAL: Duration = Duration::from_secs(10);
/// Time between two checks while it does not.
const RECHECK_INTERVAL: Duration = Duration::from_secs(2);
/// A disk that needs longer for one small file is treated as hung.
const HANG_LIMIT: Duration = Duration::from_secs(20);
/// The owner, on the lane for records, of checks that calls wait for. A check of a hung disk keeps its thread; with an
/// owner, they have the share of one pod, so that retried calls cannot use up the threads that the records of pods need.
const OWNER: &str = "checks of the durable folders";

/// Why nothing can be created, as reported in CRI's condition RuntimeReady.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    /// Reason, one word: the folder and its problem, as in `RootFull` and `ImagesReadOnly`.
    pub(crate) reason: String,
    /// Message for users.
    pub(crate) message: String,
    /// Whether the folder is only full. Then the runtime stays ready: kubelet has its own condition
    /// DiskPressure, and on a node that is not ready it would skip the pod deletions that free space.
    pub(crate) full: bool,
}

impl Problem {
    fn of(name: &str, folder: &Path, refusal: Refusal, error: &std::io::Error) -> Self {
        let (word, what) = match refusal {
            Refusal::ReadOnly => ("ReadOnly", "is read-only"),
            Refusal::Full => ("Full", "is full"),
            Refusal::Broken => ("Broken", "cannot be written"),
        };
        let message = format!(
            "{} {} {what} ({error}): running pods continue and can be removed, but no new ones can be created",
            name.to_lowercase(),
            folder.display()
        );
        Self { reason: format!("{name}{word}"), message, full: refusal == Refusal::Full }
    }
}

/// A check that is running. It ends when the disk responds.
pub(crate) type RunningCheck = BoxFuture<'static, ()>;

/// The last known state of the durable folder. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Root(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    layout: Layout,
    problem: Mutex<Option<Problem>>,
    /// The folder that is being checked, for the report if the check hangs.
    checking: Mutex<(&'static str, PathBuf)>,
    check_soon: Notify,
}

impl Root {
    /// Starts without a known state; see [`Root::check_in_time`].
    pub(crate) fn new(layout: Layout) -> Self {
        Self(Arc::new(Inner {
            layout,
            problem: Mutex::default(),
            checking: Mutex::default(),
            check_soon: Notify::new(),
        }))
    }

    /// The result of the last check. Does not block.
    pub(crate) fn problem(&self) -> Option<Problem> {
        lock(&self.0.problem).clone()
    }

    /// Requests a check soon, after a write has failed.
    pub(crate) fn check_soon(&self) {
        self.0.check_soon.notify_one();
    }

    /// Tries a write and stores the result. Of several problems, one that free space does not solve is reported
    /// first. Blocking.
    fn check(&self) {
        let mut found: Option<Problem> = None;
        for (name, folder) in probe::parts(&self.0.layout) {
            *lock(&self.0.checking) = (name, folder.clone());
            if name != "Root" && !probe::is_mount(&folder).unwrap_or(false) {
                continue;
            }
            let Err((refusal, error)) = probe::folder(&folder) else { continue };
            let problem = Problem::of(name, &folder, refusal, &error);
            if found.as_ref().is_none_or(|found| found.full && !problem.full) {
                found = Some(problem);
            }
        }
        self.set(found);
    }

    fn set(&self, found: Option<Problem>) {
        let mut problem = lock(&self.0.problem);
        let changed = problem.as_ref().map(|it| &it.reason) != found.as_ref().map(|it| &it.reason);
        match &found {
            Some(found) if changed => tracing::error!(reason = found.reason, "{}", found.message),
            None if changed => {
                tracing::info!(root = %self.0.layout.root().display(), "root accepts writes again")
            }
            _ => {}
        }
        *problem = found;
    }

    /// Must be called before anything is created: fails while the folder is read-only, broken or hung. (If it is
    /// full, the write itself fails, or succeeds.) After a failed check it checks again first, so that a repaired
    /// folder works at once.
    ///
    /// # Errors
    /// Unavailable.
    pub(crate) async fn writable(&self) -> Result<(), Error> {
        let refusal = || self.problem().filter(|problem| !problem.full);
        if refusal().is_none() {
            return Ok(());
        }
        let root = self.clone();
        // If the check takes too long, the last known state is used.
        drop(timeout(RECHECK_INTERVAL, lanes::records().run_for(OWNER, move || root.check())).await);
        match refusal() {
            None => Ok(()),
            Some(problem) => Err(Error::new(ErrorKind::Unavailable, problem.message)),
        }
    }

    /// Checks, and waits at most 20 s: a folder that takes longer is stored as hung, and the check, which goes on, is
    /// returned.
    pub(crate) async fn check_in_time(&self) -> Option<RunningCheck> {
        let root = self.clone();
        self.watch(Box::pin(async move {
            // If no thread can be started, the last known state stays.
            drop(lanes::records().run(move || root.check()).await);
        }))
        .await
    }

    /// Waits for a check, at most for [`HANG_LIMIT`].
    async fn watch(&self, mut check: RunningCheck) -> Option<RunningCheck> {
        if timeout(HANG_LIMIT, &mut check).await.is_ok() {
            return None;
        }
        let (name, folder) = lock(&self.0.checking).clone();
        self.set(Some(Problem {
            reason: format!("{name}Hangs"),
            message: format!(
                "{} {} has not completed a write for {HANG_LIMIT:?}: running pods continue, but no new ones can be created",
                name.to_lowercase(),
                folder.display()
            ),
            full: false,
        }));
        Some(check)
    }

    /// Checks repeatedly, one check at a time. `running` is a check that hangs already.
    pub(crate) async fn follow(self, mut running: Option<RunningCheck>) {
        loop {
            if let Some(check) = running.take() {
                check.await;
            }
            let pause = if self.problem().is_some() { RECHECK_INTERVAL } else { CHECK_INTERVAL };
            drop(timeout(pause, self.0.check_soon.notified()).await);
            running = self.check_in_time().await;
        }
    }
}

/// These locks are only held to read or replace one value, so a poisoned one protects no inconsistent state.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Held by tests that need threads of the lane for [`OWNER`].
    static SHARE_OF_OWNER: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

    #[tokio::test]
    async fn hung_checks_use_their_share_of_the_lane_and_no_more() {
        /// Threads of the lane that one owner may use.
        const SHARE: usize = 8;
        let _alone = SHARE_OF_OWNER.lock().await;
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path().join("root"), dir.path().join("run")).unwrap();
        let root = Root::new(layout.clone());
        root.check();
        assert_eq!(root.problem().unwrap().reason, "RootBroken");
        layout.create().unwrap();
        let (release, hang) = std::sync::mpsc::channel::<()>();
        let hang = Arc::new(Mutex::new(hang));
        let (started, mut hanging) = tokio::sync::mpsc::channel(SHARE);
        let mut checks = Vec::new();
        for _ in 0..SHARE {
            let (hang, started) = (Arc::clone(&hang), started.clone());
            checks.push(tokio::spawn(lanes::records().run_for(OWNER, move || {
                started.try_send(()).unwrap();
                drop(hang.lock().map(|hang| hang.recv()));
            })));
        }
        for _ in 0..SHARE {
            hanging.recv().await.unwrap();
        }
        // No further check is started: the last known state is used.
        assert_eq!(root.writable().await.unwrap_err().kind, ErrorKind::Unavailable);
        drop(release);
        for check in checks {
            check.await.unwrap().unwrap();
        }
        root.writable().await.unwrap();
    }

    #[tokio::test]
    async fn a_problem_is_reported_until_a_check_succeeds() {
        let _alone = SHARE_OF_OWNER.lock().await;
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path().join("root"), dir.path().join("run")).unwrap();
        let root = Root::new(layout.clone());
        assert_eq!(root.problem(), None);
        // The folder does not exist, which gives errors like a broken disk.
        root.check();
        assert_eq!(root.problem().unwrap().reason, "RootBroken");
        assert_eq!(root.writable().await.unwrap_err().kind, ErrorKind::Unavailable);
        layout.create().unwrap();
        root.writable().await.unwrap();
        assert_eq!(root.problem(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_check_that_hangs_is_reported_and_ends_later() {
        let root = Root::new(Layout::new("/nonexistent/root", "/nonexistent/run").unwrap());
        *lock(&root.0.checking) = ("Images", "/nonexistent/root/images".into());
        let (responds, hangs) = tokio::sync::oneshot::channel::<()>();
        let ended = root.clone();
        let check: RunningCheck = Box::pin(async move {
            drop(hangs.await);
            ended.set(None);
        });
        let running = root.watch(check).await.expect("a check that is running");
        let problem = root.problem().unwrap();
        assert!(problem.reason == "ImagesHangs" && !problem.full, "{problem:?}");
        assert!(problem.message.contains("/nonexistent/root/images"), "{problem:?}");
        drop(responds);
        running.await;
        assert_eq!(root.problem(), None);
        assert!(root.watch(Box::pin(async {})).await.is_none(), "a check that ends in time");
    }
}
