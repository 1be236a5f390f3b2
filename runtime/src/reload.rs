//! Reload on SIGHUP: reads the configuration again and applies those changes that need no restart.
//!
//! If a file cannot be read or has a fault, nothing is applied: the daemon keeps the old configuration and logs the reasons.
//! If the image store is busy or has no thread, only `image.pinned` takes effect later, or at the next start.

use crate::config::{Arguments, Config, Error, Reloaded};
use crate::notify::ServiceManager;
use crate::{lanes, memory, telemetry};
use causes::with_causes;
use image::ImageStore;
use network::Cni;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::time::timeout;

/// Time limit for reading the files, which may be on a disk that hangs.
const READ_LIMIT: Duration = Duration::from_secs(10);

/// Receives SIGHUP, which without this would end the daemon.
#[derive(Debug)]
pub(crate) struct Hangups(Signal);

impl Hangups {
    /// Must be called inside the runtime. Signals that arrive before [`Reloader::run`] are not lost.
    pub(crate) fn catch() -> std::io::Result<Self> {
        signal(SignalKind::hangup()).map(Self)
    }
}

/// What a reload reads and what it changes.
#[derive(Debug)]
pub(crate) struct Reloader {
    /// Where to read the configuration.
    pub(crate) arguments: Arguments,
    /// The effective configuration.
    pub(crate) config: watch::Sender<Arc<Config>>,
    /// Runs plugins.
    pub(crate) cni: Cni,
    /// Pulls images.
    pub(crate) images: ImageStore,
    /// Told when a reload begins and ends.
    pub(crate) manager: ServiceManager,
}

impl Reloader {
    /// Reloads after each SIGHUP, once for several that arrive together. Runs until it is dropped.
    pub(crate) async fn run(self, mut hangups: Hangups) {
        while hangups.0.recv().await.is_some() {
            self.manager.reloading().await;
            let status = match self.read().await {
                Ok(new) => {
                    self.apply(&new).await;
                    "Serving; the configuration was reloaded"
                }
                Err(error) => {
                    let problem = "configuration not reloaded, the old one stays in effect";
                    tracing::error!(signal = "SIGHUP", error, "{problem}");
                    "Serving; the configuration was not reloaded, the reasons are in the log"
                }
            };
            self.manager.ready(status).await;
            memory::freed();
        }
    }

    /// Logs each fault; the error summarises them.
    async fn read(&self) -> Result<Config, String> {
        let arguments = self.arguments.clone();
        let read = lanes::foreign().run_for("configuration", move || arguments.load());
        match timeout(READ_LIMIT, read).await {
            Ok(Ok(Ok(config))) => Ok(config),
            Ok(Ok(Err(Error::Invalid(faults)))) => {
                for fault in &faults {
                    tracing::error!(%fault, "fault in the configuration");
                }
                Err(format!("faults in the configuration: {}", faults.len()))
            }
            Ok(Ok(Err(error))) => Err(with_causes(&error)),
            Ok(Err(error)) => Err(with_causes(&error)),
            Err(_) => Err(format!("reading the files took longer than {} s", READ_LIMIT.as_secs())),
        }
    }

    /// Waits for the image store no longer than for the files: its lock is held while it writes to the disk.
    async fn pin_images(&self, patterns: Vec<String>) {
        let error = match timeout(READ_LIMIT, self.images.set_pinned(patterns)).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => with_causes(&error),
            // The change goes on by itself.
            Err(_) => format!("the image store has been busy for {} s", READ_LIMIT.as_secs()),
        };
        tracing::error!(key = "image.pinned", error, "the change takes effect later, or at the next start");
    }

    async fn apply(&self, new: &Config) {
        let old = Arc::clone(&self.config.borrow());
        let Reloaded { config, changed, need_restart } = old.reload(new);
        let (level, config) = (config.log.level, Arc::new(config));
        self.cni.set_plugins(config.network.bin_dirs.clone(), config.network.timeout);
        let image = &config.image;
        self.images.set_registry_files(image.certs_dir.clone(), image.credentials_file.clone());
        if image.pinned != old.image.pinned {
            self.pin_images(image.pinned.clone()).await;
        }
        self.config.send_replace(config);
        // Logged at the more verbose of the two levels.
        if level > old.log.level {
            telemetry::set_level(level);
        }
        if changed.is_empty() {
            tracing::info!(signal = "SIGHUP", "configuration reloaded, nothing to apply");
        } else {
            tracing::info!(signal = "SIGHUP", changed = changed.join(", "), "configuration reloaded");
        }
        if !need_restart.is_empty() {
            tracing::warn!(
                keys = need_restart.join(", "),
                "changes of these keys need a restart of the daemon"
            );
        }
        telemetry::set_level(level);
    }
}
