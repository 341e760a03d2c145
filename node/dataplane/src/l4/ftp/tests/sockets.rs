//! A client, a server that says what the test says, and the proxy between them.

use std::rc::Rc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket};
use tokio::task::{JoinHandle, LocalSet, spawn_local};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use trestle_config::model;

use super::super::super::Carriage;
use super::*;
use crate::metrics::ListenerCounters;

/// Longer than anything here may take on a busy machine.
const DEADLINE: Duration = Duration::from_secs(20);

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("{what} did not happen"))
}

struct Scene {
    pool: Arc<Pool>,
    carriage: Arc<Carriage>,
    client: TcpStream,
    server: TcpStream,
    proxy: JoinHandle<Ended>,
    transfers: Rc<RefCell<Vec<(Mode, Ended)>>>,
    counters: Arc<ListenerCounters>,
    closing: CancellationToken,
}

async fn bound(ip: &str) -> TcpListener {
    TcpListener::bind((ip, 0)).await.expect("bind")
}

/// A greeted control connection between a client and a server at these addresses.
async fn scene(client: &str, server: &str, settings: TcpSettings) -> Scene {
    let (ours, theirs) = (bound(client).await, bound(server).await);
    let at = theirs.local_addr().expect("bound");
    let members = vec![model::Member::new("m", at)];
    let (health, on_down) = (Some(model::HealthCheck::default()), model::OnDown::Reset);
    let config = model::Pool { members, health, on_down, ..model::Pool::default() };
    let pool = Arc::new(Pool::compile("p", &config, &Arc::default(), None));
    let local = ours.local_addr().expect("bound");
    let (client, accepted) = tokio::join!(TcpStream::connect(local), ours.accept());
    let (accepted, peer) = accepted.expect("accept");
    let (counters, closing) = (Arc::new(ListenerCounters::new("raw", 1)), CancellationToken::new());
    let carriage = Arc::<Carriage>::default();
    let cx = ConnCx {
        worker: 0,
        listener: Arc::clone(&counters),
        closing: closing.clone(),
        port: None,
        carriage: Arc::clone(&carriage),
    };
    let given = Arc::clone(&pool);
    let transfers = Rc::new(RefCell::new(Vec::new()));
    let noted = Rc::clone(&transfers);
    let proxy = spawn_local(async move {
        let ended = |transfer: Transfer| noted.borrow_mut().push((transfer.mode, transfer.ended));
        let random = || 0;
        // Whatever the kernel has free.
        let ftp = FtpSettings { ports: 20_000..=29_999, auth: model::FtpAuth::Pass };
        let ftp = Ftp { settings: &ftp, listener: "ftp", random: &random, ended: &ended };
        let ends = Ends { client: peer, local };
        proxy(accepted, (&ends, &Facts::default()), given, &settings, (&ftp, cx)).await
    });
    let (server, _) = soon("connect", theirs.accept()).await.expect("accept");
    let mut scene = Scene {
        pool,
        carriage,
        client: client.expect("connect"),
        server,
        proxy,
        transfers,
        counters,
        closing,
    };
    scene.answers("220 ready", "220 ready").await;
    scene
}

async fn line(stream: &mut TcpStream) -> String {
    let mut line = Vec::new();
    while !line.ends_with(b"\n") {
        line.push(soon("a line", stream.read_u8()).await.expect("a byte"));
    }
    String::from_utf8(line).expect("text").trim_end().to_owned()
}

impl Scene {
    /// The client says this; what the server hears.
    async fn asks(&mut self, command: &str) -> String {
        self.client.write_all(format!("{command}\r\n").as_bytes()).await.expect("written");
        line(&mut self.server).await
    }

    /// The server says this, and the client hears that.
    async fn answers(&mut self, reply: &str, heard: &str) {
        assert_eq!(self.says(reply).await, heard);
    }

    async fn says(&mut self, reply: &str) -> String {
        self.server.write_all(format!("{reply}\r\n").as_bytes()).await.expect("written");
        line(&mut self.client).await
    }

    /// The port of ours that the client hears of, and where the server awaits data.
    async fn passive(&mut self) -> (u16, TcpListener) {
        let awaiting = bound("127.0.0.1").await;
        let port = awaiting.local_addr().expect("bound").port();
        assert_eq!(self.asks("EPSV").await, "EPSV");
        let told = self.says(&format!("229 Entering Extended Passive Mode (|||{port}|)")).await;
        (reply::extended_port(told.as_bytes()).expect("a port"), awaiting)
    }

