//! The network that new pods get, and whether its plugins can serve them.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use causes::with_causes;
use tokio::time::timeout;

use super::Cni;
use crate::Readiness;
use crate::conf::{self, Network};
use crate::error::{Error, Verb};
use crate::input::plugin_input;

/// The loaded network. Reads of the folder may overlap; one that began earlier never replaces what a later one has found.
#[derive(Debug)]
pub(super) struct Loading {
    /// Reads that have begun.
    begun: AtomicU64,
    /// Locked only to copy or replace the value, never during I/O.
    loaded: RwLock<Loaded>,
}

#[derive(Debug, Clone)]
struct Loaded {
    network: Option<Arc<Network>>,
    readiness: Readiness,
    /// The ticket of the read that has found it.
    ticket: u64,
}

impl Loading {
    pub(super) fn new(conf_dir: &Path) -> Self {
        let problem = Some(format!("{} has not been read yet", conf_dir.display()));
        let readiness = Readiness { network: None, file: None, problem };
        Self { begun: AtomicU64::new(0), loaded: RwLock::new(Loaded { network: None, readiness, ticket: 0 }) }
    }

    /// A read begins.
    fn begin(&self) -> u64 {
        self.begun.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// A read has ended.
    fn end(&self, ticket: u64, found: Result<(PathBuf, Network), String>) {
        let mut loaded = self.loaded.write().unwrap_or_else(PoisonError::into_inner);
        if ticket < loaded.ticket {
            return;
        }
        loaded.ticket = ticket;
        match found {
            // Unchanged: the last result of STATUS remains valid.
            Ok((file, network))
                if loaded.readiness.file.as_ref() == Some(&file)
                    && loaded.network.as_deref() == Some(&network) => {}
            Ok((file, network)) => {
                let has_status = network.version.has_status_and_gc();
                let problem = has_status
                    .then(|| format!("plugins of {:?} have not been asked for STATUS yet", network.name));
                loaded.readiness =
                    Readiness { network: Some(network.name.clone()), file: Some(file), problem };
                loaded.network = Some(Arc::new(network));
            }
            Err(problem) => {
                loaded.readiness = Readiness { network: None, file: None, problem: Some(problem) };
                loaded.network = None;
            }
        }
    }
}

impl Cni {
    /// Reads the configuration folder and then runs [`Cni::status`]. Existing pods keep the configuration
    /// they were added with.
    pub async fn reload(&self) -> Readiness {
        self.load().await;
        self.status().await
    }

    /// Reads the configuration folder without running any plugin.
    pub async fn load(&self) {
        let ticket = self.0.loading.begin();
        let dir = self.0.config.conf_dir.clone();
        let name = dir.display().to_string();
        let work = self.0.lane.run(move || conf::load(&dir));
        let found = match timeout(self.timeout(), work).await {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => Err(format!("{name}: {error}")),
            Err(_) => Err(format!("{name} could not be read in time")),
        };
        self.0.loading.end(ticket, found);
    }

    /// The result of the last [`Cni::load`], [`Cni::reload`] or [`Cni::status`]. Does not block.
    pub fn readiness(&self) -> Readiness {
        self.loaded().readiness
    }

    fn loaded(&self) -> Loaded {
        self.0.loading.loaded.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The loaded network.
    ///
    /// # Errors
    /// None is loaded.
    pub(super) fn network(&self) -> Result<Arc<Network>, Error> {
        let Loaded { network, readiness, .. } = self.loaded();
        network.ok_or_else(|| Error::NotReady {
            reason: readiness.problem.unwrap_or_else(|| "no network is loaded".to_owned()),
        })
    }

    /// Asks the plugins whether they can serve an ADD, and stores the result. STATUS exists only in networks
    /// of CNI 1.1.0.
    pub async fn status(&self) -> Readiness {
        let before = self.loaded();
        let Some(network) = before.network.clone().filter(|network| network.version.has_status_and_gc())
        else {
            return before.readiness;
        };
        let mut problem = None;
        for plugin in &network.plugins {
            let stdin = plugin_input(&network, plugin, None, None);
            if let Err(failure) =
                self.run(self.call_for_none(Verb::Status, plugin, &stdin, self.deadline())).await
            {
                problem = Some(format!("plugin {:?}: {}", plugin.kind(), with_causes(&failure)));
                break;
            }
        }
        let mut loaded = self.0.loading.loaded.write().unwrap_or_else(PoisonError::into_inner);
        // Keep the result of a reload that happened meanwhile.
        if loaded.network.as_ref().is_some_and(|now| Arc::ptr_eq(now, &network)) {
            loaded.readiness.problem = problem;
        }
        loaded.readiness.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_that_began_earlier_does_not_replace_a_later_one() {
        let loading = Loading::new(Path::new("/conf"));
        let found = |name: &str| {
            let text = format!(r#"{{"cniVersion":"1.0.0","name":"{name}","type":"bridge"}}"#);
            let network = conf::parse(text.as_bytes(), |_| Ok(Vec::new())).unwrap();
            Ok((PathBuf::from("/conf/10.conf"), network))
        };
        let name = || loading.loaded.read().unwrap().readiness.network.clone().unwrap_or_default();
        let (first, second) = (loading.begin(), loading.begin());
        loading.end(second, found("new"));
        loading.end(first, found("old"));
        assert_eq!(name(), "new");
        let (third, fourth) = (loading.begin(), loading.begin());
        loading.end(third, found("newer"));
        assert_eq!(name(), "newer");
        loading.end(fourth, Err("gone".to_owned()));
        assert_eq!(name(), "");
    }
}
