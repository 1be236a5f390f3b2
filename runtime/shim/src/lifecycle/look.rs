//! Looks at what is being waited for, with pauses between them.

/// First and longest pause between two looks at a cgroup or session that is being killed.
const FIRST_MS: u64 = 1;
const LAST_MS: u64 = 256;
/// Looks that processes have for being reaped after their kill, before it is asked what keeps them.
const REAPING: u32 = 7;
/// Pause between two looks at an init that is to call execve.
const START_MS: u64 = 250;
/// After so many looks (10 s) at which it was held by somebody, despite SIGCONT, it is killed.
const MOST_HELD: u32 = 40;
/// Pause between two looks at a process that was killed and is not reaped yet.
pub(crate) const KILLED_MS: u64 = 100;

/// When to look again, and how often it was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Look {
    /// Monotonic ms.
    pub(crate) at: u64,
    count: u32,
}

impl Look {
    /// The first one at this time.
    pub(crate) fn at(at: u64) -> Self {
        Self { at, count: 0 }
    }

    /// At an init that was told to call execve.
    pub(crate) fn at_start(now: u64) -> Self {
        Self::at(now + START_MS)
    }

    /// At an init that was killed.
    pub(crate) fn at_killed(now: u64) -> Self {
        Self::at(now + KILLED_MS)
    }

    /// The next one at something that is being killed: soon at first.
    pub(crate) fn again(&mut self, now: u64) {
        self.at = now + (FIRST_MS << self.count.min(16)).min(LAST_MS);
        self.count = self.count.saturating_add(1);
    }

    /// The next one at an init that is to call execve.
    pub(crate) fn start_again(&mut self, now: u64) {
        self.at = now + START_MS;
    }

    /// The next one at an init that was killed.
    pub(crate) fn killed_again(&mut self, now: u64) {
        self.at = now + KILLED_MS;
    }

    /// Somebody held it when it was looked at. True when that has lasted too long.
    pub(crate) fn was_held(&mut self) -> bool {
        self.count = self.count.saturating_add(1);
        self.count > MOST_HELD
    }

    /// It was over when it was looked at. True the second time: what can be reaped is, before that.
    pub(crate) fn was_over(&mut self) -> bool {
        self.count = self.count.saturating_add(1);
        self.count > 1
    }

    /// What can be reaped has been, after so many looks: what is over now is held by a tracer.
    pub(crate) fn is_patient(&self) -> bool {
        self.count >= REAPING
    }
}
