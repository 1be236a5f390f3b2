//! Stopping the daemon: SIGTERM or SIGINT starts a graceful stop, running calls get a bounded time, and pods
//! keep running. Signals that are sent for other purposes and whose default action would end the daemon are ignored.

use std::future::Future;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// Time limit for running calls after the signal. It must be shorter than the service manager's limit for the stop
/// (TimeoutStopSec=30 in the packaged unit). What does not end in time is completed or undone by the next start.
pub(crate) const DRAIN: Duration = Duration::from_secs(10);

/// Signals whose default action would end the daemon. Operators may send them, because other daemons use them, for example
/// to write their state to the log. SIGHUP reloads the configuration (`reload`).
const IGNORED: [(SignalKind, &str); 3] = [
    (SignalKind::user_defined1(), "SIGUSR1"),
    (SignalKind::user_defined2(), "SIGUSR2"),
    (SignalKind::alarm(), "SIGALRM"),
];

/// A signal to all parts that the daemon is stopping.
#[derive(Debug, Clone)]
pub(crate) struct Shutdown(watch::Receiver<bool>);

impl Shutdown {
    /// Catches the signals from now on. Must be called inside the runtime.
    pub(crate) fn on_signals() -> std::io::Result<Self> {
        let mut term = signal(SignalKind::terminate())?;
        let mut int = signal(SignalKind::interrupt())?;
        for (kind, name) in IGNORED {
            // Caught, not ignored: an ignored signal would be inherited by the programs that the daemon
            // executes.
            let mut ignored = signal(kind)?;
            tokio::spawn(async move {
                while ignored.recv().await.is_some() {
                    tracing::info!(signal = name, "signal ignored");
                }
            });
        }
        let (sender, receiver) = watch::channel(false);
        tokio::spawn(async move {
            let name = tokio::select! {
                _ = term.recv() => "SIGTERM",
                _ = int.recv() => "SIGINT",
            };
            tracing::info!(signal = name, "stopping; pods keep running");
            sender.send_replace(true);
        });
        Ok(Self(receiver))
    }

    /// For tests: stops when `stopping` becomes true.
    #[cfg(test)]
    pub(crate) fn of(stopping: watch::Receiver<bool>) -> Self {
        Self(stopping)
    }

    /// Resolves when the daemon must stop.
    pub(crate) async fn wait(mut self) {
        // It fails only if the runtime ends before a signal came.
        drop(self.0.wait_for(|stopping| *stopping).await);
    }
}

/// Runs `serving` until it ends, but at most for `drain` after `stopping` has resolved. Returns `None` if it was
/// cancelled.
pub(crate) async fn bounded<T>(
    serving: impl Future<Output = T>,
    stopping: Shutdown,
    drain: Duration,
) -> Option<T> {
    tokio::pin!(serving);
    tokio::select! {
        done = &mut serving => return Some(done),
        () = stopping.wait() => {}
    }
    tokio::time::timeout(drain, serving).await.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_hung_call_is_cancelled() {
        let (sender, receiver) = watch::channel(false);
        sender.send_replace(true);
        let cut =
            bounded(std::future::pending::<()>(), Shutdown(receiver.clone()), Duration::from_millis(10))
                .await;
        assert_eq!(cut, None);
        let ended = bounded(async { 7 }, Shutdown(receiver), Duration::from_secs(10)).await;
        assert_eq!(ended, Some(7));
    }
}
