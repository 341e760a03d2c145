//! The head of a file of the cache on disk.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| trestle_dataplane::fuzzing::cache_head(data));
