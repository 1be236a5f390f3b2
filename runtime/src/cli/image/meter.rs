//! How far a transfer is: a bar on a terminal, or else a line now and then, on standard error.

use indicatif::{BinaryBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{self, IsTerminal as _};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The time between two lines, if there is no terminal.
const PAUSE: Duration = Duration::from_secs(10);

/// Counts bytes. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Meter {
    bar: ProgressBar,
    what: &'static str,
    /// When the next line is due; `None` on a terminal and after the end.
    next: Arc<Mutex<Option<Instant>>>,
}

impl Meter {
    /// A meter for `total` bytes, if that is known.
    pub(super) fn new(what: &'static str, total: Option<u64>) -> Self {
        let is_terminal = io::stderr().is_terminal();
        let bar = ProgressBar::with_draw_target(
            total,
            if is_terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() },
        );
        let template = match total {
            Some(_) => "{msg:9} [{bar:30}] {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}",
            None => "{msg:9} {binary_bytes}, {binary_bytes_per_sec}",
        };
        // The templates are constants that are valid.
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("#> "));
        }
        bar.set_message(what);
        let next = (!is_terminal).then(|| Instant::now() + PAUSE);
        Self { bar, what, next: Arc::new(Mutex::new(next)) }
    }

    /// One that shows nothing.
    #[cfg(test)]
    pub(super) fn hidden() -> Self {
        Self { bar: ProgressBar::hidden(), what: "", next: Arc::default() }
    }

    /// Adds bytes.
    pub(super) fn add(&self, bytes: u64) {
        self.bar.inc(bytes);
        self.tell();
    }

    /// Sets the number of bytes.
    pub(super) fn set(&self, bytes: u64) {
        self.bar.set_position(bytes);
        self.tell();
    }

    fn tell(&self) {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(due) = next.as_mut().filter(|due| **due <= Instant::now()) {
            *due = Instant::now() + PAUSE;
            eprintln!("{} {}", self.what, BinaryBytes(self.bar.position()));
        }
    }

    /// The transfer has ended. The last count stays on the terminal.
    pub(super) fn end(&self) {
        if self.bar.is_finished() {
            return;
        }
        self.bar.abandon();
        if self.next.lock().unwrap_or_else(PoisonError::into_inner).take().is_some() {
            eprintln!("{} {}", self.what, BinaryBytes(self.bar.position()));
        }
    }
}
