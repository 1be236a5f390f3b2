//! Runs one plugin: a foreign program that may hang, crash, fork or print anything.

use std::ffi::OsString;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use pool::Lane;
use rustix::process::{Pid, Signal, kill_process_group};
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};
use tokio::time::{Instant, timeout, timeout_at};

use crate::error::{Failure, Verb};

/// Longest output in bytes; real results have some hundred.
const MAX_STDOUT: usize = 1 << 20;
/// Bytes of standard error that are kept; the rest is read and dropped.
const MAX_STDERR: usize = 16 << 10;
/// Longest excerpt of a plugin's output in an error message, in characters.
const MAX_EXCERPT: usize = 400;
/// How long pipes are read after the plugin has ended: a child of the plugin may hold them open for ever.
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
    /// CNI_CONTAINERID, CNI_IFNAME, CNI_ARGS and CNI_NETNS; empty ones are not passed, except CNI_NETNS.
    pub(crate) container: String,
    pub(crate) ifname: String,
    pub(crate) args: String,
    pub(crate) netns: OsString,
    pub(crate) stdin: Vec<u8>,
    pub(crate) deadline: Instant,
}

/// Runs the plugin and returns what it printed.
pub(crate) async fn run(lane: &Lane, call: Call) -> Result<Vec<u8>, Failure> {
    let started = Instant::now();
    let deadline = call.deadline;
    let hung = || Failure::Hung { after_ms: (deadline - started).as_millis() };
    let stdin = call.stdin.clone();
    // Finding and executing the program may wait for a disk.
    let spawning = lane.run(move || spawn(&call));
    let (path, child) = match timeout_at(deadline, spawning).await {
        Ok(spawned) => spawned.map_err(|error| run_error(Path::new("plugin"), error.into()))??,
        // If this future is dropped meanwhile, the dropped guard kills a process that the thread starts
        // later.
        Err(_) => return Err(hung()),
    };
    let mut process = child;
    let run_failed = |source| run_error(&path, source);

    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let child = &mut process.child;
    let (to, from, errors) = match (child.stdin.take(), child.stdout.take(), child.stderr.take()) {
        (Some(to), Some(from), Some(errors)) => (to, from, errors),
        _ => return Err(run_failed(io::Error::other("pipes are missing"))),
    };
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
        let both = async {
            let mut pumped = false;
            loop {
                tokio::select! {
                    status = child.wait() => {
                        if !pumped {
                            drop(timeout(DRAIN, &mut pumps).await);
                        }
                        return status;
                    }
                    _ = &mut pumps, if !pumped => pumped = true,
                }
            }
        };
        timeout_at(deadline, both).await
    };
    let status = match status {
        Ok(status) => {
            process.ended = true;
            status.map_err(run_failed)?
        }
        // Dropping the process kills its process.
        Err(_) => return Err(hung()),
    };
    if stdout.len() > MAX_STDOUT {
        return Err(Failure::TooMuch { limit: MAX_STDOUT });
    }
    if status.success() { Ok(stdout) } else { Err(exit_failure(status, &stdout, &stderr)) }
}

/// A running plugin. If it is dropped before it has ended, its process group is killed.
#[derive(Debug)]
struct PluginProcess {
    child: Child,
    ended: bool,
}

impl Drop for PluginProcess {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        // Not reaped yet, so the pid cannot have been reused. The runtime reaps it in the background.
        let pid = self.child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        if let Some(pid) = pid
            && let Err(error) = kill_process_group(pid, Signal::KILL)
        {
            tracing::warn!(%error, pid = pid.as_raw_nonzero().get(), "cannot kill a CNI plugin");
        }
    }
}

fn run_error(path: &Path, source: io::Error) -> Failure {
    Failure::Run { path: path.to_path_buf(), source }
}

/// Finds the program of plugin `kind`. Blocking.
pub(crate) fn find(kind: &str, dirs: &[PathBuf]) -> Result<PathBuf, Failure> {
    let runs =
        |path: &PathBuf| path.metadata().is_ok_and(|it| it.is_file() && it.permissions().mode() & 0o111 != 0);
    let found = dirs.iter().map(|dir| dir.join(kind)).find(runs);
    found.ok_or_else(|| Failure::Missing { dirs: dirs.to_vec() })
}

/// Finds the program and starts it in its own process group. Blocking.
fn spawn(call: &Call) -> Result<(PathBuf, PluginProcess), Failure> {
    let path = find(&call.kind, &call.bin_dirs)?;
    let search =
        std::env::join_paths(&call.bin_dirs).map_err(|error| run_error(&path, io::Error::other(error)))?;
    let mut command = Command::new(&path);
    command
        .env("CNI_COMMAND", call.verb.as_str())
        .env("CNI_PATH", search)
        .env_remove("NOTIFY_SOCKET")
        .current_dir("/")
        .process_group(0)
        .kill_on_drop(true)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    for (name, value) in
        [("CNI_CONTAINERID", &call.container), ("CNI_IFNAME", &call.ifname), ("CNI_ARGS", &call.args)]
    {
        if value.is_empty() {
            command.env_remove(name)
        } else {
            command.env(name, value)
        };
    }
    if call.container.is_empty() {
        command.env_remove("CNI_NETNS");
    } else {
        command.env("CNI_NETNS", &call.netns);
    }
    let mut tries = 0;
    loop {
        match command.spawn() {
            Ok(child) => return Ok((path, PluginProcess { child, ended: false })),
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy && tries < BUSY_TRIES => {
                tries += 1;
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(error) => return Err(run_error(&path, error)),
        }
    }
}

/// Reads up to `limit` bytes. With `on`, further bytes are read and dropped so that the writer does not
/// block.
async fn collect(mut from: impl AsyncRead + Unpin, into: &mut Vec<u8>, limit: usize, on: bool) {
    let mut chunk = [0; 4096];
    loop {
        match from.read(&mut chunk).await {
            // A read error is treated like the end.
            Ok(0) | Err(_) => return,
            Ok(count) => {
                let room = limit - into.len();
                into.extend_from_slice(&chunk[..count.min(room)]);
                if count >= room && !on {
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
fn exit_failure(status: ExitStatus, stdout: &[u8], stderr: &[u8]) -> Failure {
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
