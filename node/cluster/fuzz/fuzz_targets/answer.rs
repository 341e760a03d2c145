//! Answers of members to health checks.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| trestle_cluster::fuzzing::answer(data));
