//! Long streams of a pattern, as they are (`tcp`) or after an HTTP upgrade (`stream`): what is due is a
//! block, sent and answered by another, both checked.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::http::Reader;
use super::pattern::{self, BLOCK, Block, Way};
use super::{Shared, Trouble};
use crate::trace::{LoadKind, Time, boot_time};

/// Blocks of one stream that are due and not sent.
const WAITING_MAX: usize = 1_024;

pub(super) async fn serve(shared: &Arc<Shared>, due: &mut mpsc::Receiver<Time>) {
    let mut lanes = Vec::new();
    let mut tasks = JoinSet::new();
    for _ in 0..shared.args.connections {
        let (send, receive) = mpsc::channel(WAITING_MAX);
        lanes.push(send);
        tasks.spawn(lane(shared.clone(), receive));
    }
    let mut turn = 0;
    while let Some(due) = due.recv().await {
        shared.tally(|tally| tally.begin(due, boot_time()));
        if lanes[turn].try_send(due).is_err() {
            shared.tally(|tally| tally.failed(due, || format!("more than {WAITING_MAX} wait to be sent")));
        }
        turn = (turn + 1) % lanes.len();
    }
    drop(lanes);
    // Each ends once it has nothing more to send and its answers are there or overdue.
    while tasks.join_next().await.is_some() {}
}

/// One stream after the other.
async fn lane(shared: Arc<Shared>, mut due: mpsc::Receiver<Time>) {
    while let Some(first) = due.recv().await {
        let opened = tokio::time::timeout(shared.patience, Stream::open(&shared)).await;
        let opened = opened.unwrap_or_else(|_| Err(Trouble::Failed("not opened in time".to_owned())));
        match opened {
            Ok(stream) => stream.talk(&shared, first, &mut due).await,
            Err(trouble) => shared.settle(first, Err(trouble)),
        }
    }
}

struct Stream {
    connection: Reader<TcpStream>,
    seed: u64,
    sent: u64,
    /// Sent and not answered yet.
    open: VecDeque<Time>,
}

impl Stream {
    async fn open(shared: &Shared) -> Result<Self, Trouble> {
        let stream = TcpStream::connect(shared.args.target).await?;
        stream.set_nodelay(true)?;
        let mut connection = Reader::new(stream);
        let seed = shared.number();
        let ask = shared.ask(seed);
        if shared.args.kind == LoadKind::Stream {
            let slash = if ask.prefix.ends_with('/') { "" } else { "/" };
            let head = format!(
                "GET {}{slash}stream HTTP/1.1\r\nhost: {}\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
                 sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
                ask.prefix, shared.args.target
            );
            connection.get_mut().write_all(head.as_bytes()).await?;
            let answer = connection.message().await?;
            let status = answer.as_ref().map_or("closed without an answer", |a| a.first.as_str());
            if answer.as_ref().and_then(|a| a.status()) != Some(101) {
                return Err(Trouble::Failed(format!("no upgrade: {status}")));
            }
        }
        connection.get_mut().write_all(&seed.to_le_bytes()).await?;
        let name = connection.line().await?;
        if !ask.allows(&name) {
            return Err(Trouble::Wrong(format!("answered by {name:?}, which is not of {:?}", ask.backends)));
        }
        Ok(Self { connection, seed, sent: 0, open: VecDeque::new() })
    }

    /// Until its life is over, it breaks, or nothing more is due.
    async fn talk(mut self, shared: &Shared, first: Time, due: &mut mpsc::Receiver<Time>) {
        let end = Instant::now() + Duration::from_millis(shared.args.life);
        let mut answered = 0;
        let mut next = Some(first);
        let trouble = loop {
            if let Some(due) = next.take()
                && let Err(error) = self.send(due, shared.patience).await
            {
                break Trouble::Failed(format!("send: {error}"));
            }
            let ending = Instant::now() >= end || due.is_closed() && due.is_empty();
            if ending && self.open.is_empty() {
                let _ = self.connection.get_mut().shutdown().await;
                return;
            }
            let oldest = self.open.front().copied();
            let overdue = async {
                match oldest {
                    Some(due) => {
                        let waited = Duration::from_nanos(boot_time().saturating_sub(due));
                        tokio::time::sleep(shared.patience.saturating_sub(waited)).await;
                    }
                    None => tokio::time::sleep_until(end).await,
                }
            };
            tokio::select! {
                more = due.recv(), if !ending => next = more,
                bytes = self.connection.take(BLOCK) => match bytes {
                    Ok(bytes) => match self.check(&bytes, answered) {
                        Ok(due) => {
                            answered += 1;
                            shared.settle(due, Ok(()));
                        }
                        Err(text) => break Trouble::Wrong(text),
                    },
                    Err(error) => break Trouble::Failed(error.to_string()),
                },
                () = overdue => if oldest.is_some() {
                    break Trouble::Failed(format!("no answer within {:?}", shared.patience));
                },
            }
        };
        self.broke(shared, trouble);
    }

    async fn send(&mut self, due: Time, patience: Duration) -> std::io::Result<()> {
        let block = pattern::block(self.seed, Way::Up, self.sent);
        self.sent += 1;
        self.open.push_back(due);
        tokio::time::timeout(patience, self.connection.get_mut().write_all(&block)).await?
    }

    /// Whether `bytes` are the answer to block `number`; when that was due.
    fn check(&mut self, bytes: &[u8], number: u64) -> Result<Time, String> {
        let right: Block = pattern::block(self.seed, Way::Down, number);
        if bytes == right
            && let Some(due) = self.open.pop_front()
        {
            return Ok(due);
        }
        Err(if bytes == pattern::refusal(self.seed, number) {
            format!("block {number}: other bytes than were sent came to the backend")
        } else {
            format!("block {number}: other bytes came back: {:02x?}", &bytes[..bytes.len().min(16)])
        })
    }

    fn broke(self, shared: &Shared, trouble: Trouble) {
        let mut open = self.open.into_iter();
        match trouble {
            Trouble::Failed(why) => {
                shared.tally(|tally| tally.cut(boot_time(), || format!("a stream in use: {why}")));
                for due in open {
                    shared.settle(due, Err(Trouble::Failed(why.clone())));
                }
            }
            Trouble::Wrong(text) => {
                let first = open.next().unwrap_or_else(boot_time);
                shared.settle(first, Err(Trouble::Wrong(text)));
                for due in open {
                    shared.settle(due, Err(Trouble::Failed("its stream brought wrong bytes".to_owned())));
                }
            }
        }
    }
}
