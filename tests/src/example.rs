//! Configs of `examples/`, for tests that run them.

use std::path::Path;

/// A file of `examples/` in which each of these texts, all of which it has, is replaced: addresses by those that a
/// test has.
#[track_caller]
pub fn example(name: &str, mapped: &[(&str, String)]) -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples").join(name);
    let mut config = std::fs::read_to_string(file).expect("the example is there");
    for (from, to) in mapped {
        assert!(config.contains(from), "the example has {from}");
        config = config.replace(from, to);
    }
    config
}
