//! ExecSync: a command with its output in pipes that the daemon reads, while the shim only starts and reaps.

use super::context::Context;
use super::output::Output;
use super::plan::memfd;
use crate::error::{Error, ErrorKind};
use crate::lanes;
use crate::shims::Client;
use crate::shims::client::{ClientError, next_exec};
use model::{ContainerRecord, ExecId, Text};
use rustix::pipe::{PipeFlags, pipe_with};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe::Receiver;
use tokio::task::JoinHandle;
use wire::{ExecPlan, ProcessPlan, Request};

/// Time limit from the request to execve.
const START: Duration = Duration::from_secs(30);
/// Time limit for the shim to kill a whole session, which takes it at most 10 s.
const KILL: Duration = Duration::from_secs(15);
/// How long the caller of a timed-out command waits for the kill.
const KILLED: Duration = Duration::from_millis(250);
/// The shim itself kills a command this long after its time limit.
const SLACK: Duration = Duration::from_secs(2);
/// Bytes of one read.
const CHUNK: usize = 8192;
/// How long output is read after the exit: a grandchild may hold the pipes open for ever.
const DRAIN: Duration = Duration::from_millis(100);

/// Limit of standard output and error of one ExecSync together: kubelet accepts messages of 16 MiB, which
/// include other fields. The rest is read and dropped.
const EXEC_OUTPUT_LIMIT: usize = 16 * 1024 * 1024 - 64 * 1024;

/// The result of ExecSync.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct ExecOutput {
    /// Standard output, capped.
    pub stdout: Vec<u8>,
    /// Standard error, capped.
    pub stderr: Vec<u8>,
    /// 0..=255, 128+n for signal n.
    pub exit_code: i32,
}

/// Permission to start processes in a container, issued by its driver.
#[derive(Debug)]
pub(crate) struct Ticket {
    /// The connection to the shim.
    pub(crate) client: Client,
    /// The container's record, from which the process's plan is made.
    pub(crate) record: Arc<ContainerRecord>,
}

/// Both ends of the pipes.
struct Prepared {
    fds: Vec<OwnedFd>,
    stdout: OwnedFd,
    stderr: OwnedFd,
}

/// Runs `cmd` to its end or for `limit`.
#[expect(
    clippy::too_many_lines,
    reason = "the command's end, its output and the limit are waited for together"
)]
pub(crate) async fn sync(
    context: &Arc<Context>,
    ticket: Ticket,
    cmd: Vec<Text>,
    limit: Option<Duration>,
) -> Result<ExecOutput, Error> {
    let Ticket { client, record } = ticket;
    let (theirs, container, pod) = (Arc::clone(context), record.id.clone(), record.pod.clone());
    let Prepared { fds, stdout, stderr } =
        lanes::run(lanes::exec(), pod.as_str(), "prepare the exec", move || prepare(&theirs, &record, cmd))
            .await?;
    let receive =
        |fd| Receiver::from_owned_fd(fd).map_err(|error| Error::of("watch the output of the exec", &error));
    let (mut stdout, mut stderr) = (receive(stdout)?, receive(stderr)?);
    let exec = next_exec();
    let request = Request::Exec { exec, container: container.clone(), deadline_ms: limit.map(shims_limit) };
    // From here on, dropping the call kills the command.
    let mut guard = Guard { client: Some(client.clone()), exec };
    let room = AtomicUsize::new(EXEC_OUTPUT_LIMIT);
    let (mut out, mut err) = (Output::default(), Output::default());
    let ended = {
        // The limit includes the start, which may take most of it in a cgroup with little CPU time.
        let whole = async {
            let exit = client.exec(exec, request, fds, START).await?;
            let reading = async {
                tokio::join!(read(&mut stdout, &mut out, &room), read(&mut stderr, &mut err, &room))
            };
            tokio::pin!(reading);
            tokio::pin!(exit);
            let code = tokio::select! {
                code = &mut exit => code,
                // Both pipes are closed; the command may still be running.
                _ = &mut reading => return Ok(exit.await.ok()),
            };
            drop(tokio::time::timeout(DRAIN, &mut reading).await);
            Ok(code.ok())
        };
        match limit {
            None => Some(whole.await),
            Some(limit) => tokio::time::timeout(limit, whole).await.ok(),
        }
    };
    let ended = ended.transpose().inspect_err(|error| {
        // The shim has refused or undone the exec: there is nothing to kill.
        if matches!(error, ClientError::Failed(_)) {
            guard.client = None;
        }
    })?;
    match ended {
        Some(Some(exit_code)) => {
            guard.client = None;
            Ok(ExecOutput { stdout: out.into_bytes(), stderr: err.into_bytes(), exit_code })
        }
        Some(None) => {
            let text = format!("container {container}: the shim was lost while the command ran");
            Err(Error::new(ErrorKind::Unavailable, text))
        }
        None => {
            let (limit, end) = (limit.unwrap_or_default(), killed(&mut guard).await);
            let text = format!("container {container}: the command did not end within {limit:?} and {end}");
            Err(Error::new(ErrorKind::DeadlineExceeded, text))
        }
    }
}

