//! Copies a container's output from its pipes or terminal to its log file.
//!
//! Reading continues even if writing fails: a container must not block because a disk is full.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use sys::scratch::Scratch;

use crate::io::folder::LogFolder;
use crate::io::log::{Batch, Lines, MIN_BUFFER, Stream};
use crate::io::stamp::Stamp;
use crate::packet::MAX_PACKET;

/// Bytes of one read: a pipe's capacity. A worker's packet must fit, too.
const READ: usize = 64 * 1024;
/// Maximum number of reads of one stream before others are read.
const TURNS: usize = 8;
/// Size of the write buffer: one read's lines with their headers, if they have 13 bytes or more on average.
const WRITE: usize = 256 * 1024;

/// Buffers that all streams of the shim share.
#[derive(Debug)]
pub(crate) struct Buffers {
    read: Scratch,
    write: Scratch,
    used: bool,
}

impl Buffers {
    pub(crate) fn new() -> io::Result<Self> {
        const _: () = assert!(WRITE >= MIN_BUFFER && READ >= MAX_PACKET);
        Ok(Self { read: Scratch::new(READ)?, write: Scratch::new(WRITE)?, used: false })
    }

    /// Whether [`Buffers::release`] would free anything.
    pub(crate) fn are_used(&self) -> bool {
        self.used
    }

    /// Returns their memory when the shim is idle.
    pub(crate) fn release(&mut self) {
        self.read.release();
        self.write.release();
        self.used = false;
    }

    /// The read buffer, which has no data between reads and is large enough for a packet.
    pub(crate) fn reading(&mut self) -> &mut [u8] {
        self.used = true;
        self.read.bytes()
    }
}

/// The log file of a container.
#[derive(Debug)]
pub(crate) struct LogFile {
    path: Box<str>,
    /// `None` discards the output.
    file: Option<File>,
    /// A write has failed and was reported; reset by the next successful write.
    failing: bool,
    /// Number of lines lost since the last successful write.
    lost: u64,
}

impl LogFile {
    /// No log.
    pub(crate) fn none() -> Self {
        Self { path: Box::default(), file: None, failing: false, lost: 0 }
    }

    /// Opens the log file below the pod's log folder.
    pub(crate) fn open(folder: &mut LogFolder, path: &str) -> io::Result<Self> {
        let file = Some(folder.append(path)?);
        Ok(Self { file, path: path.into(), failing: false, lost: 0 })
    }

    /// Reopens the file by its path after it was renamed. On an error the old file stays in use.
    pub(crate) fn reopen(&mut self, folder: &mut LogFolder) -> io::Result<()> {
        if self.file.is_some() {
            self.file = Some(folder.append(&self.path)?);
            self.failing = false;
        }
        Ok(())
    }

    /// Writes complete lines; lines that do not fit are dropped as a whole. The first of several errors is
    /// passed to `warn`. A marker line is written in place of lost lines once that is possible.
    fn write(&mut self, lines: &[u8], warn: &mut dyn FnMut(String)) {
        let whole = |bytes: &[u8]| bytes.iter().filter(|byte| **byte == b'\n').count() as u64;
        if self.lost > 0 {
            let mark = self.mark();
            match self.append(mark.as_bytes()) {
                Ok(()) => self.lost = 0,
                // Already reported.
                Err(_) => {
                    self.lost = self.lost.saturating_add(whole(lines));
                    return;
                }
            }
        }
        match self.append(lines) {
            Ok(()) => self.failing = false,
            Err((written, error)) => {
                self.lost = whole(lines.get(written..).unwrap_or_default());
                if !std::mem::replace(&mut self.failing, true) {
                    warn(format!(
                        "log {}: {error}; output is dropped until it can be written again",
                        self.path
                    ));
                }
            }
        }
    }

    /// The marker for lost lines.
    fn mark(&self) -> String {
        let stamp = Stamp::new(sys::clock::now());
        let stamp = String::from_utf8_lossy(stamp.as_bytes());
        format!("{stamp} stderr F [copepod: {} lines could not be written to this log]\n", self.lost)
    }

    /// Appends complete lines. An error includes the bytes of complete lines that were written before it.
    fn append(&mut self, lines: &[u8]) -> Result<(), (usize, io::Error)> {
        let Some(file) = &mut self.file else { return Ok(()) };
        let mut rest = lines;
        let error = loop {
            if rest.is_empty() {
                return Ok(());
            }
            match file.write(rest) {
                Ok(0) => break io::Error::from(io::ErrorKind::WriteZero),
                Ok(bytes) => rest = rest.get(bytes..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break error,
            }
        };
        // An incomplete line at the end would be joined with the next line.
        let written = lines.get(..lines.len() - rest.len()).unwrap_or_default();
        let torn = written.rsplit(|byte| *byte == b'\n').next().unwrap_or_default().len();
        let error = match sys::beneath::truncate_end(file, torn as u64) {
            Ok(()) => error,
            Err(second) => io::Error::other(format!("{error}; truncating the incomplete line: {second}")),
        };
        Err((written.len() - torn, error))
    }

    /// Writes the marker for lost lines, if the file can be written now. For the end of the output.
    pub(crate) fn finish(&mut self) {
        if self.lost > 0 {
            self.write(&[], &mut drop);
        }
    }
}

/// The state of a stream after reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum After {
    /// More may come.
    Open,
    /// It has ended.
    Ended,
}

