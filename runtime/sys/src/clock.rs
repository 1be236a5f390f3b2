//! The kernel's clocks (clock_gettime(2)).

use nix::sys::time::TimeSpec;
use nix::time::ClockId;

/// Nanoseconds since the epoch, by the wall clock.
pub fn now() -> i64 {
    let time = read(ClockId::CLOCK_REALTIME);
    time.tv_sec().saturating_mul(1_000_000_000).saturating_add(time.tv_nsec())
}

/// Milliseconds of the monotonic clock, which does not run while the host sleeps.
pub fn monotonic_ms() -> u64 {
    let time = read(ClockId::CLOCK_MONOTONIC);
    u64::try_from(time.tv_sec().saturating_mul(1000).saturating_add(time.tv_nsec() / 1_000_000)).unwrap_or(0)
}

/// Microseconds of the monotonic clock, as [`monotonic_ms`].
pub fn monotonic_us() -> u64 {
    let time = read(ClockId::CLOCK_MONOTONIC);
    u64::try_from(time.tv_sec().saturating_mul(1_000_000).saturating_add(time.tv_nsec() / 1000)).unwrap_or(0)
}

/// Seconds since the boot, also those in which the host slept. Nobody can set this clock.
pub fn since_boot_s() -> u64 {
    u64::try_from(read(ClockId::CLOCK_BOOTTIME).tv_sec()).unwrap_or(0)
}

/// Every Linux has these clocks, so the call does not fail.
fn read(clock: ClockId) -> TimeSpec {
    clock.now().unwrap_or(TimeSpec::new(0, 0))
}
