//! Hosts that were silent lately, so that later pulls go to another host first. The memory is short, and a host is left
//! out only if another one can be asked.
//!
//! Pulls of different users share it. So it has neither what a host said, which may be meant for other credentials, nor
//! hosts that have answered: a limit of requests, a refusal, or a fault of one repository are those of one user.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// How long a host is remembered.
pub(crate) const MEMORY: Duration = Duration::from_secs(30);
/// Maximum number of hosts. Registries and mirrors of a node are far fewer; further ones are not remembered.
const MAX_HOSTS: usize = 256;

/// The hosts of all pulls, by scheme and authority.
#[derive(Debug, Default)]
pub(crate) struct Health {
    silent: Mutex<HashMap<String, Instant>>,
}

impl Health {
    /// Remembers that a host cannot be reached or does not answer.
    pub(crate) fn mark_silent(&self, host: &str) {
        let mut silent = self.silent.lock().unwrap_or_else(PoisonError::into_inner);
        silent.retain(|_, at| at.elapsed() < MEMORY);
        if silent.len() < MAX_HOSTS || silent.contains_key(host) {
            silent.insert(host.to_owned(), Instant::now());
        }
    }

    /// Forgets that a host was silent, because it has answered.
    pub(crate) fn mark_working(&self, host: &str) {
        self.silent.lock().unwrap_or_else(PoisonError::into_inner).remove(host);
    }

    /// Whether the host was silent lately.
    pub(crate) fn was_silent(&self, host: &str) -> bool {
        let silent = self.silent.lock().unwrap_or_else(PoisonError::into_inner);
        silent.get(host).is_some_and(|at| at.elapsed() < MEMORY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With a paused clock.
    #[test]
    fn silence_is_forgotten() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
        runtime.unwrap().block_on(async {
            let health = Health::default();
            health.mark_silent("a");
            assert!(health.was_silent("a") && !health.was_silent("b"));
            tokio::time::advance(MEMORY).await;
            assert!(!health.was_silent("a"));
            health.mark_silent("a");
            health.mark_working("a");
            assert!(!health.was_silent("a"));
            for number in 0..2 * MAX_HOSTS {
                health.mark_silent(&number.to_string());
            }
            assert_eq!(health.silent.lock().unwrap().len(), MAX_HOSTS);
        });
    }
}
