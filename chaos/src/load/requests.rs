//! HTTP requests: each on a connection of its own, or on kept ones.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncRead, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use super::http::Reader;
use super::pattern::{self, Way};
use super::{Ask, IN_FLIGHT_MAX, Shared, Trouble};
use crate::trace::{LoadKind, Time, boot_time};

/// Every so many requests on kept connections has a body, which comes back.
const BODY_EVERY: u64 = 4;
const BODY_BLOCKS: u64 = 32;

type Kept = Reader<TcpStream>;

pub(super) async fn serve(shared: &Arc<Shared>, due: &mut mpsc::Receiver<Time>) {
    let idle = Arc::new(Idle::default());
    while let Some(due) = due.recv().await {
        shared.tally(|tally| tally.begin(due, boot_time()));
        let Ok(slot) = shared.slots.clone().try_acquire_owned() else {
            shared.tally(|tally| tally.failed(due, || format!("more than {IN_FLIGHT_MAX} in flight")));
            continue;
        };
        let (shared, idle) = (shared.clone(), idle.clone());
        tokio::spawn(async move {
            let outcome = if shared.args.kind == LoadKind::Http {
                kept(&shared, &idle).await
            } else {
                alone(&shared).await
            };
            shared.settle(due, outcome);
            drop(slot);
        });
    }
    // Each has a deadline, so this ends.
    let _ = shared.slots.acquire_many(IN_FLIGHT_MAX as u32).await;
}

/// One request, and who may answer it.
struct Request {
    ask: Ask,
    line: String,
    body: Vec<u8>,
}

impl Request {
    fn new(shared: &Shared, with_body: bool) -> Self {
        let number = shared.number();
        let ask = shared.ask(number);
        let slash = if ask.prefix.ends_with('/') { "" } else { "/" };
        let method = if with_body { "POST" } else { "GET" };
        let line = format!("{method} {}{slash}chaos?n={number:x}", ask.prefix);
        let body = if with_body {
            (0..BODY_BLOCKS).flat_map(|block| pattern::block(number, Way::Up, block)).collect()
        } else {
            Vec::new()
        };
        Self { ask, line, body }
    }

    fn bytes(&self, host: &str, close: bool) -> Vec<u8> {
        let connection = if close { "connection: close\r\n" } else { "" };
        let length = if self.body.is_empty() {
            String::new()
        } else {
            format!("content-length: {}\r\n", self.body.len())
        };
        let head = format!("{} HTTP/1.1\r\nhost: {host}\r\n{connection}{length}\r\n", self.line);
        [head.as_bytes(), &self.body].concat()
    }

    /// Reads the answer; whether the connection ends with it.
    async fn answer(&self, from: &mut Reader<impl AsyncRead + Unpin>) -> Result<bool, Trouble> {
        let Some(answer) = from.message().await? else {
            return Err(Trouble::Failed("closed without an answer".to_owned()));
        };
        if answer.status() != Some(200) {
            return Err(Trouble::Failed(format!("{}: {}", self.line, answer.first)));
        }
        let name = answer.field("x-backend").unwrap_or_default();
        let right = [format!("hello from {name}: {}\n", self.line).as_bytes(), &self.body].concat();
        if !self.ask.allows(name) {
            let text =
                format!("{}: answered by {name:?}, which is not of {:?}", self.line, self.ask.backends);
            return Err(Trouble::Wrong(text));
        }
        if answer.body != right {
            let got = String::from_utf8_lossy(&answer.body[..answer.body.len().min(80)]).into_owned();
            return Err(Trouble::Wrong(format!("{}: answered with {got:?}", self.line)));
        }
        Ok(answer.closes())
    }
}

async fn connect(shared: &Shared) -> Result<Kept, Trouble> {
    let stream = TcpStream::connect(shared.args.target).await?;
    stream.set_nodelay(true)?;
    Ok(Reader::new(stream))
}

async fn within<T>(shared: &Shared, work: impl Future<Output = Result<T, Trouble>>) -> Result<T, Trouble> {
    let slow = |_| Trouble::Failed(format!("no answer within {:?}", shared.patience));
    tokio::time::timeout(shared.patience, work).await.map_err(slow)?
}

/// On a new connection.
async fn alone(shared: &Shared) -> Result<(), Trouble> {
    let host = shared.args.target.to_string();
    let work = async {
        let mut connection = connect(shared).await?;
        let request = Request::new(shared, false);
        connection.get_mut().write_all(&request.bytes(&host, true)).await?;
        request.answer(&mut connection).await
    };
    within(shared, work).await.map(|_| ())
}

/// Connections between two requests, the one longest at rest first.
#[derive(Default)]
struct Idle {
    connections: Mutex<VecDeque<Kept>>,
}

impl Idle {
    /// One that is still there; `None`: there are too few, or all are in use.
    fn take(&self, least: usize) -> Option<Kept> {
        let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        // Ended in order, between two requests: nothing is lost.
        connections.retain(Kept::is_open);
        if connections.len() < least { None } else { connections.pop_front() }
    }

    fn put(&self, connection: Kept, most: usize) {
        let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        if connections.len() < most {
            connections.push_back(connection);
        }
    }
}

/// On a kept connection, and on a new one until there are as many as wanted.
async fn kept(shared: &Shared, idle: &Idle) -> Result<(), Trouble> {
    let wanted = shared.args.connections;
    let host = shared.args.target.to_string();
    let request = Request::new(shared, shared.number().is_multiple_of(BODY_EVERY));
    let taken = idle.take(wanted);
    let used = taken.is_some();
    let work = async {
        let mut connection = match taken {
            Some(connection) => connection,
            None => connect(shared).await?,
        };
        connection.get_mut().write_all(&request.bytes(&host, false)).await?;
        let closes = request.answer(&mut connection).await?;
        if !closes {
            idle.put(connection, wanted);
        }
        Ok(())
    };
    let outcome = within(shared, work).await;
    if let (true, Err(Trouble::Failed(why))) = (used, &outcome)
        && !why.contains("HTTP/1.")
    {
        shared.tally(|tally| tally.cut(boot_time(), || format!("a kept connection: {why}")));
    }
    outcome
}
