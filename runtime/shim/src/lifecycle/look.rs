//! Repeated checks, with pauses between them.

/// First and longest pause between two checks of a cgroup or session that is being killed.
const MIN_PAUSE_MS: u64 = 1;
const MAX_PAUSE_MS: u64 = 256;
/// Number of checks in which killed processes must be reaped, before it is checked whether a tracer holds
/// them.
const REAPING: u32 = 7;
/// Pause between two checks of an init that should call execve.
const START_MS: u64 = 250;
/// After this many checks (10 s) in which it was stopped or traced despite SIGCONT, it is killed.
const MAX_HELD: u32 = 40;
/// Pause between two checks of a killed process that is not reaped.
pub(crate) const KILLED_MS: u64 = 100;

/// The time of the next check, and the number of checks so far that count: all of something that is being killed,
/// those in which a starting init was held, or those in which an init had ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Look {
    /// Monotonic ms.
    pub(crate) at: u64,
    count: u32,
}

impl Look {
    /// The first check, at this time.
    pub(crate) fn at(at: u64) -> Self {
        Self { at, count: 0 }
    }

    /// The first check of an init that was started.
    pub(crate) fn at_start(now: u64) -> Self {
        Self::at(now + START_MS)
    }

    /// The first check of an init that was killed.
    pub(crate) fn at_killed(now: u64) -> Self {
        Self::at(now + KILLED_MS)
    }

    /// The next check of something that is being killed; the pauses grow.
    pub(crate) fn again(&mut self, now: u64) {
        self.at = now + (MIN_PAUSE_MS << self.count.min(16)).min(MAX_PAUSE_MS);
        self.count = self.count.saturating_add(1);
    }

    /// The next check of an init that should call execve.
    pub(crate) fn start_again(&mut self, now: u64) {
        self.at = now + START_MS;
    }

    /// The next check of an init that was killed.
    pub(crate) fn killed_again(&mut self, now: u64) {
        self.at = now + KILLED_MS;
    }

    /// It was stopped or traced. Returns true if that has lasted too long.
    pub(crate) fn was_held(&mut self) -> bool {
        self.count = self.count.saturating_add(1);
        self.count > MAX_HELD
    }

    /// It had ended. Returns true the second time: if it could be reaped, that would have happened before.
    pub(crate) fn was_over(&mut self) -> bool {
        self.count = self.count.saturating_add(1);
        self.count > 1
    }

    /// After this many checks, an ended process that is not reaped is held by a tracer.
    pub(crate) fn is_patient(&self) -> bool {
        self.count >= REAPING
    }
}
