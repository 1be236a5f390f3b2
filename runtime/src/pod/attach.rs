//! Attach: a client sees a container's output beside its log, and writes to its stdin. The output is copied by the shim;
//! what the client sends does not pass through it.

use super::exec::Ticket;
use super::inputs::{Inputs, Stdin};
use super::stdio::{control, sink, source};
use crate::error::Error;
use crate::shims::client::ClientError;
use model::ContainerId;
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;
use streaming::remote::{Outcome, Streams};
use streaming::server::Process;
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe::Receiver;
use wire::{Reply, Request};

/// Time limit for the shim's replies.
const LIMIT: Duration = Duration::from_secs(10);
/// Size in bytes of the pipe of each output. While the client does not read, the shim drops what does not fit into it.
const SLACK: usize = 256 * 1024;
/// What a client that has missed output is told.
const LOST: &str =
    "the container wrote faster than this client read, and output was dropped; it is in the container's log";

/// Attaches to a running container. It ends with the container; dropping it detaches. `inputs` has the clients of all
/// containers.
pub(crate) async fn attach(inputs: &Arc<Inputs>, ticket: Ticket, wanted: Streams) -> Result<Process, Error> {
    let Ticket { client, record } = ticket;
    let (container, config) = (record.id.clone(), &record.config);
    let failed = |error: io::Error| Error::of(format!("container {container}: pipes for attach"), error);
    let (end, theirs) = pipe(None).map_err(failed)?;
    let mut fds = vec![theirs];
    let mut output = |wanted: bool| -> Result<Option<OwnedFd>, Error> {
        if !wanted {
            return Ok(None);
        }
        let (ours, theirs) = pipe(Some(SLACK)).map_err(failed)?;
        fds.push(theirs);
        Ok(Some(ours))
    };
    let (stdout, stderr) = (wanted.stdout, wanted.stderr && !config.tty);
    let (out, err) = (output(stdout)?, output(stderr)?);
    let (out, err) = (source(out).map_err(failed)?, source(err).map_err(failed)?);
    let end = Receiver::from_owned_fd(end).map_err(failed)?;
    let exit = Box::pin(outcome(end, container.clone()));
    let mut process = Process { stdin: None, stdout: out, stderr: err, resize: None, exit };
    let seat = (config.stdin_once && !config.tty).then(|| inputs.join(&container));
    // Whoever looks at a terminal sees that something is missing, and what kubectl does after a failure is worse there: it
    // prints the whole log.
    let tell_loss = !config.tty;
    let request = Request::Attach { container: container.clone(), stdout, stderr, tell_loss };
    let (Reply::Done, given) = client.request("attach", request, fds, LIMIT).await? else {
        return Err(ClientError::UnexpectedReply("attach").into());
    };
    let stdin = wanted.stdin && config.stdin;
    match given.into_iter().next() {
        Some(master) if config.tty => control(&mut process, &master, stdin).map_err(failed)?,
        Some(pipe) if stdin => {
            process.stdin = match seat {
                Some(seat) => {
                    let opened = Stdin::open(seat, inputs, client, container.clone(), pipe);
                    Some(Box::new(opened.map_err(failed)?))
                }
                None => sink(Some(pipe)).map_err(failed)?,
            };
        }
        _ => {}
    }
    Ok(process)
}

/// Waits until the container has exited. `end` closes with it, or with its shim; until then nothing comes, or a byte that
/// tells of a loss.
async fn outcome(mut end: Receiver, container: ContainerId) -> Outcome {
    let mut lost = false;
    while let Ok(1..) = end.read(&mut [0; 1]).await {
        tracing::info!(%container, "an attached client reads too slowly, and does not get all output");
        lost = true;
    }
    if lost { Outcome::Failed(LOST.to_owned()) } else { Outcome::Success }
}

fn pipe(size: Option<usize>) -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    if let Some(size) = size {
        // If the kernel refuses, the pipe keeps its default size.
        let _set = fcntl_setpipe_size(&read, size);
    }
    Ok((read, write))
}
