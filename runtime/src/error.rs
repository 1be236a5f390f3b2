//! The error of calls to the node. Errors of other modules and crates are converted here (those of shims in
//! `shims::client`).

use std::fmt;

/// Kinds of [`Error`], by what a client can do; each has a gRPC code (`service/status.rs`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// No such pod, container or image.
    NotFound,
    /// A field is invalid.
    InvalidArgument,
    /// The object's state does not allow it.
    FailedPrecondition,
    /// Another object has the name.
    AlreadyExists,
    /// Temporarily impossible: retry.
    Unavailable,
    /// A time limit has passed.
    DeadlineExceeded,
    /// Not implemented, or not possible on this host.
    Unimplemented,
    /// A limit was reached.
    ResourceExhausted,
    /// Interrupted by another call on the same object.
    Aborted,
    /// copepod or the kernel failed.
    Internal,
}

/// Why a call failed. Cheap to clone, because one job may have several callers.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// The kind.
    pub kind: ErrorKind,
    /// The message: object, step and error, with its causes.
    pub message: String,
}

impl Error {
    /// Creates an error of a kind.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, message)
    }

    pub(crate) fn state(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::FailedPrecondition, message)
    }

    /// Adds context to the message.
    pub(crate) fn context(self, what: impl fmt::Display) -> Self {
        Self { kind: self.kind, message: format!("{what}: {}", self.message) }
    }

    /// An internal error with another error and its causes.
    pub(crate) fn of(what: impl fmt::Display, error: &(dyn std::error::Error + 'static)) -> Self {
        Self::internal(format!("{what}: {}", with_causes(error)))
    }

    /// Combines the errors of steps that were all tried: Ok if there is none, otherwise one error of the first's
    /// kind with all messages.
    pub(crate) fn gathered(errors: Vec<Error>) -> Result<(), Error> {
        let Some(first) = errors.first() else { return Ok(()) };
        let kind = first.kind;
        let texts: Vec<String> = errors.into_iter().map(|error| error.message).collect();
        Err(Self::new(kind, texts.join("; ")))
    }
}

/// The message of an error with those of its causes.
pub(crate) fn with_causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Some crates' messages include their source.
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

impl From<pool::Error> for Error {
    fn from(error: pool::Error) -> Self {
        let kind = if error.is_temporary() { ErrorKind::Unavailable } else { ErrorKind::Internal };
        Self::new(kind, error.to_string())
    }
}

impl From<model::transition::Refusal> for Error {
    fn from(refusal: model::transition::Refusal) -> Self {
        Self::internal(format!("bug of copepod: {refusal}"))
    }
}

impl From<spec::Error> for Error {
    fn from(error: spec::Error) -> Self {
        let kind = match error.kind() {
            spec::ErrorKind::Invalid => ErrorKind::InvalidArgument,
            spec::ErrorKind::Unsupported => ErrorKind::Unimplemented,
        };
        Self::new(kind, error.to_string())
    }
}

impl From<crate::cgroups::Error> for Error {
    fn from(error: crate::cgroups::Error) -> Self {
        use crate::cgroups::Error as E;
        match error {
            E::Path { source } => source.into(),
            E::Limit { .. } => Self::new(ErrorKind::InvalidArgument, with_causes(&error)),
            _ => Self::internal(with_causes(&error)),
        }
    }
}

impl From<crate::seccomp::Error> for Error {
    fn from(error: crate::seccomp::Error) -> Self {
        use crate::seccomp::Error as E;
        let kind = match &error {
            E::Read { .. } | E::Profile { .. } | E::TooLong { .. } => ErrorKind::InvalidArgument,
            E::Library { .. } | E::Export { .. } => ErrorKind::Internal,
        };
        Self::new(kind, with_causes(&error))
    }
}

impl From<state::Error> for Error {
    fn from(error: state::Error) -> Self {
        let kind = match &error {
            state::Error::TooLarge { .. } => ErrorKind::InvalidArgument,
            _ => ErrorKind::Internal,
        };
        Self::new(kind, with_causes(&error))
    }
}

impl From<network::Error> for Error {
    fn from(error: network::Error) -> Self {
        let kind = match &error {
            network::Error::NotReady { .. } => ErrorKind::Unavailable,
            network::Error::Attachment { .. } => ErrorKind::InvalidArgument,
            error if error.is_temporary() => ErrorKind::Unavailable,
            _ => ErrorKind::Internal,
        };
        Self::new(kind, with_causes(&error))
    }
}

impl From<image::Error> for Error {
    fn from(error: image::Error) -> Self {
        let kind = match &error {
            image::Error::NotFound { .. } => ErrorKind::NotFound,
            image::Error::InvalidReference { .. } => ErrorKind::InvalidArgument,
            image::Error::Threads { .. } => ErrorKind::Unavailable,
            _ => ErrorKind::Internal,
        };
        Self::new(kind, with_causes(&error))
    }
}
