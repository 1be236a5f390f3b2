//! Whether pods of this node can have user namespaces. That depends on the kernel, on sysctls and on the file system of
//! the image layers, so it is tried at the start of the daemon, by the shim's binary (`shim::probe`): a process with
//! threads cannot create a user namespace.

use crate::error::{Error, ErrorKind};
use crate::lanes;
use child::Process;
use rustix::pipe::{PipeFlags, pipe_with};
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use sys::spawn::{Binary, Program};
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe::Receiver;

/// Time limit of the attempt, which takes some milliseconds. A disk that hangs must not keep the daemon from starting.
const LIMIT: Duration = Duration::from_secs(5);
/// Maximum length of the reason in bytes.
const MAX_REASON: u64 = 4096;

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
        let problem = match tokio::time::timeout(LIMIT, attempt(shim, layers)).await {
            Ok(Ok(problem)) => problem,
            Ok(Err(error)) => Some(format!("the attempt to use one failed: {error}")),
            Err(_) => Some(format!("the attempt to use one did not end within {LIMIT:?}")),
        };
        if let Some(problem) = &problem {
            tracing::warn!(problem, "pods of this node cannot have user namespaces");
        }
        // Measured once.
        drop(self.0.set(problem));
    }
}

/// Runs the shim. Returns what does not work.
async fn attempt(shim: PathBuf, layers: PathBuf) -> io::Result<Option<String>> {
    let (read_end, write_end) = pipe_with(PipeFlags::CLOEXEC)?;
    let started = lanes::records().run(move || start(shim, layers, write_end)).await;
    // Killed if this is given up.
    let mut process = started.map_err(io::Error::other)??;
    let mut reason = String::new();
    Receiver::from_owned_fd(read_end)?.take(MAX_REASON).read_to_string(&mut reason).await?;
    let status = process.wait().await;
    if !reason.is_empty() {
        return Ok(Some(reason));
    }
    match status? {
        status if status.success() => Ok(None),
        status => Err(io::Error::other(format!("copepod-shim ended with {status}"))),
    }
}

/// Blocking; must be called within the runtime.
fn start(shim: PathBuf, layers: PathBuf, output: OwnedFd) -> io::Result<Process> {
    let text = |path: PathBuf| CString::new(path.into_os_string().into_vec()).map_err(io::Error::other);
    let path = text(shim)?;
    let args = [path.clone(), CString::new(wire::PROBE_USER_NAMESPACES)?, text(layers)?];
    let stderr = io::stderr();
    let child = sys::spawn::spawn(&Program {
        binary: Binary::Path(&path),
        args: &args,
        env: &[],
        stdio: [None, Some(output.as_fd()), Some(stderr.as_fd())],
        fds: &[],
        cgroup: None,
    });
    Process::new(child?)
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