/// One stream of a container.
#[derive(Debug)]
pub(crate) struct Output {
    fd: OwnedFd,
    lines: Lines,
    /// The slave side of a terminal. While it is open here, the container may close all of its own
    /// descriptors and open /dev/console again later. Without an open slave the master returns EIO, and
    /// closing the master would hang up the session.
    _peer: Option<OwnedFd>,
}

impl Output {
    /// Takes the read end of a pipe, or a terminal's master, and makes it non-blocking.
    pub(crate) fn new(fd: OwnedFd, stream: Stream, terminal: bool) -> io::Result<Self> {
        sys::fds::set_nonblocking(fd.as_fd())?;
        let peer = if terminal { Some(sys::pty::peer(fd.as_fd())?) } else { None };
        Ok(Self { fd, lines: Lines::new(stream, terminal), _peer: peer })
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Reads available data, within the limit of one iteration. `also` gets it too.
    pub(crate) fn read(
        &mut self,
        log: &mut LogFile,
        buffers: &mut Buffers,
        warn: &mut dyn FnMut(String),
        also: &mut dyn FnMut(&[u8]),
    ) -> After {
        buffers.used = true;
        let Buffers { read, write, .. } = buffers;
        let mut batch = Batch::new(write.bytes(), |lines: &[u8]| log.write(lines, warn));
        for _ in 0..TURNS {
            let buffer = read.bytes();
            let size = buffer.len();
            let got = match sys::fds::read(self.fd.as_fd(), buffer) {
                Ok(0) => Err(After::Ended),
                Ok(bytes) => Ok(bytes),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(After::Open),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                // Not expected, because the shim has a slave side of the terminal open.
                Err(_) => Err(After::Ended),
            };
            match got {
                Ok(bytes) => {
                    let chunk: &[u8] = read.bytes().get(..bytes).unwrap_or_default();
                    also(chunk);
                    self.lines.push(chunk, &Stamp::new(sys::clock::now()), &mut batch);
                    if bytes < size {
                        // A short read means that the pipe is empty, so another call is not needed.
                        break;
                    }
                }
                Err(After::Open) => break,
                Err(After::Ended) => {
                    batch.flush();
                    return After::Ended;
                }
            }
        }
        batch.flush();
        After::Open
    }

    /// Reads remaining data and writes an incomplete line, after the container's processes have ended. The number of
    /// reads is bounded: another process that has the pipe and keeps writing must not block the shim.
    pub(crate) fn finish(
        mut self,
        log: &mut LogFile,
        buffers: &mut Buffers,
        warn: &mut dyn FnMut(String),
        also: &mut dyn FnMut(&[u8]),
    ) {
        /// A pipe holds 1 MiB at most (`/proc/sys/fs/pipe-max-size` for the unprivileged): two rounds. A terminal holds
        /// less, but a read of it returns at most 4 KiB and ends the round.
        const ROUNDS: usize = 64;
        for _ in 0..ROUNDS {
            if self.read(log, buffers, warn, also) == After::Ended || !sys::fds::is_readable(self.fd.as_fd())
            {
                break;
            }
        }
        let mut batch = Batch::new(buffers.write.bytes(), |lines: &[u8]| log.write(lines, warn));
        self.lines.finish(&Stamp::new(sys::clock::now()), &mut batch);
        batch.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::pty::{OpenptFlags, openpt, unlockpt};
    use std::time::{Duration, Instant};

    #[test]
    fn a_terminal_that_is_closed_for_a_while_has_not_ended() {
        let dir = tempfile::tempdir().unwrap();
        let mut folder = LogFolder::open(dir.path().to_str().unwrap()).unwrap();
        let mut log = LogFile::open(&mut folder, "log").unwrap();
        let mut buffers = Buffers::new().unwrap();
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        unlockpt(&master).unwrap();
        let mut output = Output::new(master, Stream::Stdout, true).unwrap();
        for word in ["one", "two"] {
            let slave = sys::pty::peer(output.fd()).unwrap();
            File::from(slave).write_all(format!("{word}\n").as_bytes()).unwrap();
            let end = Instant::now() + Duration::from_secs(60);
            let logged = || std::fs::read_to_string(dir.path().join("log")).unwrap();
            while !logged().contains(&format!(" F {word}\n")) {
                assert!(Instant::now() < end, "{:?}", logged());
                let mut read = Vec::new();
                let mut also = |bytes: &[u8]| read.extend_from_slice(bytes);
                let after =
                    output.read(&mut log, &mut buffers, &mut |warning| panic!("{warning}"), &mut also);
                assert_eq!(after, After::Open);
                assert!(read.is_empty() || read == format!("{word}\r\n").as_bytes(), "{read:?}");
            }
        }
    }
}
