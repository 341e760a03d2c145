//! Any bytes are answered, and what is accepted is printed so that it reads the same.
//! `cargo +nightly fuzz run parse` in `config/`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use trestle_config::{Source, parse};

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match parse(Source { name: "fuzz", text }) {
        Ok(document) => {
            let again = parse(Source { name: "canonical", text: document.canonical() });
            assert_eq!(again.expect("the canonical form is valid"), document);
        }
        Err(problems) => {
            let _ = problems.to_string();
        }
    }
});
