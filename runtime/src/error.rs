//! The error of calls to the node. Errors of other modules and crates are converted here (those of shims in
//! `shims::client`).

use causes::with_causes;
use std::fmt;
use std::sync::Arc;

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
    /// An image volume cannot be mounted. kubelet has an error and a metric of their own for these.
    ImageVolume,
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
///
/// Like that of other errors, its `Display` is without its causes. What users read (replies, log lines, records) is
/// `text`, which joins them.
#[derive(Debug, Clone)]
pub struct Error {
    /// The kind.
    pub kind: ErrorKind,
    reason: Reason,
}

/// What an [`Error`] says, and its causes.
#[derive(Debug, Clone)]
enum Reason {
    /// The daemon itself found it.
    Found(String),
    /// An error of another module or crate, in its own words.
    Of(Arc<Cause>),
    /// A step that failed because of another error.
    Step { step: String, cause: Arc<Cause> },
    /// The errors of steps that were all tried.
    Several(Vec<Error>),
}

type Cause = dyn std::error::Error + Send + Sync;

impl Error {
    /// Creates an error that has no cause.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, reason: Reason::Found(message.into()) }
    }

    /// An [`ErrorKind::Internal`] without a cause.
    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, message)
    }

    /// An [`ErrorKind::FailedPrecondition`]: the state of the object does not allow the call.
    pub(crate) fn state(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::FailedPrecondition, message)
    }

    /// An internal error: a step that failed because of another error.
    pub(crate) fn of(step: impl fmt::Display, error: impl std::error::Error + Send + Sync + 'static) -> Self {
        let reason = Reason::Step { step: step.to_string(), cause: Arc::new(error) };
        Self { kind: ErrorKind::Internal, reason }
    }

    /// The error of another module or crate, for a conversion from it.
    pub(crate) fn converted(kind: ErrorKind, error: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self { kind, reason: Reason::Of(Arc::new(error)) }
    }

    /// Adds the step that failed because of this error.
    pub(crate) fn context(self, step: impl fmt::Display) -> Self {
        let kind = self.kind;
        Self { kind, reason: Reason::Step { step: step.to_string(), cause: Arc::new(self) } }
    }

    /// The same error for a caller for whom it is of another kind.
    pub(crate) fn with_kind(self, kind: ErrorKind) -> Self {
        Self { kind, ..self }
    }

    /// Combines the errors of steps that were all tried: Ok if there is none, otherwise one error of the first's
    /// kind with all of them.
    pub(crate) fn gathered(mut errors: Vec<Error>) -> Result<(), Error> {
        match errors.len() {
            0 | 1 => errors.pop().map_or(Ok(()), Err),
            _ => {
                let kind = errors.first().map_or(ErrorKind::Internal, |first| first.kind);
                Err(Self { kind, reason: Reason::Several(errors) })
            }
        }
    }

    /// The whole text for users: object, step and error, with all causes.
    pub(crate) fn text(&self) -> String {
        with_causes(self)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.reason {
            Reason::Found(text) | Reason::Step { step: text, .. } => f.write_str(text),
            Reason::Of(error) => fmt::Display::fmt(error, f),
            Reason::Several(errors) => {
                let texts: Vec<String> = errors.iter().map(Self::text).collect();
                f.write_str(&texts.join("; "))
            }
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.reason {
            Reason::Of(error) => error.source(),
            Reason::Step { cause, .. } => Some(&**cause),
            Reason::Found(_) | Reason::Several(_) => None,
        }
    }
}

/// Errors are equal if users cannot tell them apart.
impl PartialEq for Error {
    fn eq(&self, other: &Self) -> bool {
        (self.kind, self.text()) == (other.kind, other.text())
    }
}

impl Eq for Error {}

impl From<pool::Error> for Error {
    fn from(error: pool::Error) -> Self {
        let kind = if error.is_temporary() { ErrorKind::Unavailable } else { ErrorKind::Internal };
        Self::converted(kind, error)
    }
}

