//! A container's output: from its pipes or terminal into its log file.
//!
//! Reading never stops, whatever becomes of the file: a container must not block because a disk is full.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use sys::scratch::Scratch;

use crate::io::log::{Batch, Lines, MIN_BUFFER, Stream};
use crate::io::stamp::Stamp;

/// Bytes taken by one read: a pipe's capacity.
const READ: usize = 64 * 1024;
/// Reads of one stream in a row before others get their turn.
const TURNS: usize = 8;
/// Bytes gathered before a write; 64 KiB of short lines with their headers.
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
        const _: () = assert!(WRITE >= MIN_BUFFER);
        Ok(Self { read: Scratch::new(READ)?, write: Scratch::new(WRITE)?, used: false })
    }

    /// Whether [`Buffers::release`] would give anything back.
    pub(crate) fn are_used(&self) -> bool {
        self.used
    }

    /// Gives their memory back, once things are quiet.
    pub(crate) fn release(&mut self) {
        self.read.release();
        self.write.release();
        self.used = false;
    }

    /// The one for reading, for whoever has nothing in it.
    pub(crate) fn reading(&mut self) -> &mut [u8] {
        self.used = true;
        self.read.bytes()
    }
}

/// The log file of a container.
#[derive(Debug)]
pub(crate) struct LogFile {
    path: Box<str>,
    /// None discards.
    file: Option<File>,
    /// A write has failed, and was told of; until one succeeds again.
    failing: bool,
    /// Lines that could not be written since one could.
    lost: u64,
}

impl LogFile {
    /// No log at all.
    pub(crate) fn none() -> Self {
        Self { path: Box::default(), file: None, failing: false, lost: 0 }
    }

    /// Opens it below the pod's log folder.
    pub(crate) fn open(dir: BorrowedFd<'_>, path: &str) -> io::Result<Self> {
        let file = Some(sys::beneath::append(dir, path)?);
        Ok(Self { file, path: path.into(), failing: false, lost: 0 })
    }

    /// Opens it anew by its path, after it was renamed. On error the old file stays in use.
    pub(crate) fn reopen(&mut self, dir: BorrowedFd<'_>) -> io::Result<()> {
        if self.file.is_some() {
            self.file = Some(sys::beneath::append(dir, &self.path)?);
            self.failing = false;
        }
        Ok(())
    }

    /// Writes whole lines, or none of those that do not fit. The first error of a row is handed to `warn`. Where
    /// lines are missing, a line says so once it can be written.
    fn write(&mut self, lines: &[u8], warn: &mut dyn FnMut(String)) {
        let whole = |bytes: &[u8]| bytes.iter().filter(|byte| **byte == b'\n').count() as u64;
        if self.lost > 0 {
            let mark = self.mark();
            match self.append(mark.as_bytes()) {
                Ok(()) => self.lost = 0,
                // Said already.
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

    /// The line that stands for those that were lost.
    fn mark(&self) -> String {
        let stamp = Stamp::new(sys::clock::now());
        let stamp = String::from_utf8_lossy(stamp.as_bytes());
        format!("{stamp} stderr F [copepod: {} lines could not be written to this log]\n", self.lost)
    }

    /// Appends whole lines. On an error says how many bytes of whole lines were written before it.
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
        // The part of a line at the end would join with the next one.
        let written = lines.get(..lines.len() - rest.len()).unwrap_or_default();
        let torn = written.rsplit(|byte| *byte == b'\n').next().unwrap_or_default().len();
        let error = match sys::beneath::take_back(file, torn as u64) {
            Ok(()) => error,
            Err(back) => io::Error::other(format!("{error}; cutting the torn line: {back}")),
        };
        Err((written.len() - torn, error))
    }

    /// Says that lines were lost, if the file can be written again now. For the end of the output.
    pub(crate) fn finish(&mut self) {
        if self.lost > 0 {
            self.write(&[], &mut drop);
        }
    }
}

/// What is left of a stream after reading.
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
    /// The other side of a terminal. While it is open here, the container may close all of its own and open
    /// /dev/console again later: without one the master says EIO, and closing that would hang up the session.
    _peer: Option<OwnedFd>,
}

impl Output {
    /// Takes the reading end of a pipe, or a terminal's master. It becomes non-blocking.
    pub(crate) fn new(fd: OwnedFd, stream: Stream, terminal: bool) -> io::Result<Self> {
        sys::fds::set_nonblocking(fd.as_fd())?;
        let peer = if terminal { Some(sys::pty::peer(fd.as_fd())?) } else { None };
        Ok(Self { fd, lines: Lines::new(stream, terminal), _peer: peer })
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Reads what is there, within a turn.
    pub(crate) fn read(
        &mut self,
        log: &mut LogFile,
        buffers: &mut Buffers,
        warn: &mut dyn FnMut(String),
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
                // Nothing is expected here: of a terminal one side is ours.
                Err(_) => Err(After::Ended),
            };
            match got {
                Ok(bytes) => {
                    let chunk = read.bytes().get(..bytes).unwrap_or_default();
                    self.lines.push(chunk, &Stamp::new(sys::clock::now()), &mut batch);
                    if bytes < size {
                        // A pipe that gave less than asked for is empty; asking again would cost a call.
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

    /// Reads what is left and writes the unfinished line. For when no writer is left, or none that counts:
    /// bounded, so that one who writes for ever cannot hold it.
    pub(crate) fn finish(mut self, log: &mut LogFile, buffers: &mut Buffers, warn: &mut dyn FnMut(String)) {
        /// A pipe holds 1 MiB at most (`/proc/sys/fs/pipe-max-size` for the unprivileged).
        const ROUNDS: usize = 64;
        for _ in 0..ROUNDS {
            if self.read(log, buffers, warn) == After::Ended || !sys::fds::is_readable(self.fd.as_fd()) {
                break;
            }
        }
        let mut batch = Batch::new(buffers.write.bytes(), |lines: &[u8]| log.write(lines, warn));
        self.lines.finish(&Stamp::new(sys::clock::now()), &mut batch);
        batch.flush();
    }
}
