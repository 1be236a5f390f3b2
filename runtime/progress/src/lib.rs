//! Which step a piece of work is in, since when, and what an operator can do if the step takes too long.
//!
//! The code that starts the work runs it in the scope of a [`Progress`]. The code that does the work, in any crate, calls
//! [`enter`] at the beginning of each step that can take long, and keeps the result until the step has ended. The code that
//! started the work can read at any time where it is ([`Progress::place`]): for the error of a call whose deadline has
//! passed, for a log line, or for a list of what is under way.
//!
//! A scope follows the future, not the thread: steps that are entered on another task, or on a thread for blocking work,
//! belong to no scope and cost nothing.

use std::borrow::Cow;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

tokio::task_local! {
    static CURRENT: Progress;
}

/// The name of a step, for users. Only those made from a `String` allocate.
#[derive(Debug, Clone)]
pub struct Name {
    /// What comes before `what`, if that is known when the code is written.
    of: &'static str,
    what: Cow<'static, str>,
}

impl From<&'static str> for Name {
    fn from(what: &'static str) -> Self {
        Self { of: "", what: Cow::Borrowed(what) }
    }
}

impl From<String> for Name {
    fn from(what: String) -> Self {
        Self { of: "", what: Cow::Owned(what) }
    }
}

/// Both parts, one behind the other.
impl From<(&'static str, &'static str)> for Name {
    fn from((of, what): (&'static str, &'static str)) -> Self {
        Self { of, what: Cow::Borrowed(what) }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.of)?;
        f.write_str(&self.what)
    }
}

/// The steps that a piece of work is in. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Progress(Arc<Mutex<Steps>>);

#[derive(Debug, Default)]
struct Steps {
    /// The number of the next step.
    next: u64,
    /// In the order in which they were entered. A step that was entered later is part of an earlier one, or runs beside
    /// it.
    entered: Vec<Step>,
}

#[derive(Debug, Clone)]
struct Step {
    number: u64,
    since: Instant,
    kind: Kind,
}

#[derive(Debug, Clone)]
enum Kind {
    Named { name: Name, advice: &'static str },
    Other(Progress),
}

/// Where a piece of work is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The names of the steps, from the outermost to the innermost, joined by `: `.
    pub steps: String,
    /// How long the innermost step has taken.
    pub took: Duration,
    /// What an operator can do if the innermost step takes too long, or one around it if that is not known; may be empty.
    pub advice: &'static str,
}

impl Progress {
    /// Runs `work` in this scope: the steps that it enters are its own.
    pub async fn scope<T>(self, work: impl Future<Output = T>) -> T {
        CURRENT.scope(self, work).await
    }

    /// The steps that the work is in now; `None` if it is in none.
    pub fn place(&self) -> Option<Place> {
        // A copy, because the lock of another scope must not be taken below this one.
        let entered = self.steps().entered.clone();
        let mut found: Option<Place> = None;
        for step in entered {
            let inner = match step.kind {
                Kind::Named { name, advice } => {
                    Place { steps: name.to_string(), took: step.since.elapsed(), advice }
                }
                Kind::Other(other) => match other.place() {
                    Some(place) => place,
                    None => continue,
                },
            };
            found = Some(match found {
                None => inner,
                Some(outer) => outer.with(inner),
            });
        }
        found
    }

    fn enter(&self, kind: Kind) -> u64 {
        let mut steps = self.steps();
        let number = steps.next;
        steps.next += 1;
        steps.entered.push(Step { number, since: Instant::now(), kind });
        number
    }

    fn steps(&self) -> MutexGuard<'_, Steps> {
        // Every change is one push or one removal.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// The place of work that is part of the work at this place.
    #[must_use]
    pub fn with(self, inner: Self) -> Self {
        Self {
            steps: format!("{}: {}", self.steps, inner.steps),
            took: inner.took,
            advice: if inner.advice.is_empty() { self.advice } else { inner.advice },
        }
    }
}

/// A step that was entered; it ends when this is dropped.
#[derive(Debug)]
#[must_use]
pub struct Entered(Option<(Progress, u64)>);

impl Drop for Entered {
    fn drop(&mut self) {
        if let Some((progress, number)) = &self.0 {
            progress.steps().entered.retain(|step| step.number != *number);
        }
    }
}

