//! Whether a client is there, although it says nothing.
//!
//! A client whose host is switched off, or is cut off, ends no connection. TCP notices it by what is not acknowledged:
//! in two minutes if nothing else was sent (keepalive), but after output or a ping, which it repeats, in a quarter of
//! an hour. TCP_USER_TIMEOUT would shorten that, but is also the time limit for a client that does not read, because
//! the window is then 0: `kubectl exec` whose output waits in a pager. Such a client's host answers the kernel's
//! probes, and this is what is looked at here.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use sys::tcp::{self, Answers};

/// Time without an answer of the client's host, and packets that it left unanswered meanwhile, after which the client has
/// vanished. The time is that of keepalive. It is not enough alone: in the end a window of 0 is probed only every two
/// minutes.
const SILENT: Duration = Duration::from_secs(120);
/// Packets left unanswered in that time.
const UNANSWERED: u32 = 3;

/// Another descriptor of a client's socket: the halves are in use while they wait.
#[derive(Debug)]
pub(super) struct Watch(OwnedFd);

impl Watch {
    /// # Errors
    /// No descriptor is free.
    pub(super) fn new(socket: &impl AsFd) -> io::Result<Self> {
        socket.as_fd().try_clone_to_owned().map(Self)
    }

    /// For how long the client's host has been silent, if it has vanished.
    pub(super) fn vanished(&self) -> Option<Duration> {
        match tcp::answers(self.0.as_fd()) {
            Ok(answers) => is_gone(answers).then_some(answers.silent),
            // Without this, the kernel ends the connection itself, later.
            Err(error) => {
                tracing::debug!(%error, "cannot read the state of a streaming connection");
                None
            }
        }
    }
}

fn is_gone(Answers { silent, unanswered }: Answers) -> bool {
    silent >= SILENT && unanswered >= UNANSWERED
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_silence_that_was_asked_about_is_a_vanished_client() {
        let gone =
            |seconds, unanswered| is_gone(Answers { silent: Duration::from_secs(seconds), unanswered });
        assert!(gone(120, 3));
        assert!(!gone(119, 9), "an outage that may end");
        assert!(!gone(3600, 0), "idle: nothing to acknowledge, or a process that is silent");
        assert!(
            !gone(200, 2),
            "a client that does not read is probed every two minutes, and two packets were lost"
        );
    }
}
