//! Whether pods of this node can have user namespaces. That depends on the kernel, on sysctls and on the file system of
//! the image layers, so it is tried at the start of the daemon, by the shim's binary (`shim::probe`): a process with
//! threads cannot create a user namespace.

use crate::attempt::{self, Attempt};
use crate::error::{Error, ErrorKind};
use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Time limit of the attempt, which takes some milliseconds. A disk that hangs must not keep the daemon from starting.
const LIMIT: Duration = Duration::from_secs(5);

/// The result of the attempt; clones share it. Before it is known, user namespaces are not supported.
#[derive(Debug, Clone, Default)]
pub(crate) struct UserNamespaces(Arc<OnceLock<Option<String>>>);

impl UserNamespaces {
    /// A result, in tests: why they do not work, or `None`.
    #[cfg(test)]
    pub(crate) fn known(problem: Option<String>) -> Self {
        let this = Self::default();
        // It was empty.
        drop(this.0.set(problem));
        this
    }

    /// Why they do not work; `None` if they do.
    pub(crate) fn problem(&self) -> Option<&str> {
        match self.0.get() {
            Some(problem) => problem.as_deref(),
            None => Some("it is not known yet whether this node supports them"),
        }
    }

    /// Fails if they do not work.
    ///
    /// # Errors
    /// FailedPrecondition with the reason.
    pub(crate) fn check(&self) -> Result<(), Error> {
        self.problem().map_or(Ok(()), |problem| {
            let text = format!("this node cannot run a pod with a user namespace: {problem}");
            Err(Error::new(ErrorKind::FailedPrecondition, text))
        })
    }

    /// Tries it and keeps the result. `layers`: the folder of the image layers.
    pub(crate) async fn measure(&self, shim: PathBuf, layers: PathBuf) {
        let problem = match tried(shim, layers).await {
            Ok(problem) => problem,
            Err(error) => Some(format!("the attempt to use one failed: {error}")),
        };
        if let Some(problem) = &problem {
            tracing::warn!(problem, "pods of this node cannot have user namespaces");
        }
        // Measured once.
        drop(self.0.set(problem));
    }
}

/// Runs the shim. Returns what does not work.
async fn tried(shim: PathBuf, layers: PathBuf) -> io::Result<Option<String>> {
    let layers = CString::new(layers.into_os_string().into_vec()).map_err(io::Error::other)?;
    let args = vec![CString::new(wire::PROBE_USER_NAMESPACES)?, layers];
    let ran = attempt::run(Attempt { program: shim, args, input: None, errors: false }, LIMIT).await?;
    match (ran.output.is_empty(), ran.succeeded()) {
        (true, true) => Ok(None),
        (true, false) => Err(io::Error::other(format!("copepod-shim: {}", ran.how()))),
        (false, _) => Ok(Some(ran.output)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    /// The result with a script in place of the shim.
    async fn measured(script: &str) -> Option<String> {
        let dir = tempfile::tempdir().unwrap();
        let shim = dir.path().join("shim");
        std::fs::write(&shim, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&shim, std::fs::Permissions::from_mode(0o755)).unwrap();
        crate::lanes::start(false);
        let this = UserNamespaces::default();
        assert!(this.check().is_err(), "not known yet");
        this.measure(shim, dir.path().to_owned()).await;
        assert_eq!(this.check().is_err(), this.problem().is_some());
        this.problem().map(str::to_owned)
    }

    #[tokio::test]
    async fn the_shims_answer_decides() {
        assert_eq!(measured("exit 0").await, None);
        assert_eq!(measured("printf 'no ids'").await.unwrap(), "no ids");
        let failed = measured("exit 3").await.unwrap();
        assert!(failed.contains("the attempt to use one failed"), "{failed}");
        assert!(measured("kill -9 $$").await.is_some());
        let named = "test \"$1\" = probe-user-namespaces && test -d \"$2\"";
        assert_eq!(measured(named).await, None);
    }
}
