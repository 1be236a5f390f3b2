//! The daemon's threads for blocking work, by what the work can hang on.
//!
//! | lane | work | can hang on |
//! | --- | --- | --- |
//! | exec | plan and pipes of an exec | nothing: memory only |
//! | kill | ending processes, cgroups, shims, pins | processes in D state, for a bounded time |
//! | records | durable records and a pod's own files | the disk of `root` |
//! | foreign | files that requests name: seccomp profiles, device nodes | any file system of the node |
//! | stats | cgroup files | nothing |
//!
//! Images and CNI have lanes of their own, in their crates. Who hangs takes his own share of one lane
//! ([`pool::Size::each`]) and nothing of another: stop, kill and exec of every pod go on, and they need no
//! thread that is not there already.

use crate::error::{Error, ErrorKind};
use pool::{Lane, Size};
use std::sync::LazyLock;

/// Work that waits for a thread. Calls are bounded by the server (`service::server`), and each has one piece
/// of work at a time; teardown has a few.
const WAITING: usize = 4096;

static EXEC: LazyLock<Lane> = LazyLock::new(|| lane("exec", 1, 8, 4));
static KILL: LazyLock<Lane> = LazyLock::new(|| lane("kill", 2, 32, 4));
static RECORDS: LazyLock<Lane> = LazyLock::new(|| lane("records", 2, 64, 8));
static FOREIGN: LazyLock<Lane> = LazyLock::new(|| lane("foreign", 1, 32, 4));
static STATS: LazyLock<Lane> = LazyLock::new(|| lane("stats", 1, 4, 4));

fn lane(name: &'static str, kept: usize, most: usize, each: usize) -> Lane {
    Lane::new(Size { name, kept, most, each, waiting: WAITING })
}

/// For execs.
pub(crate) fn exec() -> &'static Lane {
    &EXEC
}

/// For ending things.
pub(crate) fn kill() -> &'static Lane {
    &KILL
}

/// For records.
pub(crate) fn records() -> &'static Lane {
    &RECORDS
}

/// For paths that a request names.
pub(crate) fn foreign() -> &'static Lane {
    &FOREIGN
}

/// For figures.
pub(crate) fn stats() -> &'static Lane {
    &STATS
}

fn all() -> [&'static Lane; 6] {
    [exec(), kill(), records(), foreign(), stats(), image::ImageStore::lane()]
}

/// Starts the threads that stay. `alone` when the process came up without threads to spare: then work is done
/// by whoever asks for it until there are some.
pub(crate) fn start(alone: bool) {
    for lane in all() {
        if alone {
            lane.allow_inline();
        }
        if let Err(error) = lane.start() {
            tracing::warn!(?lane, %error, "threads missing: they are started when they can be");
        }
    }
}

/// Runs `work` on a lane for an owner, mostly a pod's id.
///
/// # Errors
/// Unavailable when it could not be begun; those of `work`.
pub(crate) async fn run<T: Send + 'static>(
    lane: &Lane,
    owner: &str,
    what: &'static str,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match lane.run_for(owner, work).await {
        Ok(outcome) => outcome,
        Err(error) => Err(Error::from(error).context(what)),
    }
}

impl From<pool::Error> for Error {
    fn from(error: pool::Error) -> Self {
        let kind = if error.is_temporary() { ErrorKind::Unavailable } else { ErrorKind::Internal };
        Self::new(kind, error.to_string())
    }
}
