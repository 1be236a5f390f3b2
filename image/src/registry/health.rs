//! Hosts that have failed lately, so that later requests and pulls go to another host first. The memory is short, and a
//! host is left out only if another one can be asked.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// How long a host is remembered.
const MEMORY: Duration = Duration::from_secs(30);
/// Maximum number of hosts. Registries and mirrors of a node are far fewer; further ones are not remembered.
const MAX_HOSTS: usize = 256;

/// The hosts of all pulls, by scheme and authority.
#[derive(Debug, Default)]
pub(crate) struct Health {
    failed: Mutex<HashMap<String, (Instant, String)>>,
}

impl Health {
    /// Remembers that a host cannot be reached, does not answer, or is overloaded.
    pub(crate) fn failed(&self, host: &str, reason: &str) {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.retain(|_, (at, _)| at.elapsed() < MEMORY);
        if failed.len() < MAX_HOSTS || failed.contains_key(host) {
            failed.insert(host.to_owned(), (Instant::now(), reason.to_owned()));
        }
    }

    /// Forgets a failure, because the host works.
    pub(crate) fn works(&self, host: &str) {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).remove(host);
    }

    /// Why the host failed lately; `None` if it did not.
    pub(crate) fn failure(&self, host: &str) -> Option<String> {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, reason) = failed.get(host)?;
        (at.elapsed() < MEMORY).then(|| reason.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With a paused clock.
    #[test]
    fn failures_are_forgotten() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
        runtime.unwrap().block_on(async {
            let health = Health::default();
            health.failed("a", "no answer");
            assert_eq!(health.failure("a"), Some("no answer".to_owned()));
            assert_eq!(health.failure("b"), None);
            tokio::time::advance(MEMORY).await;
            assert_eq!(health.failure("a"), None);
            health.failed("a", "again");
            health.works("a");
            assert_eq!(health.failure("a"), None);
            for number in 0..2 * MAX_HOSTS {
                health.failed(&number.to_string(), "x");
            }
            assert_eq!(health.failed.lock().unwrap().len(), MAX_HOSTS);
        });
    }
}
