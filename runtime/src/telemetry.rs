//! Logging: one subscriber that writes text or JSON to standard error.
//!
//! An error is logged once, where it is handled; an error that is returned to a caller is not logged on the
//! way. Logging never blocks: a separate thread writes to standard error, and lines it cannot write in time
//! (a full pipe, a hung disk) are dropped and counted.

mod lines;

use crate::config::{Log, LogFormat, LogLevel};
use lines::Lines;
use std::sync::OnceLock;
use std::time::Duration;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer as _, Registry, reload};

/// Our crates that log. Libraries log too much at `debug` (every HTTP/2 frame): unless the level is `trace`, only their
/// warnings and errors are logged.
const OURS: [&str; 5] = ["runtime", "image", "network", "streaming", "child"];

/// The filter that [`init`] installed, for [`set_level`].
static LEVEL: OnceLock<reload::Handle<Targets, Registry>> = OnceLock::new();

/// The subscriber was already set up.
#[derive(Debug, thiserror::Error)]
#[error("logging is already set up")]
pub struct AlreadySet;

/// Sets up the process's subscriber. May be called once.
pub(crate) fn init(log: Log) -> Result<(), AlreadySet> {
    let lines = tracing_subscriber::fmt::layer().with_writer(Lines::to_stderr()).with_ansi(false);
    let lines = match log.format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    let (filter, handle) = reload::Layer::new(filter(log.level));
    tracing_subscriber::registry().with(lines.with_filter(filter)).try_init().map_err(|_| AlreadySet)?;
    LEVEL.set(handle).map_err(|_| AlreadySet)
}

/// Changes the log level from now on.
pub(crate) fn set_level(level: LogLevel) {
    if let Some(handle) = LEVEL.get()
        && let Err(error) = handle.reload(filter(level))
    {
        tracing::error!(%error, "cannot change the log level");
    }
}

/// Waits until everything logged so far is written, at most for `limit`. Call it before the process ends.
pub(crate) fn flush(limit: Duration) {
    lines::flush(limit);
}

fn filter(level: LogLevel) -> Targets {
    let (ours, theirs) = match level {
        LogLevel::Error => (LevelFilter::ERROR, LevelFilter::ERROR),
        LogLevel::Warn => (LevelFilter::WARN, LevelFilter::WARN),
        LogLevel::Info => (LevelFilter::INFO, LevelFilter::WARN),
        LogLevel::Debug => (LevelFilter::DEBUG, LevelFilter::WARN),
        LogLevel::Trace => (LevelFilter::TRACE, LevelFilter::TRACE),
    };
    Targets::new().with_default(theirs).with_targets(OURS.map(|name| (name, ours)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing::Level;

    #[test]
    fn libraries_log_only_warnings_unless_the_level_is_trace() {
        let debug = filter(LogLevel::Debug);
        for ours in ["runtime::service", "image::pull", "network::attach", "streaming::server::http", "child"]
        {
            assert!(debug.would_enable(ours, &Level::DEBUG), "{ours}");
        }
        assert!(
            debug.would_enable("h2::codec", &Level::WARN) && !debug.would_enable("h2::codec", &Level::INFO)
        );
        assert!(filter(LogLevel::Trace).would_enable("h2::codec", &Level::TRACE));
        assert!(!filter(LogLevel::Error).would_enable("image::pull", &Level::WARN));
    }
}
