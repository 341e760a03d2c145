//! A node of this release starts on what format 1 wrote: the bytes are kept in `testdata/`.
//!
//! `TRESTLE_WRITE_TESTDATA=1` writes what is missing there and never changes what exists: bytes that
//! a release wrote are a promise. When the assertion below fails, the format has changed: give it a
//! new number and a way to read the old one.

use std::fs;
use std::path::PathBuf;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::samples;
use crate::types::{Outcome, State};
use crate::{LogEntry, Vote, codec};

fn check<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(name: &str, value: &T) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("testdata").join(format!("{name}.v1"));
    let encoded = codec::encode(value).unwrap();
    if !path.exists() && std::env::var_os("TRESTLE_WRITE_TESTDATA").is_some() {
        fs::write(&path, &encoded).unwrap();
    }
    let kept = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert_eq!(&codec::decode::<T>(&kept).unwrap(), value, "{name} reads differently");
    assert_eq!(kept, encoded, "{name} is written differently under the same format number");
}

#[test]
fn bytes_of_format_1_are_read_and_written_as_ever() {
    for (index, command) in (1..).zip(samples::commands()) {
        let name = command.to_string();
        let kind = name.split('(').next().unwrap().to_owned();
        check::<LogEntry>(&format!("entry-{index:02}-{kind}"), &samples::entry(3, index, command));
    }
    check::<LogEntry>("entry-membership", &super::entry(1, 0));
    check::<State>("state", &samples::state());
    check::<Outcome>("outcome", &Outcome::Admitted { id: 3, cluster_id: samples::CLUSTER });
    check::<Vote>("vote", &Vote::new_committed(4, 2));
}
