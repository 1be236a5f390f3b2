//! Pending DELs: of pods whose DEL has not succeeded, although the pods may be gone. A DEL that fails must not keep its pod
//! from being stopped and removed: the program of a plugin may be gone for good, after a change of the network for example.
//! The lease on disk keeps what DEL needs, also across restarts; this queue has the pods, and when DEL is tried again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use causes::with_causes;
use model::PodId;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};

use super::{Cni, Undone};

/// The pause before the first repetition. Each further one is twice as long, up to the second limit.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(300);
/// How many DELs are repeated at once; fewer if few chains of plugins may run at once, as those of new pods wait for a place.
const PARALLEL: usize = 4;
/// How long the pod's network namespace is kept for DEL, which moves physical interfaces back, for example. The address is
/// not given to another pod as long as DEL is due.
const KEEP_NETNS: Duration = Duration::from_secs(600);
/// Pause between two looks at a DEL that runs.
const RETRY: Duration = Duration::from_millis(20);
/// Maximum number of pending DELs that are listed.
const SHOWN: usize = 32;

/// What became of a release.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Released {
    /// DEL has succeeded, or there was nothing to release. The caller removes the namespace's pin.
    Now,
    /// DEL is repeated in the background ([`Cni::upkeep`]), where the pin is removed too.
    Later,
}

/// A DEL that has not succeeded yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingDel {
    /// The pod, which may be removed.
    pub pod: PodId,
    /// For how long this daemon has known it.
    pub since: Duration,
    /// How often DEL has failed.
    pub attempts: u32,
    /// Time until the next attempt; `None` while one runs.
    pub next: Option<Duration>,
    /// Why the last attempt failed; empty before its end.
    pub problem: String,
}

/// What [`Cni::pending_dels`] tells.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PendingDels {
    /// Their number.
    pub count: usize,
    /// Those that are due for the longest time, at most 32.
    pub oldest: Vec<PendingDel>,
}

/// The pods with a pending DEL.
#[derive(Debug)]
pub(super) struct DelQueue {
    /// How many DELs are repeated at once.
    parallel: usize,
    /// Locked only to read or change an entry. There are no more entries than leases on disk.
    entries: Mutex<BTreeMap<PodId, Entry>>,
    /// Told when an entry has changed.
    pub(super) changed: Notify,
}

#[derive(Debug)]
struct Entry {
    /// The namespace's pin; `None` once it is removed.
    netns: Option<PathBuf>,
    since: Instant,
    attempts: u32,
    problem: String,
    /// A plugin may still lead its host ports to it.
    host_ports: bool,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// A DEL runs.
    Running,
    /// The next one is to begin.
    Due(Instant),
    /// DEL has succeeded; the pin is still to be removed.
    Done,
}

