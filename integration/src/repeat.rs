//! A thread that changes something again and again while a test runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context as _, Result, anyhow};

/// Repeats its work until [`Self::stop`], or until it is dropped: a test that fails early leaves no thread behind.
#[derive(Debug)]
pub(crate) struct Repeat {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<u64>>>,
}

impl Repeat {
    /// Starts the thread; `work` gets the number of the round. An error ends the thread.
    pub(crate) fn start(mut work: impl FnMut(u64) -> Result<()> + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut rounds = 0;
            while !stopped.load(Ordering::Relaxed) {
                work(rounds)?;
                rounds += 1;
            }
            Ok(rounds)
        });
        Self { stop, thread: Some(thread) }
    }

    /// Ends the thread after its current round. Returns the number of rounds, or the error that ended it earlier.
    pub(crate) fn stop(mut self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("the thread was stopped before")?;
        thread.join().map_err(|_| anyhow!("the thread panicked"))?
    }
}

impl Drop for Repeat {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
