//! Logging: one subscriber, standard error, text or JSON.
//!
//! An error is logged once, where it is handled; what is returned to a caller is not logged on the way.
//! A line never waits: a thread of its own writes to standard error, and what it is too slow for (a full pipe, a
//! hung disk) is dropped and counted.

mod lines;

use crate::config::{Log, LogFormat, LogLevel};
use lines::Lines;
use std::sync::OnceLock;
use std::time::Duration;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer as _, Registry, reload};

/// Our own crates. Libraries say more at `debug` than anybody wants to read (every HTTP/2 frame), so they
/// follow the level only at its ends.
const OURS: [&str; 6] = ["runtime", "image", "network", "state", "spec", "sys"];

/// The level of the process's subscriber.
static LEVEL: OnceLock<reload::Handle<Targets, Registry>> = OnceLock::new();

/// A second subscriber was set up.
#[derive(Debug, thiserror::Error)]
#[error("logging was set up twice")]
pub struct AlreadySet;

/// Sets the process's subscriber up. Once.
pub fn init(log: Log) -> Result<(), AlreadySet> {
    let lines = tracing_subscriber::fmt::layer().with_writer(Lines::to_stderr()).with_ansi(false);
    let lines = match log.format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    let (filter, handle) = reload::Layer::new(filter(log.level));
    tracing_subscriber::registry().with(lines.with_filter(filter)).try_init().map_err(|_| AlreadySet)?;
    LEVEL.set(handle).map_err(|_| AlreadySet)
}

/// Changes the level of the lines from here on.
pub(crate) fn set_level(level: LogLevel) {
    if let Some(handle) = LEVEL.get()
        && let Err(error) = handle.reload(filter(level))
    {
        tracing::error!(%error, "the level of the log cannot be changed");
    }
}

/// Waits until what was logged so far is written, at most `limit`: before the process ends.
pub fn flush(limit: Duration) {
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
    fn libraries_are_heard_only_when_they_warn_or_all_is_traced() {
        let debug = filter(LogLevel::Debug);
        assert!(debug.would_enable("runtime::service", &Level::DEBUG));
        assert!(
            debug.would_enable("h2::codec", &Level::WARN) && !debug.would_enable("h2::codec", &Level::INFO)
        );
        assert!(filter(LogLevel::Trace).would_enable("h2::codec", &Level::TRACE));
        assert!(!filter(LogLevel::Error).would_enable("image::pull", &Level::WARN));
    }
}
