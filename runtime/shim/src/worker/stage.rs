//! Failures of a create. Each has the step (the stage), the object, and the kernel's error.

use std::fmt::Display;
use std::io;

use wire::{ErrorKind, Failure};

/// The result of a step.
pub(crate) type Step<T> = Result<T, Failure>;

/// A failed system call.
pub(crate) fn internal(stage: &str, what: impl Display) -> impl FnOnce(io::Error) -> Failure {
    let (stage, what) = (stage.to_owned(), what.to_string());
    move |e| Failure {
        kind: ErrorKind::Internal,
        stage,
        message: format!("{what}: {e}"),
        errno: sys::mount::errno(&e),
    }
}

/// A plan that cannot be carried out.
pub(crate) fn invalid(stage: &str, message: impl Display) -> Failure {
    Failure { kind: ErrorKind::Invalid, stage: stage.to_owned(), message: message.to_string(), errno: 0 }
}
