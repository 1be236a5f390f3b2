//! The watch over the durable folder: whether it takes writes, for RuntimeReady and for what would make a pod. A
//! folder below it that is a file system of its own (images, say) is watched as well.
//!
//! Everything that only ends or looks at pods works without it; nothing new can be made. A file system may
//! become read-only at any time (the kernel does that after an error of the disk) without telling anybody, so
//! the only way to know is to write.

use crate::error::{Error, ErrorKind};
use crate::lanes;
use state::Layout;
use state::probe::{self, Refusal};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::timeout;

/// Between two looks at a folder that takes writes.
const CALM: Duration = Duration::from_secs(10);
/// Between two looks at one that does not.
const TENSE: Duration = Duration::from_secs(2);
/// A disk that takes longer for one small file hangs.
const PATIENCE: Duration = Duration::from_secs(20);

/// Why nothing can be made, as CRI's condition RuntimeReady says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    /// One word for programs: the folder and what it has, as in `RootFull` and `ImagesReadOnly`.
    pub(crate) reason: String,
    /// For people.
    pub(crate) message: String,
    /// Whether space that is given back mends it. kubelet has DiskPressure for that. A node that is not ready
    /// would make it skip its pods, and with them the deletions that give space back.
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
            "{} {} {what} ({error}): pods go on and can be ended, no new ones can be made",
            name.to_lowercase(),
            folder.display()
        );
        Self { reason: format!("{name}{word}"), message, full: refusal == Refusal::Full }
    }
}

/// What is known of the durable folder. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Root(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    layout: Layout,
    problem: Mutex<Option<Problem>>,
    /// What is being looked at.
    at: Mutex<(&'static str, PathBuf)>,
    doubt: Notify,
}

impl Root {
    /// Nothing is known yet: see [`Root::look`].
    pub(crate) fn new(layout: Layout) -> Self {
        Self(Arc::new(Inner {
            layout,
            problem: Mutex::default(),
            at: Mutex::default(),
            doubt: Notify::new(),
        }))
    }

    /// What the last look found. Never waits.
    pub(crate) fn problem(&self) -> Option<Problem> {
        lock(&self.0.problem).clone()
    }

    /// A write has failed: looks soon.
    pub(crate) fn doubt(&self) {
        self.0.doubt.notify_one();
    }

    /// Tries a write and keeps what comes of it. Of several problems the one that space does not mend counts.
    /// Blocking.
    pub(crate) fn look(&self) {
        let mut found: Option<Problem> = None;
        for (name, folder) in probe::parts(&self.0.layout) {
            *lock(&self.0.at) = (name, folder.clone());
            let own = name == "Root" || probe::is_mount(&folder).unwrap_or(false);
            if !own {
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
        let news = problem.as_ref().map(|it| &it.reason) != found.as_ref().map(|it| &it.reason);
        match &found {
            Some(found) if news => tracing::error!(reason = found.reason, "{}", found.message),
            None if news => tracing::info!(root = %self.0.layout.root().display(), "root takes writes again"),
            _ => {}
        }
        *problem = found;
    }

    /// For what makes something new: an error while the folder is read-only. (On a full one the write itself
    /// says so, and may succeed.) A look comes first, so that a folder that was mended serves at once.
    ///
    /// # Errors
    /// Unavailable.
    pub(crate) async fn writable(&self) -> Result<(), Error> {
        let hopeless = || self.problem().filter(|problem| !problem.full);
        if hopeless().is_none() {
            return Ok(());
        }
        let root = self.clone();
        // Without an answer in time what was known stands.
        drop(timeout(TENSE, lanes::records().run(move || root.look())).await);
        match hopeless() {
            None => Ok(()),
            Some(problem) => Err(Error::new(ErrorKind::Unavailable, problem.message)),
        }
    }

    /// Looks again and again, one look at a time.
    pub(crate) async fn follow(self) {
        loop {
            let pause = if self.problem().is_some() { TENSE } else { CALM };
            drop(timeout(pause, self.0.doubt.notified()).await);
            let root = self.clone();
            let look = lanes::records().run(move || root.look());
            tokio::pin!(look);
            if timeout(PATIENCE, &mut look).await.is_err() {
                let (name, folder) = lock(&self.0.at).clone();
                self.set(Some(Problem {
                    reason: format!("{name}Hangs"),
                    message: format!(
                        "{} {} has not answered a write for {PATIENCE:?}: pods go on, no new ones can be made",
                        name.to_lowercase(),
                        folder.display()
                    ),
                    full: false,
                }));
                drop(look.await);
            }
        }
    }
}

/// Nothing is done under these locks that could leave a half.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_problem_is_told_until_a_look_finds_it_gone() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path().join("root"), dir.path().join("run")).unwrap();
        let root = Root::new(layout.clone());
        assert_eq!(root.problem(), None);
        // There is no such folder: a disk that answers with errors.
        root.look();
        assert_eq!(root.problem().unwrap().reason, "RootBroken");
        assert_eq!(root.writable().await.unwrap_err().kind, ErrorKind::Unavailable);
        layout.create().unwrap();
        root.writable().await.unwrap();
        assert_eq!(root.problem(), None);
    }
}
