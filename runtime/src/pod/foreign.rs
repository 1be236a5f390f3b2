//! Reads paths that a request names. They can be on any file system of the node, which may hang.

use super::context::Context;
use crate::error::{Error, ErrorKind};
use crate::lanes;
use crate::seccomp::Compiled;
use model::SeccompProfile;
use std::sync::Arc;
use std::time::Duration;

/// Time limit for reading a file that a request names.
const FOREIGN: Duration = Duration::from_secs(30);

/// The compiled filter of a profile; `None` for Unconfined. A Localhost profile is read on the lane for such files.
///
/// # Errors
/// DeadlineExceeded if the profile's file system hangs; the errors of the compiler.
pub(crate) async fn seccomp(
    context: &Arc<Context>,
    pod: &str,
    profile: &SeccompProfile,
    caps: u64,
) -> Result<Option<Arc<Compiled>>, Error> {
    // Most profiles were compiled before; then no thread is needed.
    if let Some(known) = context.compiler.ready(profile, caps) {
        return Ok(known);
    }
    let (compiler, wanted) = (Arc::clone(&context.compiler), profile.clone());
    let work = move || Ok(compiler.program(&wanted, caps)?);
    let lane = match profile {
        SeccompProfile::Localhost(_) => lanes::foreign(),
        // Compiled from a table, without a file.
        SeccompProfile::Unconfined | SeccompProfile::RuntimeDefault => lanes::exec(),
    };
    let compiled = lanes::run(lane, pod, "seccomp profile", work);
    answered(compiled, |limit| {
        format!("seccomp profile {profile:?} could not be read within {limit:?}: its file system hangs")
    })
    .await
}

/// The result of work on such files. If it takes too long, the error's message is `late` of the time limit.
///
/// # Errors
/// DeadlineExceeded; the errors of `work`.
pub(super) async fn answered<T>(
    work: impl Future<Output = Result<T, Error>>,
    late: impl FnOnce(Duration) -> String,
) -> Result<T, Error> {
    match tokio::time::timeout(FOREIGN, work).await {
        Ok(outcome) => outcome,
        Err(_) => Err(Error::new(ErrorKind::DeadlineExceeded, late(FOREIGN))),
    }
}
