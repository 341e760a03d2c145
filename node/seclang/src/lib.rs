//! Rule files in ModSecurity's language, such as the OWASP Core Rule Set, for the web application firewall.
//!
//! Whoever applies a config reads the files ([`gather`]); a node compiles what came ([`Rules::compile`]) and gives each
//! worker an [`Engine`], which is asked about one [`Request`] after the other. It knows what looks at requests
//! (phases 1 and 2); rules about responses and logs are read and left alone. What a file wants that isn't here is a
//! [`Fault`] with file and line, never left out in silence.
//!
//! Invariants: judging neither waits nor keeps anything for the next request. It ends: patterns are automata or count
//! their steps, and all of a request's work has a bound ([`Limits`]), beyond which the verdict says so. No line of
//! this crate indexes, slices or unwraps; the lints below refuse that, since a panic ends the process.

#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)
)]

mod action;
mod engine;
mod files;
mod lex;
mod operator;
mod pattern;
mod request;
mod ruleset;
mod transaction;
mod transform;
mod variable;

pub use engine::{Engine, Limits, Match, Skips, Verdict};
pub use files::gather;
pub use request::{Arg, Processor, Request, Source};
pub use ruleset::Rules;

/// Rules of one set, at most.
pub const RULES_MAX: usize = 4_096;

/// For fuzzers: a rule file, and behind a NUL the values of a request, one a line.
pub fn any_bytes(data: &[u8]) {
    let (text, values) = match memchr::memchr(0, data) {
        Some(at) => (data.get(..at).unwrap_or_default(), data.get(at + 1..).unwrap_or_default()),
        None => (data, [].as_slice()),
    };
    let Ok(rules) = Rules::compile(&[text]) else { return };
    let arg = |value| Arg {
        source: Source::Query,
        name: b"a".as_slice().into(),
        value: std::borrow::Cow::Borrowed(value),
    };
    let args = values.split(|byte| *byte == b'\n').map(arg).collect();
    let request = Request { path: "/a%20b", method: "POST", body: values, args, ..Request::default() };
    let mut engine = Engine::new(&std::sync::Arc::new(rules), Limits::default());
    let verdict = engine.judge(&request, 1, None);
    // Nothing is kept.
    assert_eq!(verdict.denied, engine.judge(&request, 1, None).denied);
}

/// What is wrong in a rule file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Fault {
    /// Empty: the file that was named itself.
    pub file: String,
    pub line: usize,
    pub reason: String,
}

impl Fault {
    fn at(line: usize, reason: impl Into<String>) -> Self {
        Self { file: String::new(), line, reason: reason.into() }
    }

    /// In this file, unless it names another one.
    pub fn of(mut self, file: &str) -> Self {
        if self.file.is_empty() {
            file.clone_into(&mut self.file);
        }
        self
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.file.as_str() {
            "" => write!(f, "line {}: {}", self.line, self.reason),
            file => write!(f, "{file}:{}: {}", self.line, self.reason),
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_fuzzers_corpus_is_judged() {
        let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/../dataplane/fuzz/corpus/rules");
        let files = std::fs::read_dir(corpus).unwrap();
        let files: Vec<_> = files.map(|file| file.unwrap().path()).collect();
        assert!(files.len() >= 6);
        for file in files {
            super::any_bytes(&std::fs::read(&file).unwrap());
        }
    }

    proptest::proptest! {
        #[test]
        fn whatever_is_written_is_judged_or_refused(
            actions in "[a-z:;,'=%{}.+!-]{0,40}",
            operator in "(!?@[a-zA-Z]{1,12} )?[a-z0-9(){}|%.*+?\\\\\\[\\]^$-]{0,20}",
            targets in "(ARGS|TX|XML|&|!|:|/|\\||[a-z]){1,12}",
            value: Vec<u8>,
        ) {
            let text = format!("SecRule {targets} \"{operator}\" \"id:1,{actions}\"\nSecRule ARGS \"{operator}\" id:2,deny\n\0");
            super::any_bytes(&[text.as_bytes(), &value].concat());
        }
    }
}
