//! Failures in our own words.

use std::io;

use wire::{ErrorKind, Failure};

/// A failure that the kernel has a word for.
pub(crate) fn failure(kind: ErrorKind, stage: &str, error: &io::Error) -> Failure {
    let errno = error.raw_os_error().unwrap_or(0);
    Failure { kind, stage: stage.to_owned(), message: error.to_string(), errno }
}

/// A failure that is no error of the kernel's.
pub(crate) fn refusal(kind: ErrorKind, stage: &str, message: impl Into<String>) -> Failure {
    Failure { kind, stage: stage.to_owned(), message: message.into(), errno: 0 }
}
