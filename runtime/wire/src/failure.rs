//! Why a request failed.

use serde::{Deserialize, Serialize};

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The class of the error, for the daemon.
    pub kind: ErrorKind,
    /// The failed step, for example `rootfs` or `volume /var/run/x`.
    pub stage: String,
    /// Message for users, to be shown after the stage: the object, and the kernel's error.
    pub message: String,
    /// errno, or 0 if there is none.
    pub errno: i32,
}

/// Classes of errors that the daemon distinguishes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ErrorKind {
    /// No such container.
    NotFound,
    /// The object's state does not allow the request.
    WrongState,
    /// The plan cannot be carried out: unknown user, a source that is not shared, a target outside the root
    /// file system.
    Invalid,
    /// Init did not become the container's program: execve failed, or init ended or was killed before it.
    StartFailed,
    /// The process of an exec did not become its program: execve or a step before it failed.
    ExecFailed,
    /// The deadline passed and the worker was killed, or a session could not be killed in time.
    Timeout,
    /// Processes are still running, or another request does the same: the later StopPod replaces the earlier one, and
    /// a second kill of an exec is refused.
    Busy,
    /// An image volume cannot be mounted, for example because its sub-path is not in the image.
    ImageVolume,
    /// This shim does not support the request or part of its plan.
    Unsupported,
    /// A table is full: the shim holds as many containers or execs as it can. Some containers must be removed first, or
    /// some execs must end.
    Exhausted,
    /// The kernel or libcontainer failed; also stands for classes of a later version.
    #[serde(other)]
    Internal,
}
