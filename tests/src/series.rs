//! What stands in Prometheus text.

/// The value of a series, which is named as in the text: with all of its labels.
pub fn series(text: &str, name: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}