/// Enters a step of the current scope, if there is one. `advice`: [`Place::advice`].
pub fn enter(name: impl Into<Name>, advice: &'static str) -> Entered {
    Entered(enter_current(|| Kind::Named { name: name.into(), advice }))
}

/// Waits, in the current scope, for work that several callers wait for and that has a scope of its own: until the result is
/// dropped, its steps are shown here as well. The other work must not wait for this one.
pub fn follow(other: &Progress) -> Entered {
    Entered(enter_current(|| Kind::Other(other.clone())))
}

fn enter_current(kind: impl FnOnce() -> Kind) -> Option<(Progress, u64)> {
    // Outside of a scope `kind` is not computed.
    CURRENT.try_with(|progress| (progress.clone(), progress.enter(kind()))).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::sleep;

    fn steps(progress: &Progress) -> Option<String> {
        progress.place().map(|place| place.steps)
    }

    #[tokio::test(start_paused = true)]
    async fn a_place_names_all_steps_and_the_time_of_the_innermost() {
        let progress = Progress::default();
        let seen = progress.clone();
        let work = progress.clone().scope(async {
            assert_eq!(seen.place(), None);
            let _outer = enter("set up the network", "look at the network");
            sleep(Duration::from_secs(5)).await;
            let inner = enter(format!("ADD of {}", "bridge"), "look at bridge");
            sleep(Duration::from_secs(3)).await;
            let place = seen.place().unwrap();
            assert_eq!(place.steps, "set up the network: ADD of bridge");
            assert_eq!((place.took.as_secs(), place.advice), (3, "look at bridge"));
            drop(inner);
            let _other = enter(("the reply to ", "create"), "");
            let place = seen.place().unwrap();
            assert_eq!(place.steps, "set up the network: the reply to create");
            assert_eq!((place.took.as_secs(), place.advice), (0, "look at the network"));
        });
        work.await;
        assert_eq!(progress.place(), None, "all steps have ended");
    }

    #[tokio::test]
    async fn of_steps_side_by_side_those_that_are_left_are_shown() {
        let progress = Progress::default();
        let seen = progress.clone();
        progress
            .scope(async {
                let (first, second) = (enter("first", ""), enter("second", ""));
                assert_eq!(steps(&seen).as_deref(), Some("first: second"));
                drop(first);
                assert_eq!(steps(&seen).as_deref(), Some("second"));
                drop(second);
                assert_eq!(steps(&seen), None);
            })
            .await;
    }

    /// The caller of a call that gives up drops the future.
    #[tokio::test]
    async fn steps_of_work_that_is_dropped_end() {
        let progress = Progress::default();
        let mut work = Box::pin(progress.clone().scope(async {
            let _step = enter("wait", "");
            std::future::pending::<()>().await;
        }));
        assert!(tokio::time::timeout(Duration::from_millis(1), &mut work).await.is_err());
        assert_eq!(steps(&progress).as_deref(), Some("wait"));
        drop(work);
        assert_eq!(steps(&progress), None);
    }

    #[tokio::test]
    async fn several_callers_follow_one_work() {
        let (shared, first, second) = (Progress::default(), Progress::default(), Progress::default());
        let pulling = shared.clone().scope(async {
            let _step = enter("transfer the layers", "look at the registry");
            std::future::pending::<()>().await;
        });
        let follow_shared = |progress: &Progress| {
            let shared = shared.clone();
            progress.clone().scope(async move {
                let _step = enter("pull", "");
                let _following = follow(&shared);
                std::future::pending::<()>().await;
            })
        };
        let all = async { tokio::join!(pulling, follow_shared(&first), follow_shared(&second)) };
        let mut all = Box::pin(all);
        assert!(tokio::time::timeout(Duration::from_millis(1), &mut all).await.is_err());
        for progress in [&first, &second] {
            let place = progress.place().unwrap();
            assert_eq!(place.steps, "pull: transfer the layers");
            assert_eq!(place.advice, "look at the registry");
        }
        drop(all);
        assert_eq!(steps(&first), None);
    }

    #[test]
    fn outside_of_a_scope_nothing_is_kept() {
        assert!(enter("nowhere", "").0.is_none());
    }
}
