//! What an operator may declare: the language of `docs/config.md`, from text to typed values.
//!
//! [`parse`] takes a document and yields either a [`Document`] whose [`Config`] is valid, or every
//! problem in it with its place. The canonical form ([`Document::canonical`]) is what is agreed on
//! by the cluster: parse, print, parse is stable.
//!
//! ```text
//! text ─ tree ─► nodes with places ─ check ─► typed values ─ build, validate ─► model::Config
//!                                     ▲             └ canonical ─► JSON, YAML ─ diff
//!                       schema (one record of every key) ─► JSON Schema, tables of docs/config.md
//! ```
#![forbid(unsafe_code)]

pub mod model;

mod contents;
mod document;
pub mod host;
pub mod networks;
pub mod path;
mod problem;
pub mod text;
mod tree;

mod check;
mod scalar;
mod schema;
mod value;

mod build;
mod validate;

mod canonical;
mod diff;

pub use contents::{Contents, NamedContent};
pub use diff::{Change, Diff, diff};
pub use document::{Document, Flawed, Rest, Source, parse, parse_as_far};
pub use model::Config;
pub use problem::{PROBLEMS_MAX, Problem, Problems, near_miss};
pub use schema::json::json_schema;
pub use tree::{DEPTH_MAX, DOCUMENT_MAX, NODES_MAX};