    /// A passive data connection: the client's end and the server's.
    async fn data(&mut self) -> (TcpStream, TcpStream) {
        let (port, awaiting) = self.passive().await;
        let client = soon("connect", TcpStream::connect(("127.0.0.1", port))).await.expect("connect");
        let (server, _) = soon("data", awaiting.accept()).await.expect("accept");
        (client, server)
    }

    async fn ended(self) -> Ended {
        drop((self.client, self.server));
        let ended = soon("end", self.proxy).await.expect("the proxy does not panic");
        assert_eq!((self.counters.open(), self.counters.doors.open()), (0, 0));
        ended
    }
}

async fn sees_reset(stream: &mut TcpStream) {
    let read = soon("reset", stream.read(&mut [0; 16])).await;
    assert_eq!(read.expect_err("no orderly end").kind(), io::ErrorKind::ConnectionReset);
}

async fn local(test: impl AsyncFnOnce()) {
    LocalSet::new().run_until(test()).await;
}

#[tokio::test]
async fn data_flows_both_ways_and_counts_as_the_listener_s() {
    local(async || {
        let mut scene = scene("127.0.0.1", "127.0.0.1", TcpSettings::default()).await;
        let (mut client, mut server) = scene.data().await;
        server.write_all(&vec![7; 1 << 20]).await.expect("written");
        server.shutdown().await.expect("shutdown");
        let mut got = Vec::new();
        soon("all", client.read_to_end(&mut got)).await.expect("in order");
        assert!(got == vec![7; 1 << 20]);
        client.write_all(b"thanks").await.expect("half open");
        client.shutdown().await.expect("shutdown");
        let mut got = Vec::new();
        soon("all", server.read_to_end(&mut got)).await.expect("in order");
        assert_eq!(got, b"thanks");
        scene.answers("226 done", "226 done").await;
        soon("the transfer is told of", async {
            while scene.transfers.borrow().is_empty() {
                sleep(Duration::from_millis(1)).await;
            }
        })
        .await;
        {
            let transfers = scene.transfers.borrow();
            let (mode, ended) = &transfers[0];
            assert_eq!((*mode, ended.reason), (Mode::Passive, Reason::Done));
            assert_eq!((ended.bytes_in, ended.bytes_out), (6, 1 << 20));
            assert_eq!(ended.member.as_ref().map(|member| member.name()), Some("m"));
        }
        let counters = Arc::clone(&scene.counters);
        assert_eq!(counters.sum(|part| &part.opened), 2);
        assert!(counters.sum(|part| &part.bytes_out) > 1 << 20);
        let ended = scene.ended().await;
        assert_eq!((ended.reason, counters.ended(Reason::Done)), (Reason::Done, 2));
        // Of the control connection alone.
        assert!(ended.bytes_out < 200, "{}", ended.bytes_out);
    })
    .await;
}

#[tokio::test]
async fn an_active_server_comes_to_us_and_the_client_sees_the_address_that_it_knows() {
    local(async || {
        for (client_ip, server_ip) in [("127.0.0.1", "127.0.0.1"), ("::1", "127.0.0.1"), ("127.0.0.1", "::1")]
        {
            let mut scene = scene(client_ip, server_ip, TcpSettings::default()).await;
            let awaiting = bound(client_ip).await;
            let at = awaiting.local_addr().expect("bound");
            let asked = match at.ip() {
                IpAddr::V4(ip) => format!("PORT {}", command::six_text(ip, at.port())),
                IpAddr::V6(ip) => format!("EPRT |2|{ip}|{}|", at.port()),
            };
            let heard = scene.asks(&asked).await;
            let (command::Command::Port(named) | command::Command::Eprt(named)) =
                command::parse(heard.as_bytes())
            else {
                panic!("{heard}");
            };
            let command::Named::At(ours) = named else { panic!("{heard}") };
            assert_eq!(ours.ip().to_string(), server_ip, "at our address on the server's side");
            scene.answers("200 Ok", "200 Ok").await;
            let mut server = soon("connect", TcpStream::connect(ours)).await.expect("connect");
            let (mut client, from) = soon("data", awaiting.accept()).await.expect("accept");
            assert_eq!(from.ip().to_string(), client_ip);
            client.write_all(b"an upload").await.expect("written");
            client.shutdown().await.expect("shutdown");
            let mut got = Vec::new();
            soon("all", server.read_to_end(&mut got)).await.expect("in order");
            assert_eq!(got, b"an upload");
            drop((server, client));
            let transfers = Rc::clone(&scene.transfers);
            assert_eq!(scene.ended().await.reason, Reason::Done);
            let transfers = transfers.borrow();
            assert_eq!((transfers[0].0, transfers[0].1.bytes_in), (Mode::Active, 9));
        }
    })
    .await;
}