impl DelQueue {
    /// `slots`: how many chains of plugins may run at once.
    pub(super) fn new(slots: usize) -> Self {
        let parallel = slots.div_ceil(4).min(PARALLEL);
        Self { parallel, entries: Mutex::default(), changed: Notify::new() }
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<PodId, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an entry; false if there is one already.
    fn add(&self, pod: &PodId, netns: &Path, state: State) -> bool {
        let mut entries = self.entries();
        if entries.contains_key(pod) {
            return false;
        }
        let netns = Some(netns.to_path_buf());
        let (since, problem) = (Instant::now(), String::new());
        entries.insert(pod.clone(), Entry { netns, since, attempts: 0, problem, host_ports: true, state });
        true
    }

    /// An attempt has ended. `failed`: why it has failed, and whether host ports may still lead to the pod; `None` if it has
    /// succeeded.
    fn ended(&self, pod: &PodId, failed: Option<(String, bool)>) {
        if let Some(entry) = self.entries().get_mut(pod) {
            match failed {
                None => entry.state = State::Done,
                Some((problem, host_ports)) => {
                    entry.attempts = entry.attempts.saturating_add(1);
                    (entry.problem, entry.host_ports) = (problem, host_ports);
                    entry.state = State::Due(Instant::now() + pause(entry.attempts));
                }
            }
        }
        self.changed.notify_one();
    }

    /// Whether the pod has a pending DEL.
    pub(super) fn has(&self, pod: &PodId) -> bool {
        self.entries().contains_key(pod)
    }

    /// The pods to which host ports may still lead.
    pub(super) fn with_host_ports(&self) -> Vec<PodId> {
        let entries = self.entries();
        let holding = entries.iter().filter(|(_, entry)| entry.host_ports && entry.state != State::Done);
        holding.map(|(pod, _)| pod.clone()).collect()
    }

    /// Why host ports may still lead to the pod; `None` if none does.
    pub(super) fn host_ports_problem(&self, pod: &PodId) -> Option<String> {
        let entries = self.entries();
        let entry = entries.get(pod).filter(|entry| entry.host_ports && entry.state != State::Done)?;
        let runs = entry.state == State::Running;
        Some(if runs { "it has not ended yet".to_owned() } else { entry.problem.clone() })
    }

    fn runs(&self, pod: &PodId) -> bool {
        self.entries().get(pod).is_some_and(|entry| entry.state == State::Running)
    }

    /// Marks the pod's DEL as running; false if none is due, or it runs.
    fn begin(&self, pod: &PodId) -> bool {
        match self.entries().get_mut(pod) {
            Some(entry) if matches!(entry.state, State::Due(_)) => {
                entry.state = State::Running;
                true
            }
            _ => false,
        }
    }

    /// The pins that are to be removed now. Entries without anything left to do are removed.
    pub(super) fn pins(&self) -> Vec<PathBuf> {
        let mut entries = self.entries();
        let old = |entry: &Entry| entry.since.elapsed() >= KEEP_NETNS && entry.state != State::Running;
        let due = entries.values_mut().filter(|entry| entry.state == State::Done || old(entry));
        let pins = due.filter_map(|entry| entry.netns.take()).collect();
        entries.retain(|_, entry| entry.state != State::Done);
        pins
    }

    /// When the next attempt is to begin, or the next pin to be removed.
    pub(super) fn next(&self) -> Option<Instant> {
        let entries = self.entries();
        let running = entries.values().filter(|entry| entry.state == State::Running).count();
        let times = entries.values().flat_map(|entry| {
            let (attempt, pin) = match entry.state {
                State::Running => (None, None),
                // The end of a running one is told.
                State::Due(_) if running >= self.parallel => (None, Some(entry.since + KEEP_NETNS)),
                State::Due(at) => (Some(at), Some(entry.since + KEEP_NETNS)),
                // At once (a time in the past): `pins` removes what is left of it, the pin and the entry.
                State::Done => (Some(entry.since), None),
            };
            attempt.into_iter().chain(pin.filter(|_| entry.netns.is_some()))
        });
        times.min()
    }

    /// The pods whose next attempt begins now, marked as running.
    fn begin_due(&self) -> Vec<PodId> {
        let (now, mut entries) = (Instant::now(), self.entries());
        let running = entries.values().filter(|entry| entry.state == State::Running).count();
        let mut due: Vec<(Instant, &PodId, &mut Entry)> = entries
            .iter_mut()
            .filter_map(|(pod, entry)| match entry.state {
                State::Due(at) if at <= now => Some((at, pod, entry)),
                _ => None,
            })
            .collect();
        // Those that have waited longest: plugins that hang take all the time there is.
        due.sort_by_key(|(at, ..)| *at);
        let begun = due.into_iter().take(self.parallel.saturating_sub(running)).map(|(_, pod, entry)| {
            entry.state = State::Running;
            pod.clone()
        });
        begun.collect()
    }
}

/// The pause after so many failures.
fn pause(attempts: u32) -> Duration {
    FIRST_PAUSE.saturating_mul(1 << attempts.saturating_sub(1).min(16)).min(MAX_PAUSE)
}

/// A DEL of the queue that runs. If it is given up, it is due again.
struct Running<'a>(&'a DelQueue, &'a PodId);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if self.0.runs(self.1) {
            self.0.ended(self.1, Some(("the last attempt was given up".to_owned(), true)));
        }
    }
}

impl Cni {
    /// Runs [`Cni::del`] and waits for it, at most so long. What fails or takes longer is done in the background.
    pub async fn release(&self, pod: &PodId, netns: &Path, within: Duration) -> Released {
        if !self.0.pending.add(pod, netns, State::Running) {
            return Released::Later;
        }
        match self.run_del_within(pod, within).await {
            Some(true) => {
                self.0.pending.entries().remove(pod);
                Released::Now
            }
            Some(false) => Released::Later,
            None => {
                tracing::warn!(%pod, waited = ?within, "CNI DEL takes long: the pod's end does not wait for it any longer");
                Released::Later
            }
        }
    }

    /// Runs DEL of an entry that is marked as running; whether it has succeeded, or `None` if it takes longer and goes on.
    async fn run_del_within(&self, pod: &PodId, within: Duration) -> Option<bool> {
        let (cni, id) = (self.clone(), pod.clone());
        let mut running = Box::pin(async move { cni.run_del(&id).await });
        let done = timeout(within, &mut running).await.ok();
        if done.is_none() {
            tokio::spawn(running);
        }
        done
    }

    /// Runs the pod's DEL that is due, without the pause after its last attempt, or waits for the one that runs; at most so
    /// long, and what takes longer goes on.
    pub(super) async fn retry_now(&self, pod: &PodId, within: Duration) {
        let until = Instant::now() + within;
        if self.0.pending.begin(pod) {
            self.run_del_within(pod, within).await;
        }
        while self.0.pending.runs(pod) && Instant::now() < until {
            sleep(RETRY).await;
        }
    }

