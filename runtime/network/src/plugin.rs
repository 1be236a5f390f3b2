//! Runs one plugin: a foreign program that may hang, crash, fork or print anything.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use child::Process;
use pool::Lane;
use serde::Deserialize;
use sys::spawn::{Binary, Program};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::pipe;
use tokio::time::{Instant, timeout, timeout_at};

use crate::error::{Failure, Verb};

/// Longest output in bytes; real results have some hundred.
const MAX_STDOUT: usize = 1 << 20;
/// Bytes of standard error that are kept; the rest is read and dropped.
const MAX_STDERR: usize = 16 << 10;
/// Longest excerpt of a plugin's output in an error message, in characters.
const MAX_EXCERPT: usize = 400;
/// How long pipes are read after the plugin has ended: a child of the plugin may keep them open for ever.
const DRAIN: Duration = Duration::from_millis(500);
/// Attempts to execute a program that is being written (ETXTBSY), 20 ms apart.
const BUSY_TRIES: u32 = 10;

/// One command for one plugin.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) verb: Verb,
    /// The plugin's `type`.
    pub(crate) kind: String,
    /// Folders that are searched for the program; also CNI_PATH.
    pub(crate) bin_dirs: Vec<PathBuf>,
    /// CNI_CONTAINERID, CNI_IFNAME, CNI_ARGS and CNI_NETNS. Empty ones are not passed, except CNI_NETNS if there is a
    /// CNI_CONTAINERID.
    pub(crate) container: String,
    pub(crate) ifname: String,
    pub(crate) args: String,
    pub(crate) netns: OsString,
    /// Becomes descriptor 3, so that the lock stays taken until the plugin and its children have ended.
    pub(crate) lock: Option<Arc<OwnedFd>>,
    pub(crate) stdin: Vec<u8>,
    pub(crate) deadline: Instant,
}

/// Runs the plugin and returns what it printed.
pub(crate) async fn run(lane: &Lane, call: Call) -> Result<Vec<u8>, Failure> {
    let started = Instant::now();
    let deadline = call.deadline;
    let hung = || Failure::Hung { after_ms: (deadline - started).as_millis() };
    let (verb, container, stdin) = (call.verb, call.container.clone(), call.stdin.clone());
    // Finding and executing the program may wait for a disk.
    let spawning = lane.run(move || spawn(&call));
    let (path, child) = match timeout_at(deadline, spawning).await {
        Ok(spawned) => spawned.map_err(|source| Failure::NotStarted { source })??,
        // The thread may still start the process. Its result is dropped then, and with it the guard that kills
        // the process.
        Err(_) => return Err(hung()),
    };
    let run_failed = |source| run_error(&path, source);
    let Started { mut process, stdin: to, stdout: from, stderr: errors } = child;

    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let status = {
        let mut pumps = Box::pin(async {
            let write = async {
                let mut to = to;
                // Ignore EPIPE: a plugin may exit without reading its input; its exit status is reported.
                to.write_all(&stdin).await.unwrap_or_default();
            };
            let out = collect(from, &mut stdout, MAX_STDOUT + 1, false);
            let err = collect(errors, &mut stderr, MAX_STDERR, true);
            tokio::join!(write, out, err)
        });
        let finished = async {
            let mut pumped = false;
            loop {
                tokio::select! {
                    status = process.wait() => {
                        if !pumped {
                            drop(timeout(DRAIN, &mut pumps).await);
                        }
                        return status;
                    }
                    _ = &mut pumps, if !pumped => pumped = true,
                }
            }
        };
        timeout_at(deadline, finished).await
    };
    let status = match status {
        Ok(status) => status.map_err(run_failed)?,
        // Dropping it kills the process group.
        Err(_) => return Err(hung()),
    };
    if stdout.len() > MAX_STDOUT {
        return Err(Failure::TooMuch { limit: MAX_STDOUT });
    }
    let failure = (!status.success()).then(|| exit_failure(status, &stdout, &stderr));
    log(failure.as_ref(), (verb, &container), &path, &stderr);
    failure.map_or(Ok(stdout), Err)
}

