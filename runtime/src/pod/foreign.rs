//! Files that a request names: they can be on any file system of the node, and are waited for a bounded time.

use super::context::Context;
use crate::error::{Error, ErrorKind};
use crate::lanes;
use crate::seccomp::Compiled;
use model::SeccompProfile;
use std::sync::Arc;
use std::time::Duration;

/// How long a file that a request names may take to be read.
const FOREIGN: Duration = Duration::from_secs(30);

/// The filter of a profile. A Localhost profile lies wherever the node's administrator put it, so it is read
/// where nothing but such files can hang.
///
/// # Errors
/// DeadlineExceeded when the profile's file system does not answer; those of the compiler.
pub(crate) async fn seccomp(
    context: &Arc<Context>,
    pod: &str,
    profile: &SeccompProfile,
    caps: u64,
) -> Result<Option<Arc<Compiled>>, Error> {
    let (compiler, wanted) = (Arc::clone(&context.compiler), profile.clone());
    let work = move || Ok(compiler.program(&wanted, caps)?);
    let lane = match profile {
        SeccompProfile::Localhost(_) => lanes::foreign(),
        // Compiled from a table.
        SeccompProfile::Unconfined | SeccompProfile::RuntimeDefault => lanes::exec(),
    };
    let compiled = lanes::run(lane, pod, "seccomp profile", work);
    answered(compiled, |limit| {
        format!("seccomp profile {profile:?} was not read within {limit:?}: its file system hangs")
    })
    .await
}

/// What comes of work on files that a request names, or `late` where their file system does not answer.
///
/// # Errors
/// DeadlineExceeded; those of `work`.
pub(super) async fn answered<T>(
    work: impl Future<Output = Result<T, Error>>,
    late: impl FnOnce(Duration) -> String,
) -> Result<T, Error> {
    match tokio::time::timeout(FOREIGN, work).await {
        Ok(outcome) => outcome,
        Err(_) => Err(Error::new(ErrorKind::DeadlineExceeded, late(FOREIGN))),
    }
}
