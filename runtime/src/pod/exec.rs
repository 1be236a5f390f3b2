//! ExecSync, and Exec (`session`). The shim starts and reaps the command; its output and input are the daemon's pipes.

mod session;

pub(crate) use session::session;

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
use wire::{ExecPlan, ProcessPlan, Request, TerminalSize};

/// Time limit from the exec request to execve.
const START: Duration = Duration::from_secs(30);
/// Time limit for the shim's reply to the kill of a session, which takes it at most 10 s.
const KILL: Duration = Duration::from_secs(15);
/// How long the caller waits for the kill of a command whose time is over.
const CALLER_WAITS: Duration = Duration::from_millis(250);
/// How much later than the daemon the shim enforces the time limit.
const SLACK: Duration = Duration::from_secs(2);
/// Bytes of one read.
const CHUNK: usize = 8192;
/// How long output is read after the command has exited: its children may hold the pipes open for ever.
const DRAIN: Duration = Duration::from_millis(100);

/// Maximum size in bytes of standard output and error of one ExecSync together. kubelet accepts messages of 16 MiB, and
/// they have other fields too. The rest is read and dropped.
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

/// Permission to start processes in a container or to attach to it, issued by the pod's driver.
#[derive(Debug)]
pub(crate) struct Ticket {
    /// The connection to the shim.
    pub(crate) client: Client,
    /// The container's record, from which the plan of the process is computed.
    pub(crate) record: Arc<ContainerRecord>,
}

/// What the exec request needs, and the daemon's ends of the pipes.
struct Prepared {
    /// The request's descriptors: plan, /dev/null, the shim's ends of the pipes.
    fds: Vec<OwnedFd>,
    stdout: OwnedFd,
    stderr: OwnedFd,
}

/// How a command ended.
enum Ended {
    /// With this code.
    Exited(i32),
    /// The connection to the shim was lost, so its exit is unknown.
    ShimLost,
    /// It has not ended within its time limit.
    TimedOut,
}

/// Runs a command to its end, or kills it after `limit`.
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
    let (shared, container, pod) = (Arc::clone(context), record.id.clone(), record.pod.clone());
    let Prepared { fds, stdout, stderr } =
        lanes::run(lanes::exec(), pod.as_str(), "prepare the exec", move || prepare(&shared, &record, cmd))
            .await?;
    let receive =
        |fd| Receiver::from_owned_fd(fd).map_err(|error| Error::of("watch the output of the exec", error));
    let (mut stdout, mut stderr) = (receive(stdout)?, receive(stderr)?);
    let exec = next_exec();
    let request = Request::Exec { exec, container: container.clone(), deadline_ms: limit.map(shims_limit) };
    // From here on the command is killed if this future is dropped, because its caller has gone.
    let mut guard = Guard { client: Some(client.clone()), exec };
    let room = AtomicUsize::new(EXEC_OUTPUT_LIMIT);
    let (mut out, mut err) = (Output::default(), Output::default());
    let ended = {
        // The limit includes the start, which may take most of it in a cgroup with little CPU time.
        let whole = async {
            let exit = client.exec(exec, request, fds, START).await?.exit;
            let _step = progress::enter("the command runs", "");
            let reading = async {
                tokio::join!(read(&mut stdout, &mut out, &room), read(&mut stderr, &mut err, &room))
            };
            tokio::pin!(reading);
            tokio::pin!(exit);
            let code = tokio::select! {
                code = &mut exit => code,
                // Both pipes are closed; the command may still be running.
                _ = &mut reading => return Ok(exit.await.map_or(Ended::ShimLost, Ended::Exited)),
            };
            drop(tokio::time::timeout(DRAIN, &mut reading).await);
            Ok::<_, ClientError>(code.map_or(Ended::ShimLost, Ended::Exited))
        };
        match limit {
            None => whole.await,
            Some(limit) => tokio::time::timeout(limit, whole).await.unwrap_or(Ok(Ended::TimedOut)),
        }
    };
    let ended = ended.inspect_err(|error| {
        // The shim has refused or undone the exec: there is nothing to kill.
        if matches!(error, ClientError::Failed(_)) {
            guard.client = None;
        }
    })?;
    match ended {
        Ended::Exited(exit_code) => {
            guard.client = None;
            Ok(ExecOutput { stdout: out.into_bytes(), stderr: err.into_bytes(), exit_code })
        }
        Ended::ShimLost => {
            let text = format!("container {container}: the shim was lost while the command ran");
            Err(Error::new(ErrorKind::Unavailable, text))
        }
        Ended::TimedOut => {
            let (limit, end) = (limit.unwrap_or_default(), killed(&mut guard).await);
            let text = format!("container {container}: the command did not end within {limit:?} and {end}");
            Err(Error::new(ErrorKind::DeadlineExceeded, text))
        }
    }
}

/// The time limit for the shim, in ms. The shim enforces it if the daemon has ended.
fn shims_limit(limit: Duration) -> u64 {
    u64::try_from(limit.saturating_add(SLACK).as_millis()).unwrap_or(u64::MAX)
}

