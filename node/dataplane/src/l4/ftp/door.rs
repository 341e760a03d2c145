//! A port of ours at which one data connection is awaited.
//!
//! Invariant: of a listener no more doors are open than its range has ports. Which of them are free the kernel
//! knows, so that listeners may share a range, and another program may have a port of it. A door is closed by
//! the connection that comes through it, whose port is then free again.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use socket2::{Domain, SockRef, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};

use crate::metrics::ListenerCounters;

/// How long a connection is awaited.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// Ports that are tried for one door: binding to one that is taken costs a microsecond.
const TRIES_MAX: usize = 1_000;
/// Strangers may come before the one who is awaited.
const BACKLOG: i32 = 16;
/// After a failed accept for want of descriptors or memory.
const PAUSE: Duration = Duration::from_millis(50);

/// Doors of a listener, over all workers.
#[derive(Debug, Default)]
pub(crate) struct Doors(AtomicU32);

impl Doors {
    pub(crate) fn open(&self) -> u32 {
        self.0.load(Relaxed)
    }
}

#[derive(Debug)]
pub(super) struct Door {
    listener: TcpListener,
    /// Where it is.
    pub(super) at: SocketAddr,
    _counted: Counted,
}

#[derive(Debug)]
struct Counted(Arc<ListenerCounters>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.doors.0.fetch_sub(1, Relaxed);
    }
}

/// Why there is no door.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoDoor {
    #[error("all ports are in use")]
    Full,
    #[error("{0}")]
    Failed(#[from] io::Error),
}

impl Door {
    /// At this address of ours, whose port does not count, and a free port of `ports`; the search begins at the
    /// one with this number, another one each time: a range is then used evenly.
    pub(super) fn open(
        at: SocketAddr,
        ports: &RangeInclusive<u16>,
        begin: u64,
        counters: &Arc<ListenerCounters>,
    ) -> Result<Self, NoDoor> {
        let count = u32::try_from(ports.len()).unwrap_or(u32::MAX);
        if counters.doors.0.fetch_add(1, Relaxed) >= count {
            counters.doors.0.fetch_sub(1, Relaxed);
            return Err(NoDoor::Full);
        }
        let counted = Counted(Arc::clone(counters));
        let begin = u16::try_from(begin % u64::from(count)).unwrap_or(0);
        let (first, last) = (*ports.start(), *ports.end());
        let ports = (first + begin..=last).chain(first..first + begin).take(TRIES_MAX);
        for port in ports {
            let mut at = at;
            at.set_port(port);
            match listen(at) {
                Ok(listener) => return Ok(Self { listener, at, _counted: counted }),
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(NoDoor::Full)
    }

    /// The connection that comes from `from`; others are reset, and `stranger` is told of them. `None`: none
    /// has come in time.
    pub(super) async fn admit(self, from: IpAddr, stranger: impl Fn(SocketAddr)) -> Option<TcpStream> {
        let admitting = async {
            loop {
                match self.listener.accept().await {
                    Ok((stream, peer)) if peer.ip().to_canonical() == from => return stream,
                    Ok((stream, peer)) => {
                        stranger(peer);
                        // Closing with a linger time of zero sends RST.
                        let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
                    }
                    // The connection that was to be accepted has gone, or there is no descriptor for it.
                    Err(error) => {
                        tracing::debug!(%error, at = %self.at, "data connection can't be accepted");
                        sleep(PAUSE).await;
                    }
                }
            }
        };
        timeout(WAIT_MAX, admitting).await.ok()
    }
}

fn listen(at: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(at), Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    // Connections that came through an earlier door at this port may still be there.
    socket.set_reuse_address(true)?;
    if at.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&at.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at() -> SocketAddr {
        "127.0.0.1:0".parse().expect("an address")
    }

    /// Some ports in a row that were free a moment ago.
    fn range(count: u16) -> RangeInclusive<u16> {
        for _ in 0..100 {
            let held = std::net::TcpListener::bind(at()).expect("a free port");
            let first = held.local_addr().expect("bound").port();
            let Some(last) = first.checked_add(count - 1) else { continue };
            let rest = (first + 1..=last).map(|port| std::net::TcpListener::bind(("127.0.0.1", port)));
            if rest.collect::<io::Result<Vec<_>>>().is_ok() {
                return first..=last;
            }
        }
        panic!("no {count} ports in a row are free");
    }

    #[tokio::test]
    async fn a_range_has_as_many_doors_as_ports_and_they_come_back() {
        let (ports, counters) = (range(3), Arc::new(ListenerCounters::new("raw", 1)));
        let open = |begin| Door::open(at(), &ports, begin, &counters);
        let doors: Vec<Door> = (0..3).map(|_| open(7).expect("free")).collect();
        let mut seen: Vec<u16> = doors.iter().map(|door| door.at.port()).collect();
        assert_eq!(seen[0], ports.start() + 1, "the search begins where it is told");
        seen.sort_unstable();
        assert_eq!(seen, ports.clone().collect::<Vec<_>>());
        assert!(matches!(open(0), Err(NoDoor::Full)));
        assert_eq!(counters.doors.open(), 3);
        drop(doors);
        assert_eq!(counters.doors.open(), 0);
        assert!(open(0).is_ok());
    }

    #[tokio::test]
    async fn a_port_that_somebody_else_has_is_passed_over() {
        let (ports, counters) = (range(2), Arc::new(ListenerCounters::new("raw", 1)));
        let _held = std::net::TcpListener::bind(("127.0.0.1", *ports.start())).expect("free");
        let door = Door::open(at(), &ports, 0, &counters).expect("the other one");
        assert_eq!(door.at.port(), *ports.end());
        assert!(matches!(Door::open(at(), &ports, 0, &counters), Err(NoDoor::Full)));
        assert_eq!(counters.doors.open(), 1);
    }

    #[tokio::test]
    async fn a_stranger_is_reset_and_the_port_is_free_once_the_right_one_has_come() {
        let (ports, counters) = (range(1), Arc::new(ListenerCounters::new("raw", 1)));
        let door = Door::open(at(), &ports, 0, &counters).expect("free");
        let to = door.at;
        let strangers = std::sync::Mutex::new(Vec::new());
        let from = |ip: &str| {
            let socket = tokio::net::TcpSocket::new_v4().expect("socket");
            socket.bind(SocketAddr::new(ip.parse().expect("an address"), 0)).expect("bind");
            socket.connect(to)
        };
        let mut stranger = from("127.0.0.2").await.expect("the kernel accepts");
        let right = from("127.0.0.1").await.expect("connect");
        let expected = right.local_addr().expect("address");
        let note = |peer: SocketAddr| strangers.lock().expect("lock").push(peer.ip());
        let came = door.admit("127.0.0.1".parse().expect("an address"), note).await.expect("in time");
        assert_eq!(came.peer_addr().expect("address"), expected);
        assert_eq!(*strangers.lock().expect("lock"), [IpAddr::from([127, 0, 0, 2])]);
        let read = tokio::io::AsyncReadExt::read(&mut stranger, &mut [0; 1]).await;
        assert_eq!(read.expect_err("a reset").kind(), io::ErrorKind::ConnectionReset);
        assert!(Door::open(at(), &ports, 0, &counters).is_ok(), "while the connection lives");
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_is_awaited_for_ever() {
        let (ports, counters) = (range(1), Arc::new(ListenerCounters::new("raw", 1)));
        let door = Door::open(at(), &ports, 0, &counters).expect("free");
        assert!(door.admit("127.0.0.1".parse().expect("an address"), |_| {}).await.is_none());
        assert_eq!(counters.doors.open(), 0);
    }
}
