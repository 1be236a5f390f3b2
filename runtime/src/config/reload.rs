//! What a reload changes in a running daemon.

use super::{Binaries, Config, Error, Image, Log, Network, Overrides, Streaming};
use std::path::PathBuf;

/// The arguments of the command line that say where the configuration is.
#[derive(Debug, Clone, Default)]
pub(crate) struct Arguments {
    /// `--config`; `None` is [`super::DEFAULT_PATH`], which may be missing.
    pub path: Option<PathBuf>,
    /// Options that win over the files.
    pub overrides: Overrides,
}

impl Arguments {
    /// Reads the configuration. Blocking.
    ///
    /// # Errors
    /// A file that cannot be read, or everything that is wrong with all of them.
    pub(crate) fn load(&self) -> Result<Config, Error> {
        Config::load(self.path.as_deref(), &self.overrides)
    }
}

/// The result of [`Config::reload`].
#[derive(Debug)]
pub(crate) struct Reloaded {
    /// The old configuration with the new values of `changed`.
    pub(crate) config: Config,
    /// Keys whose new values take effect now.
    pub(crate) changed: Vec<&'static str>,
    /// Keys whose new values take effect at the next start of the daemon.
    pub(crate) need_restart: Vec<&'static str>,
}

impl Config {
    /// This configuration with those values of `new` that need no restart.
    pub(crate) fn reload(&self, new: &Self) -> Reloaded {
        let mut config = self.clone();
        config.log.level = new.log.level;
        config.network.bin_dirs.clone_from(&new.network.bin_dirs);
        config.network.timeout = new.network.timeout;
        config.image.certs_dir.clone_from(&new.image.certs_dir);
        Reloaded { changed: self.differences(&config), need_restart: config.differences(new), config }
    }

    /// Keys whose values differ, in the order of the list of keys.
    fn differences(&self, other: &Self) -> Vec<&'static str> {
        let Self {
            root,
            state,
            socket,
            mount_namespace,
            log,
            binaries,
            network,
            image,
            streaming,
            handlers: _,
            registry: _,
        } = self;
        let Log { level, format } = log;
        let Binaries { shim, pause } = binaries;
        let Network { conf_dir, bin_dirs, timeout, max_parallel } = network;
        let Image { certs_dir, max_parallel_downloads } = image;
        let Streaming { address, idle_timeout, creation_timeout, tls_certificate, tls_key } = streaming;
        let differs = [
            ("root", *root != other.root),
            ("state", *state != other.state),
            ("socket", *socket != other.socket),
            ("mount_namespace", *mount_namespace != other.mount_namespace),
            ("log.level", *level != other.log.level),
            ("log.format", *format != other.log.format),
            ("binaries.shim", *shim != other.binaries.shim),
            ("binaries.pause", *pause != other.binaries.pause),
            ("network.conf_dir", *conf_dir != other.network.conf_dir),
            ("network.bin_dirs", *bin_dirs != other.network.bin_dirs),
            ("network.timeout_seconds", *timeout != other.network.timeout),
            ("network.max_parallel", *max_parallel != other.network.max_parallel),
            ("image.certs_dir", *certs_dir != other.image.certs_dir),
            ("image.max_parallel_downloads", *max_parallel_downloads != other.image.max_parallel_downloads),
            ("streaming.address", *address != other.streaming.address),
            ("streaming.idle_timeout_seconds", *idle_timeout != other.streaming.idle_timeout),
            ("streaming.creation_timeout_seconds", *creation_timeout != other.streaming.creation_timeout),
            ("streaming.tls_certificate", *tls_certificate != other.streaming.tls_certificate),
            ("streaming.tls_key", *tls_key != other.streaming.tls_key),
        ];
        differs.into_iter().filter_map(|(key, differs)| differs.then_some(key)).collect()
    }
}
