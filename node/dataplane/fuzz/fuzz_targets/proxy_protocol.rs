//! The first bytes of a connection behind a proxy.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| trestle_dataplane::fuzzing::proxy_protocol(data));
