//! When the daemon stops: SIGTERM or SIGINT begin a graceful stop, calls in flight get a bounded time,
//! pods keep running. Signals that people send to make a daemon do something, and that would kill it, change
//! nothing.

use std::future::Future;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// How long calls in flight may take after the signal. Shorter than any service manager's patience
/// (systemd: 90 s); what does not end is finished or undone by the next start.
pub const DRAIN: Duration = Duration::from_secs(10);

/// Signals whose default would end the daemon, though who sends them means something else: another daemon's "dump
/// your state". SIGHUP is `reload`'s.
const IGNORED: [(SignalKind, &str); 3] = [
    (SignalKind::user_defined1(), "SIGUSR1"),
    (SignalKind::user_defined2(), "SIGUSR2"),
    (SignalKind::alarm(), "SIGALRM"),
];

/// Tells everything that the daemon is stopping.
#[derive(Debug, Clone)]
pub struct Shutdown(watch::Receiver<bool>);

impl Shutdown {
    /// Catches the signals from here on. Must be called inside the runtime.
    pub fn on_signals() -> std::io::Result<Self> {
        let mut term = signal(SignalKind::terminate())?;
        let mut int = signal(SignalKind::interrupt())?;
        for (kind, name) in IGNORED {
            // Caught, not ignored: what the daemon executes would inherit the latter.
            let mut ignored = signal(kind)?;
            tokio::spawn(async move {
                while ignored.recv().await.is_some() {
                    tracing::info!(signal = name, "ignored");
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
            // Keep the sender until everybody has seen it.
            sender.closed().await;
        });
        Ok(Self(receiver))
    }

    /// Stops when `stopping` turns true, for tests.
    #[cfg(test)]
    pub(crate) fn of(stopping: watch::Receiver<bool>) -> Self {
        Self(stopping)
    }

    /// Resolves when the daemon is to stop.
    pub async fn wait(mut self) {
        // An error means that the sender is gone, which happens only when the runtime ends.
        drop(self.0.wait_for(|stopping| *stopping).await);
    }
}

/// Runs `serving` until it ends; once `stopping` resolves it has [`DRAIN`] left. False when it was cut off.
pub async fn bounded<T>(serving: impl Future<Output = T>, stopping: Shutdown, drain: Duration) -> Option<T> {
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
    async fn a_call_that_never_ends_is_cut_off() {
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