/// Logs a plugin's standard error, which is where plugins write their log, also when they succeed.
fn log(failure: Option<&Failure>, (verb, container): (Verb, &str), path: &Path, stderr: &[u8]) {
    let stderr = excerpt(stderr);
    // `Ended` has it already.
    if stderr.is_empty() || matches!(failure, Some(Failure::Ended { .. })) {
        return;
    }
    let plugin = path.file_name().unwrap_or_default().display();
    tracing::info!(%verb, %plugin, container, stderr, "a CNI plugin has written to its standard error");
}

/// A running plugin with our ends of its pipes.
#[derive(Debug)]
struct Started {
    process: Process,
    stdin: pipe::Sender,
    stdout: pipe::Receiver,
    stderr: pipe::Receiver,
}

fn run_error(path: &Path, source: io::Error) -> Failure {
    Failure::Run { path: path.to_path_buf(), source }
}

/// Finds the program of plugin `kind`. Blocking.
pub(crate) fn find(kind: &str, dirs: &[PathBuf]) -> Result<PathBuf, Failure> {
    let is_executable =
        |path: &PathBuf| path.metadata().is_ok_and(|it| it.is_file() && it.permissions().mode() & 0o111 != 0);
    let found = dirs.iter().map(|dir| dir.join(kind)).find(is_executable);
    found.ok_or_else(|| Failure::Missing { dirs: dirs.to_vec() })
}

