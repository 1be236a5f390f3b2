//! A container's streams in the shim: its output on the way into its log, its input, and the pipe on which init says
//! that it could not be started.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use sys::epoll::{Epoll, Interest};
use wire::{ErrorKind, Failure};

use crate::failure::{failure, refusal};
use crate::io::log::Stream;
use crate::io::output::{After, Buffers, LogFile, Output};
use crate::lifecycle::Serial;
use crate::tokens::Watched;

/// Most that is read of what init says: more than any failure takes.
const LONGEST_ERROR: usize = 8192;

/// The streams of a container.
#[derive(Debug)]
pub(crate) struct Streams {
    log: LogFile,
    /// stdout and stderr, or the terminal.
    outputs: [Option<Output>; 2],
    /// Kept open so that the container sees no end of its input.
    stdin: Option<OwnedFd>,
    terminal: bool,
    /// Brings the terminal's master, until that was taken.
    console: Option<OwnedFd>,
    /// Ends when init has called execve; says why when it could not.
    error_pipe: Option<OwnedFd>,
    error: Vec<u8>,
}

/// What init has said on its error pipe.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) message: Option<String>,
    /// Nothing more can come.
    pub(crate) closed: bool,
}

impl Streams {
    pub(crate) fn new(log: LogFile, terminal: bool) -> Self {
        let (outputs, error) = ([None, None], Vec::new());
        Self { log, outputs, stdin: None, terminal, console: None, error_pipe: None, error }
    }

    /// Takes what the worker has prepared: the error pipe, then either the socket that brings the terminal's master,
    /// or stdout and stderr; then stdin where it is kept open.
    pub(crate) fn prepared(&mut self, fds: Vec<OwnedFd>) -> Result<(), Failure> {
        let mut fds = fds.into_iter();
        self.error_pipe = fds.next();
        if let Some(fd) = &self.error_pipe {
            sys::proc::set_nonblocking(fd.as_fd()).map_err(at("streams"))?;
        }
        if self.terminal {
            self.console = fds.next();
            return Ok(());
        }
        let (stdout, stderr) = (fds.next(), fds.next());
        self.stdin = fds.next();
        for ((slot, fd), stream) in
            self.outputs.iter_mut().zip([stdout, stderr]).zip([Stream::Stdout, Stream::Stderr])
        {
            *slot = fd.map(|fd| Output::new(fd, stream, false)).transpose().map_err(at("streams"))?;
        }
        Ok(())
    }

    /// Takes the terminal's master, which libcontainer has sent while it made the container.
    pub(crate) fn take_terminal(&mut self) -> Result<(), Failure> {
        let Some(socket) = self.console.take() else { return Ok(()) };
        let mut master = None;
        sys::proc::set_nonblocking(socket.as_fd()).map_err(at("terminal"))?;
        // A name comes along, which says nothing.
        sys::scm::recv_with_fds(socket.as_fd(), &mut [0; 256], |fd| master = master.take().or(Some(fd)))
            .map_err(at("terminal"))?;
        let none = || refusal(ErrorKind::Internal, "terminal", "no master came");
        let output = Output::new(master.ok_or_else(none)?, Stream::Stdout, true).map_err(at("terminal"))?;
        self.outputs = [Some(output), None];
        Ok(())
    }

    /// Has output awaited.
    pub(crate) fn watch_outputs(&self, epoll: &Epoll, serial: Serial) -> io::Result<()> {
        for (output, watched) in self.outputs.iter().zip([Watched::Stdout(serial), Watched::Stderr(serial)]) {
            if let Some(output) = output {
                epoll.add(output.fd(), watched.token(), Interest::READ)?;
            }
        }
        Ok(())
    }

    /// Copies output into the log: stdout or the terminal (0), or stderr (1). Returns what to warn of.
    pub(crate) fn copy(&mut self, which: usize, epoll: &Epoll, buffers: &mut Buffers) -> Option<String> {
        let slot = self.outputs.get_mut(which)?;
        let output = slot.as_mut()?;
        let mut warning = None;
        if output.read(&mut self.log, buffers, &mut |text| warning = Some(text)) == After::Ended {
            drop(epoll.remove(output.fd()));
            if let Some(output) = slot.take() {
                output.finish(&mut self.log, buffers, &mut |text| warning = Some(text));
            }
        }
        warning
    }

    /// Writes out what is left of the output and closes the streams. Returns what to warn of.
    pub(crate) fn finish(&mut self, epoll: &Epoll, buffers: &mut Buffers) -> Option<String> {
        let mut warning = None;
        for slot in &mut self.outputs {
            if let Some(output) = slot.take() {
                drop(epoll.remove(output.fd()));
                output.finish(&mut self.log, buffers, &mut |text| warning = Some(text));
            }
        }
        self.stdin = None;
        self.log.finish();
        warning
    }

    /// Opens the log anew by its path.
    pub(crate) fn reopen_log(&mut self, dir: std::os::fd::BorrowedFd<'_>) -> io::Result<()> {
        self.log.reopen(dir)
    }

    /// Has the error pipe awaited.
    pub(crate) fn watch_error_pipe(&self, epoll: &Epoll, serial: Serial) -> io::Result<()> {
        match &self.error_pipe {
            Some(fd) => epoll.add(fd.as_fd(), Watched::ErrorPipe(serial).token(), Interest::READ),
            None => Ok(()),
        }
    }

    /// Reads what has come on the error pipe, which is closed at its end. `last`: nothing more is awaited.
    pub(crate) fn read_error_pipe(&mut self, epoll: &Epoll, last: bool) -> Said {
        let mut closed = false;
        let mut buffer = [0; 1024];
        while let (Some(fd), false) = (&self.error_pipe, closed) {
            match sys::proc::read(fd.as_fd(), &mut buffer) {
                Ok(bytes) if bytes > 0 && self.error.len() < LONGEST_ERROR => {
                    self.error.extend_from_slice(buffer.get(..bytes).unwrap_or_default());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // Its end, or too much: that is not init, but whoever may look into it can write there too.
                Ok(_) | Err(_) => closed = true,
            }
        }
        let message = if closed || last { self.said() } else { None };
        if closed || last {
            self.drop_error_pipe(epoll);
        }
        Said { message, closed }
    }

    fn said(&mut self) -> Option<String> {
        let bytes = std::mem::take(&mut self.error);
        if bytes.is_empty() {
            return None;
        }
        let said: Result<Failure, _> = serde_json::from_slice(&bytes);
        Some(said.map_or_else(|_| String::from_utf8_lossy(&bytes).into_owned(), |failure| failure.message))
    }

    /// Nothing more is awaited there.
    pub(crate) fn drop_error_pipe(&mut self, epoll: &Epoll) {
        if let Some(pipe) = self.error_pipe.take() {
            drop(epoll.remove(pipe.as_fd()));
        }
        self.error = Vec::new();
    }
}

fn at(stage: &'static str) -> impl FnOnce(io::Error) -> Failure {
    move |error| failure(ErrorKind::Internal, stage, &error)
}
