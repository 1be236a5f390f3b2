//! Thread pools for blocking work, one [`Lane`] for each kind of work.
//!
//! tokio has one blocking pool for everything. There, work that hangs on one disk delays all other work, and
//! it panics when it has no idle thread and cannot start one. Here
//!
//! - each lane has its own threads, so that one kind of work cannot use up those of another;
//! - work is done for an owner (a pod), and an owner may only use some of a lane's threads. A thread counts
//!   until its work has ended, even if the caller has gone;
//! - a lane keeps some threads running, so that it works while the node is out of processes;
//! - work that cannot be started returns an error to its caller only.

mod lane;
mod owners;
#[cfg(test)]
mod tests;

pub use lane::{Lane, Size};

use std::io;

/// Why work was not done or not completed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The lane has no thread and could not start one (clone(2): EAGAIN, ENOMEM). Nothing was done.
    #[error(
        "cannot start a thread for {lane} work: {source}; the node or its pids cgroup has reached a limit"
    )]
    NoThread {
        /// Name of the lane.
        lane: &'static str,
        /// The error of the system call.
        source: io::Error,
    },
    /// The queue is full. Nothing was done.
    #[error(
        "the queue of {lane} work is full with {waiting} entries; running work hangs, or the node is overloaded"
    )]
    Full {
        /// Name of the lane.
        lane: &'static str,
        /// Entries in the queue.
        waiting: usize,
    },
    /// The work panicked: a bug. (Release builds abort instead.)
    #[error("{lane} work panicked: {message}")]
    Panicked {
        /// Name of the lane.
        lane: &'static str,
        /// Message of the panic.
        message: String,
    },
}

impl Error {
    /// Nothing was done, and a retry may succeed.
    pub fn is_temporary(&self) -> bool {
        matches!(self, Self::NoThread { .. } | Self::Full { .. })
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        let kind = if error.is_temporary() { io::ErrorKind::ResourceBusy } else { io::ErrorKind::Other };
        Self::new(kind, error)
    }
}
