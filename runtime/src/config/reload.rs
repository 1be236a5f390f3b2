//! What a reload changes in a running daemon.

use super::{Config, Error, Overrides};
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
        config.image.pinned.clone_from(&new.image.pinned);
        config.image.credentials_file.clone_from(&new.image.credentials_file);
        Reloaded { changed: self.differences(&config), need_restart: config.differences(new), config }
    }

    /// Keys whose values differ, in the order of the list of keys.
    fn differences(&self, other: &Self) -> Vec<&'static str> {
        let (old, new) = (self.by_key(), other.by_key());
        let pairs = old.into_iter().zip(new);
        pairs.filter_map(|((key, old), (_, new))| (old != new).then_some(key)).collect()
    }
}
