//! AppArmor: which profile a process gets, and the default profile, which is loaded when the kernel does not have it.
//!
//! | request | not privileged | privileged |
//! | --- | --- | --- |
//! | none | the default profile; pause none | none |
//! | RuntimeDefault | the default profile | none |
//! | Localhost | the named one, which must be loaded | the same |
//! | Unconfined | none | none |
//!
//! If the node enforces AppArmor but has no parser, or does not let the daemon see its profiles, the default profile does
//! not exist there: containers that ask for none start without, as with other runtimes, and RuntimeDefault is refused. If
//! the parser fails, containers that need the profile are refused.

mod parser;

use crate::error::{Error, ErrorKind};
use crate::lanes;
use model::AppArmorProfile;
use parser::{LoadError, NAME};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// For so long after a failure, the profile is not loaded again: many containers may be created meanwhile.
const RETRY: Duration = Duration::from_secs(10);

/// Whether the node has AppArmor.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Support {
    /// The kernel does not enforce it.
    #[default]
    Absent,
    /// The kernel enforces it, but the configuration has switched it off.
    Off,
    /// The kernel enforces it.
    On,
}

impl Support {
    /// `allowed`: by the configuration. Blocking.
    pub(crate) fn detect(allowed: bool) -> Self {
        match (sys::apparmor::is_enforced(), allowed) {
            (false, _) => Self::Absent,
            (true, false) => Self::Off,
            (true, true) => Self::On,
        }
    }
}

/// Why the default profile is not loaded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum Missing {
    /// The daemon cannot see which profiles are loaded.
    #[error(
        "cannot read the list of loaded profiles ({0}): is securityfs mounted, and has the daemon CAP_MAC_ADMIN?"
    )]
    NotVisible(String),
    /// Reading the list failed for another reason.
    #[error("cannot read the list of loaded profiles: {0}")]
    Unreadable(String),
    /// Loading it failed.
    #[error(transparent)]
    Load(#[from] LoadError),
}

impl Missing {
    /// The node cannot have the profile, and other runtimes start containers without one there.
    fn is_permanent(&self) -> bool {
        matches!(self, Self::NotVisible(_) | Self::Load(LoadError::NoParser))
    }
}

/// AppArmor on this node. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct AppArmor(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    support: Support,
    /// The list of loaded profiles: [`sys::apparmor::PROFILES`].
    list: PathBuf,
    /// Where the parser may be.
    parsers: Vec<PathBuf>,
    /// Held while the profile is loaded, so that this is done once. The last failure, and when it was.
    loading: tokio::sync::Mutex<Option<(Instant, Missing)>>,
    /// The same for verbose status, which does not wait.
    problem: Mutex<Option<String>>,
    /// It was loaded once since the daemon's start: from then on no container that should have it starts without.
    worked: AtomicBool,
}

/// Who gets a profile.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Subject<'a> {
    /// It is privileged.
    pub(crate) privileged: bool,
    /// What the request names.
    pub(crate) asked: &'a AppArmorProfile,
    /// Without a profile in the request, it gets the default one where there is one.
    pub(crate) by_default: bool,
}

impl AppArmor {
    /// Nothing is read or loaded yet.
    pub(crate) fn new(support: Support) -> Self {
        let parsers = parser::PARSERS.iter().map(PathBuf::from).collect();
        Self::with(support, PathBuf::from(sys::apparmor::PROFILES), parsers)
    }

    fn with(support: Support, list: PathBuf, parsers: Vec<PathBuf>) -> Self {
        let (loading, problem, worked) =
            (tokio::sync::Mutex::default(), Mutex::default(), AtomicBool::new(false));
        Self(Arc::new(Inner { support, list, parsers, loading, problem, worked }))
    }

    /// Whether the node has it.
    pub(crate) fn support(&self) -> Support {
        self.0.support
    }

