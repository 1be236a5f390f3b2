//! Logging: one subscriber, standard error, text or JSON.
//!
//! An error is logged once, where it is handled; what is returned to a caller is not logged on the way.

use crate::config::{Log, LogFormat, LogLevel};
use tracing_subscriber::filter::LevelFilter;

/// A second subscriber was set up.
#[derive(Debug, thiserror::Error)]
#[error("logging was set up twice")]
pub struct AlreadySet;

/// Sets the process's subscriber up. Once.
pub fn init(log: Log) -> Result<(), AlreadySet> {
    let level = match log.level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    let builder =
        tracing_subscriber::fmt().with_writer(std::io::stderr).with_max_level(level).with_ansi(false);
    let set = match log.format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    set.map_err(|_| AlreadySet)
}
