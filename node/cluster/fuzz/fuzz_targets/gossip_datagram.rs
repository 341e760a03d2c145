//! Bytes of a stranger, and the same bytes sealed by a holder of the key.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| trestle_cluster::fuzzing::datagram(data));
