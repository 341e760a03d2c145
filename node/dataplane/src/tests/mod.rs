//! The plane as its users see it: real sockets, real backends.

mod acting;
mod forwarding;
mod http2;
mod leaving;
mod limits;
mod listening;
mod logging;
mod retrying;
mod smuggling;
mod sticky;
mod streaming;
mod tls;
