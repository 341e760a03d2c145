//! Replays the fuzzer's corpus (`fuzz/corpus/parse`) without a fuzzer, with what it asserts.

use std::path::Path;

use trestle_config::{Source, parse};

#[test]
fn the_fuzz_corpus_is_answered() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/parse");
    let mut accepted = 0;
    let mut refused = 0;
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let bytes = std::fs::read(&path).unwrap();
        let Ok(text) = std::str::from_utf8(&bytes) else { continue };
        match parse(Source { name: "corpus", text }) {
            Ok(document) => {
                accepted += 1;
                let again = parse(Source { name: "canonical", text: document.canonical() });
                assert_eq!(again.unwrap(), document, "{}", path.display());
            }
            Err(problems) => {
                refused += 1;
                assert!(!problems.to_string().is_empty(), "{}", path.display());
            }
        }
    }
    assert!(accepted >= 2 && refused >= 10, "{accepted} accepted, {refused} refused");
}
