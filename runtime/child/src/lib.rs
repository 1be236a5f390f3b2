//! A program that the daemon has started for a short time, such as a CNI plugin. If the daemon gives it up, it is
//! killed with what it has started.

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use std::ffi::{CString, OsString};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;
use sys::spawn::Child;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A running program. If it is dropped before [`Process::wait`] has returned, its process group is killed, and it is
/// reaped in the background.
#[derive(Debug)]
pub struct Process {
    pid: u32,
    /// `None` once it is reaped.
    pidfd: Option<AsyncFd<OwnedFd>>,
}

impl Process {
    /// Takes over a child, which leads its process group, as [`sys::spawn`] starts it. Needs a tokio runtime.
    ///
    /// # Errors
    /// No descriptor can be watched. The child is killed and reaped then.
    pub fn new(child: Child) -> io::Result<Self> {
        let Child { pid, pidfd } = child;
        match watched(pidfd) {
            Ok(pidfd) => Ok(Self { pid, pidfd: Some(pidfd) }),
            Err((pidfd, error)) => {
                kill(pid);
                // It has been killed, so this does not wait long.
                waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED)?;
                Err(error)
            }
        }
    }

    /// Waits for its end and reaps it.
    ///
    /// # Errors
    /// It was waited for before; the errors of waitid(2).
    pub async fn wait(&mut self) -> io::Result<ExitStatus> {
        let Some(pidfd) = &self.pidfd else { return Err(io::Error::other("it was waited for twice")) };
        let status = reap(pidfd).await;
        self.pidfd = None;
        status
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let Some(pidfd) = self.pidfd.take() else { return };
        kill(self.pid);
        // Without a runtime the daemon is exiting, and init reaps its children.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { reap(&pidfd).await });
        }
    }
}

/// Variables of the daemon that are meant for it alone: those of its service manager's protocols (sd_notify(3),
/// sd_watchdog_enabled(3), sd_listen_fds(3)).
const NOT_INHERITED: [&str; 9] = [
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_PIDFDID",
    "LISTEN_FDNAMES",
    "FDSTORE",
    "MAINPID",
];

/// The daemon's environment for a program that it starts, without what is meant for the daemon alone.
pub fn inherited() -> impl Iterator<Item = (OsString, OsString)> {
    std::env::vars_os().filter(|(name, _)| !NOT_INHERITED.iter().any(|own| name == own))
}

/// An environment as execve(2) takes it, `NAME=value`.
///
/// # Errors
/// A variable contains a NUL byte.
pub fn environment(variables: impl IntoIterator<Item = (OsString, OsString)>) -> io::Result<Vec<CString>> {
    let entry = |(mut name, value): (OsString, OsString)| {
        name.push("=");
        name.push(value);
        CString::new(name.into_vec()).map_err(io::Error::from)
    };
    variables.into_iter().map(entry).collect()
}

/// Registers a pidfd with the runtime; on an error it is returned.
#[expect(
    deprecated,
    reason = "sound here, as an OwnedFd keeps its number, and the sound one is unsafe to call"
)]
fn watched(pidfd: OwnedFd) -> Result<AsyncFd<OwnedFd>, (OwnedFd, io::Error)> {
    AsyncFd::try_with_interest(pidfd, Interest::READABLE).map_err(|error| error.into_parts())
}

/// Waits for the end of a child and reaps it.
async fn reap(pidfd: &AsyncFd<OwnedFd>) -> io::Result<ExitStatus> {
    drop(pidfd.readable().await?);
    let ended = waitid(WaitId::PidFd(pidfd.get_ref().as_fd()), WaitIdOptions::EXITED)?;
    let ended = ended.ok_or_else(|| io::Error::other("it has not ended"))?;
    // The status word of wait(2).
    Ok(ExitStatus::from_raw(match (ended.exit_status(), ended.terminating_signal()) {
        (Some(code), _) => code << 8,
        (None, signal) => signal.unwrap_or(Signal::KILL.as_raw()),
    }))
}

/// Kills the process group of a child that is not reaped yet, so that the number is still its own.
fn kill(pid: u32) {
    let group = i32::try_from(pid).ok().and_then(Pid::from_raw);
    if let Some(group) = group
        && let Err(error) = kill_process_group(group, Signal::KILL)
    {
        tracing::warn!(%error, pid, "cannot kill a program that was given up");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use sys::spawn::{Binary, Program};
    use tokio::io::AsyncReadExt as _;
    use tokio::net::unix::pipe::Receiver;
    use tokio::time::timeout;

    /// For what must happen at once.
    const LIMIT: Duration = Duration::from_secs(20);

    /// A shell with this script, and its standard output.
    fn shell(script: &str) -> (Process, Receiver) {
        let (read_end, write_end) = io::pipe().unwrap();
        let arg = |text: &str| std::ffi::CString::new(text).unwrap();
        let child = sys::spawn::spawn(&Program {
            binary: Binary::Path(c"/bin/sh"),
            args: &[arg("sh"), arg("-c"), arg(script)],
            env: &[arg("PATH=/usr/bin:/bin")],
            stdio: [None, Some(write_end.as_fd()), None],
            fds: &[],
            cgroup: None,
        });
        (Process::new(child.unwrap()).unwrap(), Receiver::from_owned_fd(read_end.into()).unwrap())
    }

    #[tokio::test]
    async fn the_end_is_told_once() {
        let (mut exits, _) = shell("exit 3");
        assert_eq!(exits.wait().await.unwrap().code(), Some(3));
        assert!(exits.wait().await.is_err());
        let (mut killed, _) = shell("kill -TERM $$");
        assert_eq!(killed.wait().await.unwrap().signal(), Some(15));
    }

    #[tokio::test]
    async fn what_is_given_up_ends_with_its_children() {
        let (process, mut output) = shell("sleep 1000 & echo up; wait");
        let pid = process.pid;
        let mut text = [0; 3];
        timeout(LIMIT, output.read_exact(&mut text)).await.expect("it starts").unwrap();
        drop(process);
        // The pipe closes when the shell and its child have ended.
        assert_eq!(timeout(LIMIT, output.read(&mut text)).await.expect("both end").unwrap(), 0);
        let reaped = async {
            while sys::pidfd::find(pid).unwrap().is_some() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(LIMIT, reaped).await.expect("it is reaped");
    }
}