    /// The name of the default profile, if containers of this node get it.
    pub(crate) fn default_profile(&self) -> Option<&'static str> {
        (self.0.support == Support::On && self.problem().is_none()).then_some(NAME)
    }

    /// Why the default profile is not loaded, as far as this was tried.
    pub(crate) fn problem(&self) -> Option<String> {
        self.0.problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Loads the default profile, and logs what an operator would not expect.
    pub(crate) async fn start(&self) {
        match self.0.support {
            Support::Absent => return,
            Support::Off => {
                tracing::warn!(
                    "AppArmor is switched off in the configuration: containers run without a profile, and a pod that asks for one (RuntimeDefault or Localhost) is refused"
                );
                return;
            }
            Support::On => {}
        }
        if let Ok(Ok(own)) = lanes::exec().run(sys::apparmor::own_profile).await
            && own != "unconfined"
        {
            tracing::warn!(
                profile = own,
                "the daemon is confined by AppArmor itself: containers without a profile inherit it, and its signals may not reach the others"
            );
        }
        match self.ensure_default().await {
            Ok(()) => tracing::info!(profile = NAME, "the default AppArmor profile is loaded"),
            Err(problem) if problem.is_permanent() => tracing::warn!(
                %problem,
                "this node enforces AppArmor, but has no default profile: containers run without one, and a pod that asks for RuntimeDefault is refused"
            ),
            Err(problem) => tracing::error!(
                %problem,
                "the default AppArmor profile cannot be loaded: containers that need it are refused until it can, or until `apparmor = \"off\"` in the configuration"
            ),
        }
    }

    /// The name of the profile of a process; empty for none.
    ///
    /// # Errors
    /// FailedPrecondition: the profile is not loaded, or cannot be.
    pub(crate) async fn profile(&self, subject: Subject<'_>) -> Result<String, Error> {
        let Subject { privileged, asked, by_default } = subject;
        let explicit = match asked {
            AppArmorProfile::Unconfined => return Ok(String::new()),
            AppArmorProfile::Localhost(name) => return self.named(name).await.map(|()| name.clone()),
            AppArmorProfile::Unset if !by_default => return Ok(String::new()),
            AppArmorProfile::Unset => false,
            AppArmorProfile::RuntimeDefault => true,
        };
        // `convert` has refused what the node must not ignore.
        if privileged || self.0.support != Support::On {
            return Ok(String::new());
        }
        match self.ensure_default().await {
            Ok(()) => Ok(NAME.to_owned()),
            Err(missing) if missing.is_permanent() && !explicit && !self.0.worked.load(Ordering::Relaxed) => {
                Ok(String::new())
            }
            Err(missing) => {
                let text = "the default AppArmor profile (RuntimeDefault) is not available on this node";
                Err(Error::converted(ErrorKind::FailedPrecondition, missing).context(text))
            }
        }
    }

    /// Fails unless the kernel has this profile.
    async fn named(&self, name: &str) -> Result<(), Error> {
        let problem = match self.is_loaded(name).await {
            Ok(true) => return Ok(()),
            Ok(false) => "is not loaded on this node: load it with apparmor_parser".to_owned(),
            Err(error) => format!("was not looked up: {error}"),
        };
        let text = format!("AppArmor profile {name:?} (Localhost) {problem}");
        Err(Error::new(ErrorKind::FailedPrecondition, text))
    }

    /// Makes sure that the default profile is loaded, and keeps the outcome for verbose status.
    async fn ensure_default(&self) -> Result<(), Missing> {
        let outcome = self.load_default().await;
        self.0.worked.fetch_or(outcome.is_ok(), Ordering::Relaxed);
        let problem = outcome.as_ref().err().map(ToString::to_string);
        *self.0.problem.lock().unwrap_or_else(PoisonError::into_inner) = problem;
        outcome
    }

    /// Loads the default profile unless it is loaded: a loaded one may be the operator's.
    async fn load_default(&self) -> Result<(), Missing> {
        if self.is_loaded(NAME).await? {
            return Ok(());
        }
        let mut failed = self.0.loading.lock().await;
        // Others may have loaded it meanwhile.
        if self.is_loaded(NAME).await? {
            return Ok(());
        }
        if let Some((when, missing)) = &*failed
            && when.elapsed() < RETRY
        {
            return Err(missing.clone());
        }
        let loaded = parser::load_default(self.0.parsers.clone()).await.map_err(Missing::from);
        *failed = loaded.as_ref().err().map(|missing| (Instant::now(), missing.clone()));
        loaded
    }

    /// Whether the kernel has a profile.
    async fn is_loaded(&self, name: &str) -> Result<bool, Missing> {
        let _step = progress::enter("AppArmor profile", "");
        let (list, name) = (self.0.list.clone(), name.to_owned());
        match lanes::exec().run(move || sys::apparmor::is_loaded(&list, &name)).await {
            Ok(Ok(listed)) => Ok(listed),
            Ok(Err(error)) => match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => {
                    Err(Missing::NotVisible(error.to_string()))
                }
                _ => Err(Missing::Unreadable(error.to_string())),
            },
            Err(error) => Err(Missing::Unreadable(error.to_string())),
        }
    }
}

#[cfg(test)]
mod tests;
