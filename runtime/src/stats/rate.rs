//! CPU rates. Pure: the counter of a cgroup is sampled from outside, and rates are computed from samples.

use std::time::{Duration, Instant};

/// Minimum age of the sample from which a rate is computed, if there is one that old; minimum time between two samples.
/// With one sample every ten seconds, rates are those of the last 5 to 15 seconds, independent of when, how often and by
/// whom they are requested.
const WINDOW: Duration = Duration::from_secs(5);
/// Minimum age of the first sample: shorter rates say nothing.
const FIRST_WINDOW: Duration = Duration::from_secs(1);

/// A counter of CPU time at one point in time.
#[derive(Debug, Clone, Copy)]
struct Sample {
    at: Instant,
    /// Nanoseconds.
    usage: u64,
}

/// The last two samples of one cgroup.
#[derive(Debug, Default)]
pub(super) struct Samples {
    newer: Option<Sample>,
    older: Option<Sample>,
}

impl Samples {
    /// Keeps this value as a sample, unless the last one is younger than five seconds.
    pub(super) fn take(&mut self, at: Instant, usage: u64) {
        let new = Some(Sample { at, usage });
        match self.newer {
            // The counter was reset: the cgroup was removed, and created again with the same name.
            Some(newer) if usage < newer.usage => *self = Self { newer: new, older: None },
            Some(newer) if at.saturating_duration_since(newer.at) < WINDOW => {}
            newer => *self = Self { newer: new, older: newer },
        }
    }

    /// CPU time per second until this value, in nanoseconds; `None` if the first sample is younger than one second, or if
    /// the counter was reset. Also takes a sample.
    pub(super) fn rate(&mut self, at: Instant, usage: u64) -> Option<u64> {
        let rate = self.since_base(at, usage);
        self.take(at, usage);
        rate
    }

    fn since_base(&self, at: Instant, usage: u64) -> Option<u64> {
        let newer = self.newer?;
        let is_old = at.saturating_duration_since(newer.at) >= WINDOW;
        let base = if is_old { newer } else { self.older.unwrap_or(newer) };
        let passed = at.saturating_duration_since(base.at);
        // `None` if it is below either sample: the counter was reset. Otherwise what was used since the base.
        let used = usage.checked_sub(newer.usage.max(base.usage)).map(|_| usage - base.usage)?;
        if passed < FIRST_WINDOW {
            return None;
        }
        let rate = u128::from(used) * 1_000_000_000 / passed.as_nanos();
        Some(u64::try_from(rate).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: u64 = 1_000_000_000;

    fn clock() -> impl Fn(u64) -> Instant {
        let start = Instant::now();
        move |millis| start + Duration::from_millis(millis)
    }

    #[test]
    fn the_first_rate_comes_after_a_second() {
        let (mut samples, at) = (Samples::default(), clock());
        assert_eq!(samples.rate(at(0), SECOND), None);
        assert_eq!(samples.rate(at(500), 2 * SECOND), None, "too soon");
        assert_eq!(samples.rate(at(2000), 2 * SECOND), Some(SECOND / 2));
    }

    /// Other requests do not shorten the window.
    #[test]
    fn rates_are_those_of_five_to_fifteen_seconds() {
        let (mut samples, at) = (Samples::default(), clock());
        for tick in 0..4 {
            samples.take(at(tick * 10_000), tick * 10 * SECOND);
        }
        // An idle time since the last sample, at 30 seconds.
        let usage = 30 * SECOND;
        assert_eq!(samples.rate(at(30_001), usage), Some(10 * SECOND * 1000 / 10_001), "since 20 s");
        assert_eq!(samples.rate(at(34_000), usage), Some(10 * SECOND / 14), "since 20 s");
        assert_eq!(samples.rate(at(34_001), usage), samples.rate(at(34_001), usage), "whoever asks");
        assert_eq!(samples.rate(at(35_000), usage), Some(0), "since 30 s");
        assert_eq!(samples.rate(at(36_000), usage), Some(0), "since 30 s, though 35 s was sampled");
        assert_eq!(samples.rate(at(41_000), usage + 3 * SECOND), Some(SECOND / 2), "since 35 s");
    }

    #[test]
    fn a_reset_counter_begins_anew() {
        let (mut samples, at) = (Samples::default(), clock());
        samples.take(at(0), 0);
        samples.take(at(10_000), 8 * SECOND);
        // More than the older sample, less than the newer one.
        assert_eq!(samples.rate(at(12_000), SECOND), None);
        assert_eq!(samples.rate(at(12_900), 5 * SECOND), None, "too soon after the reset");
        assert_eq!(samples.rate(at(14_000), 5 * SECOND), Some(2 * SECOND));
    }

    proptest! {
        /// Whatever is measured and when, there is no panic, and a rate never exceeds what the counter grew by.
        #[test]
        fn any_sequence(steps in prop::collection::vec((0..20_000_u64, any::<u64>(), any::<bool>()), 0..50)) {
            let (mut samples, at) = (Samples::default(), clock());
            let mut now = 0;
            for (pause, usage, reads) in steps {
                now += pause;
                if reads {
                    let rate = samples.rate(at(now), usage);
                    prop_assert!(rate.is_none_or(|rate| rate <= usage));
                } else {
                    samples.take(at(now), usage);
                }
            }
        }
    }
}