    /// Adds a DEL that is pending since before this daemon was started; it begins as soon as `upkeep` has a place.
    pub fn add_pending_del(&self, pod: &PodId, netns: &Path) {
        self.0.pending.add(pod, netns, State::Due(Instant::now()));
        self.0.pending.changed.notify_one();
    }

    /// The pending DELs. One that runs for the first time, at a pod's ordinary end, is not among them. Does not block.
    pub fn pending_dels(&self) -> PendingDels {
        let now = Instant::now();
        let entries = self.0.pending.entries();
        let late = |entry: &Entry| entry.attempts > 0 || entry.state != State::Running;
        let mut all: Vec<(&PodId, &Entry)> = entries.iter().filter(|(_, entry)| late(entry)).collect();
        all.sort_by_key(|(_, entry)| entry.since);
        let shown = all.iter().take(SHOWN).map(|(pod, entry)| PendingDel {
            pod: PodId::clone(pod),
            since: now.saturating_duration_since(entry.since),
            attempts: entry.attempts,
            next: match entry.state {
                State::Due(at) => Some(at.saturating_duration_since(now)),
                State::Running | State::Done => None,
            },
            problem: entry.problem.clone(),
        });
        PendingDels { count: all.len(), oldest: shown.collect() }
    }

    /// Begins the attempts that are due.
    pub(super) fn retry_due(&self) {
        for pod in self.0.pending.begin_due() {
            let cni = self.clone();
            tokio::spawn(async move { cni.run_del(&pod).await });
        }
    }

    /// Runs DEL of an entry that is marked as running.
    async fn run_del(&self, pod: &PodId) -> bool {
        let running = Running(&self.0.pending, pod);
        let netns = self.0.pending.entries().get(pod).and_then(|entry| entry.netns.clone());
        let done = self.undo(pod, netns.as_deref()).await;
        if let Err(Undone { error, .. }) = &done {
            let lease = self.0.config.cache_dir.join(pod.as_str());
            let (error, lease) = (with_causes(error), lease.display());
            tracing::warn!(%pod, error, %lease, "cannot release a pod's network: CNI DEL is tried again, and its addresses stay taken until it succeeds");
        } else if self.0.pending.entries().get(pod).is_some_and(|entry| entry.attempts > 0) {
            tracing::info!(%pod, "a pod's network is released at last");
        }
        let failed =
            done.as_ref().err().map(|Undone { error, host_ports }| (with_causes(error), *host_ports));
        self.0.pending.ended(pod, failed);
        drop(running);
        done.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_five_minutes() {
        let seconds: Vec<u64> = [1, 2, 3, 9, 10, 1000, u32::MAX].map(|n| pause(n).as_secs()).into();
        assert_eq!(seconds, [1, 2, 4, 256, 300, 300, 300]);
    }

    #[tokio::test(start_paused = true)]
    async fn those_that_have_waited_longest_are_first() {
        let queue = DelQueue::new(1);
        let pods = [1, 2].map(|number| PodId::from_random([number; 32]));
        queue.add(&pods[1], Path::new("b"), State::Due(Instant::now()));
        tokio::time::advance(FIRST_PAUSE).await;
        queue.add(&pods[0], Path::new("a"), State::Due(Instant::now()));
        assert_eq!(queue.begin_due(), [pods[1].clone()]);
    }

    #[tokio::test(start_paused = true)]
    async fn attempts_are_limited_and_pins_are_kept_for_a_while() {
        assert_eq!(DelQueue::new(1).parallel, 1);
        let queue = DelQueue::new(16);
        let pods: Vec<PodId> = (0..6).map(|number| PodId::from_random([number; 32])).collect();
        assert_eq!(queue.next(), None);
        for pod in &pods {
            assert!(queue.add(pod, Path::new(pod.as_str()), State::Due(Instant::now())));
        }
        assert!(!queue.add(&pods[0], Path::new("x"), State::Running), "it has an entry");
        assert_eq!(queue.begin_due(), pods[..PARALLEL]);
        assert_eq!(queue.begin_due(), []);
        queue.ended(&pods[0], Some(("no".to_owned(), true)));
        queue.ended(&pods[1], None);
        assert_eq!(queue.begin_due(), pods[PARALLEL..], "those that have waited longest");
        assert_eq!(queue.pins(), [Path::new(pods[1].as_str())], "its DEL is done");
        assert!(!queue.has(&pods[1]) && queue.has(&pods[0]));
        // One that is given up is due again.
        drop(Running(&queue, &pods[2]));
        tokio::time::advance(KEEP_NETNS).await;
        assert_eq!(queue.pins().len(), 2, "those of running attempts stay");
        assert_eq!(queue.begin_due(), [pods[0].clone()]);
        assert_eq!(queue.next(), None, "four run, and their ends are told");
    }
}
