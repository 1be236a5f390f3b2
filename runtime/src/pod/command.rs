//! Commands to a pod's driver.

use super::exec::Ticket;
use crate::error::Error;
use model::{ContainerConfig, ContainerId, PodResources, Update};
use std::time::Duration;
use tokio::sync::oneshot;

/// Receives the reply to a command.
pub(crate) type Reply<T> = oneshot::Sender<Result<T, Error>>;

/// A command to a pod's driver.
#[derive(Debug)]
pub(crate) enum Command {
    /// StopPodSandbox.
    StopPod(Reply<()>),
    /// RemovePodSandbox.
    RemovePod(Reply<()>),
    /// CreateContainer.
    Create {
        /// Boxed, because requests are large.
        config: Box<ContainerConfig>,
        /// Receives the id.
        reply: Reply<ContainerId>,
    },
    /// StartContainer.
    Start {
        /// The container.
        id: ContainerId,
        /// Sent when init has called execve.
        reply: Reply<()>,
    },
    /// StopContainer.
    Stop {
        /// The container.
        id: ContainerId,
        /// Time between the stop signal and SIGKILL.
        grace: Duration,
        /// Sent when it has exited; at once if it was never started (its init goes on waiting).
        reply: Reply<()>,
    },
    /// RemoveContainer.
    Remove {
        /// The container.
        id: ContainerId,
        /// Sent when nothing is left.
        reply: Reply<()>,
    },
    /// ReopenContainerLog.
    ReopenLog {
        /// The container.
        id: ContainerId,
        /// Sent when the new file exists.
        reply: Reply<()>,
    },
    /// ExecSync, Exec and Attach: asks whether the container can be used.
    Exec {
        /// The container.
        id: ContainerId,
        /// Receives the connection and the record that they need.
        reply: Reply<Ticket>,
    },
    /// UpdateContainerResources.
    Update {
        /// The container.
        id: ContainerId,
        /// Its new limits.
        update: Box<Update>,
        /// Sent when they are in force, and recorded or the write has failed (which is logged).
        reply: Reply<()>,
    },
    /// UpdatePodSandboxResources.
    UpdatePod {
        /// The new values.
        resources: Box<PodResources>,
        /// Sent when they are recorded, or the write has failed (which is logged).
        reply: Reply<()>,
    },
}
