//! What a pod's driver is asked to do.

use super::exec::Ticket;
use crate::error::Error;
use model::{ContainerConfig, ContainerId};
use std::time::Duration;
use tokio::sync::oneshot;

/// Where the answer of a command goes.
pub(crate) type Reply<T> = oneshot::Sender<Result<T, Error>>;

/// What a driver is asked to do.
#[derive(Debug)]
pub(crate) enum Command {
    /// StopPodSandbox.
    StopPod(Reply<()>),
    /// RemovePodSandbox.
    RemovePod(Reply<()>),
    /// CreateContainer.
    Create {
        /// Boxed: it is the one large command.
        config: Box<ContainerConfig>,
        /// Gets the id.
        reply: Reply<ContainerId>,
    },
    /// StartContainer.
    Start {
        /// Which.
        id: ContainerId,
        /// When it has exec'd.
        reply: Reply<()>,
    },
    /// StopContainer.
    Stop {
        /// Which.
        id: ContainerId,
        /// Time between the stop signal and SIGKILL.
        grace: Duration,
        /// When it has exited.
        reply: Reply<()>,
    },
    /// RemoveContainer.
    Remove {
        /// Which.
        id: ContainerId,
        /// When nothing is left.
        reply: Reply<()>,
    },
    /// ReopenContainerLog.
    ReopenLog {
        /// Which.
        id: ContainerId,
        /// When the new file exists.
        reply: Reply<()>,
    },
    /// May a process be started in it, and how.
    Exec {
        /// Which.
        id: ContainerId,
        /// Gets what it takes.
        reply: Reply<Ticket>,
    },
}
