//! Makes a series small enough to draw: a run of hours has more seconds than a page has pixels.

use crate::trace::{SECOND, Second, Time};

/// Columns of a panel at most.
pub(super) const COLUMNS_MAX: usize = 360;

/// What happened in a stretch of time; rates are by the second, and of latencies the worst is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Column {
    pub(super) at: Time,
    pub(super) ok: f64,
    pub(super) failed: f64,
    pub(super) wrong: f64,
    pub(super) cut: f64,
    /// Nanoseconds; 0: nothing was answered.
    pub(super) p50: u64,
    pub(super) p99: u64,
    pub(super) max: u64,
}

/// Whole seconds, so many that the run fits.
pub(super) fn width(length: Time) -> Time {
    (length.div_ceil(SECOND)).div_ceil(COLUMNS_MAX as u64).max(1) * SECOND
}

/// `seconds`, which may be of several loads, added up by column.
pub(super) fn columns<'a>(seconds: impl Iterator<Item = &'a Second>, length: Time) -> Vec<Column> {
    let width = width(length);
    let count = (length.div_ceil(width) as usize).clamp(1, COLUMNS_MAX);
    let mut columns: Vec<_> =
        (0..count as u64).map(|index| Column { at: index * width, ..Column::default() }).collect();
    for second in seconds {
        let index = ((second.at / width) as usize).min(count - 1);
        let column = &mut columns[index];
        column.ok += second.ok as f64;
        column.failed += second.failed as f64;
        column.wrong += second.wrong as f64;
        column.cut += second.cut as f64;
        column.p50 = column.p50.max(second.p50);
        column.p99 = column.p99.max(second.p99);
        column.max = column.max.max(second.max);
    }
    for column in &mut columns {
        // The last one may be cut short by the end.
        let span = (length.saturating_sub(column.at)).min(width).max(SECOND / 10);
        let rate = SECOND as f64 / span as f64;
        for number in [&mut column.ok, &mut column.failed, &mut column.wrong, &mut column.cut] {
            *number *= rate;
        }
    }
    columns
}

/// Spans that are drawn: those closer than a `pixel` are one.
pub(super) fn spans(spans: &[(Time, Time)], pixel: Time) -> Vec<(Time, Time)> {
    let mut thin: Vec<(Time, Time)> = Vec::new();
    for &(from, until) in spans {
        match thin.last_mut() {
            Some(last) if from <= last.1.saturating_add(pixel) => last.1 = last.1.max(until),
            _ => thin.push((from, until)),
        }
    }
    thin
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_series_is_thinned_and_keeps_its_worst_moment() {
        let mut seconds: Vec<_> = (0..7_200)
            .map(|s| Second { at: s * SECOND, ok: 100, p50: 5, max: 9, ..Second::default() })
            .collect();
        seconds[5_000].max = 1_000;
        seconds[5_000].failed = 40;
        let columns = columns(seconds.iter(), 7_200 * SECOND);
        assert_eq!(columns.len(), COLUMNS_MAX);
        assert!(columns.iter().all(|c| (c.ok - 100.0).abs() < 1e-9), "a rate by the second");
        assert_eq!(columns.iter().map(|c| c.max).max(), Some(1_000));
        assert!(columns.iter().any(|c| (c.failed - 2.0).abs() < 1e-9));
    }

    #[test]
    fn spans_that_no_pixel_parts_are_one() {
        assert_eq!(spans(&[(0, 10), (11, 20), (40, 50)], 5), [(0, 20), (40, 50)]);
    }
}