/// The limit that the shim enforces, in ms. It is later than the daemon's own, for the case that the daemon ends before
/// the command.
fn shims_limit(limit: Duration) -> u64 {
    u64::try_from(limit.saturating_add(SLACK).as_millis()).unwrap_or(u64::MAX)
}

/// Kills the command, and says what became of it.
async fn killed(guard: &mut Guard) -> &'static str {
    let ended = match guard.kill() {
        // Usually the kill takes effect at once; the caller does not wait for a process that hangs in the kernel.
        Some(killed) => matches!(tokio::time::timeout(KILLED, killed).await, Ok(Ok(true))),
        None => false,
    };
    if ended { "was killed" } else { "is being killed" }
}

/// Creates the plan and the pipes. Blocking.
fn prepare(context: &Context, record: &ContainerRecord, cmd: Vec<Text>) -> Result<Prepared, Error> {
    let broken = |error: &(dyn std::error::Error + 'static)| {
        Error::of(format!("container {}: its record for execs", record.id), error)
    };
    let template = record.exec_template.clone().unwrap_or_default();
    let template: ProcessPlan = serde_json::from_value(template).map_err(|error| broken(&error))?;
    let security = &record.config.security;
    let seccomp = match &security.seccomp {
        // The template holds this filter, because the file may have changed.
        model::SeccompProfile::Localhost(_) => None,
        _ if security.privileged => None,
        profile => context.compiler.program(profile, template.caps.bounding)?,
    };
    let seccomp = seccomp.map(|compiled| compiled.program.clone());
    let plan = ExecPlan { process: spec::exec(&template, seccomp, cmd, false), user: record.user.clone() };
    let plan = memfd("exec-plan", &plan)?;
    let pipe = || {
        pipe_with(PipeFlags::CLOEXEC).map_err(|error| Error::of("make a pipe", &std::io::Error::from(error)))
    };
    let ((stdout, out), (stderr, err)) = (pipe()?, pipe()?);
    let null = context.dev_null.try_clone().map_err(|error| Error::of("copy /dev/null", &error))?;
    Ok(Prepared { fds: vec![plan, null, out, err], stdout, stderr })
}

/// Reads to the end; output beyond the limit is dropped, so that the command does not block.
async fn read(pipe: &mut Receiver, into: &mut Output, room: &AtomicUsize) {
    // On the heap: a buffer inside a future would use its size on the stack at every level of nesting.
    let mut buffer = vec![0; CHUNK];
    loop {
        match pipe.read(&mut buffer).await {
            Ok(0) => return,
            Ok(count) => {
                let left = room.load(Ordering::Relaxed);
                let fits = buffer.get(..count.min(left)).unwrap_or_default();
                room.store(left - into.take(fits), Ordering::Relaxed);
            }
            Err(error) => {
                tracing::warn!(%error, "output of an exec cannot be read");
                return;
            }
        }
    }
}

/// Kills the exec when its caller has gone or its time is over.
struct Guard {
    client: Option<Client>,
    exec: ExecId,
}

impl Guard {
    /// Kills the session in a separate task; the result is true if no process is left.
    fn kill(&mut self) -> Option<JoinHandle<bool>> {
        let (client, exec) = (self.client.take()?, self.exec);
        Some(tokio::spawn(async move {
            let killed = client.done("the kill of an exec", Request::KillExec { exec }, KILL).await;
            if let Err(error) = &killed {
                tracing::warn!(exec = exec.0, %error, "cannot kill a command whose caller has gone");
            }
            killed.is_ok()
        }))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        drop(self.kill());
    }
}
