//! Sessions over real sockets on loopback.

use std::collections::HashSet;
use std::future::Future;
use std::net::SocketAddr;

use parking_lot::Mutex;
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use trestle_config::model;

use super::CancellationToken;
use super::datagram::{DATAGRAM_MAX, SEGMENT_MAX};
use super::{
    Arc, Duration, Ledger, ListenerCounters, Pool, Rc, Reason, SESSIONS_MAX, UdpCx, UdpSettings, io, serve,
};
use super::{OfConnection, Room};

/// Longer than anything here may take on a busy machine.
const DEADLINE: Duration = Duration::from_secs(20);

/// Within this, what must not come has not come.
const QUIET: Duration = Duration::from_millis(200);

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("{what} did not happen"))
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    soon(what, async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

async fn socket(bind: &str) -> UdpSocket {
    UdpSocket::bind(bind).await.expect("bind")
}

/// A backend that answers each datagram with itself, `times` times.
struct Echo {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Echo {
    async fn start(times: usize) -> Self {
        let socket = socket("127.0.0.1:0").await;
        let address = socket.local_addr().expect("address");
        let task = tokio::spawn(async move {
            let mut buffer = vec![0; DATAGRAM_MAX];
            while let Ok((len, from)) = socket.recv_from(&mut buffer).await {
                for _ in 0..times {
                    socket.send_to(&buffer[..len], from).await.expect("echo");
                }
            }
        });
        Self { address, task }
    }

    /// Its port is closed from then on.
    async fn stop(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

fn pool(addresses: &[SocketAddr]) -> Arc<Pool> {
    let member = |address: &SocketAddr| model::Member::new(&address.to_string(), *address);
    let members = addresses.iter().map(member).collect();
    Arc::new(Pool::compile("p", &model::Pool { members, ..model::Pool::default() }, &Arc::default(), None))
}

struct Served {
    address: SocketAddr,
    task: JoinHandle<io::Result<()>>,
    counters: Arc<ListenerCounters>,
    ledger: Arc<Ledger>,
    draining: CancellationToken,
    closing: CancellationToken,
}

/// Its thread ends with it.
impl Drop for Served {
    fn drop(&mut self) {
        self.closing.cancel();
    }
}

/// Serves the pool that `pool` holds at the time.
async fn served_at(bind: &str, max: usize, pool: &Arc<Mutex<Arc<Pool>>>, settings: UdpSettings) -> Served {
    let socket = std::net::UdpSocket::bind(bind).expect("bind");
    let address = socket.local_addr().expect("address");
    let (counters, ledger) = (Arc::new(ListenerCounters::new("raw", 1)), Arc::new(Ledger::new(1)));
    let (draining, closing) = (CancellationToken::new(), CancellationToken::new());
    let (listener, clients) = (Arc::clone(&counters), Arc::clone(&ledger));
    let (drained, closed) = (draining.clone(), closing.clone());
    let pool = Arc::clone(pool);
    let pool = move |_, _| Ok((Arc::clone(&pool.lock()), Room::Free(OfConnection::default())));
    // A thread and runtime of its own, as a worker has.
    let task = tokio::task::spawn_blocking(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let cx = UdpCx {
            worker: 0,
            listener,
            ledger: clients,
            sessions: Rc::default(),
            sessions_max: max,
            bans: crate::bans::Bans::default().watch(),
            cuts: tokio::sync::watch::Sender::new(0).subscribe(),
            same_port: false,
            draining: drained,
            closing: closed,
        };
        runtime.block_on(serve(vec![socket], pool, move || settings.clone(), |_, _, _| {}, cx))
    });
    Served { address, task, counters, ledger, draining, closing }
}

async fn served(pool: Arc<Pool>, settings: UdpSettings) -> Served {
    served_at("127.0.0.1:0", SESSIONS_MAX, &Arc::new(Mutex::new(pool)), settings).await
}

async fn client(to: SocketAddr) -> UdpSocket {
    let client = socket("127.0.0.1:0").await;
    client.connect(to).await.expect("connect");
    client
}

async fn receive(client: &UdpSocket) -> Vec<u8> {
    let mut buffer = vec![0; DATAGRAM_MAX];
    let len = soon("a datagram", client.recv(&mut buffer)).await.expect("receive");
    buffer.truncate(len);
    buffer
}

async fn ask(client: &UdpSocket, datagram: &[u8]) -> Vec<u8> {
    client.send(datagram).await.expect("send");
    receive(client).await
}

async fn hears_nothing(client: &UdpSocket) {
    let heard = timeout(QUIET, client.recv(&mut [0; 64])).await;
    assert!(heard.is_err(), "heard {heard:?}");
}

#[tokio::test]
async fn datagrams_pass_whole_in_both_directions() {
    let echo = Echo::start(1).await;
    let served = served(pool(&[echo.address]), UdpSettings::default()).await;
    let client = client(served.address).await;
    for len in [0, 1, 1_472, 1_473, 9_000, 65_507] {
        let datagram: Vec<u8> = (0..len).map(|n| (n * 31 % 251) as u8).collect();
        assert!(ask(&client, &datagram).await == datagram, "{len} bytes");
    }
    // Two that follow one another stay two.
    client.send(b"first").await.expect("send");
    client.send(b"second").await.expect("send");
    assert_eq!((receive(&client).await, receive(&client).await), (b"first".to_vec(), b"second".to_vec()));
    assert_eq!(served.counters.sum(|part| &part.opened), 1);
    assert_eq!(served.counters.sum(|part| &part.datagrams_in), 8);
    // Counted once it is sent.
    until("all are counted", || served.counters.sum(|part| &part.datagrams_out) == 8).await;
    assert_eq!(served.counters.sum(|part| &part.bytes_in), served.counters.sum(|part| &part.bytes_out));
}

#[tokio::test]
async fn each_client_has_a_session_that_stays_with_its_member() {
    let backends = [socket("127.0.0.1:0").await, socket("127.0.0.1:0").await];
    let addresses = backends.each_ref().map(|b| b.local_addr().expect("address"));
    let served = served(pool(&addresses), UdpSettings::default()).await;
    let clients = [client(served.address).await, client(served.address).await];
    let mut seen = Vec::new();
    for (n, client) in clients.iter().enumerate() {
        for _ in 0..3 {
            client.send(&[n as u8]).await.expect("send");
            let (mut first, mut second) = ([9; 1], [9; 1]);
            let received = soon("a datagram", async {
                tokio::select! {
                    got = backends[0].recv_from(&mut first) => (0, got.expect("receive").1),
                    got = backends[1].recv_from(&mut second) => (1, got.expect("receive").1),
                }
            });
            let (backend, from) = received.await;
            let datagram = if backend == 0 { first } else { second };
            assert_eq!(datagram, [n as u8]);
            seen.push((n, backend, from));
        }
    }
    seen.dedup();
    assert_eq!(seen.len(), 2, "one member and one source a client: {seen:?}");
    assert_ne!(seen[0].1, seen[1].1, "round robin");
    assert_eq!(served.ledger.count("127.0.0.1".parse().expect("address")), 2);
}

#[tokio::test]
async fn a_session_ends_with_its_last_reply() {
    let echo = Echo::start(2).await;
    let pool = pool(&[echo.address]);
    let settings = UdpSettings { replies: 1, ..UdpSettings::default() };
    let served = served(Arc::clone(&pool), settings).await;
    let client = client(served.address).await;
    assert_eq!(ask(&client, b"query").await, b"query");
    until("the session ends", || served.counters.ended(Reason::Replied) == 1).await;
    hears_nothing(&client).await;
    assert_eq!((served.counters.open(), served.ledger.total(), pool.views()[0].in_flight), (0, 0, 0));
    assert_eq!(ask(&client, b"again").await, b"again");
    assert_eq!(served.counters.sum(|part| &part.opened), 2);
}

#[tokio::test]
async fn two_questions_get_two_replies_however_fast_they_are_asked() {
    let backend = socket("127.0.0.1:0").await;
    let settings = UdpSettings { replies: 1, ..UdpSettings::default() };
    let served = served(pool(&[backend.local_addr().expect("address")]), settings).await;
    let client = client(served.address).await;
    client.send(b"a").await.expect("send");
    client.send(b"b").await.expect("send");
    let mut buffer = [0; 16];
    for _ in 0..2 {
        let received = soon("question", backend.recv_from(&mut buffer)).await;
        let (len, from) = received.expect("receive");
        // Answered only when both are there.
        if &buffer[..len] == b"b" {
            backend.send_to(b"A", from).await.expect("answer");
            backend.send_to(b"B", from).await.expect("answer");
        }
    }
    assert_eq!((receive(&client).await, receive(&client).await), (b"A".to_vec(), b"B".to_vec()));
    until("the session ends", || served.counters.ended(Reason::Replied) == 1).await;
}

#[tokio::test]
async fn an_idle_session_ends_and_a_busy_one_does_not() {
    let echo = Echo::start(1).await;
    let pool = pool(&[echo.address]);
    let settings = UdpSettings { idle: Duration::from_secs(2), replies: 0 };
    let served = served(Arc::clone(&pool), settings).await;
    let client = client(served.address).await;
    for _ in 0..6 {
        ask(&client, b"x").await;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    assert_eq!(served.counters.sum(|part| &part.opened), 1, "kept while busy");
    until("the session ends", || served.counters.ended(Reason::Idle) == 1).await;
    until("nothing is left of it", || {
        (served.counters.open(), served.ledger.total(), pool.views()[0].in_flight) == (0, 0, 0)
    })
    .await;
}

#[tokio::test]
async fn a_dead_backend_ends_its_sessions_and_new_ones_go_elsewhere() {
    let (dying, living) = (Echo::start(1).await, Echo::start(1).await);
    let pool = pool(&[dying.address, living.address]);
    let served = served(Arc::clone(&pool), UdpSettings::default()).await;
    let clients: Vec<UdpSocket> = {
        let mut clients = Vec::new();
        for _ in 0..10 {
            let client = client(served.address).await;
            ask(&client, b"hello").await;
            clients.push(client);
        }
        clients
    };
    let on_dying = || pool.views()[0].in_flight;
    assert_eq!(on_dying(), 5);
    dying.stop().await;
    for client in &clients {
        // The first datagram to a closed port is lost; ICMP tells, and what follows finds the other.
        client.send(b"still there?").await.expect("send");
    }
    until("sessions end", || served.counters.ended(Reason::UpstreamUnreachable) == 5).await;
    assert!(pool.views()[0].ejected, "five failures in a row");
    for client in &clients {
        while timeout(QUIET, client.recv(&mut [0; 64])).await.is_ok() {}
        assert_eq!(ask(client, b"again").await, b"again");
    }
    assert_eq!(on_dying(), 0);
}

#[tokio::test]
async fn a_session_outlives_its_members_place_in_the_pool() {
    let (old, new) = (Echo::start(1).await, Echo::start(1).await);
    let first = pool(&[old.address]);
    let pools = Arc::new(Mutex::new(Arc::clone(&first)));
    let served = served_at("127.0.0.1:0", SESSIONS_MAX, &pools, UdpSettings::default()).await;
    let staying = client(served.address).await;
    ask(&staying, b"x").await;
    let config =
        model::Pool { members: vec![model::Member::new("new", new.address)], ..model::Pool::default() };
    let second = Arc::new(Pool::compile("p", &config, &Arc::default(), Some(&first)));
    *pools.lock() = Arc::clone(&second);
    assert_eq!(ask(&staying, b"y").await, b"y");
    assert_eq!((first.views()[0].in_flight, second.views()[0].in_flight), (1, 0));
    ask(&client(served.address).await, b"z").await;
    assert_eq!((first.views()[0].in_flight, second.views()[0].in_flight), (1, 1));
}

#[tokio::test]
async fn sessions_are_bounded_and_the_newest_is_refused() {
    let echo = Echo::start(1).await;
    let pools = Arc::new(Mutex::new(pool(&[echo.address])));
    let served = served_at("127.0.0.1:0", 3, &pools, UdpSettings::default()).await;
    let mut clients = Vec::new();
    for _ in 0..3 {
        clients.push(client(served.address).await);
        ask(&clients[clients.len() - 1], b"x").await;
    }
    let late = client(served.address).await;
    late.send(b"x").await.expect("send");
    until("it is refused", || served.counters.ended(Reason::SessionLimit) == 1).await;
    hears_nothing(&late).await;
    assert_eq!(served.counters.sum(|part| &part.datagrams_dropped), 1);
    assert_eq!(ask(&clients[0], b"y").await, b"y", "those that were there go on");
}

#[tokio::test]
async fn without_a_member_datagrams_are_dropped_and_counted() {
    let served = served(pool(&[]), UdpSettings::default()).await;
    client(served.address).await.send(b"x").await.expect("send");
    until("it is counted", || served.counters.ended(Reason::NoMember) == 1).await;
    assert_eq!(served.counters.open(), 0);
}

#[tokio::test]
async fn answers_come_from_the_address_that_was_asked() {
    let echo = Echo::start(1).await;
    for bind in ["0.0.0.0:0", "[::]:0"] {
        let pools = Arc::new(Mutex::new(pool(&[echo.address])));
        let served = served_at(bind, SESSIONS_MAX, &pools, UdpSettings::default()).await;
        let client = socket("127.0.0.1:0").await;
        // One socket asks two of our addresses: two sessions, each answering from its own.
        for asked in ["127.0.0.2", "127.0.0.3", "127.0.0.2"] {
            let asked = SocketAddr::new(asked.parse().expect("address"), served.address.port());
            client.send_to(b"x", asked).await.expect("send");
            let (_, from) = soon("answer", client.recv_from(&mut [0; 8])).await.expect("receive");
            assert_eq!(from, asked, "bound to {bind}");
        }
        assert_eq!(served.counters.sum(|part| &part.opened), 2);
        assert_eq!(served.ledger.count("127.0.0.1".parse().expect("address")), 2, "v4-mapped is v4");
    }
}

#[tokio::test]
async fn draining_begins_no_session_and_ends_with_the_last() {
    let echo = Echo::start(1).await;
    let settings = UdpSettings { idle: Duration::from_secs(3), replies: 0 };
    let mut served = served(pool(&[echo.address]), settings).await;
    let (old, new) = (client(served.address).await, client(served.address).await);
    ask(&old, b"x").await;
    served.draining.cancel();
    new.send(b"x").await.expect("send");
    hears_nothing(&new).await;
    assert_eq!(ask(&old, b"y").await, b"y");
    soon("the end", &mut served.task).await.expect("no panic").expect("no error");
    assert_eq!((served.counters.open(), served.ledger.total()), (0, 0));
}

#[tokio::test]
async fn closing_ends_every_session_at_once() {
    let echo = Echo::start(1).await;
    let pool = pool(&[echo.address]);
    let mut served = served(Arc::clone(&pool), UdpSettings::default()).await;
    for _ in 0..5 {
        ask(&client(served.address).await, b"x").await;
    }
    assert_eq!(served.counters.open(), 5);
    served.closing.cancel();
    soon("the end", &mut served.task).await.expect("no panic").expect("no error");
    assert_eq!(served.counters.open(), 0);
    until("sessions are gone", || served.ledger.total() == 0 && pool.views()[0].in_flight == 0).await;
}

#[tokio::test]
async fn a_burst_of_many_clients_is_served() {
    let echo = Echo::start(1).await;
    let served = served(pool(&[echo.address]), UdpSettings::default()).await;
    let mut clients = Vec::new();
    for _ in 0..200 {
        clients.push(client(served.address).await);
    }
    for round in 0..5u8 {
        for client in &clients {
            client.send(&[round]).await.expect("send");
        }
        for client in &clients {
            assert_eq!(receive(client).await, [round]);
        }
    }
    assert_eq!(served.counters.sum(|part| &part.opened), 200);
    assert_eq!(served.counters.sum(|part| &part.datagrams_dropped), 0);
}

/// A backend that sends each datagram of a burst back, as one buffer of parts if it can.
#[tokio::test]
async fn bursts_of_equal_datagrams_keep_their_boundaries_and_order() {
    let backend = socket("127.0.0.1:0").await;
    let served = served(pool(&[backend.local_addr().expect("address")]), UdpSettings::default()).await;
    let client = client(served.address).await;
    for (number, len) in [(30u8, 64usize), (7, 1_400), (3, 9_000), (1, 1)] {
        let datagram = |n: u8| -> Vec<u8> { (0..len).map(|at| n ^ (at % 251) as u8).collect() };
        // The last is shorter.
        let whole: Vec<Vec<u8>> = (0..number)
            .map(|n| datagram(n)[..if n + 1 == number { len.div_ceil(2) } else { len }].to_vec())
            .collect();
        for datagram in &whole {
            client.send(datagram).await.expect("send");
        }
        let mut from = None;
        for datagram in &whole {
            let mut buffer = vec![0; DATAGRAM_MAX];
            let received = soon("a question", backend.recv_from(&mut buffer)).await;
            let (got, session) = received.expect("receive");
            assert!(buffer[..got] == **datagram, "{got} of {len} bytes");
            assert!(from.is_none_or(|from| from == session));
            from = Some(session);
        }
        let (session, all) = (from.expect("a session"), whole.concat());
        if len <= SEGMENT_MAX {
            // As one buffer, which a socket that takes such ones gets as one.
            use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrStorage, sendmsg};
            let (segment, slices) = (len as u16, [io::IoSlice::new(&all)]);
            let control = [ControlMessage::UdpGsoSegments(&segment)];
            let to = SockaddrStorage::from(session);
            let fd = std::os::fd::AsRawFd::as_raw_fd(&backend);
            let sent = sendmsg(fd, &slices, &control, MsgFlags::empty(), Some(&to)).expect("sent");
            assert_eq!(sent, all.len());
        } else {
            for datagram in &whole {
                backend.send_to(datagram, session).await.expect("send");
            }
        }
        for datagram in &whole {
            assert!(receive(&client).await == *datagram, "{len} bytes");
        }
    }
    assert_eq!(served.counters.sum(|part| &part.datagrams_in), 41);
    until("all are counted", || served.counters.sum(|part| &part.datagrams_out) == 41).await;
    assert_eq!(served.counters.sum(|part| &part.datagrams_dropped), 0);
}

#[tokio::test]
async fn thousands_of_clients_come_and_go_and_leave_nothing() {
    let echo = Echo::start(1).await;
    let pool = pool(&[echo.address]);
    let settings = UdpSettings { replies: 1, ..UdpSettings::default() };
    let served = served(Arc::clone(&pool), settings).await;
    for round in 0..20u8 {
        // A client is gone once it has its answer.
        let mut clients = Vec::new();
        for _ in 0..250 {
            let client = client(served.address).await;
            client.send(&[round]).await.expect("send");
            clients.push(client);
        }
        for client in &clients {
            assert_eq!(receive(client).await, [round]);
        }
    }
    until("sessions end", || served.counters.ended(Reason::Replied) == 5_000).await;
    assert_eq!((served.counters.open(), served.ledger.total(), pool.views()[0].in_flight), (0, 0, 0));
    assert_eq!(served.counters.sum(|part| &part.datagrams_dropped), 0);
}

/// The same client goes to the same member, whatever its port, where that is asked for.
#[tokio::test]
async fn members_are_chosen_by_the_pools_algorithm() {
    let backends = [socket("127.0.0.1:0").await, socket("127.0.0.1:0").await, socket("127.0.0.1:0").await];
    let addresses = backends.each_ref().map(|backend| backend.local_addr().expect("address"));
    let member = |address: &SocketAddr| model::Member::new(&address.to_string(), *address);
    for (balance, members) in [(model::Balance::Maglev, 1), (model::Balance::LeastRequest, 3)] {
        let config = model::Pool {
            members: addresses.iter().map(member).collect(),
            balance,
            ..model::Pool::default()
        };
        let pool = Arc::new(Pool::compile("p", &config, &Arc::default(), None));
        let served = served(Arc::clone(&pool), UdpSettings::default()).await;
        // Held to the end: another client might get the port of one that is gone, and with it its session.
        let mut clients = Vec::new();
        for asked in 1..=12 {
            let client = client(served.address).await;
            client.send(b"x").await.expect("send");
            until("a session", || served.counters.sum(|part| &part.opened) == asked).await;
            clients.push(client);
        }
        let used = pool.views().iter().filter(|member| member.in_flight > 0).count();
        assert_eq!(used, members, "{balance:?}");
    }
}

/// `hash` looks at loads too, so each client comes to a pool that has none: as to another node.
#[tokio::test]
async fn a_client_comes_to_the_same_member_by_hash_at_every_node() {
    let backends = [socket("127.0.0.1:0").await, socket("127.0.0.1:0").await, socket("127.0.0.1:0").await];
    let addresses = backends.each_ref().map(|backend| backend.local_addr().expect("address"));
    let member = |address: &SocketAddr| model::Member::new(&address.to_string(), *address);
    let chosen = async |client: u8| {
        let members = addresses.iter().map(member).collect();
        let config = model::Pool { members, balance: model::Balance::Hash, ..model::Pool::default() };
        let pool = Arc::new(Pool::compile("p", &config, &Arc::default(), None));
        let served = served(Arc::clone(&pool), UdpSettings::default()).await;
        let client = socket(&format!("127.0.1.{client}:0")).await;
        client.send_to(b"x", served.address).await.expect("sent");
        until("a session", || pool.views().iter().any(|member| member.in_flight == 1)).await;
        pool.views().iter().position(|member| member.in_flight == 1).expect("one has it")
    };
    let mut used = HashSet::new();
    for client in 1..=12 {
        let first = chosen(client).await;
        assert_eq!(chosen(client).await, first, "client {client}");
        used.insert(first);
    }
    assert!(used.len() > 1, "all went to {used:?}");
}

#[tokio::test]
async fn a_session_moves_when_its_member_goes_down_or_its_time_is_over() {
    let (one, two) = (Echo::start(1).await, Echo::start(1).await);
    let pool = |reset: bool| {
        let member = |address: &SocketAddr| model::Member::new(&address.to_string(), *address);
        let members = [one.address, two.address].iter().map(member).collect();
        let on_down = if reset { model::OnDown::Reset } else { model::OnDown::Keep };
        let settings = model::Pool { members, on_down, ..model::Pool::default() };
        Arc::new(Pool::compile("p", &settings, &Arc::default(), None))
    };
    for (reset, expected) in [(true, 1), (false, 0)] {
        let pool = pool(reset);
        let served = served(Arc::clone(&pool), UdpSettings::default()).await;
        let client = socket("127.0.0.1:0").await;
        client.connect(served.address).await.expect("connect");
        let ask = async || {
            client.send(b"hello").await.expect("sent");
            soon("an answer", client.recv(&mut [0; 64])).await.expect("an answer");
        };
        ask().await;
        let first = pool.views().iter().position(|view| view.in_flight == 1).expect("one has it");
        let name = pool.views()[first].member.clone();
        pool.set_verdicts(&[(name, false)].into());
        ask().await;
        let ended = || served.counters.ended(Reason::MemberDown);
        until("it has moved, or not", || ended() == expected).await;
        let has_it = pool.views().iter().position(|view| view.in_flight == 1).expect("one has it");
        assert_eq!(has_it != first, reset);
    }
}
