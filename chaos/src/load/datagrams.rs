//! Datagrams that must come back as they were, with the backend's name in front where one is expected.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::pattern::{self, BLOCK, Way};
use super::{IN_FLIGHT_MAX, Shared, Trouble};
use crate::trace::{Time, boot_time};

const LENGTH: usize = 8 + BLOCK;

/// Sent and not back, by number.
type Open = Mutex<BTreeMap<u64, Time>>;

pub(super) async fn serve(shared: &Arc<Shared>, due: &mut mpsc::Receiver<Time>) {
    let open = Arc::new(Open::default());
    let mut readers = JoinSet::new();
    let mut sockets = Vec::new();
    for _ in 0..shared.args.connections {
        match bind(shared.args.target).await {
            Ok(socket) => {
                let socket = Arc::new(socket);
                readers.spawn(read(shared.clone(), socket.clone(), open.clone()));
                sockets.push(socket);
            }
            Err(error) => tracing::warn!(%error, target = %shared.args.target, "no datagram socket"),
        }
    }
    let mut turn = 0;
    while let Some(due) = due.recv().await {
        shared.tally(|tally| tally.begin(due, boot_time()));
        overdue(shared, &open, Some(shared.patience));
        let Some(socket) = sockets.get(turn % sockets.len().max(1)) else {
            shared.settle(due, Err(Trouble::Failed("no socket".to_owned())));
            continue;
        };
        turn += 1;
        let number = shared.number();
        let full = {
            let mut open = open.lock().unwrap_or_else(PoisonError::into_inner);
            let full = open.len() >= IN_FLIGHT_MAX;
            if !full {
                open.insert(number, due);
            }
            full
        };
        if full {
            shared.settle(due, Err(Trouble::Failed(format!("more than {IN_FLIGHT_MAX} in flight"))));
        } else if let Err(error) = socket.try_send(&datagram(number)) {
            open.lock().unwrap_or_else(PoisonError::into_inner).remove(&number);
            shared.settle(due, Err(Trouble::Failed(format!("send: {error}"))));
        }
    }
    let end = tokio::time::Instant::now() + shared.patience;
    while tokio::time::Instant::now() < end && !open.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    overdue(shared, &open, None);
    readers.shutdown().await;
}

async fn bind(target: SocketAddr) -> io::Result<UdpSocket> {
    let any: SocketAddr = if target.is_ipv6() { ([0u16; 8], 0).into() } else { ([0u8; 4], 0).into() };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(target).await?;
    // Else the first send would find it not writable yet.
    socket.writable().await?;
    Ok(socket)
}

fn datagram(number: u64) -> [u8; LENGTH] {
    let mut bytes = [0; LENGTH];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    bytes[8..].copy_from_slice(&pattern::block(number, Way::Up, 0));
    bytes
}

/// Those that are out for longer than `patience` are lost; `None`: all.
fn overdue(shared: &Shared, open: &Open, patience: Option<std::time::Duration>) {
    let patience = patience.map_or(0, |patience| u64::try_from(patience.as_nanos()).unwrap_or(u64::MAX));
    let late = boot_time().saturating_sub(patience);
    loop {
        let lost = {
            let mut open = open.lock().unwrap_or_else(PoisonError::into_inner);
            // Numbers rise with time.
            open.first_entry().filter(|entry| *entry.get() <= late).map(|entry| entry.remove())
        };
        let Some(due) = lost else { return };
        shared.settle(due, Err(Trouble::Failed("did not come back".to_owned())));
    }
}

async fn read(shared: Arc<Shared>, socket: Arc<UdpSocket>, open: Arc<Open>) {
    let mut buffer = [0; 2_048];
    loop {
        let Ok(length) = socket.recv(&mut buffer).await else {
            // An error that a router or host sent about an earlier datagram: that one is missed already.
            tokio::task::yield_now().await;
            continue;
        };
        let bytes = &buffer[..length];
        let Some((name, sent)) = bytes.len().checked_sub(LENGTH).map(|at| bytes.split_at(at)) else {
            let text = || format!("{} bytes came back: {:02x?}", length, &bytes[..length.min(16)]);
            shared.tally(|tally| tally.wrong(boot_time(), text));
            continue;
        };
        let number = u64::from_le_bytes(sent[..8].try_into().unwrap_or_default());
        let name = String::from_utf8_lossy(name).trim_end().to_owned();
        let ask = shared.ask(0);
        let known = open.lock().unwrap_or_else(PoisonError::into_inner).remove(&number);
        let outcome = if sent != datagram(number) {
            Err(Trouble::Wrong(format!("other bytes came back: {:02x?}", &sent[..16])))
        } else if !ask.allows(&name) {
            Err(Trouble::Wrong(format!("answered by {name:?}, which is not of {:?}", ask.backends)))
        } else {
            Ok(())
        };
        match (known, outcome) {
            (Some(due), outcome) => shared.settle(due, outcome),
            // Too late, or twice: it is counted already, unless its bytes are wrong.
            (None, Ok(())) => {}
            (None, wrong) => shared.settle(boot_time(), wrong),
        }
    }
}
