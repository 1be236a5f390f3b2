//! Exponential backoff.

use std::time::Duration;

/// The pause before the next attempt: `first` doubled `times` times, at most `longest`.
pub(crate) fn pause(first: Duration, times: u32, longest: Duration) -> Duration {
    first.saturating_mul(2_u32.saturating_pow(times.min(16))).min(longest)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Duration = Duration::from_secs(1);
    const LONGEST: Duration = Duration::from_secs(60);

    #[test]
    fn pauses_grow_and_have_an_end() {
        let pauses: Vec<Duration> = (0..40).map(|times| pause(FIRST, times, LONGEST)).collect();
        assert_eq!(pauses.first(), Some(&FIRST));
        assert!(pauses.is_sorted() && pauses.iter().all(|pause| *pause <= LONGEST));
        assert_eq!(pauses.last(), Some(&LONGEST));
        assert_eq!(pause(FIRST, u32::MAX, LONGEST), LONGEST);
    }
}