#[tokio::test]
async fn nobody_else_gets_a_client_s_data() {
    local(async || {
        let mut scene = scene("127.0.0.1", "127.0.0.1", TcpSettings::default()).await;
        let (port, awaiting) = scene.passive().await;
        let thief = TcpSocket::new_v4().expect("socket");
        thief.bind("127.0.0.2:0".parse().expect("an address")).expect("bind");
        let mut thief = thief.connect(([127, 0, 0, 1], port).into()).await.expect("the kernel accepts");
        sees_reset(&mut thief).await;
        let mut client = TcpStream::connect(("127.0.0.1", port)).await.expect("connect");
        let (mut server, _) = soon("data", awaiting.accept()).await.expect("accept");
        server.write_all(b"x").await.expect("written");
        assert_eq!(soon("x", client.read_u8()).await.expect("a byte"), b'x');
        drop((client, server));
        let counters = Arc::clone(&scene.counters);
        scene.ended().await;
        assert_eq!(counters.ended(Reason::FtpForeign), 1);
    })
    .await;
}

#[tokio::test]
async fn a_later_door_closes_the_one_before_it() {
    local(async || {
        let mut scene = scene("127.0.0.1", "127.0.0.1", TcpSettings::default()).await;
        let (first, _awaiting) = scene.passive().await;
        let (second, awaiting) = scene.passive().await;
        assert_eq!(scene.counters.doors.open(), 1);
        if first != second {
            TcpStream::connect(("127.0.0.1", first)).await.expect_err("closed");
        }
        let client = TcpStream::connect(("127.0.0.1", second)).await.expect("open");
        let (server, _) = soon("data", awaiting.accept()).await.expect("accept");
        drop((client, server));
        assert_eq!(scene.counters.doors.open(), 0, "who has come closes it behind him");
        scene.ended().await;
    })
    .await;
}

#[tokio::test]
async fn a_client_has_so_many_data_connections_and_no_more() {
    local(async || {
        let mut scene = scene("127.0.0.1", "127.0.0.1", TcpSettings::default()).await;
        let mut held = Vec::new();
        for _ in 0..TRANSFERS_MAX {
            held.push(scene.data().await);
        }
        assert_eq!(scene.asks("EPSV").await, "EPSV");
        scene.answers("229 (|||6446|)", "425 No port is free for a data connection.").await;
        held.pop();
        soon("there is room again", async {
            while scene.transfers.borrow().is_empty() {
                sleep(Duration::from_millis(1)).await;
            }
        })
        .await;
        held.push(scene.data().await);
        drop(held);
        scene.ended().await;
    })
    .await;
}

#[tokio::test]
async fn a_control_connection_whose_data_moves_is_not_idle() {
    local(async || {
        let settings = TcpSettings { idle: Duration::from_secs(2), ..TcpSettings::default() };
        let mut scene = scene("127.0.0.1", "127.0.0.1", settings).await;
        let (mut client, mut server) = scene.data().await;
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(3_000) {
            sleep(Duration::from_millis(500)).await;
            server.write_all(b"x").await.expect("written");
            soon("x", client.read_u8()).await.expect("still open");
        }
        let quiet = Instant::now();
        scene.answers("226 done", "226 done").await;
        let counters = Arc::clone(&scene.counters);
        sees_reset(&mut scene.client).await;
        assert!(quiet.elapsed() >= Duration::from_millis(1_950), "after {:?}", quiet.elapsed());
        sees_reset(&mut client).await;
        let reason = scene.ended().await.reason;
        assert_eq!((reason, counters.ended(Reason::Idle) >= 1), (Reason::Idle, true));
    })
    .await;
}

