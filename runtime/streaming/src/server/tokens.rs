//! Tokens: each is a secret that stands for one request, can be redeemed once, and expires.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustix::rand::{GetRandomFlags, getrandom};

use super::backend::{Command, Network};
use crate::remote::Streams;

/// Tokens that were issued and neither redeemed nor expired. kubelet redeems one at once, so more are a fault of a
/// client.
const MAX_TOKENS: usize = 1000;
/// How long a token can be redeemed.
pub(super) const TOKEN_LIFE: Duration = Duration::from_secs(60);
/// Number of random bytes of a token, which therefore cannot be guessed.
const TOKEN_BYTES: usize = 16;

/// Why no URL was issued.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IssueError {
    /// 1,000 are waiting.
    #[error(
        "{MAX_TOKENS} URLs of exec, attach and port-forward were issued and not used yet; each expires after {TOKEN_LIFE:?}"
    )]
    TooMany,
    /// The kernel gave no random numbers.
    #[error("no random numbers from the kernel")]
    Random,
}

/// What can be requested; the first part of a URL's path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Exec,
    Attach,
    Forward,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Exec, Self::Attach, Self::Forward];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Exec => "exec",
            Self::Attach => "attach",
            Self::Forward => "portforward",
        }
    }

    pub(super) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// What a token stands for.
pub(super) enum Target {
    Exec(Streams, Box<dyn Command>),
    Attach(Streams, Box<dyn Command>),
    Forward(Vec<u16>, Arc<dyn Network>),
}

impl Target {
    pub(super) fn kind(&self) -> Kind {
        match self {
            Self::Exec(..) => Kind::Exec,
            Self::Attach(..) => Kind::Attach,
            Self::Forward(..) => Kind::Forward,
        }
    }
}

struct Entry {
    target: Target,
    expires: Instant,
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Entry").field("kind", &self.target.kind()).field("expires", &self.expires).finish()
    }
}

/// All tokens of a server.
#[derive(Default)]
pub(super) struct Tokens(Mutex<HashMap<String, Entry>>);

impl std::fmt::Debug for Tokens {
    /// Without the tokens themselves, which are secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Tokens").field(&self.lock().len()).finish()
    }
}

impl Tokens {
    /// A new token.
    pub(super) fn issue(&self, target: Target, now: Instant) -> Result<String, IssueError> {
        let mut random = [0u8; TOKEN_BYTES];
        match getrandom(&mut random, GetRandomFlags::empty()) {
            Ok(TOKEN_BYTES) => {}
            _ => return Err(IssueError::Random),
        }
        let token = URL_SAFE_NO_PAD.encode(random);
        let mut table = self.lock();
        if table.len() >= MAX_TOKENS {
            table.retain(|_, entry| entry.expires > now);
        }
        if table.len() >= MAX_TOKENS {
            return Err(IssueError::TooMany);
        }
        table.insert(token.clone(), Entry { target, expires: now + TOKEN_LIFE });
        Ok(token)
    }

    /// What the token stands for. The token cannot be used again, also if the answer is `None`.
    pub(super) fn redeem(&self, kind: Kind, token: &str, now: Instant) -> Option<Target> {
        let entry = self.lock().remove(token)?;
        (entry.expires > now && entry.target.kind() == kind).then_some(entry.target)
    }

    /// Drops what has expired; whether anything had.
    pub(super) fn sweep(&self, now: Instant) -> bool {
        let mut table = self.lock();
        let before = table.len();
        table.retain(|_, entry| entry.expires > now);
        table.len() < before
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::backend::Pending;
    use tokio::net::TcpStream;

    struct Nowhere;

    impl Network for Nowhere {
        fn connect(&self, _: u16) -> Pending<Result<TcpStream, String>> {
            Box::pin(async { Err("nowhere".to_owned()) })
        }
    }

    fn target() -> Target {
        Target::Forward(Vec::new(), Arc::new(Nowhere))
    }

    #[test]
    fn a_token_can_be_redeemed_once() {
        let (tokens, now) = (Tokens::default(), Instant::now());
        let token = tokens.issue(target(), now).unwrap();
        assert_eq!(token.len(), 22, "{token}");
        assert!(tokens.redeem(Kind::Forward, "other", now).is_none());
        assert!(tokens.redeem(Kind::Forward, &token, now).is_some());
        assert!(tokens.redeem(Kind::Forward, &token, now).is_none());
    }

    #[test]
    fn a_token_of_another_kind_is_used_up() {
        let (tokens, now) = (Tokens::default(), Instant::now());
        let token = tokens.issue(target(), now).unwrap();
        assert!(tokens.redeem(Kind::Exec, &token, now).is_none());
        assert!(tokens.redeem(Kind::Forward, &token, now).is_none());
    }

    #[test]
    fn tokens_expire_and_make_room() {
        let (tokens, now) = (Tokens::default(), Instant::now());
        let late = now + TOKEN_LIFE;
        let token = tokens.issue(target(), now).unwrap();
        assert!(tokens.redeem(Kind::Forward, &token, late).is_none(), "expired");
        for _ in 0..MAX_TOKENS {
            tokens.issue(target(), now).unwrap();
        }
        assert_eq!(tokens.issue(target(), now), Err(IssueError::TooMany));
        tokens.issue(target(), late).unwrap();
        assert_eq!(tokens.lock().len(), 1, "the others made room");
        assert!(!tokens.sweep(late) && tokens.sweep(late + TOKEN_LIFE));
        assert_eq!(tokens.lock().len(), 0);
    }
}
