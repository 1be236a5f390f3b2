//! Threads for work that blocks, one [`Lane`] for each kind of it.
//!
//! tokio has one such pool for everything. Work that hangs on one disk then holds up all other work, and a
//! thread that cannot be started while no idle one is left is a panic. Here
//!
//! - each lane has threads of its own, so that one kind of work cannot take another's;
//! - work is done for an owner (a pod), and an owner has only some of a lane's threads, until what it started
//!   has ended, whether or not somebody still waits for it;
//! - a lane keeps some threads for ever, so that it works on while the node is out of processes;
//! - work that cannot be started is an error of that work alone.

mod lane;
mod owners;
#[cfg(test)]
mod tests;

pub use lane::{Lane, Size};

use std::io;

/// Why work was not done, or not to its end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The lane has no thread, and none could be started (clone(2): EAGAIN, ENOMEM). Nothing was done.
    #[error(
        "no thread can be started for {lane} work: {source}; the node, or its pids cgroup, is at a limit"
    )]
    NoThread {
        /// Name of the lane.
        lane: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// Too much is waiting already. Nothing was done.
    #[error(
        "{waiting} pieces of {lane} work are waiting already; what they wait for hangs, or the node is overloaded"
    )]
    Full {
        /// Name of the lane.
        lane: &'static str,
        /// How many.
        waiting: usize,
    },
    /// The work panicked: a bug. (Release builds abort instead.)
    #[error("a piece of {lane} work ended badly: {message}")]
    Panicked {
        /// Name of the lane.
        lane: &'static str,
        /// Text of the panic.
        message: String,
    },
}

impl Error {
    /// Nothing was done, and the same may work later.
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
