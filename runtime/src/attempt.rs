//! Runs a program of the node or of ours to its end, for its answer: with a time limit and a bounded output.

use crate::lanes;
use child::Process;
use rustix::pipe::{PipeFlags, pipe_with};
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;
use sys::spawn::{Binary, Program};
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe::Receiver;

/// Maximum length of the output in bytes. What is longer is cut, and the program may end by SIGPIPE.
const MAX_OUTPUT: u64 = 4096;

/// What is run.
#[derive(Debug)]
pub(crate) struct Attempt {
    /// Absolute path.
    pub(crate) program: PathBuf,
    /// Arguments after the program's own name. It gets no environment.
    pub(crate) args: Vec<CString>,
    /// Standard input; `None` is empty.
    pub(crate) input: Option<OwnedFd>,
    /// Standard error belongs to the output; otherwise it is the daemon's.
    pub(crate) errors: bool,
}

/// A program that has ended.
#[derive(Debug)]
pub(crate) struct Ran {
    status: ExitStatus,
    /// What it has written. What is not UTF-8 is replaced.
    pub(crate) output: String,
}

impl Ran {
    /// Whether it ended with code 0.
    pub(crate) fn succeeded(&self) -> bool {
        self.status.success()
    }

    /// How it ended, for errors.
    pub(crate) fn how(&self) -> String {
        format!("it ended with {}", self.status)
    }
}

/// Runs a program. If the limit passes, or the caller goes away, it is killed.
///
/// # Errors
/// TimedOut; it could not be started; the errors of pipes.
pub(crate) async fn run(attempt: Attempt, limit: Duration) -> io::Result<Ran> {
    match tokio::time::timeout(limit, to_its_end(attempt)).await {
        Ok(ran) => ran,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, format!("it did not end within {limit:?}"))),
    }
}

async fn to_its_end(attempt: Attempt) -> io::Result<Ran> {
    let (read_end, write_end) = pipe_with(PipeFlags::CLOEXEC)?;
    let started = lanes::records().run(move || start(attempt, write_end)).await;
    // Killed if this is given up.
    let mut process = started.map_err(io::Error::other)??;
    let mut output = Vec::new();
    Receiver::from_owned_fd(read_end)?.take(MAX_OUTPUT).read_to_end(&mut output).await?;
    let status = process.wait().await?;
    Ok(Ran { status, output: String::from_utf8_lossy(&output).into_owned() })
}

/// Blocking; must be called within the runtime.
fn start(attempt: Attempt, output: OwnedFd) -> io::Result<Process> {
    let Attempt { program, args, input, errors } = attempt;
    let path = CString::new(program.into_os_string().into_vec()).map_err(io::Error::other)?;
    let args: Vec<CString> = [path.clone()].into_iter().chain(args).collect();
    let stderr = io::stderr();
    let errors = if errors { output.as_fd() } else { stderr.as_fd() };
    let child = sys::spawn::spawn(&Program {
        binary: Binary::Path(&path),
        args: &args,
        env: &[],
        stdio: [input.as_ref().map(|fd| fd.as_fd()), Some(output.as_fd()), Some(errors)],
        fds: &[],
        cgroup: None,
    });
    Process::new(child?)
}
