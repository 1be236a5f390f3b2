//! The process with which a pod's scope begins: the holder. systemd makes a scope around a process, and pause is created
//! in its leaf, so another process must be there before.
//!
//! It is the shim's binary, which waits for the end of its standard input. The daemon has the other end of the pipe, so
//! that the holder ends with the daemon, however that ends, and the scope ends with the holder.

use super::context::Context;
use crate::error::{Error, ErrorKind};
use crate::shims::spawn::{self, reap_later};
use crate::{failpoint, lanes};
use model::{PodPhase, PodRecord};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};
use sys::spawn::Child;

/// How long a holder that was killed may take to end.
const END: Duration = Duration::from_secs(2);
/// How long systemd may take to remove a scope in which the last process has ended.
const REMOVAL: Duration = Duration::from_secs(1);
const SIGKILL: i32 = 9;

/// A running holder, which is killed when this is dropped.
#[derive(Debug)]
pub(super) struct Holder {
    /// Not reaped before it is killed, so that its pid stays its own.
    child: Option<Child>,
    _input: OwnedFd,
}

/// Makes the scope of a pod, if it has one, with a holder in it.
///
/// # Errors
/// Unavailable if systemd does not answer. Then nothing is left.
pub(super) async fn create(context: &Arc<Context>, record: &PodRecord) -> Result<Option<Holder>, Error> {
    if record.scope.is_empty() {
        return Ok(None);
    }
    let (context, record) = (Arc::clone(context), record.clone());
    let id = record.id.clone();
    let work = move || {
        let holder = Holder::start(&context, &record, None)?;
        failpoint::hit("pod.holder");
        if let Err(error) = context.cgroups.create_scope(&record, holder.pid()) {
            if holder.has_ended() {
                start_and_end_or_warn(&context, &record);
            }
            return Err(holder.explain(error.into()));
        }
        failpoint::hit("pod.scope");
        Ok(Some(holder))
    };
    lanes::run(lanes::systemd(), id.as_str(), "make the pod's scope", work).await
}

/// Waits until systemd has removed the scope of a pod that pause may never have been in. If the daemon was killed while
/// systemd made the scope, the holder ended before systemd moved it there, and systemd would keep the empty scope for ever:
/// if the scope is still there after a second, [`start_and_end`] gives systemd the change that it waits for. Blocking, for
/// about a second.
pub(super) fn wait_for_removal(context: &Context, record: &PodRecord) {
    let is_torn_down = matches!(record.phase, PodPhase::Stopped | PodPhase::Removing);
    if record.scope.is_empty() || record.pause_pid != 0 || is_torn_down {
        return;
    }
    let Some(folder) = context.cgroups.folder("memory", &record.scope) else { return };
    let until = Instant::now() + REMOVAL;
    while folder.exists() {
        if Instant::now() > until {
            start_and_end_or_warn(context, record);
            return;
        }
        thread::sleep(Duration::from_millis(10));
    }
}

fn start_and_end_or_warn(context: &Context, record: &PodRecord) {
    if let Err(left) = start_and_end(context, record) {
        tracing::warn!(error = %left.text(), "a scope that nothing is in is left to systemd");
    }
}

/// Starts a process in a scope and ends it, so that systemd sees the scope become empty. For a scope whose holder had ended
/// before systemd moved it there: the kernel moves no process that has ended, and reports no error, so that systemd would
/// wait for ever for a change.
fn start_and_end(context: &Context, record: &PodRecord) -> Result<(), Error> {
    let Some(folder) = context.cgroups.folder("memory", &record.scope) else { return Ok(()) };
    match File::open(&folder) {
        Ok(folder) => Holder::start(context, record, Some(folder.as_fd())).map(drop),
        // systemd has removed it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::of(format!("open {}", folder.display()), error)),
    }
}

impl Holder {
    fn start(context: &Context, record: &PodRecord, cgroup: Option<BorrowedFd<'_>>) -> Result<Self, Error> {
        let (child, input) = spawn::holder(&context.binaries, &record.id, cgroup)?;
        Ok(Self { child: Some(child), _input: input })
    }

    fn pid(&self) -> u32 {
        self.child.as_ref().map_or(0, |child| child.pid)
    }

    fn has_ended(&self) -> bool {
        let ended = |child: &Child| sys::pidfd::has_ended(child.pidfd.as_fd()).unwrap_or(false);
        self.child.as_ref().is_some_and(ended)
    }

    /// The error of a step that needs the scope, with its reason if the holder has ended meanwhile: its scope has too. It was
    /// killed then (the OOM killer, an operator), so a retry may succeed: Unavailable.
    pub(super) fn explain(&self, error: Error) -> Error {
        if !self.has_ended() {
            return error;
        }
        let text =
            "the process that the pod's scope begins with was killed, and systemd ends the scope with it";
        error.context(text).with_kind(ErrorKind::Unavailable)
    }

    /// Ends it once pause is in its leaf, and removes its cgroup. What is left is removed with the pod.
    pub(super) async fn end(mut self, context: &Arc<Context>, record: &PodRecord) {
        if let Some(ended) = self.kill()
            && tokio::time::timeout(END, ended).await.is_err()
        {
            tracing::warn!("the process that the pod's scope began with does not end");
        }
        let (context, record) = (Arc::clone(context), record.clone());
        let id = record.id.clone();
        let work = move || Ok(context.cgroups.remove_starting(&record)?);
        if let Err(error) = lanes::run(lanes::kill(), id.as_str(), "remove the holder's cgroup", work).await {
            tracing::warn!(error = %error.text(), "the cgroup of the process that the pod's scope began with is left until the pod's end");
        }
    }

    fn kill(&mut self) -> Option<tokio::task::JoinHandle<Option<rustix::process::WaitIdStatus>>> {
        let child = self.child.take()?;
        // It fails only if the process has ended.
        drop(sys::pidfd::send_signal(child.pidfd.as_fd(), SIGKILL));
        Some(reap_later(child))
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.kill());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::pipe::{PipeFlags, pipe_with};
    use rustix::process::{WaitId, WaitIdOptions, waitid};
    use sys::spawn::{Binary, Program};

    /// A process that waits for the end of its input, as the holder does.
    fn holder() -> Holder {
        let (input, end) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let child = sys::spawn::spawn(&Program {
            binary: Binary::Path(c"/bin/cat"),
            args: &[c"cat".to_owned()],
            env: &[],
            stdio: [Some(input.as_fd()), None, None],
            fds: &[],
            cgroup: None,
        });
        Holder { child: Some(child.unwrap()), _input: end }
    }

    #[tokio::test]
    async fn a_scope_that_ended_with_its_holder_may_be_tried_again() {
        let holder = holder();
        let error = Error::internal("no such folder");
        assert_eq!(holder.explain(error.clone()), error);
        let pidfd = holder.child.as_ref().unwrap().pidfd.as_fd();
        sys::pidfd::send_signal(pidfd, SIGKILL).unwrap();
        // It is not reaped, as in a launch.
        waitid(WaitId::PidFd(pidfd), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT).unwrap();
        let explained = holder.explain(error);
        assert_eq!(explained.kind, ErrorKind::Unavailable);
        assert!(explained.text().contains("was killed") && explained.text().contains("no such folder"));
    }
}
