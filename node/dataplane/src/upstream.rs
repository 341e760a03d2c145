//! One worker's connections to members: made on demand, kept while idle, given out last in first out.
//!
//! Each connection is a task of its worker that drives hyper's client half; a request holds the
//! connection's sender and gives it back when the answer is whole. Nothing here is shared between
//! workers.
//!
//! Bounds: [`IDLE_MAX`] idle connections a member and worker (the longest idle is closed for a new
//! one), each for at most its pool's `timeout.pool_idle`.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::l7::body::Upload;

/// As many as 64 clients a worker keep busy at once.
const IDLE_MAX: usize = 64;

/// hyper's read buffer grows to this while bodies stream.
const READ_BUFFER_MAX: usize = 128 << 10;

pub(crate) type Sender = http1::SendRequest<Upload>;

#[derive(Debug, Default)]
pub(crate) struct Upstreams {
    idle: RefCell<HashMap<SocketAddr, VecDeque<Idle>, ahash::RandomState>>,
}

#[derive(Debug)]
struct Idle {
    sender: Sender,
    until: Instant,
}

impl Upstreams {
    /// An idle connection to this member that, as far as is known, is open.
    pub(crate) fn take(&self, member: SocketAddr) -> Option<Sender> {
        let mut idle = self.idle.borrow_mut();
        let connections = idle.get_mut(&member)?;
        while let Some(connection) = connections.pop_back() {
            if !connection.sender.is_closed() {
                return Some(connection.sender);
            }
        }
        None
    }

    /// Keeps a connection whose answer has been read to its end.
    pub(crate) fn put(&self, member: SocketAddr, sender: Sender, now: Instant, keep: Duration) {
        if sender.is_closed() || keep.is_zero() {
            return;
        }
        let mut idle = self.idle.borrow_mut();
        let connections = idle.entry(member).or_default();
        if connections.len() >= IDLE_MAX {
            connections.pop_front();
        }
        connections.push_back(Idle { sender, until: now + keep });
    }

    /// Closes what has been idle for too long or was closed by the member. Called now and then.
    pub(crate) fn sweep(&self, now: Instant) {
        self.idle.borrow_mut().retain(|_, connections| {
            connections.retain(|connection| now < connection.until && !connection.sender.is_closed());
            !connections.is_empty()
        });
    }
}

/// A new connection, driven by a task of the current worker until either side closes it.
pub(crate) async fn connect(member: SocketAddr) -> io::Result<Sender> {
    let stream = TcpStream::connect(member).await?;
    stream.set_nodelay(true)?;
    let mut builder = http1::Builder::new();
    builder.max_buf_size(READ_BUFFER_MAX);
    let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    // Whoever waits for an answer hears of its end from the sender.
    tokio::task::spawn_local(async move {
        let _ = connection.with_upgrades().await;
    });
    Ok(sender)
}
