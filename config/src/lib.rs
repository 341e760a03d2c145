//! What an operator may declare: the language of `docs/config.md`, from text to typed values.
//!
//! [`parse`] takes a document and yields either a [`Document`] whose [`Config`] is valid, or every
//! problem in it with its place. The canonical form ([`Document::canonical`]) is what is agreed on
//! by the cluster: parse, print, parse is stable.
#![forbid(unsafe_code)]

pub mod model;

pub use model::Config;
