//! Exec for a client of the streaming server, which gets the daemon's ends of the pipes, or the terminal: nothing of
//! what it sends and receives passes through the shim.

use super::{Guard, START, Ticket, null, pipe, plan};
use crate::error::Error;
use crate::lanes;
use crate::pod::context::Context;
use crate::pod::stdio::{control, screen, sink, source};
use crate::shims::client::{ClientError, Started, next_exec};
use model::{ContainerRecord, Text};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use streaming::remote::{Outcome, Size, Streams};
use streaming::server::Process;
use tokio::sync::oneshot;
use wire::{Request, TerminalSize};

/// What the exec request needs, and the daemon's ends of the pipes that the client wants. With a terminal there are
/// none.
struct Prepared {
    /// The request's descriptors: the plan, and without a terminal the shim's ends of the pipes.
    fds: Vec<OwnedFd>,
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
}

/// Starts a command. If the result is dropped, the command's streams are closed, and it is not killed: with a terminal
/// the kernel sends it SIGHUP, otherwise it sees the end of its input and cannot write any more.
pub(crate) async fn session(
    context: &Arc<Context>,
    ticket: Ticket,
    cmd: Vec<Text>,
    streams: Streams,
    size: Option<Size>,
) -> Result<Process, Error> {
    let Ticket { client, record } = ticket;
    // Shims of earlier builds get it once the process runs, as a change of the size.
    let size = size.filter(|_| client.sets_terminal_size());
    let (shared, container, pod) = (Arc::clone(context), record.id.clone(), record.pod.clone());
    let prepared = move || prepare(&shared, &record, cmd, streams, size);
    let Prepared { fds, stdin, stdout, stderr } =
        lanes::run(lanes::exec(), pod.as_str(), "prepare the exec", prepared).await?;
    let watch = |error: io::Error| Error::of("watch the streams of the exec", error);
    // They are watched before anything is started, so that a failure leaves nothing behind.
    let stdin = sink(stdin).map_err(watch)?;
    let (stdout, stderr) = (source(stdout).map_err(watch)?, source(stderr).map_err(watch)?);
    let exec = next_exec();
    let request = Request::Exec { exec, container, deadline_ms: None };
    // The command is killed if this future is dropped or fails.
    let mut guard = Guard { client: Some(client.clone()), exec };
    let started = client.exec(exec, request, fds, START).await;
    let Started { exit, terminal } = started.inspect_err(|error| {
        // The shim has refused or undone the exec: there is nothing to kill.
        if matches!(error, ClientError::Failed(_)) {
            guard.client = None;
        }
    })?;
    let mut process = Process { stdin, stdout, stderr, resize: None, exit: Box::pin(outcome(exit)) };
    if let Some(master) = terminal {
        control(&mut process, &master, streams.stdin).map_err(watch)?;
        // It is read even if nobody wants it: the process would wait for room in it.
        process.stdout = Some(screen(&master).map_err(watch)?);
    }
    guard.client = None;
    Ok(process)
}

/// Creates the plan and the pipes. Blocking.
fn prepare(
    context: &Context,
    record: &ContainerRecord,
    cmd: Vec<Text>,
    streams: Streams,
    size: Option<Size>,
) -> Result<Prepared, Error> {
    let Streams { stdin, stdout, stderr, tty } = streams;
    let size = size.map(|Size { width, height }| TerminalSize { columns: width, rows: height });
    let mut prepared = Prepared {
        fds: vec![plan(context, record, cmd, tty, size)?],
        stdin: None,
        stdout: None,
        stderr: None,
    };
    if tty {
        return Ok(prepared);
    }
    let theirs = if stdin {
        let (theirs, ours) = pipe()?;
        prepared.stdin = Some(ours);
        theirs
    } else {
        null()?
    };
    prepared.fds.push(theirs);
    for (wanted, ours) in [(stdout, &mut prepared.stdout), (stderr, &mut prepared.stderr)] {
        let theirs = if wanted {
            let (read, theirs) = pipe()?;
            *ours = Some(read);
            theirs
        } else {
            null()?
        };
        prepared.fds.push(theirs);
    }
    Ok(prepared)
}

/// How the command ended, for the client.
async fn outcome(exit: oneshot::Receiver<i32>) -> Outcome {
    match exit.await {
        Ok(code) => Outcome::Exit(u8::try_from(code).unwrap_or(u8::MAX)),
        Err(_) => {
            Outcome::Failed("the shim was lost while the command ran: its exit code is unknown".to_owned())
        }
    }
}
