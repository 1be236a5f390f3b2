//! Maps every error to what a client sees: a gRPC code and a text.
//!
//! Clients branch on codes (NotFound, Unimplemented, DeadlineExceeded, Unavailable, InvalidArgument,
//! ResourceExhausted). With code Unknown, kubelet also looks for a reason at the start of the text. No other
//! module creates a [`Status`], except `archives` for work that has panicked.

use super::convert::Refusal;
use crate::error::ErrorKind;
use crate::operations::Call;
use causes::with_causes;
use progress::Place;
use std::time::Duration;
use streaming::server::IssueError;
use tonic::{Code, Status};

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The request is invalid or needs a feature that is not implemented.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// An error of a pod or container operation.
    #[error(transparent)]
    Node(#[from] crate::error::Error),
    /// An error of the image store.
    #[error(transparent)]
    Image(#[from] image::Error),
    /// No URL was issued.
    #[error(transparent)]
    Streaming(#[from] IssueError),
    /// The caller's deadline passed.
    #[error("the caller's deadline has passed after {after:?}{place}; {late}")]
    Deadline {
        /// How long after the call's begin: a moment before the caller's own timer.
        after: Duration,
        /// Where the call was: in which step, for how long, of which pod and container, and what an operator can do.
        place: String,
        /// What happens to the work.
        late: &'static str,
    },
    /// The client has not sent what the call needs.
    #[error("{0}")]
    Incomplete(&'static str),
    /// A CRI call that is not implemented.
    #[error("{call} is not implemented yet: {what}")]
    NotImplemented {
        /// Name of the call.
        call: &'static str,
        /// What is missing, for users.
        what: &'static str,
    },
}

/// Maximum length of an error text in bytes. HTTP/2 carries it in a header, and some clients (those on hyper) accept at
/// most 16 KiB of headers.
const MAX_TEXT: usize = 4096;

impl Failure {
    /// The caller's deadline has passed after `after` while the call was running. `late`: what happens to its work.
    pub(super) fn late(after: Duration, call: &Call, late: &'static str) -> Self {
        let mut place = String::new();
        let found = call.place();
        if let Some(Place { steps, took, .. }) = &found {
            place = format!(" in the stage `{steps}`, which has taken {took:.1?} so far");
        }
        let subject = call.subject().to_string();
        if !subject.is_empty() {
            place = format!("{place}, for {subject}");
        }
        if let Some(Place { advice, .. }) = &found
            && !advice.is_empty()
        {
            place = format!("{place}; {advice}");
        }
        Self::Deadline { after, place, late }
    }

    /// The gRPC code.
    pub(crate) fn code(&self) -> Code {
        match self {
            Self::Refused(refusal) => of_refusal(refusal),
            Self::Node(error) => of_node(error.kind),
            Self::Image(error) => of_image(error).0,
            Self::Streaming(IssueError::Tokens(_) | IssueError::Sessions(_)) => Code::ResourceExhausted,
            Self::Streaming(IssueError::Random) => Code::Internal,
            Self::Deadline { .. } => Code::DeadlineExceeded,
            Self::Incomplete(_) => Code::Aborted,
            Self::NotImplemented { .. } => Code::Unimplemented,
        }
    }

    /// Whether copepod or this host failed, rather than the caller or a registry.
    pub(crate) fn is_internal(&self) -> bool {
        self.code() == Code::Internal
    }
}

fn of_refusal(refusal: &Refusal) -> Code {
    match refusal {
        Refusal::Invalid { .. } => Code::InvalidArgument,
        // kubelet recognises these reasons only with this code.
        Refusal::NotImplemented { reason: Some(_), .. } => Code::Unknown,
        Refusal::NotImplemented { reason: None, .. } => Code::Unimplemented,
    }
}

fn of_node(kind: crate::error::ErrorKind) -> Code {
    match kind {
        ErrorKind::NotFound => Code::NotFound,
        ErrorKind::InvalidArgument => Code::InvalidArgument,
        ErrorKind::FailedPrecondition => Code::FailedPrecondition,
        ErrorKind::AlreadyExists => Code::AlreadyExists,
        ErrorKind::Unavailable => Code::Unavailable,
        ErrorKind::DeadlineExceeded => Code::DeadlineExceeded,
        ErrorKind::Unimplemented => Code::Unimplemented,
        // Code and text as for the reasons of refusals.
        ErrorKind::ImageVolume => Code::Unknown,
        ErrorKind::ResourceExhausted => Code::ResourceExhausted,
        ErrorKind::Aborted => Code::Aborted,
        ErrorKind::Internal => Code::Internal,
    }
}

/// The code, and the prefix that kubelet expects in the text.
fn of_image(error: &image::Error) -> (Code, &'static str) {
    use image::Error;
    match error {
        Error::InvalidReference { .. } => (Code::InvalidArgument, ""),
        Error::NotFound { .. } => (Code::NotFound, ""),
        Error::Unauthorized { .. } => (Code::PermissionDenied, ""),
        Error::Unavailable { .. } => (Code::Unknown, "RegistryUnavailable: "),
        Error::Corrupt { .. } => (Code::DataLoss, ""),
        Error::Protocol { .. } => (Code::FailedPrecondition, ""),
        Error::Unsupported { .. } => (Code::FailedPrecondition, ""),
        Error::TooLarge { .. } => (Code::ResourceExhausted, ""),
        full if full.is_full() => (Code::ResourceExhausted, ""),
        Error::Configuration { .. } => (Code::FailedPrecondition, ""),
        Error::Storage { .. } | Error::Layer { .. } | Error::Panicked { .. } => (Code::Internal, ""),
        Error::Threads { .. } | Error::Busy { .. } => (Code::Unavailable, ""),
        Error::Cancelled | Error::Stalled { .. } => (Code::Aborted, ""),
        // New error kinds of the image crate count as internal errors until they are mapped here.
        _ => (Code::Internal, ""),
    }
}

impl From<Failure> for Status {
    fn from(failure: Failure) -> Self {
        let mut text = match &failure {
            Failure::Image(error) => format!("{}{}", of_image(error).1, with_causes(error)),
            Failure::Node(error) if error.kind == ErrorKind::ImageVolume => {
                format!("ImageVolumeMountFailed: {}", with_causes(error))
            }
            other => with_causes(other),
        };
        if text.len() > MAX_TEXT {
            let cut = (0..=MAX_TEXT).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
            text.truncate(cut);
            text.push('…');
        }
        Status::new(failure.code(), text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_node_error_has_its_code() {
        use crate::error::ErrorKind as Kind;
        for (kind, code) in [
            (Kind::NotFound, Code::NotFound),
            (Kind::InvalidArgument, Code::InvalidArgument),
            (Kind::FailedPrecondition, Code::FailedPrecondition),
            (Kind::AlreadyExists, Code::AlreadyExists),
            (Kind::Unavailable, Code::Unavailable),
            (Kind::DeadlineExceeded, Code::DeadlineExceeded),
            (Kind::Unimplemented, Code::Unimplemented),
            (Kind::ImageVolume, Code::Unknown),
            (Kind::ResourceExhausted, Code::ResourceExhausted),
            (Kind::Aborted, Code::Aborted),
            (Kind::Internal, Code::Internal),
        ] {
            assert_eq!(of_node(kind), code);
        }
    }

    #[test]
    fn image_errors() {
        let told = |error| {
            let status = Status::from(Failure::Image(error));
            (status.code(), status.message().to_owned())
        };
        let (reference, detail) = (|| "r.local/x:1".to_owned(), || "r.local: 503".to_owned());
        let (code, text) = told(image::Error::Unavailable { reference: reference(), detail: detail() });
        assert_eq!(code, Code::Unknown, "kubelet recognises the reason only with this code");
        assert!(text.starts_with("RegistryUnavailable: ") && text.contains("503"), "{text}");
        assert_eq!(told(image::Error::NotFound { object: reference(), detail: detail() }).0, Code::NotFound);
        assert_eq!(
            told(image::Error::Unauthorized { reference: reference(), detail: detail() }).0,
            Code::PermissionDenied
        );
        assert_eq!(told(image::Error::Corrupt { object: reference(), reason: detail() }).0, Code::DataLoss);
        assert_eq!(
            told(image::Error::Protocol { reference: reference(), detail: detail() }).0,
            Code::FailedPrecondition
        );
        assert_eq!(
            told(image::Error::InvalidReference { reference: reference(), reason: "x" }).0,
            Code::InvalidArgument
        );
        for (kind, expected) in [
            (std::io::ErrorKind::Other, Code::Internal),
            (std::io::ErrorKind::StorageFull, Code::ResourceExhausted),
            (std::io::ErrorKind::QuotaExceeded, Code::ResourceExhausted),
        ] {
            let source = std::sync::Arc::new(std::io::Error::new(kind, "disk is bad"));
            let (code, text) = told(image::Error::Storage { action: "write", path: "/x".into(), source });
            assert!(code == expected && text.contains("disk is bad"), "{code:?} {text}");
        }
        assert_eq!(told(image::Error::Busy { object: reference(), reason: detail() }).0, Code::Unavailable);
        assert_eq!(told(image::Error::Stalled { who: "sender", detail: detail() }).0, Code::Aborted);
    }

    #[test]
    fn refusals() {
        let invalid = Refusal::Invalid {
            object: "pod a/b: ".into(),
            field: "f".into(),
            value: "1".into(),
            want: "must be 2".into(),
        };
        let status = Status::from(Failure::from(invalid));
        assert_eq!((status.code(), status.message()), (Code::InvalidArgument, "pod a/b: f: 1: must be 2"));
        let refused = |reason| Refusal::NotImplemented {
            reason,
            object: "o: ".into(),
            field: "f".into(),
            what: "w".into(),
        };
        let status = Status::from(Failure::from(refused(None)));
        assert_eq!((status.code(), status.message()), (Code::Unimplemented, "o: f: w"));
        // kubelet checks the code and the beginning of the text.
        let status = Status::from(Failure::from(refused(Some("RROUnsupported"))));
        assert_eq!((status.code(), status.message()), (Code::Unknown, "RROUnsupported: o: f: w"));
    }

    #[test]
    fn calls_that_are_not_implemented_name_what_is_missing() {
        let status = Status::from(Failure::NotImplemented { call: "CheckpointPod", what: "checkpoints" });
        assert_eq!(
            (status.code(), status.message()),
            (Code::Unimplemented, "CheckpointPod is not implemented yet: checkpoints")
        );
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        let refusal = Refusal::Invalid {
            object: String::new(),
            field: "ä".repeat(9000),
            value: String::new(),
            want: String::new(),
        };
        let status = Status::from(Failure::from(refusal));
        assert!(status.message().len() <= MAX_TEXT + '…'.len_utf8() && status.message().ends_with('…'));
    }
}
