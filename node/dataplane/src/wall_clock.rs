//! The wall clock: for certificates, logs, times that people read, and the end of bans. Nothing else is decided by
//! it, and this is the one place where it is read.
//!
//! Built with the feature `chaos`, it adds the milliseconds that the file named by
//! `TRESTLE_CHAOS_CLOCK` holds, so that one node's clock can be off and step while the machine's, and
//! everybody else's, is right.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Since 1970.
pub fn now() -> Duration {
    let real = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    #[cfg(feature = "chaos")]
    let real = shifted(real, offset_ms());
    real
}

/// Milliseconds since 1970.
pub fn now_ms() -> u64 {
    u64::try_from(now().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(feature = "chaos")]
fn offset_ms() -> i64 {
    let text = std::env::var_os("TRESTLE_CHAOS_CLOCK").and_then(|file| std::fs::read_to_string(file).ok());
    text.and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

#[cfg(any(test, feature = "chaos"))]
fn shifted(real: Duration, offset_ms: i64) -> Duration {
    let by = Duration::from_millis(offset_ms.unsigned_abs());
    if offset_ms < 0 { real.saturating_sub(by) } else { real.saturating_add(by) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offset_shifts_both_ways_and_stops_at_1970() {
        let hour = Duration::from_secs(3_600);
        assert_eq!(shifted(hour, 1_000), hour + Duration::from_secs(1));
        assert_eq!(shifted(hour, -1_000), hour - Duration::from_secs(1));
        assert_eq!(shifted(hour, i64::MIN), Duration::ZERO);
    }
}
