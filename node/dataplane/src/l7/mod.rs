//! HTTP/1.1 and HTTP/2, both sides.
//!
//! Life of a request: the [`gate`] reads its head strictly and hands it to hyper ([`server`] drives both), or
//! it comes as a stream of [`h2`];
//! [`exchange`] brings its [`target`] into one form, asks the [`router`] of the listener's present revision for a
//! rule, prepares the headers ([`forward`]; a config's own [`edits`]), picks a member and sends, again where that is safe; the
//! answer streams back as a [`transfer`], or the connection becomes a [`tunnel`]; a [`page`] says what went
//! wrong, a rule may answer by itself ([`local`]); the [`record`] counts and logs it all ([`line`]), once.
//!
//! Invariant: a request sees one revision, from routing to its log line, and has one record, which ends
//! exactly once whatever happens to the request.

pub(crate) mod auth;
pub(crate) mod body;
mod chunked;
mod client;
pub(crate) mod compress;
mod conn;
pub(crate) mod cors;
pub(crate) mod edits;
pub(crate) mod excess;
mod exchange;
mod forward;
pub(crate) mod forwarded;
mod frames;
mod gate;
mod grpc;
pub(crate) mod h2;
pub(crate) mod head;
pub(crate) mod held;
mod inspect;
mod interim;
mod line;
pub(crate) mod local;
pub(crate) mod mirror;
mod new_path;
mod page;
pub(crate) mod pages;
mod phases;
pub(crate) mod record;
pub(crate) mod refused;
pub(crate) mod router;
pub(crate) mod server;
mod span;
pub(crate) mod substitute;
pub(crate) mod target;
mod text;
mod trace;
mod transfer;
mod tunnel;
mod unread;
pub(crate) mod values;

use trestle_config::path;