impl From<model::transition::Refusal> for Error {
    fn from(refusal: model::transition::Refusal) -> Self {
        Self::of("bug in copepod", refusal)
    }
}

impl From<spec::Error> for Error {
    fn from(error: spec::Error) -> Self {
        let kind = match error.kind() {
            spec::ErrorKind::Invalid => ErrorKind::InvalidArgument,
            spec::ErrorKind::Unsupported => ErrorKind::Unimplemented,
        };
        Self::converted(kind, error)
    }
}

impl From<crate::cgroups::Error> for Error {
    fn from(error: crate::cgroups::Error) -> Self {
        use crate::cgroups::Error as E;
        let kind = match &error {
            E::Limit { .. } => ErrorKind::InvalidArgument,
            E::BelowUsage { .. } | E::Gone { .. } | E::NoScope { .. } => ErrorKind::FailedPrecondition,
            E::Systemd { .. } => ErrorKind::Unavailable,
            _ => ErrorKind::Internal,
        };
        match error {
            E::Path { source } => source.into(),
            error => Self::converted(kind, error),
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
        Self::converted(kind, error)
    }
}

impl From<state::Error> for Error {
    fn from(error: state::Error) -> Self {
        let kind = match &error {
            state::Error::TooLarge { .. } => ErrorKind::InvalidArgument,
            _ => ErrorKind::Internal,
        };
        Self::converted(kind, error)
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
        Self::converted(kind, error)
    }
}

impl From<image::Error> for Error {
    fn from(error: image::Error) -> Self {
        let kind = match &error {
            image::Error::NotFound { .. } => ErrorKind::NotFound,
            image::Error::InvalidReference { .. } => ErrorKind::InvalidArgument,
            image::Error::Threads { .. } => ErrorKind::Unavailable,
            full if full.is_full() => ErrorKind::ResourceExhausted,
            _ => ErrorKind::Internal,
        };
        Self::converted(kind, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::error::Error as _;
    use std::io;

    fn full() -> io::Error {
        io::Error::from_raw_os_error(28)
    }

    #[test]
    fn causes_are_carried_and_joined_once() {
        let error = Error::of("write the record", full()).context("pod a");
        assert_eq!(error.to_string(), "pod a");
        assert_eq!(error.text(), "pod a: write the record: No space left on device (os error 28)");
        let (mut cause, mut kernels) = (error.source(), None);
        while let Some(found) = cause {
            kernels = kernels.or(found.downcast_ref::<io::Error>());
            cause = found.source();
        }
        assert_eq!(kernels.and_then(io::Error::raw_os_error), Some(28));
        let of_file = state::Error::Io { action: "write", path: "/r".into(), source: full() };
        assert_eq!(Error::from(of_file).text(), "write /r: No space left on device (os error 28)");
        let refused = Error::from(spec::Error::invalid("config.x", "y", "must be z")).context("container c");
        assert_eq!(
            (refused.kind, refused.text().as_str()),
            (ErrorKind::InvalidArgument, "container c: config.x: \"y\": must be z")
        );
        // Its text has the cause already.
        let thread = Error::from(pool::Error::NoThread { lane: "kill", source: full() }).text();
        assert_eq!(thread.matches("No space left").count(), 1, "{thread}");
    }

    #[test]
    fn all_gathered_errors_are_shown() {
        assert_eq!(Error::gathered(Vec::new()), Ok(()));
        let (first, second) =
            (Error::of("kill", full()).with_kind(ErrorKind::Unavailable), Error::state("no"));
        assert_eq!(Error::gathered(vec![first.clone()]), Err(first.clone()));
        let both = Error::gathered(vec![first, second]).unwrap_err().context("stop pod a");
        assert_eq!(both.kind, ErrorKind::Unavailable);
        assert_eq!(both.text(), "stop pod a: kill: No space left on device (os error 28); no");
    }
}
