//! Heads of HTTP/1 and chunked bodies.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| trestle_dataplane::fuzzing::http1(data));
