//! Start and stop of the daemon: the order in which its parts come up.

use crate::config::{Config, MissingBinary};
use crate::service::{self, Backend, Socket};
use crate::shutdown::Shutdown;
use crate::{cni_watch, node, telemetry};
use std::sync::Arc;
use std::time::Duration;

/// Threads that run calls. The work is waiting, not computing; what blocks goes to the blocking pool.
const WORKERS: usize = 2;
/// Blocking calls at once: records, layers, cgroup files. A hung disk can take this many and no more.
const BLOCKING: usize = 64;
/// Futures live on the heap, and what blocks is shallow; glibc's 8 MiB would only be address space, but
/// every touched page of a pool thread stays.
const STACK: usize = 512 * 1024;
/// An idle pool thread goes after this time.
const KEEP_ALIVE: Duration = Duration::from_secs(2);
/// What still blocks after the stop is left to the kernel.
const ABANDON: Duration = Duration::from_secs(1);

/// Why the daemon could not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Logging.
    #[error("cannot set up logging")]
    Telemetry(#[from] telemetry::AlreadySet),
    /// Threads, signals, timers.
    #[error("cannot {doing}")]
    Process {
        /// The failed step.
        doing: &'static str,
        /// The kernel's word.
        source: std::io::Error,
    },
    /// The shim or pause.
    #[error(transparent)]
    Binary(#[from] MissingBinary),
    /// State folders, or another daemon that has them.
    #[error("cannot use the state folders")]
    State(#[from] state::Error),
    /// The image store.
    #[error("cannot open the image store")]
    Images(#[from] image::Error),
    /// Pods and containers.
    #[error("cannot take pods and containers over")]
    Node(#[from] node::Error),
    /// The socket, or the server.
    #[error(transparent)]
    Server(#[from] service::Error),
}

/// Runs the daemon until it is told to stop.
pub fn run(config: Config) -> Result<(), Error> {
    telemetry::init(config.log)?;
    let process = |doing| move |source| Error::Process { doing, source };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .max_blocking_threads(BLOCKING)
        .thread_stack_size(STACK)
        .thread_keep_alive(KEEP_ALIVE)
        .thread_name("copepod")
        .enable_all()
        .build()
        .map_err(process("start threads"))?;
    let result = runtime.block_on(daemon(config));
    runtime.shutdown_timeout(ABANDON);
    result
}

/// Locks first, records next, the socket after them: whoever can connect gets true answers.
async fn daemon(config: Config) -> Result<(), Error> {
    let stopping =
        Shutdown::on_signals().map_err(|source| Error::Process { doing: "catch signals", source })?;
    let config = Arc::new(config);
    let backend = Backend { node: node::Node, images: image::ImageStore, cni: todo!(), config };
    Ok(())
}
