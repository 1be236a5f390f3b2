//! Runs a program of the node or of ours to its end, for its answer: with a time limit and a bounded output.

use crate::lanes;
use crate::shims::spawn::reap_later;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::WaitIdStatus;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;
use std::time::Duration;
use sys::spawn::{Binary, Child, Program};
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
    status: Option<WaitIdStatus>,
    /// What it has written. What is not UTF-8 is replaced.
    pub(crate) output: String,
}

impl Ran {
    /// Whether it ended with code 0.
    pub(crate) fn succeeded(&self) -> bool {
        self.status.as_ref().and_then(WaitIdStatus::exit_status) == Some(0)
    }

    /// How it ended, for errors.
    pub(crate) fn how(&self) -> String {
        let status = self.status.as_ref();
        match (status.and_then(WaitIdStatus::exit_status), status.and_then(WaitIdStatus::terminating_signal))
        {
            (Some(code), _) => format!("it ended with code {code}"),
            (None, Some(signal)) => format!("it was killed by signal {signal}"),
            (None, None) => "how it ended is not known".to_owned(),
        }
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
    let child = started.map_err(io::Error::other)??;
    let guard = Kill(child.pidfd.try_clone()?);
    // From here on it is reaped, whatever happens.
    let ended = reap_later(child);
    let mut output = Vec::new();
    Receiver::from_owned_fd(read_end)?.take(MAX_OUTPUT).read_to_end(&mut output).await?;
    let status = ended.await.map_err(io::Error::other)?;
    drop(guard);
    Ok(Ran { status, output: String::from_utf8_lossy(&output).into_owned() })
}

/// Kills the process when it is given up.
struct Kill(OwnedFd);

impl Drop for Kill {
    fn drop(&mut self) {
        // It has usually ended.
        drop(sys::pidfd::send_signal(self.0.as_fd(), 9));
    }
}

/// Blocking.
fn start(attempt: Attempt, output: OwnedFd) -> io::Result<Child> {
    let Attempt { program, args, input, errors } = attempt;
    let path = CString::new(program.into_os_string().into_vec()).map_err(io::Error::other)?;
    let args: Vec<CString> = [path.clone()].into_iter().chain(args).collect();
    let stderr = io::stderr();
    let errors = if errors { output.as_fd() } else { stderr.as_fd() };
    sys::spawn::spawn(&Program {
        binary: Binary::Path(&path),
        args: &args,
        env: &[],
        stdio: [input.as_ref().map(|fd| fd.as_fd()), Some(output.as_fd()), Some(errors)],
        fds: &[],
        cgroup: None,
    })
}
