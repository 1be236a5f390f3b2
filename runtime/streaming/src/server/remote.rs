//! A session of exec or attach, between a socket and a process.
//!
//! ```text
//!  socket ── input ──────► session ──► stdin, size of the terminal
//!                             │ Ready: start
//!  socket ◄── link ◄── session ◄────── stdout, stderr, exit
//! ```
//!
//! The parts wait for each other only through what they move: a process that does not read stops its client's input,
//! and a client that does not read stops the process's output.

use std::convert::Infallible;
use std::future::pending;
use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::{SetOnce, oneshot};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::Shared;
use super::backend::{Command, Process, Sink, Source};
use super::link::{self, End, Link};
use super::socket::{RecvHalf, Stream};
use super::watch::Watch;
use crate::input::Input;
use crate::output::MAX_PAYLOAD;
use crate::remote::{Event, Outcome, Output, Protocol, Session, Size, Streams};

/// Bytes of one read from the client.
const READ: usize = 32 * 1024;
/// How long each output is waited for after the exit, all waits together: other processes may hold its pipe open for
/// ever, and write to it now and then.
const DRAIN: Duration = Duration::from_millis(100);
/// Bytes of an output that are read after the exit: other processes may write to it faster than it is read. What the
/// process itself has written is in the pipe by then, whose capacity is at most this (`fs.pipe-max-size`), unless a
/// process with `CAP_SYS_RESOURCE` has set a larger one.
const REST: usize = 1024 * 1024;

/// How long the size of a new terminal is waited for. Clients send it at once, and others still get their process.
const SIZE: Duration = Duration::from_millis(50);

/// What the client's input goes to.
type Inputs = (Option<Sink>, Option<Box<dyn Fn(Size) + Send>>);

/// A process that is not started yet.
struct Start {
    /// Starts it, with its terminal's size.
    ready: oneshot::Sender<Option<Size>>,
    started: oneshot::Receiver<Inputs>,
    tty: bool,
    /// The streams exist; the terminal's size is waited for until then.
    until: Option<Instant>,
}

/// What the client's input goes to, and the size that the terminal gets next.
struct Inlet {
    start: Option<Start>,
    inputs: Inputs,
    size: Option<Size>,
}

/// Serves a session to its end. The process's streams are closed as soon as the client has left.
pub(super) async fn run(
    stream: Stream,
    watch: Watch,
    early: &[u8],
    protocol: Protocol,
    streams: Streams,
    command: Box<dyn Command>,
    shared: &Shared,
) {
    let (mut read, write) = stream.into_split();
    let link = Link::new(Session::new(protocol, streams), write, watch);
    let (ready, is_ready) = oneshot::channel();
    let (started, has_started) = oneshot::channel();
    let start = Start { ready, started: has_started, tty: streams.tty, until: None };
    let process = async {
        let size = match timeout(shared.creation, is_ready).await {
            Ok(Ok(size)) => size,
            // `input` has ended, and its result says why.
            Ok(Err(_)) => return pending().await,
            Err(_) => {
                let text = format!("the client did not create all streams within {:?}", shared.creation);
                return Ok(Outcome::Failed(text));
            }
        };
        match command.start(size).await {
            Ok(process) => output(&link, process, started).await,
            Err(why) => Ok(Outcome::Failed(why)),
        }
    };
    let outcome = tokio::select! {
        outcome = process => outcome,
        Err(end) = input(&link, &mut read, early, start) => Err(end),
        Err(error) = link.keep_writing() => Err(End::Io(error)),
        end = link.idle(shared.idle) => Err(end),
        () = shared.stopping() => Err(End::Stopping),
        end = link.vanished() => Err(end),
    };
    let limit = match outcome {
        Ok(outcome) => {
            link.with(|session| session.finish(&outcome));
            // A client that reads slowly gets all of it.
            shared.idle
        }
        Err(end) => {
            tracing::debug!(%end, ?protocol, "a session of exec or attach ended early");
            if let End::Idle(_) | End::Stopping = end {
                link.with(|session| session.finish(&Outcome::Failed(end.to_string())));
            }
            Some(link::LINGER)
        }
    };
    link.finish(&mut read, limit).await;
}

