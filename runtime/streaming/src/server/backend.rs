//! What the server needs from its caller: processes, and connections to ports.

use std::future::Future;
use std::pin::Pin;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use crate::remote::{Outcome, Size};

/// A result that is waited for.
pub type Pending<T> = Pin<Box<dyn Future<Output = T> + Send>>;
/// Where a process's input goes. Dropping it ends the input.
pub type Sink = Box<dyn AsyncWrite + Send + Unpin>;
/// Where a process's output comes from. It ends with its end of file or with an error: a terminal that no process has open
/// any more fails with EIO and has no end of file.
pub type Source = Box<dyn AsyncRead + Send + Unpin>;

/// What a URL of exec or attach stands for.
pub trait Command: Send {
    /// Starts the process, or attaches to it; called when the client has created its streams. The error is shown to the
    /// user as it is. The result must come within a time that a client can wait for. `size` is the terminal's, if the client
    /// has sent one; it is set again afterwards ([`Process::resize`]).
    fn start(self: Box<Self>, size: Option<Size>) -> Pending<Result<Process, String>>;
}

/// What a URL of port-forward stands for.
pub trait Network: Send + Sync {
    /// Connects to a port. The error is shown to the user as it is.
    fn connect(&self, port: u16) -> Pending<Result<TcpStream, String>>;
}

/// A process that was started or attached to. All of it is dropped when the client leaves.
pub struct Process {
    /// Its input, if the client sends one.
    pub stdin: Option<Sink>,
    /// Its output, or its terminal's, if the client wants it.
    pub stdout: Option<Source>,
    /// Its error output, if the client wants it.
    pub stderr: Option<Source>,
    /// Sets the size of its terminal, if it has one.
    pub resize: Option<Box<dyn Fn(Size) + Send>>,
    /// Its end. Output that it has written before is still read afterwards.
    pub exit: Pending<Outcome>,
}

impl std::fmt::Debug for Process {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Process")
            .field("stdin", &self.stdin.is_some())
            .field("stdout", &self.stdout.is_some())
            .field("stderr", &self.stderr.is_some())
            .field("resize", &self.resize.is_some())
            .finish_non_exhaustive()
    }
}
