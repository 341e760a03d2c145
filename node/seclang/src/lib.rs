//! Rule files in ModSecurity's language, such as the OWASP Core Rule Set, for the web application firewall.
//!
//! Whoever applies a config reads the files ([`gather`]); a node compiles what came ([`Rules::compile`]) and gives each
//! worker an [`Engine`], which is asked about one [`Request`] after the other. It knows what looks at requests
//! (phases 1 and 2); rules about responses and logs are read and left alone. What a file wants that isn't here is a
//! [`Fault`] with file and line, never left out in silence.
//!
//! Invariants: judging neither waits nor keeps anything for the next request. It ends: patterns are automata or count
//! their steps, and all of a request's work has a bound ([`Limits`]), beyond which the verdict says so. No line of
//! this crate indexes, unwraps or divides where a request could make it fail; the lints below refuse that.

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

/// What is wrong in a rule file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Fault {
    /// Empty: the file that was named itself.
    pub file: String,
    pub line: u32,
    pub reason: String,
}

impl Fault {
    fn at(line: u32, reason: impl Into<String>) -> Self {
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
