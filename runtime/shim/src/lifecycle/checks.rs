//! Repeated checks, at intervals. Each kind of check has its own type, which counts what limits it.

/// First and longest interval between two checks of a cgroup or session that is being killed.
const FIRST_MS: u64 = 1;
const LONGEST_MS: u64 = 256;
/// Number of checks in which killed processes are expected to be reaped.
const REAPING: u32 = 7;
/// Interval between two checks of an init that should call execve.
const EXECVE_MS: u64 = 250;
/// After this many checks (10 s) in which init was stopped or traced despite SIGCONT, it is killed. After as many that
/// could not be made, although init has closed its start pipe, it counts as started.
const MAX_CHECKS: u32 = 40;
/// Interval between two checks of a killed process that is not reaped.
pub(crate) const KILLED_MS: u64 = 100;

/// Checks of a cgroup or session whose processes are being killed, until none is left. The intervals grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct UntilEmpty {
    /// Time of the next check (monotonic ms).
    pub(crate) at: u64,
    /// Number of checks that were made.
    made: u32,
}

impl UntilEmpty {
    /// The first check is at this time.
    pub(crate) fn new(at: u64) -> Self {
        Self { at, made: 0 }
    }

    /// Processes were left: sets the time of the next check.
    pub(crate) fn again(&mut self, now: u64) {
        self.at = now + (FIRST_MS << self.made.min(16)).min(LONGEST_MS);
        self.made = self.made.saturating_add(1);
    }

    /// Whether killed processes have had time to be reaped: one that has ended and is still not reaped is kept
    /// by a tracer.
    pub(crate) fn reaping_is_over(&self) -> bool {
        self.made >= REAPING
    }
}

/// Checks of an init that was told to start, until it calls execve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct UntilExecve {
    /// Time of the next check (monotonic ms).
    pub(crate) at: u64,
    /// Number of checks that found it stopped or traced.
    stopped: u32,
    /// Number of checks that could not be made after it had closed its start pipe.
    unchecked: u32,
}

impl UntilExecve {
    /// It is told to start now.
    pub(crate) fn new(now: u64) -> Self {
        Self { at: now + EXECVE_MS, stopped: 0, unchecked: 0 }
    }

    /// It is being checked: sets the time of the next check.
    pub(crate) fn again(&mut self, now: u64) {
        self.at = now + EXECVE_MS;
    }

    /// It was stopped or traced. Returns true if that has lasted too long.
    pub(crate) fn was_stopped(&mut self) -> bool {
        self.stopped = self.stopped.saturating_add(1);
        self.stopped > MAX_CHECKS
    }

    /// It has closed its start pipe and could not be examined. Returns true if that has lasted too long.
    pub(crate) fn was_unchecked(&mut self) -> bool {
        self.unchecked = self.unchecked.saturating_add(1);
        self.unchecked > MAX_CHECKS
    }
}

/// Checks of an init that was killed or has ended, until it is reaped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct UntilReaped {
    /// Time of the next check (monotonic ms).
    pub(crate) at: u64,
    /// An earlier check found that it had ended.
    had_ended: bool,
}

impl UntilReaped {
    /// It is killed now, or was seen to have ended.
    pub(crate) fn new(now: u64) -> Self {
        Self { at: now + KILLED_MS, had_ended: false }
    }

    /// It is being checked: sets the time of the next check.
    pub(crate) fn again(&mut self, now: u64) {
        self.at = now + KILLED_MS;
    }

    /// It has ended and is not reaped. Returns true the second time: if it could be reaped, that would have happened
    /// between the two checks, so a tracer holds it.
    pub(crate) fn has_ended(&mut self) -> bool {
        std::mem::replace(&mut self.had_ended, true)
    }
}
