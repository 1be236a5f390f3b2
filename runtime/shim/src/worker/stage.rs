//! Failures of a create. Each has the step (the stage), the object, and the kernel's error. A worker that hangs cannot
//! report its step, so before each volume it shows it in its name ([`show_volume`]).

use std::ffi::CString;
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

/// Shows in the worker's name (`ps`, /proc/PID/comm) that it accesses the volume with this target: `v:` and the end of the
/// path, 15 bytes in all. The daemon reads it (`runtime/src/pod/volume_watch.rs`).
pub(crate) fn show_volume(target: &str) {
    let bytes = target.as_bytes();
    let end = bytes.get(bytes.len().saturating_sub(13)..).unwrap_or_default();
    if let Ok(name) = CString::new([b"v:", end].concat()) {
        // Only the name is missing if this fails.
        rustix::thread::set_name(&name).unwrap_or_default();
    }
}

/// A plan that cannot be carried out.
pub(crate) fn invalid(stage: &str, message: impl Display) -> Failure {
    Failure { kind: ErrorKind::Invalid, stage: stage.to_owned(), message: message.to_string(), errno: 0 }
}
