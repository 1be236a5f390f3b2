//! Wall-clock time, as stored in records.

/// Nanoseconds since the epoch, never 0.
pub(crate) fn now() -> i64 {
    sys::clock::now().max(1)
}

/// The time between two times in nanoseconds since the epoch; zero if the clock was set back.
pub(crate) fn between(since: i64, until: i64) -> std::time::Duration {
    std::time::Duration::from_nanos(u64::try_from(until.saturating_sub(since)).unwrap_or(0))
}
