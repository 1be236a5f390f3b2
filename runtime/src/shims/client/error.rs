//! Why a request to a shim failed, and the daemon's error that it becomes.

use crate::error::{Error, ErrorKind};
use model::PodId;
use std::io;
use std::time::Duration;
use wire::codec::CodecError;
use wire::{ErrorKind as ShimErrorKind, Failure};

/// What an operator can do about a shim that does not reply.
pub(super) const ADVICE: &str = "the pod's shim does not reply: it may be stopped, or hang on the disk of the pod's logs \
                      (`ps -eo pid,stat,wchan,args`, state T or D); StopPodSandbox ends the pod without it";

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// The shim refused it.
    #[error("{}{}", if .0.stage.is_empty() { String::new() } else { format!("{}: ", .0.stage) }, .0.message)]
    Failed(Failure),
    /// The connection was lost.
    #[error("the connection to the shim was lost")]
    Lost,
    /// No reply within the time limit.
    #[error("the shim did not reply to {what} within {after:?}; {}", ADVICE)]
    Silent {
        /// The request.
        what: &'static str,
        /// The time limit.
        after: Duration,
    },
    /// The reply has another type.
    #[error("unexpected reply of the shim to {0}")]
    UnexpectedReply(&'static str),
    /// The socket failed.
    #[error("{what}: {source}")]
    Socket {
        /// The failed step.
        what: &'static str,
        /// The error of the system call.
        source: io::Error,
    },
    /// The shim sent invalid data.
    #[error("the shim sent an invalid message: {0}")]
    Codec(#[from] CodecError),
    /// The shim sent a message that is not allowed at this point.
    #[error("the shim violated the protocol: {0}")]
    Protocol(&'static str),
    /// Another pod's shim listens on the socket.
    #[error("the socket is that of the shim of pod {0}")]
    OtherPod(PodId),
}

impl From<ClientError> for Error {
    fn from(error: ClientError) -> Self {
        let kind = match &error {
            ClientError::Failed(failure) => match failure.kind {
                ShimErrorKind::NotFound => ErrorKind::NotFound,
                ShimErrorKind::WrongState => ErrorKind::FailedPrecondition,
                ShimErrorKind::Invalid => ErrorKind::InvalidArgument,
                ShimErrorKind::Timeout => ErrorKind::DeadlineExceeded,
                ShimErrorKind::Busy => ErrorKind::Unavailable,
                ShimErrorKind::ImageVolume => ErrorKind::ImageVolume,
                ShimErrorKind::Unsupported => ErrorKind::Unimplemented,
                ShimErrorKind::Exhausted => ErrorKind::ResourceExhausted,
                ShimErrorKind::StartFailed | ShimErrorKind::ExecFailed | ShimErrorKind::Internal => {
                    ErrorKind::Internal
                }
            },
            ClientError::Lost => ErrorKind::Unavailable,
            ClientError::Silent { .. } => ErrorKind::DeadlineExceeded,
            _ => ErrorKind::Internal,
        };
        Error::converted(kind, error)
    }
}
