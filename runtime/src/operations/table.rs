//! The table of all operations of this process.

use super::entry::{Entry, Kind, Subject};
use super::trace::TraceId;
use progress::Place;
use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Maximum number of operations that [`under_way`] returns.
const MAX_SHOWN: usize = 100;

static TABLE: LazyLock<Mutex<Table>> = LazyLock::new(Mutex::default);

#[derive(Debug, Default)]
struct Table {
    next: u64,
    /// By number, so oldest first.
    entries: BTreeMap<u64, Arc<Entry>>,
}

fn table() -> MutexGuard<'static, Table> {
    // Every change is one insert or remove.
    TABLE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A listed operation; it is removed when this is dropped.
#[derive(Debug)]
pub(super) struct Listed(u64);

impl Drop for Listed {
    fn drop(&mut self) {
        table().entries.remove(&self.0);
    }
}

/// Lists an operation.
pub(super) fn list(entry: &Arc<Entry>) -> Listed {
    let mut table = table();
    let number = table.next;
    table.next += 1;
    table.entries.insert(number, Arc::clone(entry));
    Listed(number)
}

fn snapshot() -> Vec<Arc<Entry>> {
    table().entries.values().cloned().collect()
}

/// Where a call is: in its own steps, or, while it waits for a pod's driver, in those of the job that it waits for.
pub(super) fn place_of_call(call: &Entry) -> Option<Place> {
    place_among(call, &snapshot())
}

fn place_among(call: &Entry, all: &[Arc<Entry>]) -> Option<Place> {
    if call.awaits_driver() {
        let subject = call.subject();
        let jobs = || all.iter().filter(|entry| entry.kind == Kind::Job && entry.shares(&subject));
        // The job on the container itself first; a job on the whole pod delays calls on its containers too.
        let job = jobs().find(|job| subject.of_container() && job.of_container()).or_else(|| jobs().next());
        if let Some(job) = job {
            return Some(job.place_of_job());
        }
    }
    call.progress.place()
}

/// The operations that are under way.
#[derive(Debug, Clone)]
pub(crate) struct UnderWay {
    /// How many there are.
    pub(crate) count: usize,
    /// The oldest of them, a hundred at most.
    pub(crate) oldest: Vec<Operation>,
}

/// An operation that is under way.
#[derive(Debug, Clone)]
pub(crate) struct Operation {
    /// The CRI call; `None` for a job for which no call waits, because its caller has gone or it had none.
    pub(crate) call: Option<&'static str>,
    /// What it is about.
    pub(crate) subject: Subject,
    /// How long it has taken.
    pub(crate) took: Duration,
    /// Where it is; `None` if it is in no named step.
    pub(crate) place: Option<Place>,
    /// The trace that the call belongs to.
    pub(crate) trace: Option<TraceId>,
}

/// The operations that are under way: all calls that wait, and the jobs for which none of them waits. Does not block.
pub(crate) fn under_way() -> UnderWay {
    let all = snapshot();
    let waiting: Vec<Subject> = all
        .iter()
        .filter(|entry| entry.kind == Kind::Call && entry.awaits_driver())
        .map(|call| call.subject())
        .collect();
    let has_caller = |job: &Entry| waiting.iter().any(|caller| job.shares(caller));
    let shown: Vec<&Arc<Entry>> =
        all.iter().filter(|entry| entry.kind == Kind::Call || !has_caller(entry)).collect();
    let oldest = shown.iter().take(MAX_SHOWN).map(|entry| Operation {
        call: (entry.kind == Kind::Call).then_some(entry.what),
        subject: entry.subject(),
        took: entry.began.elapsed(),
        place: match entry.kind {
            Kind::Call => place_among(entry, &all),
            Kind::Job => Some(entry.place_of_job()),
        },
        trace: entry.trace,
    });
    UnderWay { count: shown.len(), oldest: oldest.collect() }
}
