//! The server over real sockets, with processes in memory and a client that speaks bytes.

mod client;
mod exec;
mod forward;
mod http;
mod tls;

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::{Command, Network, Options, Pending, Process, Server, Urls};
use crate::remote::{Outcome, Size, Streams};

/// Bytes that an output in memory holds, as a pipe does.
const PIPE: usize = 16 * 1024;
/// Time limit of a test's step.
const STEP: Duration = Duration::from_secs(20);

/// A running server.
struct Running {
    urls: Urls,
    task: JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn running(idle: Option<Duration>, creation: Duration) -> Running {
    let address = "127.0.0.1:0".parse().unwrap();
    let server = Server::bind(Options { address, idle, creation, tls: None, freed: || () }).await.unwrap();
    let urls = server.urls();
    Running { urls, task: tokio::spawn(server.serve(std::future::pending())) }
}

async fn server() -> Running {
    running(None, STEP).await
}

/// What a command does.
enum Script {
    /// Copies stdin to stdout, and ends with it.
    Cat,
    /// Writes to stdout and stderr and exits.
    Exit(Vec<u8>, Vec<u8>, u8),
    /// Neither reads nor writes nor exits.
    Hang,
    /// Exits, while a child holds its stdout.
    Orphan,
    /// Exits, while a child writes to its stdout for ever, with a pause after each line, or none.
    Chatty(Option<Duration>),
    /// Cannot be started.
    Fail,
}

/// A process in memory. What happens to it is sent to `seen`.
struct Fake {
    script: Script,
    seen: mpsc::UnboundedSender<Seen>,
}

/// What happened to a process.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    /// With its terminal's size, if that was known.
    Started(Option<(u16, u16)>),
    Resized(u16, u16),
    /// Its streams were closed by the server.
    Closed,
}

/// Says that the process's future was dropped.
struct OnDrop(mpsc::UnboundedSender<Seen>);

impl Drop for OnDrop {
    fn drop(&mut self) {
        // The test may be over.
        drop(self.0.send(Seen::Closed));
    }
}

fn command(script: Script) -> (Box<dyn Command>, mpsc::UnboundedReceiver<Seen>) {
    let (seen, told) = mpsc::unbounded_channel();
    (Box::new(Fake { script, seen }), told)
}

impl Command for Fake {
    #[expect(clippy::too_many_lines, reason = "one match over all scripts")]
    fn start(self: Box<Self>, size: Option<Size>) -> Pending<Result<Process, String>> {
        Box::pin(async move {
            let Fake { script, seen } = *self;
            seen.send(Seen::Started(size.map(|size| (size.width, size.height)))).unwrap();
            let (stdin, stdin_read) = duplex(PIPE);
            let (stdout, mut stdout_write) = duplex(PIPE);
            let (stderr, mut stderr_write) = duplex(PIPE);
            let guard = OnDrop(seen.clone());
            let resize = move |Size { width, height }| drop(seen.send(Seen::Resized(width, height)));
            let exit: Pending<Outcome> = match script {
                Script::Fail => return Err("no such program".to_owned()),
                Script::Cat => {
                    let copy = tokio::spawn(async move {
                        let mut stdin_read = stdin_read;
                        tokio::io::copy(&mut stdin_read, &mut stdout_write).await.unwrap();
                    });
                    Box::pin(async move {
                        let _guard = guard;
                        copy.await.unwrap();
                        Outcome::Exit(0)
                    })
                }
                Script::Exit(out, err, code) => {
                    let write = tokio::spawn(async move {
                        stdout_write.write_all(&out).await.unwrap();
                        stderr_write.write_all(&err).await.unwrap();
                    });
                    Box::pin(async move {
                        let _guard = (guard, stdin_read);
                        write.await.unwrap();
                        Outcome::Exit(code)
                    })
                }
                Script::Hang => Box::pin(async move {
                    let _guard = (guard, stdin_read, stdout_write, stderr_write);
                    std::future::pending().await
                }),
                Script::Orphan => {
                    tokio::spawn(async move {
                        stdout_write.write_all(b"last words").await.unwrap();
                        tokio::time::sleep(STEP).await;
                        drop(stdout_write);
                    });
                    Box::pin(async move {
                        let _guard = (guard, stdin_read);
                        Outcome::Exit(7)
                    })
                }
                Script::Chatty(pause) => {
                    stdout_write.write_all(b"last words").await.unwrap();
                    tokio::spawn(async move {
                        while stdout_write.write_all(b"\nmore").await.is_ok() {
                            if let Some(pause) = pause {
                                tokio::time::sleep(pause).await;
                            }
                        }
                    });
                    Box::pin(async move {
                        let _guard = (guard, stdin_read);
                        Outcome::Exit(7)
                    })
                }
            };
            Ok(Process {
                stdin: Some(Box::new(stdin)),
                stdout: Some(Box::new(stdout)),
                stderr: Some(Box::new(stderr)),
                resize: Some(Box::new(resize)),
                exit,
            })
        })
    }
}

/// A pod's network: this host's.
struct Local;

impl Network for Local {
    fn connect(&self, port: u16) -> Pending<Result<TcpStream, String>> {
        Box::pin(async move {
            let connected = TcpStream::connect(("127.0.0.1", port)).await;
            connected.map_err(|error| format!("port {port}: {error}"))
        })
    }
}

/// A network without an answer.
struct Silent;

impl Network for Silent {
    fn connect(&self, _: u16) -> Pending<Result<TcpStream, String>> {
        Box::pin(std::future::pending())
    }
}

const ALL: Streams = Streams { stdin: true, stdout: true, stderr: true, tty: false };
const TERMINAL: Streams = Streams { stdin: true, stdout: true, stderr: false, tty: true };

fn exec(server: &Running, streams: Streams, script: Script) -> (String, mpsc::UnboundedReceiver<Seen>) {
    let (command, seen) = command(script);
    (server.urls.exec("pod", streams, command).unwrap(), seen)
}

fn port_forward(server: &Running, ports: &[u16]) -> String {
    server.urls.forward("pod", ports.to_vec(), Arc::new(Local)).unwrap()
}

/// A port that answers what it gets, and closes when the other side has closed.
async fn echo() -> (u16, JoinHandle<()>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let task = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut all = Vec::new();
                stream.read_to_end(&mut all).await.unwrap();
                stream.write_all(&all).await.unwrap();
            });
        }
    });
    (port, task)
}
