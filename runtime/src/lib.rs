//! The daemon: wiring of CRI services, pods, shims, images and networks. See ARCHITECTURE.md.

pub mod cli;
pub mod config;
pub mod shutdown;
pub mod telemetry;

/// Why the daemon could not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Logging.
    #[error(transparent)]
    Telemetry(#[from] telemetry::AlreadySet),
}

/// Runs the daemon until it is told to stop.
pub fn run(config: &config::Config) -> Result<(), Error> {
    telemetry::init(config.log)?;
    Ok(())
}
mod cni_watch;
mod service;
