//! What members send each other.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| trestle_cluster::fuzzing::rpc(data));
