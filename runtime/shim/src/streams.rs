//! A container's streams in the shim: its output, which is copied to its log, its input, and the pipe on
//! which init reports a failed start.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use sys::epoll::{Epoll, Interest};
use wire::{ErrorKind, Failure};

use crate::failure::{failure, refusal};
use crate::io::attached::Attached;
use crate::io::folder::LogFolder;
use crate::io::log::Stream;
use crate::io::output::{After, Buffers, LogFile, Output};
use crate::lifecycle::Serial;
use crate::tokens::Watched;

/// Maximum number of bytes that are read of init's error: more than any failure has.
const MAX_ERROR: usize = 8192;

/// The streams of a container.
#[derive(Debug)]
pub(crate) struct Streams {
    log: LogFile,
    /// stdout and stderr, or the terminal.
    outputs: [Option<Output>; 2],
    /// Kept open so that the container's stdin does not end.
    stdin: Option<OwnedFd>,
    attached: Attached,
    terminal: bool,
    /// The socket on which the terminal's master arrives, until it is received.
    console: Option<OwnedFd>,
    /// The read end of the start pipe: execve closes init's end, or init writes there why its start failed.
    start_pipe: Option<OwnedFd>,
    /// What init has written to it so far.
    error: Vec<u8>,
}

/// What was read from init's start pipe.
#[derive(Debug)]
pub(crate) struct StartPipeRead {
    /// Init's error, once it is complete.
    pub(crate) error: Option<String>,
    /// The pipe is closed.
    pub(crate) closed: bool,
}

impl Streams {
    pub(crate) fn new(log: LogFile, terminal: bool) -> Self {
        let (outputs, error) = ([None, None], Vec::new());
        let attached = Attached::default();
        Self { log, outputs, stdin: None, attached, terminal, console: None, start_pipe: None, error }
    }

