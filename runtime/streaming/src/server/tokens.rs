//! Tokens: each is a secret that stands for one request, can be redeemed once, and expires.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustix::rand::{GetRandomFlags, getrandom};

use super::backend::{Command, Network};
use super::places::{Full, Place, Places};
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
    /// Many were not used yet.
    #[error(
        "URLs of exec, attach and port-forward that were issued and not used yet: {0}; each expires after {TOKEN_LIFE:?}"
    )]
    Tokens(Full),
    /// Many sessions are open.
    #[error("open sessions of exec, attach and port-forward: {0}")]
    Sessions(Full),
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
    place: Place,
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Entry")
            .field("kind", &self.target.kind())
            .field("expires", &self.expires)
            .finish_non_exhaustive()
    }
}

/// All tokens of a server.
pub(super) struct Tokens {
    table: Mutex<HashMap<String, Entry>>,
    places: Arc<Places>,
}

impl Default for Tokens {
    fn default() -> Self {
        Self { table: Mutex::default(), places: Places::new(MAX_TOKENS) }
    }
}

impl std::fmt::Debug for Tokens {
    /// Without the tokens themselves, which are secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Tokens").field(&self.lock().len()).finish()
    }
}

impl Tokens {
    /// A new token.
    pub(super) fn issue(&self, owner: &str, target: Target, now: Instant) -> Result<String, IssueError> {
        let mut random = [0u8; TOKEN_BYTES];
        match getrandom(&mut random, GetRandomFlags::empty()) {
            Ok(TOKEN_BYTES) => {}
            _ => return Err(IssueError::Random),
        }
        let token = URL_SAFE_NO_PAD.encode(random);
        let (owner, mut table) = (Arc::from(owner), self.lock());
        let place = self.places.take(&owner).or_else(|_| {
            table.retain(|_, entry| entry.expires > now);
            self.places.take(&owner)
        });
        let place = place.map_err(IssueError::Tokens)?;
        table.insert(token.clone(), Entry { target, expires: now + TOKEN_LIFE, place });
        Ok(token)
    }

    /// What the token stands for, and its owner. The token cannot be used again, also if the answer is `None`.
    pub(super) fn redeem(&self, kind: Kind, token: &str, now: Instant) -> Option<(Target, Arc<str>)> {
        let Entry { target, expires, place } = self.lock().remove(token)?;
        (expires > now && target.kind() == kind).then(|| (target, Arc::clone(place.owner())))
    }

    /// Drops what has expired; whether anything had.
    pub(super) fn sweep(&self, now: Instant) -> bool {
        let mut table = self.lock();
        let before = table.len();
        table.retain(|_, entry| entry.expires > now);
        table.len() < before
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
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
        let token = tokens.issue("pod", target(), now).unwrap();
        assert_eq!(token.len(), 22, "{token}");
        assert!(tokens.redeem(Kind::Forward, "other", now).is_none());
        assert!(tokens.redeem(Kind::Forward, &token, now).is_some());
        assert!(tokens.redeem(Kind::Forward, &token, now).is_none());
    }

    #[test]
    fn a_token_of_another_kind_is_used_up() {
        let (tokens, now) = (Tokens::default(), Instant::now());
        let token = tokens.issue("pod", target(), now).unwrap();
        assert!(tokens.redeem(Kind::Exec, &token, now).is_none());
        assert!(tokens.redeem(Kind::Forward, &token, now).is_none());
    }

    #[test]
    fn tokens_expire_and_make_room() {
        let (tokens, now) = (Tokens::default(), Instant::now());
        let late = now + TOKEN_LIFE;
        let token = tokens.issue("pod", target(), now).unwrap();
        assert!(tokens.redeem(Kind::Forward, &token, late).is_none(), "expired");
        // Each pod gets half of what is left.
        let mut left = MAX_TOKENS;
        while left > 1 {
            let (pod, share) = (left.to_string(), left.div_ceil(2));
            for _ in 0..share {
                tokens.issue(&pod, target(), now).unwrap();
            }
            left -= share;
            assert_eq!(tokens.issue(&pod, target(), now), Err(IssueError::Tokens(Full::Owner(share))));
        }
        tokens.issue("last", target(), now).unwrap();
        assert_eq!(tokens.issue("pod", target(), now), Err(IssueError::Tokens(Full::Node(MAX_TOKENS))));
        tokens.issue("1000", target(), late).unwrap();
        assert_eq!(tokens.lock().len(), 1, "the others made room");
        assert!(!tokens.sweep(late) && tokens.sweep(late + TOKEN_LIFE));
        assert_eq!(tokens.lock().len(), 0);
    }
}
