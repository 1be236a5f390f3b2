//! Queues log lines and writes them to standard error.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tracing_subscriber::fmt::MakeWriter;

/// Maximum number of lines in the queue.
const MAX_LINES: usize = 4096;
/// Maximum number of bytes in the queue.
const MAX_BYTES: usize = 1 << 20;
/// Stack size of the writer thread in bytes.
const STACK: usize = 128 * 1024;
/// Number of bytes that a pipe which is ready for writing accepts without blocking (pipe(7)).
const PIPE_BUF: usize = 4096;

#[derive(Debug)]
enum Entry {
    Line(Vec<u8>),
    /// A flush: acknowledged once everything before it is written.
    Flush(SyncSender<()>),
}

/// The size of the queue. These counters limit it: a `sync_channel` would allocate and touch all its slots when it is
/// created, 128 KiB for [`MAX_LINES`].
#[derive(Debug, Default)]
struct Counts {
    lines: AtomicUsize,
    bytes: AtomicUsize,
    dropped: AtomicU64,
}

/// The queue, for [`flush`].
static QUEUE: OnceLock<Sender<Entry>> = OnceLock::new();

/// Creates a [`Line`] for each event.
#[derive(Debug, Clone)]
pub(super) struct Lines {
    /// `None`: no thread could be started, so lines are written by the caller if that does not block.
    queue: Option<Sender<Entry>>,
    counts: Arc<Counts>,
}

impl Lines {
    /// Starts the writer thread.
    pub(super) fn to_stderr() -> Self {
        let counts = Arc::new(Counts::default());
        let (queue, entries) = channel();
        let writer = std::thread::Builder::new().name("copepod-log".to_owned()).stack_size(STACK).spawn({
            let counts = Arc::clone(&counts);
            move || write_all(&entries, &counts, io::stderr())
        });
        let queue = writer.ok().map(|_| queue);
        if let Some(queue) = &queue {
            // It fails only on a second call, and `init` then fails too.
            drop(QUEUE.set(queue.clone()));
        }
        Self { queue, counts }
    }

    fn send(&self, line: Vec<u8>) {
        let Some(queue) = &self.queue else {
            if !write_unless_full(&line) {
                self.counts.dropped.fetch_add(1, Ordering::Relaxed);
            }
            return;
        };
        let size = line.len();
        if !self.counts.enter(size) {
            self.counts.dropped.fetch_add(1, Ordering::Relaxed);
        } else if queue.send(Entry::Line(line)).is_err() {
            self.counts.leave(size);
            self.counts.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Counts {
    /// Counts a line of `size` bytes that is queued. Returns false, without counting it, if there is no room.
    fn enter(&self, size: usize) -> bool {
        let lines = self.lines.fetch_add(1, Ordering::AcqRel);
        let bytes = self.bytes.fetch_add(size, Ordering::AcqRel);
        let fits = lines < MAX_LINES && bytes + size <= MAX_BYTES;
        if !fits {
            self.leave(size);
        }
        fits
    }

    fn leave(&self, size: usize) {
        self.bytes.fetch_sub(size, Ordering::AcqRel);
        self.lines.fetch_sub(1, Ordering::AcqRel);
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line { text: Vec::new(), lines: self.clone() }
    }
}

/// The text of one event; queued when it is dropped.
#[derive(Debug)]
pub(super) struct Line {
    text: Vec<u8>,
    lines: Lines,
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if !self.text.is_empty() {
            self.lines.send(std::mem::take(&mut self.text));
        }
    }
}

/// The loop of the writer thread; ends when the last sender is gone.
fn write_all(entries: &Receiver<Entry>, counts: &Counts, mut to: impl Write) {
    for entry in entries {
        match entry {
            Entry::Line(line) => {
                // If standard error fails, there is nowhere to report it.
                drop(to.write_all(&line));
                counts.leave(line.len());
                let dropped = counts.dropped.swap(0, Ordering::Relaxed);
                if dropped > 0 {
                    tracing::warn!(dropped, "log lines were dropped because standard error was too slow");
                }
            }
            Entry::Flush(done) => drop(done.try_send(())),
        }
    }
}

/// Without a thread: writes what standard error accepts at once. Returns false if something was left out.
fn write_unless_full(line: &[u8]) -> bool {
    let stderr = io::stderr();
    line.chunks(PIPE_BUF).all(|part| {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let mut ready = [PollFd::new(&stderr, PollFlags::OUT)];
        poll(&mut ready, Some(&now)).is_ok_and(|count| count == 1) && stderr.lock().write_all(part).is_ok()
    })
}

/// Waits until everything that was logged is written, at most for `limit`.
pub(super) fn flush(limit: Duration) {
    let Some(queue) = QUEUE.get() else { return };
    let (done, written) = sync_channel(1);
    if queue.send(Entry::Flush(done)).is_ok() {
        // Times out if standard error hangs.
        written.recv_timeout(limit).unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;
    use std::sync::mpsc;

    /// Blocks until it is opened.
    struct Gate {
        open: mpsc::Receiver<()>,
        written: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Gate {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.open.recv().unwrap_or_default();
            self.written.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_hung_writer_loses_lines_but_does_not_block() {
        let counts = Arc::new(Counts::default());
        let (queue, entries) = channel();
        let (open, gate) = mpsc::channel();
        let written = Arc::new(Mutex::new(Vec::new()));
        let to = Gate { open: gate, written: Arc::clone(&written) };
        let writer = std::thread::spawn({
            let counts = Arc::clone(&counts);
            move || write_all(&entries, &counts, to)
        });
        let lines = Lines { queue: Some(queue), counts: Arc::clone(&counts) };
        for number in 0..20_000 {
            writeln!(lines.make_writer(), "{number:0>600}").unwrap();
        }
        let dropped = counts.dropped.load(Ordering::Relaxed);
        assert!((16_000..20_000).contains(&dropped), "{dropped}");
        assert!(counts.bytes.load(Ordering::Relaxed) <= MAX_BYTES);
        drop(open);
        drop(lines);
        writer.join().unwrap();
        let text = String::from_utf8(written.lock().unwrap().clone()).unwrap();
        // Whole lines, the oldest first.
        assert!(text.lines().all(|line| line.len() == 600));
        assert!(text.starts_with(&format!("{:0>600}\n{:0>600}\n", 0, 1)));
        assert_eq!((counts.lines.load(Ordering::Relaxed), counts.bytes.load(Ordering::Relaxed)), (0, 0));
    }

    #[test]
    fn short_lines_are_bounded_by_their_number() {
        let counts = Counts::default();
        assert_eq!((0..2 * MAX_LINES).filter(|_| counts.enter(1)).count(), MAX_LINES);
        counts.leave(1);
        assert!(!counts.enter(MAX_BYTES));
        assert!(counts.enter(1) && !counts.enter(1));
    }
}
