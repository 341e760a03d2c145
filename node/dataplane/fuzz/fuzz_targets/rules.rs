//! A rule file of the web application firewall, and a request before it.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| trestle_dataplane::fuzzing::rules(data));