/// Kills the command. Returns the end of the caller's error text.
async fn killed(guard: &mut Guard) -> &'static str {
    let ended = match guard.kill() {
        // Usually the kill takes effect at once. A process that hangs in the kernel does not delay the reply.
        Some(killed) => matches!(tokio::time::timeout(CALLER_WAITS, killed).await, Ok(Ok(true))),
        None => false,
    };
    if ended { "was killed" } else { "is being killed" }
}

/// Asks the shim to kill the session of an exec.
pub(super) async fn kill(client: &Client, exec: ExecId) -> Result<(), ClientError> {
    client.done("the kill of an exec", Request::KillExec { exec }, KILL).await
}

/// Creates the plan and the pipes. Blocking.
fn prepare(context: &Context, record: &ContainerRecord, cmd: Vec<Text>) -> Result<Prepared, Error> {
    let plan = plan(context, record, cmd, false, None)?;
    let ((stdout, out), (stderr, err)) = (pipe()?, pipe()?);
    Ok(Prepared { fds: vec![plan, null()?, out, err], stdout, stderr })
}

/// /dev/null, in the place of a stream that nobody wants.
fn null() -> Result<OwnedFd, Error> {
    sys::fds::null().map_err(|error| Error::of("open /dev/null", error))
}

/// A pipe: what reads, and what writes.
fn pipe() -> Result<(OwnedFd, OwnedFd), Error> {
    pipe_with(PipeFlags::CLOEXEC).map_err(|error| Error::of("make a pipe", std::io::Error::from(error)))
}

/// The plan of a command, as the shim gets it. Blocking.
fn plan(
    context: &Context,
    record: &ContainerRecord,
    cmd: Vec<Text>,
    terminal: bool,
    size: Option<TerminalSize>,
) -> Result<OwnedFd, Error> {
    let template = record.exec_template.clone().unwrap_or_default();
    let template: ProcessPlan = serde_json::from_value(template).map_err(|error| {
        Error::of(format!("container {}: read exec_template in its record", record.id), error)
    })?;
    let security = &record.config.security;
    let seccomp = match &security.seccomp {
        // The template has the filter that the container was created with; the profile's file may have changed since.
        model::SeccompProfile::Localhost(_) => None,
        _ if security.privileged => None,
        profile => context.compiler.program(profile, template.caps.bounding)?,
    };
    let seccomp = seccomp.map(|compiled| compiled.program.clone());
    let process = spec::exec(&template, seccomp, cmd, terminal);
    let plan = ExecPlan { process, user: record.user.clone(), mapping: security.namespaces.mapping(), size };
    memfd("exec-plan", &plan)
}

/// Reads to the end; output beyond the limit is dropped, so that the command does not block.
async fn read(pipe: &mut Receiver, into: &mut Output, room: &AtomicUsize) {
    // On the heap: a buffer in a future is part of every future that contains that one.
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

/// Kills the command when its caller has gone or its time is over.
struct Guard {
    client: Option<Client>,
    exec: ExecId,
}

impl Guard {
    /// Kills the session in a separate task; the result is true if no process is left.
    fn kill(&mut self) -> Option<JoinHandle<bool>> {
        let (client, exec) = (self.client.take()?, self.exec);
        Some(tokio::spawn(async move {
            let killed = kill(&client, exec).await;
            if let Err(error) = &killed {
                tracing::warn!(exec = exec.0, %error, "cannot kill the command of an exec whose caller has gone or whose time is over");
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shims::fakes::{FakeShim, connected};
    use std::time::Instant;
    use wire::Reply;

    /// A running command, and its shim.
    async fn running() -> (Guard, FakeShim) {
        let (connection, shim) = connected().await;
        (Guard { client: Some(connection.client), exec: next_exec() }, shim)
    }

    /// A process in D state, or in a frozen cgroup.
    #[tokio::test]
    async fn a_command_that_cannot_be_killed_does_not_delay_the_reply() {
        let (mut guard, mut shim) = running().await;
        let before = Instant::now();
        assert_eq!(killed(&mut guard).await, "is being killed");
        assert!(before.elapsed() < Duration::from_secs(5), "{:?}", before.elapsed());
        let (_, request) = shim.request().await;
        assert!(matches!(request, Request::KillExec { exec } if exec == guard.exec), "{request:?}");
    }

    /// The daemon may end before the command: then the shim kills it.
    #[test]
    fn the_shim_enforces_the_time_limit_after_the_daemon() {
        assert_eq!(shims_limit(Duration::from_secs(3)), 5000);
        assert_eq!(shims_limit(Duration::MAX), u64::MAX);
    }

    #[tokio::test]
    async fn the_error_of_a_killed_command_says_so() {
        let (mut guard, mut shim) = running().await;
        let (end, ()) = tokio::join!(killed(&mut guard), async {
            let (request, _) = shim.request().await;
            shim.reply(request, Reply::Done).await;
        });
        assert_eq!(end, "was killed");
    }

    #[tokio::test]
    async fn a_command_whose_caller_has_gone_is_killed() {
        let (guard, mut shim) = running().await;
        let exec = guard.exec;
        drop(guard);
        let (_, request) = shim.request().await;
        assert!(matches!(request, Request::KillExec { exec: killed } if killed == exec), "{request:?}");
    }
}
