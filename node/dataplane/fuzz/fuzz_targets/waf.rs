//! A body before the web application firewall.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| trestle_dataplane::fuzzing::waf(data));
