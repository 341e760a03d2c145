//! The plane as its users see it: real sockets, real backends.

mod acting;
mod admitting;
mod authenticating;
mod bad_input;
mod forwarding;
mod guarding;
mod health;
mod http2;
mod interim;
mod leaving;
mod limits;
mod listening;
mod logging;
mod malformed;
mod passing;
mod proxying;
mod retrying;
mod shedding;
mod smuggling;
mod sticky;
mod streaming;
mod substituting;
mod tls;
mod tracing;
mod trusting;
mod waf;