#[tokio::test]
async fn data_outlives_a_control_connection_that_ends_in_order_and_no_other() {
    local(async || {
        let mut scene = scene("127.0.0.1", "127.0.0.1", TcpSettings::default()).await;
        let (mut client, mut server) = scene.data().await;
        assert_eq!(scene.asks("QUIT").await, "QUIT");
        scene.client.shutdown().await.expect("shutdown");
        scene.server.shutdown().await.expect("shutdown");
        assert_eq!(soon("fin", scene.client.read(&mut [0; 1])).await.expect("in order"), 0);
        server.write_all(b"the rest").await.expect("written");
        drop(server);
        let mut got = Vec::new();
        soon("all", client.read_to_end(&mut got)).await.expect("in order");
        assert_eq!(got, b"the rest");
        drop(client);
        assert_eq!(scene.ended().await.reason, Reason::Done);
    })
    .await;
    local(async || {
        let mut scene = scene("127.0.0.1", "127.0.0.1", TcpSettings::default()).await;
        let (mut client, mut server) = scene.data().await;
        SockRef::from(&scene.client).set_linger(Some(Duration::ZERO)).expect("linger");
        let counters = Arc::clone(&scene.counters);
        assert_eq!(scene.ended().await.reason, Reason::ClientGone);
        sees_reset(&mut client).await;
        sees_reset(&mut server).await;
        assert_eq!(counters.ended(Reason::ClientGone), 2);
    })
    .await;
}

#[tokio::test]
async fn what_is_cut_is_cut_with_its_data() {
    local(async || {
        let mut scene = scene("127.0.0.1", "127.0.0.1", TcpSettings::default()).await;
        let (mut client, mut server) = scene.data().await;
        scene.closing.cancel();
        for stream in [&mut client, &mut server, &mut scene.client, &mut scene.server] {
            sees_reset(stream).await;
        }
        let (counters, transfers) = (Arc::clone(&scene.counters), Rc::clone(&scene.transfers));
        assert_eq!(scene.ended().await.reason, Reason::Closing);
        assert_eq!((counters.ended(Reason::Closing), transfers.borrow().len()), (2, 1));
    })
    .await;
}

#[tokio::test]
async fn what_ends_with_its_member_ends_with_its_data() {
    local(async || {
        let mut scene = scene("127.0.0.1", "127.0.0.1", TcpSettings::default()).await;
        let (mut client, mut server) = scene.data().await;
        scene.pool.set_verdicts(&[("m".to_owned(), false)].into());
        assert!(scene.carriage.is_over());
        // The worker wakes it; here something comes.
        scene.server.write_all(b"421 Going down").await.expect("written");
        for stream in [&mut client, &mut server, &mut scene.server] {
            sees_reset(stream).await;
        }
        assert_eq!(scene.ended().await.reason, Reason::MemberDown);
    })
    .await;
}

#[tokio::test]
async fn a_member_that_is_not_there_for_data_resets_it_and_is_not_blamed() {
    local(async || {
        let mut scene = scene("127.0.0.1", "127.0.0.1", TcpSettings::default()).await;
        for _ in 0..8 {
            let (port, awaiting) = scene.passive().await;
            drop(awaiting);
            let mut client = TcpStream::connect(("127.0.0.1", port)).await.expect("connect");
            sees_reset(&mut client).await;
        }
        assert_eq!(scene.asks("NOOP").await, "NOOP");
        scene.answers("200 Ok", "200 Ok").await;
        let counters = Arc::clone(&scene.counters);
        scene.ended().await;
        assert_eq!(counters.ended(Reason::ConnectFailed), 8);
    })
    .await;
}

#[tokio::test]
async fn an_urgent_abor_arrives_whole() {
    local(async || {
        let mut scene = scene("127.0.0.1", "127.0.0.1", TcpSettings::default()).await;
        let socket = SockRef::from(&scene.client);
        socket.send_out_of_band(b"\xff\xf4\xff").expect("sent");
        socket.send_out_of_band(b"\xf2ABOR\r\n").expect("sent");
        assert_eq!(line(&mut scene.server).await, "ABOR");
        scene.ended().await;
    })
    .await;
}

#[tokio::test]
async fn a_command_that_has_no_end_ends_the_connection() {
    local(async || {
        let mut scene = scene("127.0.0.1", "127.0.0.1", TcpSettings::default()).await;
        let long = vec![b'x'; 2 * super::super::line::LINE_MAX];
        // It may be over before all is written.
        let _ = scene.client.write_all(&long).await;
        sees_reset(&mut scene.server).await;
        assert_eq!(scene.ended().await.reason, Reason::ProtocolError);
    })
    .await;
}