    /// Takes the descriptors of the worker: the start pipe, then either the socket for the terminal's master,
    /// or stdout and stderr; then stdin if it is kept open.
    pub(crate) fn receive(&mut self, fds: Vec<OwnedFd>) -> Result<(), Failure> {
        let mut fds = fds.into_iter();
        self.start_pipe = fds.next();
        if let Some(fd) = &self.start_pipe {
            sys::fds::set_nonblocking(fd.as_fd()).map_err(at("streams"))?;
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

    /// Receives the terminal's master, which was sent during the creation of the container.
    pub(crate) fn take_terminal(&mut self) -> Result<(), Failure> {
        let Some(socket) = self.console.take() else { return Ok(()) };
        let mut master = None;
        sys::fds::set_nonblocking(socket.as_fd()).map_err(at("terminal"))?;
        // The message is one byte, which is not used.
        sys::scm::recv_with_fds(socket.as_fd(), &mut [0; 256], |fd| master = master.take().or(Some(fd)))
            .map_err(at("terminal"))?;
        let none = || refusal(ErrorKind::Internal, "terminal", "no terminal master was sent");
        let output = Output::new(master.ok_or_else(none)?, Stream::Stdout, true).map_err(at("terminal"))?;
        self.outputs = [Some(output), None];
        Ok(())
    }

    /// Watches the output.
    pub(crate) fn watch_outputs(&self, epoll: &Epoll, serial: Serial) -> io::Result<()> {
        for (output, watched) in self.outputs.iter().zip([Watched::Stdout(serial), Watched::Stderr(serial)]) {
            if let Some(output) = output {
                epoll.add(output.fd(), watched.token(), Interest::READ)?;
            }
        }
        Ok(())
    }

    /// Copies output to the log: stdout or the terminal (0), or stderr (1). Returns a warning, if any.
    pub(crate) fn copy(&mut self, which: usize, epoll: &Epoll, buffers: &mut Buffers) -> Option<String> {
        let Self { outputs, log, attached, .. } = self;
        let slot = outputs.get_mut(which)?;
        let output = slot.as_mut()?;
        let mut warning = None;
        let mut also = |bytes: &[u8]| attached.write(which, bytes);
        if output.read(log, buffers, &mut |text| warning = Some(text), &mut also) == After::Ended {
            drop(epoll.remove(output.fd()));
            if let Some(output) = slot.take() {
                output.finish(log, buffers, &mut |text| warning = Some(text), &mut also);
            }
        }
        warning
    }

    /// Writes the remaining output and closes the streams. Returns a warning, if any.
    pub(crate) fn finish(&mut self, epoll: &Epoll, buffers: &mut Buffers) -> Option<String> {
        let Self { outputs, log, attached, .. } = self;
        let mut warning = None;
        for (which, slot) in outputs.iter_mut().enumerate() {
            if let Some(output) = slot.take() {
                drop(epoll.remove(output.fd()));
                let mut also = |bytes: &[u8]| attached.write(which, bytes);
                output.finish(log, buffers, &mut |text| warning = Some(text), &mut also);
            }
        }
        self.attached.end();
        self.stdin = None;
        self.log.finish();
        warning
    }

    /// Gives a client the output from now on, by the pipes of its request. Returns the container's input: its terminal's
    /// master, or its stdin if that is kept open. `tell_loss`: see [`wire::Request::Attach`].
    pub(crate) fn attach(
        &mut self,
        fds: Vec<OwnedFd>,
        wanted: [bool; 2],
        tell_loss: bool,
    ) -> Result<Option<OwnedFd>, Failure> {
        let input = match (&self.outputs, &self.stdin) {
            ([Some(terminal), _], _) if self.terminal => Some(terminal.fd()),
            (_, stdin) => stdin.as_ref().map(|fd| fd.as_fd()),
        };
        let input = input.map(|fd| fd.try_clone_to_owned()).transpose().map_err(at("attach"))?;
        self.attached.add(fds, wanted, tell_loss)?;
        Ok(input)
    }

    /// No client will send more: the container's stdin ends when those that are attached have closed it too.
    pub(crate) fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Reopens the log by its path.
    pub(crate) fn reopen_log(&mut self, folder: &mut LogFolder) -> io::Result<()> {
        self.log.reopen(folder)
    }

    /// Watches the start pipe.
    pub(crate) fn watch_start_pipe(&self, epoll: &Epoll, serial: Serial) -> io::Result<()> {
        match &self.start_pipe {
            Some(fd) => epoll.add(fd.as_fd(), Watched::StartPipe(serial).token(), Interest::READ),
            None => Ok(()),
        }
    }

    /// Stops watching the start pipe, which stays open.
    pub(crate) fn unwatch_start_pipe(&self, epoll: &Epoll) {
        if let Some(fd) = &self.start_pipe {
            drop(epoll.remove(fd.as_fd()));
        }
    }

    /// Reads the start pipe and closes it at its end. `last`: do not wait for more.
    pub(crate) fn read_start_pipe(&mut self, epoll: &Epoll, last: bool) -> StartPipeRead {
        let mut closed = false;
        let mut buffer = [0; 1024];
        while let (Some(fd), false) = (&self.start_pipe, closed) {
            match sys::fds::read(fd.as_fd(), &mut buffer) {
                Ok(bytes) if bytes > 0 && self.error.len() < MAX_ERROR => {
                    self.error.extend_from_slice(buffer.get(..bytes).unwrap_or_default());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // The end, or too much data: that is not from init, but a process that may trace init can
                // write there too.
                Ok(_) | Err(_) => closed = true,
            }
        }
        let error = if closed || last { self.take_error() } else { None };
        if closed || last {
            self.drop_start_pipe(epoll);
        }
        StartPipeRead { error, closed }
    }

    fn take_error(&mut self) -> Option<String> {
        let bytes = std::mem::take(&mut self.error);
        if bytes.is_empty() {
            return None;
        }
        let failure: Result<Failure, _> = serde_json::from_slice(&bytes);
        Some(failure.map_or_else(|_| String::from_utf8_lossy(&bytes).into_owned(), |failure| failure.message))
    }

    /// Closes the start pipe.
    pub(crate) fn drop_start_pipe(&mut self, epoll: &Epoll) {
        if let Some(pipe) = self.start_pipe.take() {
            drop(epoll.remove(pipe.as_fd()));
        }
        self.error = Vec::new();
    }
}

fn at(stage: &'static str) -> impl FnOnce(io::Error) -> Failure {
    move |error| failure(ErrorKind::Internal, stage, &error)
}
