//! The lock on a pod's lease (flock(2)). Plugins inherit it, so it stays taken while a plugin of the pod, or a process
//! that one has started, runs: also those that a killed daemon has left.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use model::PodId;
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

/// Plugins that may still run: for each pod whose lease this daemon has locked, the number of plugins that it has started
/// since and has not seen end. A plugin that exceeded its deadline stays counted: it is killed, but nobody waits for its
/// end.
#[derive(Debug, Default)]
pub(super) struct Unfinished(Mutex<BTreeMap<PodId, usize>>);

impl Unfinished {
    fn counts(&self) -> MutexGuard<'_, BTreeMap<PodId, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lease was locked, so no plugin of the pod runs.
    fn locked(&self, pod: &PodId) {
        self.counts().insert(pod.clone(), 0);
    }

    /// A plugin that inherits the lock is started.
    pub(super) fn started(&self, pod: &PodId) {
        if let Some(count) = self.counts().get_mut(pod) {
            *count += 1;
        }
    }

    /// The plugin has ended.
    pub(super) fn ended(&self, pod: &PodId) {
        if let Some(count) = self.counts().get_mut(pod) {
            *count = count.saturating_sub(1);
        }
    }

    /// The lease is removed.
    pub(super) fn forget(&self, pod: &PodId) {
        self.counts().remove(pod);
    }

    /// Whether a plugin of the pod may still run. An earlier daemon may have left one, unless this daemon has locked the
    /// lease.
    fn any(&self, pod: &PodId) -> bool {
        self.counts().get(pod) != Some(&0)
    }
}

impl Cni {
    /// Locks the pod's lease; `None` if it is locked already.
    pub(super) async fn lock_at_once(&self, pod: &PodId) -> Result<Option<OwnedFd>, Error> {
        let id = pod.clone();
        let lock = self.blocking(move |leases| leases.lock(&id)).await?;
        if lock.is_some() {
            self.0.unfinished.locked(pod);
        }
        Ok(lock)
    }

    /// Locks the pod's lease. It waits for plugins that may still run: what their ADD allocates after our DEL would stay
    /// allocated. Returns `None`, and the caller goes on without the lock, if they run too long, if all plugins have ended
    /// and only a process that they left has the lock, or if the file system has no locks.
    pub(super) async fn lock(&self, pod: &PodId) -> Option<Arc<OwnedFd>> {
        let _step = progress::enter("wait until earlier plugins of the pod have ended", ADVICE);
        let wait = MAX_WAIT.min(self.timeout());
        let until = Instant::now() + wait;
        let mut again = false;
        loop {
            match self.lock_at_once(pod).await {
                Ok(Some(lock)) => return Some(Arc::new(lock)),
                // Not at once: a program that this daemon is starting has a copy of every descriptor for a moment.
                Ok(None) if again && !self.0.unfinished.any(pod) => {
                    tracing::debug!(%pod, "a CNI plugin has left a process, which may never end: it is not waited for");
                    return None;
                }
                Ok(None) if Instant::now() < until => {
                    sleep(RETRY).await;
                    again = true;
                }
                Ok(None) => {
                    let id = pod.clone();
                    let processes = self.0.lane.run(move || holders(&id)).await.unwrap_or_default();
                    tracing::warn!(%pod, waited = ?wait, ?processes, "a CNI plugin of this pod, or a process that one has started, still runs; it is not waited for any longer");
                    return None;
                }
                Err(error) => {
                    tracing::warn!(%pod, error = with_causes(&error), "cannot lock a CNI lease; plugins that an earlier daemon may have left running are not waited for");
                    return None;
                }
            }
        }
    }
}

/// The processes that have the lock on the pod's lease, as pid and name: those with the lease as descriptor 3, which
/// is where plugins inherit it. (/proc/locks has the pid of the daemon that took the lock.) Processes of other PID
/// namespaces are not seen. Blocking.
fn holders(pod: &PodId) -> Vec<String> {
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let has_lock = |pid: &u32| {
        // Only the link is read: stat(2) of the file could hang with its file system.
        let link = fs::read_link(format!("/proc/{pid}/fd/3"));
        link.is_ok_and(|path| path.file_name().is_some_and(|name| name == pod.as_str()))
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
        let (pod, other) = (PodId::from_random([7; 32]), PodId::from_random([8; 32]));
        let dir = tempfile::tempdir().unwrap();
        let lease = dir.path().join(pod.as_str());
        fs::write(&lease, "").unwrap();
        let script = format!("exec sleep 300 3< {}", lease.display());
        let mut child = Command::new("sh").args(["-c", &script]).spawn().unwrap();
        let expected = format!("{} \"sleep\"", child.id());
        let until = std::time::Instant::now() + Duration::from_secs(30);
        while !holders(&pod).contains(&expected) && std::time::Instant::now() < until {
            std::thread::sleep(Duration::from_millis(10));
        }
        let found = (holders(&pod), holders(&other));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(found, (vec![expected], Vec::new()));
        assert!(holders(&pod).is_empty());
    }

    #[test]
    fn plugins_may_run_until_they_are_seen_to_end() {
        let (pod, unfinished) = (PodId::from_random([7; 32]), Unfinished::default());
        assert!(unfinished.any(&pod), "an earlier daemon may have left one");
        unfinished.locked(&pod);
        assert!(!unfinished.any(&pod));
        unfinished.started(&pod);
        unfinished.started(&pod);
        unfinished.ended(&pod);
        assert!(unfinished.any(&pod), "the other one was killed");
        unfinished.locked(&pod);
        assert!(!unfinished.any(&pod));
        unfinished.forget(&pod);
        assert!(unfinished.any(&pod) && unfinished.counts().is_empty());
    }
}