/// Reads from the client, and passes on what it sends.
async fn input(
    link: &Link<Session>,
    read: &mut RecvHalf,
    early: &[u8],
    start: Start,
) -> Result<Infallible, End> {
    let mut buffer = early.to_vec();
    let mut count = buffer.len();
    buffer.resize(count.max(READ), 0);
    let mut inlet = Inlet { start: Some(start), inputs: (None, None), size: None };
    loop {
        let mut input = Input::new(buffer.get_mut(..count).unwrap_or_default());
        loop {
            let event = link.with(|session| session.receive(&mut input))?;
            if let Some(event) = &event {
                inlet.start_at(event).await;
            }
            match event {
                Some(Event::Ready | Event::Resize(_)) => {}
                Some(Event::Stdin(bytes)) => {
                    inlet.resize();
                    let Some(sink) = &mut inlet.inputs.0 else { continue };
                    let written = link::while_there(read, sink.write_all(&bytes)).await;
                    if written.ok_or(End::Left)?.is_err() {
                        inlet.inputs.0 = None;
                        link.with(Session::drop_stdin);
                    }
                }
                Some(Event::StdinEnd) => inlet.inputs.0 = None,
                Some(Event::Gone) => return Err(End::Left),
                None if input.is_empty() => break,
                None => link.flush().await?,
            }
        }
        inlet.resize();
        link::yield_to_others().await;
        count = inlet.read(read, &mut buffer).await?;
        if count == 0 {
            return Err(End::Left);
        }
        link.touch();
    }
}

impl Inlet {
    /// Starts the process once its streams exist. With a terminal, the first of what the client sends is waited for: it
    /// should be the size, which a process may ask for as soon as it runs.
    async fn start_at(&mut self, event: &Event<'_>) {
        if let Event::Resize(size) = event {
            self.size = Some(*size);
        }
        let Some(start) = &mut self.start else { return };
        match event {
            Event::Ready => {
                start.until = Some(Instant::now() + SIZE);
                if start.tty && self.size.is_none() {
                    return;
                }
            }
            Event::Resize(_) | Event::Stdin(_) | Event::StdinEnd if start.until.is_some() => {}
            _ => return,
        }
        self.start().await;
    }

    async fn start(&mut self) {
        let Some(Start { ready, started, .. }) = self.start.take() else { return };
        // It fails only if nobody waits any more.
        let _told = ready.send(self.size);
        match started.await {
            Ok(inputs) => self.inputs = inputs,
            // It could not be started, and the client gets the reason.
            Err(_) => pending().await,
        }
    }

    /// Reads from the client. A process whose terminal's size has not come in time is started without it.
    async fn read(&mut self, read: &mut RecvHalf, buffer: &mut [u8]) -> io::Result<usize> {
        if let Some(until) = self.start.as_ref().and_then(|start| start.until) {
            if let Ok(count) = timeout_at(until, read.read(buffer)).await {
                return count;
            }
            self.start().await;
        }
        read.read(buffer).await
    }

    /// Sets the terminal's size. Of several, only the last is set, because each change signals every process of the
    /// terminal's foreground group.
    fn resize(&mut self) {
        if let Some(resize) = &self.inputs.1
            && let Some(size) = self.size.take()
        {
            resize(size);
        }
    }
}

/// Passes the process's output on, until it has exited and its output is read.
async fn output(
    link: &Link<Session>,
    process: Process,
    started: oneshot::Sender<Inputs>,
) -> Result<Outcome, End> {
    let Process { stdin, stdout, stderr, resize, exit } = process;
    // It fails only if the client has left.
    drop(started.send((stdin, resize)));
    let exited = SetOnce::new();
    let exit = async {
        let outcome = exit.await;
        let _first = exited.set(());
        Ok::<_, End>(outcome)
    };
    let (outcome, (), ()) = tokio::try_join!(
        exit,
        pump(link, Output::Stdout, stdout, &exited),
        pump(link, Output::Stderr, stderr, &exited),
    )?;
    Ok(outcome)
}

/// Passes one output on.
async fn pump(
    link: &Link<Session>,
    to: Output,
    source: Option<Source>,
    exited: &SetOnce<()>,
) -> Result<(), End> {
    let Some(mut source) = source else { return Ok(()) };
    let mut buffer = vec![0; MAX_PAYLOAD];
    let (mut patience, mut rest) = (DRAIN, REST);
    while rest > 0 {
        let (begun, late) = (Instant::now(), exited.initialized());
        let count = tokio::select! {
            biased;
            count = source.read(&mut buffer) => count,
            () = drained(exited, patience) => return Ok(()),
        };
        let bytes = match count {
            Ok(0) | Err(_) => return Ok(()),
            Ok(count) => buffer.get(..count).unwrap_or_default(),
        };
        if late {
            // Not the time that the client takes: it gets all of it.
            patience = patience.saturating_sub(begun.elapsed());
            rest = rest.saturating_sub(bytes.len());
        }
        link.send(|session| session.frame(to, bytes)).await?;
    }
    Ok(())
}

/// Returns when the process has exited and nothing more came for `patience`.
async fn drained(exited: &SetOnce<()>, patience: Duration) {
    exited.wait().await;
    sleep(patience).await;
}