/// Finds the program and starts it in its own session, and so in its own process group. Blocking; must be called
/// within the runtime, which the pipes need.
fn spawn(call: &Call) -> Result<(PathBuf, Started), Failure> {
    let path = find(&call.kind, &call.bin_dirs)?;
    let failed = |source| run_error(&path, source);
    let program = CString::new(path.as_os_str().as_bytes()).map_err(|error| failed(error.into()))?;
    let env = environment(call).map_err(failed)?;
    let pipes = || -> io::Result<_> { Ok((io::pipe()?, io::pipe()?, io::pipe()?)) };
    let ((stdin, to), (from, stdout), (errors, stderr)) = pipes().map_err(failed)?;
    let lock: Vec<_> = call.lock.iter().map(|lock| lock.as_fd()).collect();
    let program = Program {
        binary: Binary::Path(&program),
        args: std::slice::from_ref(&program),
        env: &env,
        stdio: [Some(stdin.as_fd()), Some(stdout.as_fd()), Some(stderr.as_fd())],
        fds: &lock,
        cgroup: None,
    };
    let mut tries = 0;
    let child = loop {
        match sys::spawn::spawn(&program) {
            Ok(child) => break child,
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy && tries < BUSY_TRIES => {
                tries += 1;
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(error) => return Err(failed(error)),
        }
    };
    let pid = child.pid;
    // From here on it is killed if something fails.
    let process = Process::new(child).map_err(failed)?;
    unprotect(pid);
    let start = || -> io::Result<Started> {
        Ok(Started {
            process,
            stdin: pipe::Sender::from_owned_fd(to.into())?,
            stdout: pipe::Receiver::from_owned_fd(from.into())?,
            stderr: pipe::Receiver::from_owned_fd(errors.into())?,
        })
    };
    let started = start().map_err(failed)?;
    Ok((path, started))
}

/// Gives a plugin the usual oom_score_adj(5). It inherits the daemon's, which protects the daemon from being killed when
/// memory runs out, and plugins may be large and leave processes. (Its limit of open files is the one that the daemon was
/// started with, see [`sys::spawn`].)
fn unprotect(pid: u32) {
    if sys::proc::oom_score_adj(std::process::id()).is_ok_and(|own| own < 0)
        && let Err(error) = std::fs::write(format!("/proc/{pid}/oom_score_adj"), "0")
    {
        // It has ended already, mostly.
        tracing::debug!(pid, %error, "cannot set oom_score_adj of a CNI plugin");
    }
}

/// Variables of the CNI specification, which depend on the call.
const NOT_INHERITED: [&str; 4] = ["CNI_CONTAINERID", "CNI_IFNAME", "CNI_ARGS", "CNI_NETNS"];

/// The daemon's environment, and the variables of the CNI specification.
fn environment(call: &Call) -> io::Result<Vec<CString>> {
    let search = std::env::join_paths(&call.bin_dirs).map_err(io::Error::other)?;
    let mut env: BTreeMap<OsString, OsString> = child::inherited().collect();
    for name in NOT_INHERITED {
        env.remove(OsStr::new(name));
    }
    let mut set = |name: &str, value: &OsStr| env.insert(name.into(), value.to_owned());
    set("CNI_COMMAND", OsStr::new(call.verb.as_str()));
    set("CNI_PATH", &search);
    for (name, value) in
        [("CNI_CONTAINERID", &call.container), ("CNI_IFNAME", &call.ifname), ("CNI_ARGS", &call.args)]
    {
        if !value.is_empty() {
            set(name, OsStr::new(value));
        }
    }
    if !call.container.is_empty() {
        set("CNI_NETNS", &call.netns);
    }
    child::environment(env)
}

/// Reads up to `limit` bytes. With `drain`, further bytes are read and dropped, so that the writer does not block;
/// without it, the pipe is closed then.
async fn collect(mut from: impl AsyncRead + Unpin, into: &mut Vec<u8>, limit: usize, drain: bool) {
    let mut chunk = [0; 4096];
    loop {
        match from.read(&mut chunk).await {
            // A read error is treated like the end.
            Ok(0) | Err(_) => return,
            Ok(count) => {
                let room = limit - into.len();
                into.extend_from_slice(&chunk[..count.min(room)]);
                if count >= room && !drain {
                    return;
                }
            }
        }
    }
}

#[derive(Deserialize)]
struct CniError {
    #[serde(default)]
    code: u64,
    #[serde(default)]
    msg: String,
    #[serde(default)]
    details: String,
}

/// The failure of a plugin that exited with an error.
pub(crate) fn exit_failure(status: ExitStatus, stdout: &[u8], stderr: &[u8]) -> Failure {
    if let Ok(error) = serde_json::from_slice::<CniError>(stdout)
        && !error.msg.is_empty()
    {
        let details = excerpt(error.details.as_bytes());
        return Failure::Refused { code: error.code, message: excerpt(error.msg.as_bytes()), details };
    }
    let status = match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => "ended".to_owned(),
    };
    let output = if stderr.is_empty() { stdout } else { stderr };
    Failure::Ended { status, output: excerpt(output) }
}

/// The beginning of a plugin's output, made safe for messages and log lines.
pub(crate) fn excerpt(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(4 * MAX_EXCERPT)]);
    let mut short: String = text.trim().chars().take(MAX_EXCERPT).collect();
    short = short.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if short.len() < text.trim().len() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use pool::Size;

    #[tokio::test]
    async fn a_full_lane_is_named_as_the_cause() {
        let size = Size { name: "cni", kept_threads: 0, max_threads: 1, max_per_owner: 1, max_queued: 0 };
        let call = Call {
            verb: Verb::Status,
            kind: "bridge".to_owned(),
            bin_dirs: Vec::new(),
            container: String::new(),
            ifname: String::new(),
            args: String::new(),
            netns: OsString::new(),
            lock: None,
            stdin: Vec::new(),
            deadline: Instant::now() + Duration::from_secs(30),
        };
        let failure = run(&Lane::new(size), call).await.unwrap_err();
        let Failure::NotStarted { source } = &failure else { panic!("{failure:?}") };
        assert!(source.to_string().contains("the queue of cni work is full"), "{source}");
        let (verb, plugin, network) = (Verb::Status, "bridge".to_owned(), "net".to_owned());
        let error = Error::Plugin { pod: None, verb, plugin, network, failure: Box::new(failure) };
        assert!(error.is_temporary());
    }
}
