//! One kind of blocking work, with its threads.

use crate::Error;
use crate::owners::Owners;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{io, thread};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

/// Stack size of a thread in bytes. Blocking work has a shallow stack, and a kept thread holds every page it
/// ever touched.
const STACK: usize = 512 * 1024;
/// An extra thread ends after being idle for this long.
const KEEP_ALIVE: Duration = Duration::from_secs(2);

/// The limits of a lane.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Kind of work; used in thread names, where 11 bytes are visible, and in errors.
    pub name: &'static str,
    /// Threads that do not end when they are idle.
    pub kept_threads: usize,
    /// Maximum number of threads.
    pub max_threads: usize,
    /// Maximum number of threads that work for one owner.
    pub max_per_owner: usize,
    /// Maximum number of entries in the queue.
    pub max_queued: usize,
}

/// One kind of blocking work. Clones share its threads.
#[derive(Debug, Clone)]
pub struct Lane(Arc<Inner>);

struct Inner {
    size: Size,
    state: Mutex<State>,
    more: Condvar,
    owners: Owners,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner").field("size", &self.size).finish_non_exhaustive()
    }
}

type Job = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct State {
    waiting: VecDeque<Job>,
    threads: usize,
    /// Waiting threads, including those that were woken and have not taken work yet.
    idle: usize,
    /// If no thread can be started, the caller does the work itself.
    inline: bool,
}

impl Lane {
    /// A lane without threads: they are started when there is work, or by [`Lane::start`].
    pub fn new(size: Size) -> Self {
        let (state, more, owners) = (Mutex::default(), Condvar::new(), Owners::new(size.max_per_owner));
        Self(Arc::new(Inner { size, state, more, owners }))
    }

    /// Kind of work ([`Size::name`]).
    pub fn name(&self) -> &'static str {
        self.0.size.name
    }

    /// Starts the kept threads, so that the lane works even if the node has no process left later.
    ///
    /// # Errors
    /// The error of clone(2). Threads that were started stay; the others are tried again when there is work.
    pub fn start(&self) -> io::Result<()> {
        loop {
            let mut state = self.0.lock();
            if state.threads >= self.0.size.kept_threads {
                return Ok(());
            }
            state.threads += 1;
            drop(state);
            self.spawn()?;
        }
    }

    /// From now on, work for which no thread can be started is done by the caller, which blocks everything
    /// else on the caller's thread. For a process that could not start any thread.
    pub fn allow_inline(&self) {
        self.0.lock().inline = true;
    }

    /// Runs `work` on a thread of this lane. It runs to its end even if the caller has gone. It may use the
    /// caller's tokio runtime, if there is one.
    ///
    /// # Errors
    /// [`Error::NoThread`] and [`Error::Full`] if nothing was done; [`Error::Panicked`].
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Error> {
        let name = self.0.size.name;
        let (reply, result) = oneshot::channel();
        let runtime = Handle::try_current().ok();
        let job: Job = Box::new(move || {
            let _entered = runtime.as_ref().map(Handle::enter);
            let done = catch_unwind(AssertUnwindSafe(work)).map_err(|panic| text(&*panic));
            // The caller may have gone.
            drop(reply.send(done));
        });
        self.submit(job)?;
        match result.await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(message)) => Err(Error::Panicked { lane: name, message }),
            // The job was dropped, because the last thread could not be started.
            Err(_) => Err(Error::NoThread { lane: name, source: io::ErrorKind::WouldBlock.into() }),
        }
    }

    /// Like [`Lane::run`], but with at most [`Size::max_per_owner`] threads at work for `owner`: more work of the same
    /// owner waits until some has ended.
    ///
    /// # Errors
    /// As [`Lane::run`].
    pub async fn run_for<T: Send + 'static>(
        &self,
        owner: &str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Error> {
        let permit = self.0.owners.permit(owner).await;
        self.run(move || {
            // Released when the work has ended, not when the caller gives up.
            let _permit = permit;
            work()
        })
        .await
    }

    /// Queues a job and makes sure that a thread will run it.
    fn submit(&self, job: Job) -> Result<(), Error> {
        let lane = self.0.size.name;
        let mut state = self.0.lock();
        let waiting = state.waiting.len();
        if waiting >= self.0.size.max_queued {
            return Err(Error::Full { lane, waiting });
        }
        state.waiting.push_back(job);
        if state.idle >= state.waiting.len() {
            drop(state);
            self.0.more.notify_one();
            return Ok(());
        }
        if state.threads >= self.0.size.max_threads {
            return Ok(());
        }
        state.threads += 1;
        drop(state);
        let Err(source) = self.spawn() else { return Ok(()) };
        let mut state = self.0.lock();
        if state.threads > 0 {
            // A busy thread takes it next.
            return Ok(());
        }
        // There is no thread for the jobs that others have queued meanwhile either. Dropping a job returns NoThread to
        // its caller.
        let left = std::mem::take(&mut state.waiting);
        let inline = state.inline;
        drop(state);
        if inline {
            left.into_iter().for_each(|job| job());
            return Ok(());
        }
        Err(Error::NoThread { lane, source })
    }

    /// Starts a thread that is counted already; corrects the count on an error.
    fn spawn(&self) -> io::Result<()> {
        let inner = Arc::clone(&self.0);
        let name = format!("cpd-{}", self.0.size.name);
        let spawned = thread::Builder::new().name(name).stack_size(STACK).spawn(move || inner.work());
        match spawned {
            Ok(_) => Ok(()),
            Err(error) => {
                self.0.lock().threads -= 1;
                Err(error)
            }
        }
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        // No critical section can panic half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The loop of a thread.
    fn work(&self) {
        let mut state = self.lock();
        loop {
            if let Some(job) = state.waiting.pop_front() {
                drop(state);
                job();
                state = self.lock();
                continue;
            }
            state.idle += 1;
            let extra = state.threads > self.size.kept_threads;
            let mut timed_out = false;
            state = if extra {
                let (state, waited) =
                    self.more.wait_timeout(state, KEEP_ALIVE).unwrap_or_else(PoisonError::into_inner);
                timed_out = waited.timed_out();
                state
            } else {
                // Idle kept threads wait without a time-out, so that an idle node uses no CPU time.
                self.more.wait(state).unwrap_or_else(PoisonError::into_inner)
            };
            state.idle -= 1;
            if timed_out && state.waiting.is_empty() && state.threads > self.size.kept_threads {
                state.threads -= 1;
                return;
            }
        }
    }
}

/// The message of a panic.
fn text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("a panic").to_owned()
}
