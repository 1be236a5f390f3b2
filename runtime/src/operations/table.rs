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
    of(&snapshot())
}

fn of(all: &[Arc<Entry>]) -> UnderWay {
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
            Kind::Call => place_among(entry, all),
            Kind::Job => Some(entry.place_of_job()),
        },
        trace: entry.trace,
    });
    UnderWay { count: shown.len(), oldest: oldest.collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{ContainerId, PodId};

    fn subject(pod: u8, container: Option<(u8, &str)>) -> Subject {
        Subject {
            pod: Some(PodId::from_random([pod; 32])),
            container: container
                .map(|(id, _)| id)
                .filter(|id| *id != 0)
                .map(|id| ContainerId::from_random([id; 32])),
            container_name: container.map(|(_, name)| name.to_owned()),
            ..Subject::default()
        }
    }

    fn waiting(name: &'static str, subject: Subject) -> Arc<Entry> {
        let call = Entry::new(Kind::Call, name, None, subject);
        call.begin_await();
        Arc::new(call)
    }

    fn job(what: &'static str, subject: Subject) -> Arc<Entry> {
        Arc::new(Entry::new(Kind::Job, what, None, subject))
    }

    fn steps(call: &Arc<Entry>, jobs: &[Arc<Entry>]) -> Option<String> {
        place_among(call, jobs).map(|place| place.steps)
    }

    #[tokio::test]
    async fn a_call_is_where_the_job_on_its_own_container_is() {
        let jobs = [
            job("launch the pod", subject(1, None)),
            job("create the container", subject(1, Some((7, "first")))),
            job("create the container: second", subject(1, Some((8, "second")))),
            job("tear down the pod", subject(2, None)),
        ];
        let step =
            jobs[1].progress.clone().scope(async { progress::enter("the shim's reply to create", "") }).await;
        // A create has no id yet: it is found by its name.
        let create = |name| waiting("CreateContainer", subject(1, Some((0, name))));
        assert_eq!(
            steps(&create("first"), &jobs).as_deref(),
            Some("create the container: the shim's reply to create")
        );
        drop(step);
        assert_eq!(steps(&create("second"), &jobs).as_deref(), Some("create the container: second"));
        // A job on the whole pod delays it.
        assert_eq!(steps(&create("third"), &jobs).as_deref(), Some("launch the pod"));
        let start = waiting("StartContainer", subject(1, Some((8, "second"))));
        assert_eq!(steps(&start, &jobs).as_deref(), Some("create the container: second"));
        let stop = waiting("StopPodSandbox", subject(2, None));
        assert_eq!(steps(&stop, &jobs).as_deref(), Some("tear down the pod"));
        // No pod is known, so no job belongs to the call.
        assert_eq!(steps(&waiting("RunPodSandbox", Subject::default()), &jobs), None);
        // A call that waits for something else is in its own step, whatever jobs its pod has.
        stop.end_await();
        assert_eq!(steps(&stop, &jobs), None);
    }

    #[tokio::test]
    async fn jobs_are_shown_when_no_call_waits_for_them() {
        let (launch, other) =
            (job("launch the pod", subject(1, None)), job("stop the container", subject(2, Some((3, "c")))));
        let run = waiting("RunPodSandbox", subject(1, None));
        let calls = |all: &[Arc<Entry>]| -> Vec<Option<&'static str>> {
            of(all).oldest.into_iter().map(|operation| operation.call).collect()
        };
        assert_eq!(calls(&[launch.clone(), other.clone(), run]), [None, Some("RunPodSandbox")]);
        // Its caller has gone: the work continues.
        let all = of(&[launch, other]);
        let shown: Vec<_> = all.oldest.iter().map(|it| it.place.as_ref().unwrap().steps.as_str()).collect();
        assert_eq!(shown, ["launch the pod", "stop the container"]);
    }

    #[test]
    fn the_list_is_bounded_and_the_count_is_not() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let _entered = runtime.enter();
        let all: Vec<_> = (0..MAX_SHOWN + 7).map(|_| waiting("StopContainer", Subject::default())).collect();
        let under_way = of(&all);
        assert_eq!((under_way.count, under_way.oldest.len()), (MAX_SHOWN + 7, MAX_SHOWN));
    }
}
