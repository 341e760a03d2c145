//! Times as lines have them.

use std::time::Duration;

pub(crate) fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// RFC 3339 in UTC with milliseconds, from milliseconds since 1970.
pub(crate) fn timestamp(unix_ms: u64) -> [u8; 24] {
    let (seconds, ms) = (unix_ms / 1000, unix_ms % 1000);
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let mut text = *b"0000-00-00T00:00:00.000Z";
    let mut put = |at, width, value| digits(&mut text[at..at + width], value);
    put(0, 4, year);
    put(5, 2, month);
    put(8, 2, day);
    put(11, 2, second / 3600);
    put(14, 2, second / 60 % 60);
    put(17, 2, second % 60);
    put(20, 3, ms);
    text
}

/// `10/Oct/2000:13:55:36 +0000`, as the Common Log Format has it.
pub(crate) fn common(unix_ms: u64) -> [u8; 26] {
    const MONTHS: [&[u8; 3]; 12] =
        [b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec"];
    let seconds = unix_ms / 1000;
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let mut text = *b"00/Jan/0000:00:00:00 +0000";
    // From 1 to 12.
    text[3..6].copy_from_slice(MONTHS[(month as usize - 1) % 12]);
    let mut put = |at, width, value| digits(&mut text[at..at + width], value);
    put(0, 2, day);
    put(7, 4, year);
    put(12, 2, second / 3600);
    put(15, 2, second / 60 % 60);
    put(18, 2, second % 60);
    text
}

/// Fills the text with a number's last digits.
fn digits(text: &mut [u8], mut value: u64) {
    for place in text.iter_mut().rev() {
        *place = b'0' + (value % 10) as u8;
        value /= 10;
    }
}

/// Year, month and day of a day since 1970-01-01, in the Gregorian calendar. Counts from 0000-03-01, so
/// that a leap day is the last of its year.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rfc_3339() {
        for (ms, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_827_696_007, "2000-02-29T12:34:56.007Z"),
            (1_767_225_599_999, "2025-12-31T23:59:59.999Z"),
            (1_772_323_200_000, "2026-03-01T00:00:00.000Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(std::str::from_utf8(&timestamp(ms)), Ok(text));
        }
    }

    #[test]
    fn times_are_those_of_the_common_log_format() {
        for (ms, text) in [
            (971_186_136_999, "10/Oct/2000:13:55:36 +0000"),
            (1_767_225_599_999, "31/Dec/2025:23:59:59 +0000"),
            (951_782_400_000, "29/Feb/2000:00:00:00 +0000"),
        ] {
            assert_eq!(std::str::from_utf8(&common(ms)), Ok(text));
        }
    }
}
