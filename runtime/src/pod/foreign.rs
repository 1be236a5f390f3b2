//! Reads files that a request names. They can be on any file system of the node, which may hang.
//!
//! A read that hangs keeps its thread. A pod may only use a few threads of the lane ([`lanes::foreign`]), but several pods
//! can use up all. A call that finds no thread gets an error that blames the files that hang, not its own, which may be
//! healthy.

use super::context::Context;
use crate::error::{Error, ErrorKind};
use crate::lanes;
use crate::seccomp::Compiled;
use model::SeccompProfile;
use pool::Lane;
use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

/// Time limit for reading a file that a request names.
const READ: Duration = Duration::from_secs(30);
/// Time limit for the read to begin. Reads that do not hang take milliseconds.
const BEGIN: Duration = Duration::from_secs(10);
/// Maximum number of files that the error of a call names.
const MAX_NAMED: usize = 8;

/// The reads of this daemon.
static READS: LazyLock<Reads> = LazyLock::new(|| Reads::new(BEGIN, READ));

/// The compiled filter of a profile; `None` for Unconfined.
///
/// # Errors
/// As [`read`]; the errors of the compiler.
pub(crate) async fn seccomp(
    context: &Arc<Context>,
    pod: &str,
    profile: &SeccompProfile,
    caps: u64,
) -> Result<Option<Arc<Compiled>>, Error> {
    // Most profiles were compiled before; then no thread is needed.
    if let Some(known) = context.compiler.ready(profile, caps) {
        return Ok(known);
    }
    let (compiler, wanted) = (Arc::clone(&context.compiler), profile.clone());
    let work = move || Ok(compiler.program(&wanted, caps)?);
    let step = "seccomp profile";
    match profile {
        SeccompProfile::Localhost(path) => read(pod, step, format!("{step} {path}"), work).await,
        // Compiled from a table, without a file.
        SeccompProfile::Unconfined | SeccompProfile::RuntimeDefault => {
            lanes::run(lanes::exec(), pod, step, work).await
        }
    }
}

/// Reads for a pod. `file` names, for users, what `work` reads.
///
/// # Errors
/// DeadlineExceeded if the file system of `file` hangs; Unavailable if `work` could not begin, because other reads hang;
/// the errors of `work`.
pub(super) async fn read<T: Send + 'static>(
    pod: &str,
    step: &'static str,
    file: String,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    READS.run(lanes::foreign(), pod, step, file, work).await
}

/// Reads with their time limits. Clones share the table.
#[derive(Debug, Clone)]
struct Reads {
    table: Arc<Mutex<Table>>,
    begin_limit: Duration,
    read_limit: Duration,
}

/// The reads that are running, those without a caller included.
#[derive(Debug, Default)]
struct Table {
    next: u64,
    running: BTreeMap<u64, Running>,
}

#[derive(Debug)]
struct Running {
    pod: String,
    file: String,
    since: Instant,
}

/// A running read; it has ended when this is dropped.
#[derive(Debug)]
struct Entry {
    reads: Reads,
    number: u64,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.reads.table().running.remove(&self.number);
    }
}

impl Reads {
    fn new(begin_limit: Duration, read_limit: Duration) -> Self {
        Self { table: Arc::default(), begin_limit, read_limit }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // Every change is one insert or remove.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, pod: String, file: String) -> Entry {
        let mut table = self.table();
        let number = table.next;
        table.next += 1;
        table.running.insert(number, Running { pod, file, since: Instant::now() });
        Entry { reads: self.clone(), number }
    }

