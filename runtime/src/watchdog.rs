//! The service manager's watchdog (`WatchdogSec=` of the unit), which restarts a daemon that does not work any more while
//! its process still runs. Pods do not notice.
//!
//! It is fed only after a probe of what a new daemon would mend: that tasks are scheduled, that the CRI socket answers,
//! that the lists can be read, and that the lanes answer whose work cannot hang. The other lanes are left out on purpose.
//! If a disk, a volume or a plugin hangs, they wait for it, and a new daemon would wait for it too, in its start: then it
//! would not even serve lists.

use crate::lanes;
use crate::notify::ServiceManager;
use crate::service::{self, SelfProbeError};
use pool::Lane;
use std::future::Future;
use std::path::Path;
use std::time::Duration;
use tokio::time::{sleep, timeout};

/// Shortest period that is used, as the time limits are fractions of it.
const MIN_PERIOD: Duration = Duration::from_millis(100);

/// Why the probe failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Problem {
    /// A call on the daemon's own socket failed.
    #[error(transparent)]
    Socket(#[from] SelfProbeError),
    /// A lane could not take work.
    #[error(transparent)]
    Lane(#[from] pool::Error),
    /// A part of the probe did not end in time.
    #[error("{part} did not answer within {limit:?}")]
    Hangs {
        /// The part.
        part: &'static str,
        /// Its time limit.
        limit: Duration,
    },
}

/// The period of the watchdog, from the variables that sd_watchdog_enabled(3) describes; `None` if the daemon has none.
pub(crate) fn period() -> Option<Duration> {
    let variable = |name| std::env::var(name).ok();
    parse_period(
        variable("WATCHDOG_USEC").as_deref(),
        variable("WATCHDOG_PID").as_deref(),
        std::process::id(),
    )
}

/// `usec` is in microseconds. `pid` is the process that the variables are for; others inherit them.
fn parse_period(usec: Option<&str>, pid: Option<&str>, own: u32) -> Option<Duration> {
    if pid.is_some_and(|pid| pid.parse() != Ok(own)) {
        return None;
    }
    let period = Duration::from_micros(usec?.parse().ok()?);
    if period < MIN_PERIOD {
        tracing::warn!(?period, "the period of the service manager's watchdog is too short: it is not fed");
        return None;
    }
    Some(period)
}

/// Feeds the watchdog as long as the daemon works. Runs until it is dropped.
///
/// `socket` is the CRI socket.
pub(crate) async fn run(manager: &ServiceManager, period: Duration, socket: &Path) {
    let lanes = [lanes::exec(), lanes::stats()];
    feed(manager, period, |limit| probe(socket, lanes, limit)).await;
}

/// A message after each probe that has succeeded, at half of the period, as sd_watchdog_enabled(3) recommends. A probe may
/// take a quarter of it. One that failed is repeated after a sixteenth of it. If both hang, the period is over before the
/// second one's time limit: it has three sixteenths of the period to succeed.
async fn feed<F>(manager: &ServiceManager, period: Duration, probe: impl Fn(Duration) -> F)
where
    F: Future<Output = Result<(), Problem>>,
{
    let mut failed = false;
    loop {
        let pause = match probe(period / 4).await {
            Ok(()) => {
                manager.alive().await;
                if std::mem::take(&mut failed) {
                    tracing::info!("the daemon's probe of itself succeeds again");
                    manager.status("Serving").await;
                }
                period / 2
            }
            Err(problem) => {
                failed = true;
                let error = causes::with_causes(&problem);
                tracing::error!(
                    error,
                    "the daemon's probe of itself failed; if that lasts, the service manager restarts the daemon"
                );
                manager.status(&format!("Probe failed: {error}")).await;
                period / 16
            }
        };
        sleep(pause).await;
    }
}

/// All parts at the same time, each within `limit`.
async fn probe(socket: &Path, lanes: [&'static Lane; 2], limit: Duration) -> Result<(), Problem> {
    let [first, second] = lanes;
    let socket = async { Ok(service::probe_socket(socket).await?) };
    tokio::try_join!(
        within(limit, "the CRI socket", socket),
        within(limit, first.name(), answer(first)),
        within(limit, second.name(), answer(second)),
    )?;
    Ok(())
}

/// One piece of empty work.
async fn answer(lane: &Lane) -> Result<(), Problem> {
    Ok(lane.run(|| ()).await?)
}

async fn within(
    limit: Duration,
    part: &'static str,
    work: impl Future<Output = Result<(), Problem>>,
) -> Result<(), Problem> {
    timeout(limit, work).await.unwrap_or(Err(Problem::Hangs { part, limit }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn the_period_is_that_of_the_environment_if_it_is_meant_for_this_process() {
        let parse = |usec, pid| parse_period(usec, pid, 7).map(|period| period.as_micros());
        assert_eq!(parse(Some("60000000"), None), Some(60_000_000));
        assert_eq!(parse(Some("60000000"), Some("7")), Some(60_000_000));
        assert_eq!(parse(Some("60000000"), Some("8")), None);
        assert_eq!(parse(Some("60000000"), Some("")), None);
        assert_eq!(parse(None, Some("7")), None);
        for usec in ["", "0", "-1", "99999", "1e6", "99999999999999999999"] {
            assert_eq!(parse(Some(usec), None), None, "{usec}");
        }
    }

    fn lane(name: &'static str, max_queued: usize) -> &'static Lane {
        let size = pool::Size { name, kept_threads: 1, max_threads: 1, max_per_owner: 1, max_queued };
        Box::leak(Box::new(Lane::new(size)))
    }

    /// In real time: a paused clock would pass the limits while threads work.
    #[tokio::test]
    async fn a_lane_that_hangs_or_is_full_fails_the_probe() {
        let (free, stuck) = (lane("free", 8), lane("stuck", 1));
        let (limit, ample) = (Duration::from_millis(50), Duration::from_secs(60));
        let (release, hang) = std::sync::mpsc::channel::<()>();
        let (started, running) = tokio::sync::oneshot::channel();
        let hanging = tokio::spawn(stuck.run(move || {
            let _ = started.send(());
            let _ = hang.recv();
        }));
        running.await.unwrap();
        within(ample, "free", answer(free)).await.unwrap();
        let problem = within(limit, "stuck", answer(stuck)).await.unwrap_err();
        assert!(matches!(problem, Problem::Hangs { part: "stuck", .. }), "{problem:?}");
        // That piece of work still waits, and no other has room.
        let problem = within(ample, "stuck", answer(stuck)).await.unwrap_err();
        assert!(matches!(problem, Problem::Lane(pool::Error::Full { .. })), "{problem:?}");
        drop(release);
        hanging.await.unwrap().unwrap();
        // Until the thread has taken the piece of work that waited, there is no room.
        let recovered = async {
            while within(ample, "stuck", answer(stuck)).await.is_err() {
                tokio::task::yield_now().await;
            }
        };
        timeout(ample, recovered).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_fed_at_half_of_the_period_and_not_after_a_failed_probe() {
        use std::os::linux::net::SocketAddrExt as _;
        let name = format!("copepod-test-watchdog-{}", std::process::id());
        let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap();
        let socket = std::os::unix::net::UnixDatagram::bind_addr(&address).unwrap();
        socket.set_nonblocking(true).unwrap();
        let received = || {
            let mut buffer = [0; 4096];
            std::iter::from_fn(|| {
                let length = socket.recv(&mut buffer).ok()?;
                Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
            })
            .collect::<Vec<_>>()
        };
        let manager = ServiceManager::of(Some(format!("@{name}").into()));
        let (works, period, probes) = (Cell::new(true), Duration::from_secs(60), Cell::new(0));
        let feeding = feed(&manager, period, |limit| {
            assert_eq!(limit, period / 4);
            probes.set(probes.get() + 1);
            let works = works.get();
            within(
                limit,
                "the part",
                async move { if works { Ok(()) } else { std::future::pending().await } },
            )
        });
        tokio::pin!(feeding);
        let mut during = async |seconds| {
            let _ = timeout(Duration::from_secs(seconds), &mut feeding).await;
            received()
        };
        // At 0, 30, 60 and 90 s.
        assert_eq!(during(100).await, ["WATCHDOG=1"; 4]);
        works.set(false);
        let messages = during(120).await;
        assert!(messages.len() > 3, "{messages:?}");
        assert!(
            messages.iter().all(|it| it.starts_with("STATUS=Probe failed: the part did not")),
            "{messages:?}"
        );
        assert!(probes.get() >= 8, "{} probes: one that fails is not repeated soon", probes.get());
        works.set(true);
        let messages = during(30).await;
        assert!(
            messages.iter().any(|it| it == "WATCHDOG=1") && messages.contains(&"STATUS=Serving".into()),
            "{messages:?}"
        );
    }
}
