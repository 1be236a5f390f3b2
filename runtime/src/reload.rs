//! SIGHUP: the configuration is read again, and what can change without a restart changes.
//!
//! All or nothing: with a fault anywhere the old settings stay, and the log has every fault.

use crate::config::{Config, Error, Given, Reloaded};
use crate::error::with_causes;
use crate::{lanes, telemetry};
use image::ImageStore;
use network::Cni;
use std::sync::Arc;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

/// SIGHUP, caught from the moment this is made: uncaught it would end the daemon.
#[derive(Debug)]
pub(crate) struct Hangups(Signal);

impl Hangups {
    /// Must be called inside the runtime.
    pub(crate) fn catch() -> std::io::Result<Self> {
        signal(SignalKind::hangup()).map(Self)
    }
}

/// What a reload changes.
#[derive(Debug)]
pub(crate) struct Live {
    /// Where the configuration is read from.
    pub(crate) given: Given,
    /// The one that holds.
    pub(crate) config: watch::Sender<Arc<Config>>,
    /// Networks.
    pub(crate) cni: Cni,
    /// Images.
    pub(crate) images: ImageStore,
}

impl Live {
    /// Runs until it is dropped: reloads once for each SIGHUP, or once for several that come together.
    pub(crate) async fn follow(self, mut hangups: Hangups) {
        while hangups.0.recv().await.is_some() {
            self.reload().await;
        }
    }

    async fn reload(&self) {
        let given = self.given.clone();
        // The files may lie on a disk that hangs.
        let error = match lanes::foreign().run_for("configuration", move || given.load()).await {
            Ok(Ok(new)) => return self.take_on(&new),
            Ok(Err(Error::Faulty(faults))) => {
                faults.iter().for_each(|fault| tracing::error!(%fault, "configuration"));
                format!("{} faults", faults.len())
            }
            Ok(Err(error)) => with_causes(&error),
            Err(error) => with_causes(&error),
        };
        tracing::error!(signal = "SIGHUP", error, "configuration not reloaded: the old settings stay");
    }

    fn take_on(&self, new: &Config) {
        let old = Arc::clone(&self.config.borrow());
        let Reloaded { config, changed, waiting } = old.reloaded(new);
        telemetry::set_level(config.log.level);
        self.cni.set_plugins(config.network.bin_dirs.clone(), config.network.timeout);
        self.images.set_certs_dir(config.image.certs_dir.clone());
        self.config.send_replace(Arc::new(config));
        // A warning, so that whoever reloads to have fewer lines sees that it was done.
        tracing::warn!(signal = "SIGHUP", changed = changed.join(", "), "configuration reloaded");
        if !waiting.is_empty() {
            tracing::warn!(
                signal = "SIGHUP",
                keys = waiting.join(", "),
                "these changes need a restart of the daemon"
            );
        }
    }
}
