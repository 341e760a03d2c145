//! Both sides of a control connection of FTP.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| trestle_dataplane::fuzzing::ftp(data));
