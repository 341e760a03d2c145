//! The one clock of leases: CLOCK_BOOTTIME in nanoseconds, which counts suspend and no step of the wall
//! clock moves. A deadline is such a number, so it means the same in every process of this machine.

use std::time::Duration;

use rustix::time::{ClockId, DynamicClockId, clock_gettime, clock_gettime_dynamic};

/// Nanoseconds of CLOCK_BOOTTIME.
#[must_use]
pub fn now() -> u64 {
    // Only a kernel before 2.6.39 has no such clock; the monotonic one is what it would be without suspend.
    let time =
        clock_gettime_dynamic(DynamicClockId::Boottime).unwrap_or_else(|_| clock_gettime(ClockId::Monotonic));
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(time.tv_nsec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(nanos)
}

/// `span` from `now`.
#[must_use]
pub fn after(now: u64, span: Duration) -> u64 {
    now.saturating_add(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX))
}

/// What is left at `now` of the time until `deadline`.
#[must_use]
pub fn left(deadline: u64, now: u64) -> Duration {
    Duration::from_nanos(deadline.saturating_sub(now))
}
