//! The first bytes of a connection whose TLS is passed through.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| trestle_dataplane::fuzzing::client_hello(data));
