//! ExecSync: a command with its output in pipes that the daemon reads, while the shim only starts and reaps.

use super::Context;
use super::launch::memfd;
use super::output::Output;
use crate::lanes;
use crate::node::{EXEC_OUTPUT_LIMIT, Error, ErrorKind, ExecOutput};
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
use wire::{ExecPlan, ProcessPlan, Request};

/// From request to execve.
const START: Duration = Duration::from_secs(30);
/// For the shim to kill a whole session.
const KILL: Duration = Duration::from_secs(10);
/// Bytes of one read.
const CHUNK: usize = 8192;
/// How long output may still come after the exit: a grandchild may hold the pipes for ever.
const DRAIN: Duration = Duration::from_millis(100);

/// Leave to start processes in a container, given by its driver.
#[derive(Debug)]
pub(crate) struct Ticket {
    /// To the shim.
    pub(crate) client: Client,
    /// What the process inherits.
    pub(crate) record: ContainerRecord,
}

/// The shim's half of the pipes, and ours.
struct Prepared {
    fds: Vec<OwnedFd>,
    stdout: OwnedFd,
    stderr: OwnedFd,
}

/// Runs `cmd` to its end, at most `limit`.
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
    let request = Request::Exec { exec, container: container.clone() };
    // From here on a caller that goes away takes the command with it.
    let mut guard = Guard { client: Some(client.clone()), exec };
    let room = AtomicUsize::new(EXEC_OUTPUT_LIMIT);
    let (mut out, mut err) = (Output::default(), Output::default());
    let ended = {
        // The limit is for all of it: in a cgroup short of time the start may take most.
        let whole = async {
            let exit = client.exec(exec, request, fds, START).await?;
            let reading = async {
                tokio::join!(read(&mut stdout, &mut out, &room), read(&mut stderr, &mut err, &room))
            };
            tokio::pin!(reading);
            tokio::pin!(exit);
            let code = tokio::select! {
                code = &mut exit => code,
                // All closed: the exit comes at once, or when it pleases.
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
        // It said so itself: there is nothing to kill.
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
            guard.client = None;
            let limit = limit.unwrap_or_default();
            if let Err(error) = client.done("the kill of an exec", Request::KillExec { exec }, KILL).await {
                tracing::warn!(%container, %error, "command that ran out of time not killed");
            }
            let text =
                format!("container {container}: the command did not end within {limit:?} and was killed");
            Err(Error::new(ErrorKind::DeadlineExceeded, text))
        }
    }
}

/// Plan, /dev/null and the far ends of two pipes. Blocking.
fn prepare(context: &Context, record: &ContainerRecord, cmd: Vec<Text>) -> Result<Prepared, Error> {
    let broken = |error: &(dyn std::error::Error + 'static)| {
        Error::of(format!("container {}: its record for execs", record.id), error)
    };
    let template = record.exec_template.clone().unwrap_or_default();
    let template: ProcessPlan = serde_json::from_value(template).map_err(|error| broken(&error))?;
    let security = &record.config.security;
    let seccomp = match &security.seccomp {
        // The template keeps it: the file may have changed.
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

/// Reads to the end; what does not fit is dropped, so that the command can go on.
async fn read(pipe: &mut Receiver, into: &mut Output, room: &AtomicUsize) {
    // On the heap: futures are moved, and one with buffers in it costs its size on the stack at every level.
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

/// Kills the exec when the caller is gone.
struct Guard {
    client: Option<Client>,
    exec: ExecId,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(client) = self.client.take() {
            let exec = self.exec;
            tokio::spawn(async move {
                if let Err(error) = client.done("the kill of an exec", Request::KillExec { exec }, KILL).await
                {
                    tracing::debug!(%error, "command of a caller that went away not killed");
                }
            });
        }
    }
}