    /// See [`read`].
    async fn run<T: Send + 'static>(
        &self,
        lane: &Lane,
        pod: &str,
        step: &'static str,
        file: String,
        work: impl FnOnce() -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (begin, begun) = oneshot::channel();
        let (reads, owner, name) = (self.clone(), pod.to_owned(), file.clone());
        let reading = lanes::run(lane, pod, step, move || {
            if begin.send(()).is_err() {
                return Err(Error::new(ErrorKind::Unavailable, "its caller has gone"));
            }
            let _entry = reads.enter(owner, name);
            work()
        });
        tokio::pin!(reading);
        let begun = tokio::select! {
            outcome = &mut reading => return outcome,
            begun = timeout(self.begin_limit, begun) => begun,
        };
        if begun.is_err() {
            return Err(Error::new(ErrorKind::Unavailable, self.not_begun(&file)));
        }
        match timeout(self.read_limit, reading).await {
            Ok(outcome) => outcome,
            Err(_) => {
                let limit = self.read_limit;
                let text = format!("{file} could not be read within {limit:?}: its file system hangs");
                Err(Error::new(ErrorKind::DeadlineExceeded, text))
            }
        }
    }

    /// The error text of a read that could not begin.
    fn not_begun(&self, file: &str) -> String {
        let (table, limit) = (self.table(), self.begin_limit);
        let hanging: Vec<&Running> =
            table.running.values().filter(|running| running.since.elapsed() >= limit).collect();
        let named: Vec<String> = hanging
            .iter()
            .take(MAX_NAMED)
            .map(|running| format!("{} (pod {})", running.file, running.pod))
            .collect();
        let more = if hanging.len() > MAX_NAMED { ", and others" } else { "" };
        match hanging.len() {
            0 => format!(
                "{file} was not read within {limit:?}: no thread was free (other reads and changes of limits use them)"
            ),
            1 => format!("{file} was not read within {limit:?}: another read hangs: {}", named.join(", ")),
            count => format!(
                "{file} was not read within {limit:?}: {count} other reads hang: {}{more}",
                named.join(", ")
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pool::Size;
    use std::sync::mpsc;

    const LONG: Duration = Duration::from_secs(60);

    fn lane(max_threads: usize) -> Lane {
        Lane::new(Size { name: "test", kept_threads: 0, max_threads, max_per_owner: 1, max_queued: 100 })
    }

    /// A read that hangs until the sender is dropped. Returns once it is running.
    async fn hanging(reads: &Reads, lane: &Lane, pod: &'static str, file: &'static str) -> mpsc::Sender<()> {
        let (release, held) = mpsc::channel::<()>();
        let (shared, lane) = (reads.clone(), lane.clone());
        tokio::spawn(async move {
            let work = move || Ok(held.recv().is_ok());
            drop(shared.run(&lane, pod, "read", file.to_owned(), work).await);
        });
        while !reads.table().running.values().any(|running| running.file == file) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        release
    }

    async fn healthy(reads: &Reads, lane: &Lane, pod: &str) -> Result<u8, Error> {
        reads.run(lane, pod, "read", "/healthy".to_owned(), || Ok(7)).await
    }

    /// With the mount of a few pods hanging, the error of another pod must not blame its own file.
    #[tokio::test]
    async fn a_read_that_cannot_begin_names_the_files_that_hang() {
        let (lane, calm) = (lane(2), Reads::new(LONG, LONG));
        let _first = hanging(&calm, &lane, "a", "/nfs/1").await;
        let second = hanging(&calm, &lane, "b", "/nfs/2").await;
        let hasty = Reads { begin_limit: Duration::from_millis(50), ..calm.clone() };
        let error = healthy(&hasty, &lane, "c").await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unavailable);
        let text = error.to_string();
        assert!(text.contains("2 other reads hang: /nfs/1 (pod a), /nfs/2 (pod b)"), "{text}");
        drop(second);
        assert_eq!(healthy(&calm, &lane, "c").await, Ok(7));
    }

    #[tokio::test]
    async fn a_file_that_hangs_costs_its_own_pod_only() {
        let (lane, calm) = (lane(2), Reads::new(LONG, LONG));
        let _held = hanging(&calm, &lane, "a", "/nfs/1").await;
        assert_eq!(healthy(&calm, &lane, "b").await, Ok(7));
        let hasty = Reads { begin_limit: Duration::from_millis(50), ..calm.clone() };
        let text = healthy(&hasty, &lane, "a").await.unwrap_err().to_string();
        assert!(text.contains("another read hangs: /nfs/1 (pod a)"), "{text}");
    }

    #[tokio::test]
    async fn a_read_that_hangs_is_blamed_itself() {
        let (lane, reads) = (lane(1), Reads::new(LONG, Duration::from_millis(50)));
        let (release, held) = mpsc::channel::<()>();
        let work = move || Ok(held.recv().is_ok());
        let error = reads.run(&lane, "a", "read", "/nfs/1".to_owned(), work).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::DeadlineExceeded);
        assert!(error.to_string().starts_with("/nfs/1 could not be read within 50ms"), "{error}");
        // It is running without a caller, until it ends.
        assert_eq!(reads.table().running.len(), 1);
        drop(release);
        while !reads.table().running.is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Its file is not touched any more.
    #[tokio::test]
    async fn a_read_whose_caller_has_gone_does_not_begin() {
        let (lane, calm) = (lane(1), Reads::new(LONG, LONG));
        let held = hanging(&calm, &lane, "a", "/nfs/1").await;
        let hasty = Reads { begin_limit: Duration::from_millis(20), ..calm.clone() };
        let (touched, touches) = mpsc::channel();
        let work = move || Ok(touched.send(()).is_ok());
        assert!(hasty.run(&lane, "b", "read", "/nfs/2".to_owned(), work).await.is_err());
        drop(held);
        assert_eq!(healthy(&calm, &lane, "c").await, Ok(7));
        assert!(touches.recv().is_err(), "the read began");
    }
}
