//! Constructors of failures.

use std::io;

use wire::{ErrorKind, Failure};

/// A failure with an error of the kernel.
pub(crate) fn failure(kind: ErrorKind, stage: &str, error: &io::Error) -> Failure {
    let errno = error.raw_os_error().unwrap_or(0);
    Failure { kind, stage: stage.to_owned(), message: error.to_string(), errno }
}

/// A failure without an error of the kernel.
pub(crate) fn refusal(kind: ErrorKind, stage: &str, message: impl Into<String>) -> Failure {
    Failure { kind, stage: stage.to_owned(), message: message.into(), errno: 0 }
}
