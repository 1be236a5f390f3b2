//! The lock on a pod's lease, and that of GC (flock(2)). Plugins inherit it, so it stays taken while a plugin of the pod or of
//! GC, or a process that one has started, runs: also those that a killed daemon has left. Its name is that of the file.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::Cni;
use crate::error::{ADVICE, Error};
use causes::with_causes;

/// How long a command waits for plugins that may still run.
const MAX_WAIT: Duration = Duration::from_secs(10);
/// Pause between two attempts to take the lock.
const RETRY: Duration = Duration::from_millis(20);
/// Maximum number of processes that a log line names.
const MAX_NAMED: usize = 8;

/// Plugins that may still run: for each lock that this daemon has taken, the number of plugins that it has started since
/// and has not seen end. A plugin that exceeded its deadline stays counted: it is killed, but nobody waits for its end.
#[derive(Debug, Default)]
pub(super) struct Unfinished(Mutex<BTreeMap<String, usize>>);

impl Unfinished {
    fn counts(&self) -> MutexGuard<'_, BTreeMap<String, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lock was taken, so no plugin that has it runs.
    fn locked(&self, name: &str) {
        self.counts().insert(name.to_owned(), 0);
    }

    /// A plugin that inherits the lock is started.
    pub(super) fn started(&self, name: &str) {
        if let Some(count) = self.counts().get_mut(name) {
            *count += 1;
        }
    }

    /// The plugin has ended.
    pub(super) fn ended(&self, name: &str) {
        if let Some(count) = self.counts().get_mut(name) {
            *count = count.saturating_sub(1);
        }
    }

    /// The lease is removed.
    pub(super) fn forget(&self, name: &str) {
        self.counts().remove(name);
    }

    /// Whether a plugin with the lock may still run. An earlier daemon may have left one, unless this daemon has taken the
    /// lock.
    pub(super) fn any(&self, name: &str) -> bool {
        self.counts().get(name) != Some(&0)
    }
}

impl Cni {
    /// Takes the lock of a pod's lease, or of GC; `None` if it is taken already.
    pub(super) async fn lock_at_once(&self, name: &str) -> Result<Option<OwnedFd>, Error> {
        let file = name.to_owned();
        let lock = self.blocking(move |leases| leases.lock(&file)).await?;
        if lock.is_some() {
            self.0.unfinished.locked(name);
        }
        Ok(lock)
    }

    /// As [`Cni::lock_for`], for the lease of a pod.
    pub(super) async fn lock(&self, name: &str) -> Option<Arc<OwnedFd>> {
        self.lock_for(name, MAX_WAIT).await
    }

    /// Takes the lock of a pod's lease, or of GC. It waits for plugins that may still run: what their ADD allocates after our
    /// DEL would stay allocated, and their GC knows nothing of the pods that were added since. Returns `None`, and the caller
    /// goes on without the lock, if they run longer than `wait`, if all plugins have ended and only a process that they left
    /// has the lock, or if the file system has no locks.
    pub(super) async fn lock_for(&self, name: &str, wait: Duration) -> Option<Arc<OwnedFd>> {
        let _step =
            progress::enter(format!("wait until earlier plugins with the lock {name} have ended"), ADVICE);
        let wait = wait.min(self.timeout());
        let until = Instant::now() + wait;
        let mut again = false;
        loop {
            match self.lock_at_once(name).await {
                Ok(Some(lock)) => return Some(Arc::new(lock)),
                // Not at once: a program that this daemon is starting has a copy of every descriptor for a moment.
                Ok(None) if again && !self.0.unfinished.any(name) => {
                    tracing::debug!(
                        lock = name,
                        "a CNI plugin has left a process, which may never end: it is not waited for"
                    );
                    return None;
                }
                Ok(None) if Instant::now() < until => {
                    sleep(RETRY).await;
                    again = true;
                }
                Ok(None) => {
                    let file = name.to_owned();
                    let processes = self.0.lane.run(move || holders(&file)).await.unwrap_or_default();
                    tracing::warn!(lock = name, waited = ?wait, ?processes, "a CNI plugin of this pod or of GC, or a process that one has started, still runs; it is not waited for any longer");
                    return None;
                }
                Err(error) => {
                    tracing::warn!(
                        lock = name,
                        error = with_causes(&error),
                        "cannot take a lock of CNI plugins; those that an earlier daemon may have left running are not waited for"
                    );
                    return None;
                }
            }
        }
    }
}

/// The processes that have the lock of this name, as pid and name: those with its file as descriptor 3, which is where
/// plugins inherit it. (/proc/locks has the pid of the daemon that took the lock.) Processes of other PID namespaces are not
/// seen. Blocking.
fn holders(name: &str) -> Vec<String> {
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let has_lock = |pid: &u32| {
        // Only the link is read: stat(2) of the file could hang with its file system.
        let link = fs::read_link(format!("/proc/{pid}/fd/3"));
        link.is_ok_and(|path| path.file_name().is_some_and(|file| file == name))
    };
    let shown = |pid: u32| {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        format!("{pid} {:?}", name.trim_end())
    };
    pids.filter(has_lock).take(MAX_NAMED).map(shown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn processes_with_the_lock_are_named() {
        let (pod, other) = ("0707", "0808");
        let dir = tempfile::tempdir().unwrap();
        let lease = dir.path().join(pod);
        fs::write(&lease, "").unwrap();
        let script = format!("exec sleep 300 3< {}", lease.display());
        let mut child = Command::new("sh").args(["-c", &script]).spawn().unwrap();
        let expected = format!("{} \"sleep\"", child.id());
        let until = std::time::Instant::now() + Duration::from_secs(30);
        while !holders(pod).contains(&expected) && std::time::Instant::now() < until {
            std::thread::sleep(Duration::from_millis(10));
        }
        let found = (holders(pod), holders(other));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(found, (vec![expected], Vec::new()));
        assert!(holders(pod).is_empty());
    }

    #[test]
    fn plugins_may_run_until_they_are_seen_to_end() {
        let (pod, unfinished) = ("0707", Unfinished::default());
        assert!(unfinished.any(pod), "an earlier daemon may have left one");
        unfinished.locked(pod);
        assert!(!unfinished.any(pod));
        unfinished.started(pod);
        unfinished.started(pod);
        unfinished.ended(pod);
        assert!(unfinished.any(pod), "the other one was killed");
        unfinished.locked(pod);
        assert!(!unfinished.any(pod));
        unfinished.forget(pod);
        assert!(unfinished.any(pod) && unfinished.counts().is_empty());
    }
}
