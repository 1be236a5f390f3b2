//! One kind of blocking work and its threads.

use crate::Error;
use crate::owners::Owners;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{io, thread};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

/// Bytes of a thread's stack. What blocks is shallow, and every touched page of a kept thread stays.
const STACK: usize = 512 * 1024;
/// A thread beyond the kept ones goes when it had nothing to do for this long.
const KEEP_ALIVE: Duration = Duration::from_secs(2);

/// How large a lane is.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Kind of the work, for thread names (11 bytes are shown) and errors.
    pub name: &'static str,
    /// Threads that stay once they are started.
    pub kept: usize,
    /// Most threads.
    pub most: usize,
    /// Most threads at work for one owner.
    pub each: usize,
    /// Most pieces of work that wait for a thread.
    pub waiting: usize,
}

/// One kind of blocking work. Clones share the threads.
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
    /// Threads that wait for work, those included that were woken and have not taken any yet.
    idle: usize,
    /// Without threads, work is done by whoever asks for it.
    inline: bool,
}

impl Lane {
    /// A lane without threads: they are started when there is work for them, or by [`Lane::start`].
    pub fn new(size: Size) -> Self {
        let (state, more, owners) = (Mutex::default(), Condvar::new(), Owners::new(size.each));
        Self(Arc::new(Inner { size, state, more, owners }))
    }

    /// Starts the kept threads, so that the lane works when the node has none to give later.
    ///
    /// # Errors
    /// clone(2). Those that were started stay, and the others are tried again whenever there is work.
    pub fn start(&self) -> io::Result<()> {
        loop {
            let mut state = self.0.lock();
            if state.threads >= self.0.size.kept {
                return Ok(());
            }
            state.threads += 1;
            drop(state);
            self.spawn()?;
        }
    }

    /// From here on work that no thread can be started for is done at once by whoever asks, and holds up what
    /// else that thread does: for a process that came up without any thread to spare.
    pub fn allow_inline(&self) {
        self.0.lock().inline = true;
    }

    /// Runs `work` on a thread of this lane. It is done to its end even when nobody waits any more. It may use
    /// the tokio runtime of the caller, if there is one.
    ///
    /// # Errors
    /// [`Error::NoThread`] and [`Error::Full`] when nothing was done; [`Error::Panicked`].
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Error> {
        let name = self.0.size.name;
        let (answer, answered) = oneshot::channel();
        let runtime = Handle::try_current().ok();
        let job: Job = Box::new(move || {
            let _entered = runtime.as_ref().map(Handle::enter);
            let done = catch_unwind(AssertUnwindSafe(work)).map_err(|panic| text(&*panic));
            // Whoever asked may be gone.
            drop(answer.send(done));
        });
        self.submit(job)?;
        match answered.await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(message)) => Err(Error::Panicked { lane: name, message }),
            // The last thread could not be started while this waited for it.
            Err(_) => Err(Error::NoThread { lane: name, source: io::ErrorKind::WouldBlock.into() }),
        }
    }

    /// As [`Lane::run`], with no more than [`Size::each`] threads at work for `owner`: further work of the same
    /// owner waits until some of it has ended.
    ///
    /// # Errors
    /// As [`Lane::run`].
    pub async fn run_for<T: Send + 'static>(
        &self,
        owner: &str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Error> {
        let turn = self.0.owners.turn(owner).await;
        self.run(move || {
            // Given back when the work has ended, not when its caller has lost patience.
            let _turn = turn;
            work()
        })
        .await
    }

    /// Queues a job and sees to it that there is a thread for it.
    fn submit(&self, job: Job) -> Result<(), Error> {
        let lane = self.0.size.name;
        let mut state = self.0.lock();
        let waiting = state.waiting.len();
        if waiting >= self.0.size.waiting {
            return Err(Error::Full { lane, waiting });
        }
        state.waiting.push_back(job);
        if state.idle >= state.waiting.len() {
            drop(state);
            self.0.more.notify_one();
            return Ok(());
        }
        if state.threads >= self.0.size.most {
            return Ok(());
        }
        state.threads += 1;
        drop(state);
        let Err(source) = self.spawn() else { return Ok(()) };
        let mut state = self.0.lock();
        if state.threads > 0 {
            // A thread that is at work takes it next.
            return Ok(());
        }
        // Jobs that others have queued meanwhile have nobody either: dropping them tells those who wait.
        let left = std::mem::take(&mut state.waiting);
        let inline = state.inline;
        drop(state);
        if inline {
            left.into_iter().for_each(|job| job());
            return Ok(());
        }
        Err(Error::NoThread { lane, source })
    }

    /// Starts a thread that is counted already; on an error the count is put right.
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
        // Nothing in a locked section can panic half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A thread's life.
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
            let spare = state.threads > self.size.kept;
            let mut in_vain = false;
            state = if spare {
                let (state, waited) =
                    self.more.wait_timeout(state, KEEP_ALIVE).unwrap_or_else(PoisonError::into_inner);
                in_vain = waited.timed_out();
                state
            } else {
                // Not woken for nothing: an idle node costs no time.
                self.more.wait(state).unwrap_or_else(PoisonError::into_inner)
            };
            state.idle -= 1;
            if in_vain && state.waiting.is_empty() && state.threads > self.size.kept {
                state.threads -= 1;
                return;
            }
        }
    }
}

/// What a panic said.
fn text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("a panic").to_owned()
}
