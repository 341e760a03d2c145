use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};

use super::backend::{Backend, Kind};
use super::*;

/// A thread with a runtime of its own, for servers; ends with.
struct Servers {
    runtime: tokio::runtime::Runtime,
}

impl Servers {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        Self { runtime: runtime.unwrap() }
    }

    fn backend(&self, name: &str, kind: Kind) -> SocketAddr {
        let listen = "127.0.0.1:0".parse().unwrap();
        let backend = self.runtime.block_on(Backend::bind(name, kind, listen)).unwrap();
        let address = backend.address;
        self.runtime.spawn(backend.serve());
        address
    }

    /// A relay to `to` that hands what comes back through `change`, with the number of the chunk.
    fn relay(&self, to: SocketAddr, change: fn(usize, &mut [u8]) -> bool) -> SocketAddr {
        let listener = self.runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        self.runtime.spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let server = tokio::net::TcpStream::connect(to).await.unwrap();
                    let ((mut from, mut back), (mut answers, mut on)) =
                        (client.into_split(), server.into_split());
                    let up = tokio::spawn(async move { tokio::io::copy(&mut from, &mut on).await });
                    for number in 0.. {
                        let mut bytes = vec![0; 4_096];
                        let Ok(length @ 1..) = answers.read(&mut bytes).await else { break };
                        bytes.truncate(length);
                        if !change(number, &mut bytes) || back.write_all(&bytes).await.is_err() {
                            break;
                        }
                    }
                    up.abort();
                });
            }
        });
        address
    }
}

fn args(kind: LoadKind, target: SocketAddr) -> Args {
    Args {
        name: "a".into(),
        kind,
        target,
        rate: 200,
        time: 500,
        count: 0,
        connections: 4,
        patience: 2_000,
        life: 200,
        asks: vec!["/=b1".parse().unwrap()],
    }
}

fn load(args: &Args) -> Load {
    generate(args, &Arc::new(AtomicBool::new(false))).unwrap()
}

/// Against a backend that serves it.
fn served(kind: LoadKind, by: Kind) -> Load {
    let servers = Servers::new();
    load(&args(kind, servers.backend("b1", by)))
}

#[test]
fn every_kind_of_load_is_answered_and_checked() {
    for (kind, by) in [
        (LoadKind::Probe, Kind::Stream),
        (LoadKind::Http, Kind::Stream),
        (LoadKind::Stream, Kind::Stream),
        (LoadKind::Tcp, Kind::Tcp),
        (LoadKind::Udp, Kind::Udp),
    ] {
        let load = served(kind, by);
        let total = load.total;
        assert_eq!((total.due, total.ok), (100, 100), "{kind:?}: {load:#?}");
        assert_eq!((total.failed, total.wrong, total.cut), (0, 0, 0), "{kind:?}: {load:#?}");
        assert!(load.complete && total.p50 > 0 && total.p50 <= total.max, "{kind:?}");
        assert_eq!(load.measures_outage, kind == LoadKind::Probe);
    }
}

#[test]
fn the_wrong_backend_is_seen_by_every_kind() {
    for (kind, by) in [
        (LoadKind::Probe, Kind::Stream),
        (LoadKind::Http, Kind::Stream),
        (LoadKind::Stream, Kind::Stream),
        (LoadKind::Tcp, Kind::Tcp),
        (LoadKind::Udp, Kind::Udp),
    ] {
        let servers = Servers::new();
        let load = load(&Args { time: 100, ..args(kind, servers.backend("b2", by)) });
        assert_eq!((load.total.ok, load.total.wrong), (0, 20), "{kind:?}: {load:#?}");
        assert!(load.wrong[0].text.contains("b2"), "{:?}", load.wrong[0]);
    }
}

#[test]
fn wrong_bytes_are_seen_by_every_kind() {
    fn last_byte(_: usize, bytes: &mut [u8]) -> bool {
        if let Some(last) = bytes.last_mut() {
            *last ^= 1;
        }
        true
    }
    /// Not in the greeting.
    fn later(number: usize, bytes: &mut [u8]) -> bool {
        number == 0 || last_byte(number, bytes)
    }
    let servers = Servers::new();
    let stream = servers.backend("b1", Kind::Stream);
    let tcp = servers.backend("b1", Kind::Tcp);
    for (kind, target) in [
        (LoadKind::Probe, servers.relay(stream, last_byte)),
        (LoadKind::Http, servers.relay(stream, last_byte)),
        (LoadKind::Tcp, servers.relay(tcp, later)),
    ] {
        let load = load(&Args { time: 100, ..args(kind, target) });
        assert!(load.total.wrong > 0, "{kind:?}: {load:#?}");
    }
}

#[test]
fn wrong_bytes_on_the_way_to_the_backend_are_seen() {
    let servers = Servers::new();
    let target = servers.backend("b1", Kind::Tcp);
    let answer = servers.runtime.block_on(async {
        let mut stream = tokio::net::TcpStream::connect(target).await.unwrap();
        stream.write_all(&7_u64.to_le_bytes()).await.unwrap();
        let mut name = [0; 3];
        stream.read_exact(&mut name).await.unwrap();
        assert_eq!(&name, b"b1\n");
        let mut block = pattern::block(7, pattern::Way::Up, 0);
        block[5] ^= 1;
        stream.write_all(&block).await.unwrap();
        let mut answer = [0; pattern::BLOCK];
        stream.read_exact(&mut answer).await.unwrap();
        answer
    });
    assert_eq!(answer, pattern::refusal(7, 0));
}

#[test]
fn changed_datagrams_are_seen_and_lost_ones_fail() {
    let servers = Servers::new();
    let socket = servers.runtime.block_on(UdpSocket::bind("127.0.0.1:0")).unwrap();
    let target = socket.local_addr().unwrap();
    servers.runtime.spawn(async move {
        let mut buffer = [0; 2_048];
        for number in 0.. {
            let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
            if number % 2 == 0 {
                buffer[length - 1] ^= 1;
                let answer = [b"b1\n", &buffer[..length]].concat();
                socket.send_to(&answer, from).await.unwrap();
            }
        }
    });
    let load = load(&Args { time: 100, ..args(LoadKind::Udp, target) });
    assert_eq!((load.total.wrong, load.total.failed, load.total.ok), (10, 10, 0), "{load:#?}");
}

#[test]
fn a_cut_stream_is_counted_and_another_goes_on() {
    fn short(number: usize, _: &mut [u8]) -> bool {
        number < 5
    }
    let servers = Servers::new();
    let target = servers.relay(servers.backend("b1", Kind::Tcp), short);
    let load = load(&Args { time: 3_000, ..args(LoadKind::Tcp, target) });
    assert!(load.total.cut > 3 && load.total.ok > 30 && load.total.failed > 0, "{load:#?}");
    assert_eq!(load.total.wrong, 0);
}

#[test]
fn a_kept_connection_that_is_cut_in_use_is_counted_and_one_that_ends_at_rest_is_not() {
    fn cut(number: usize, _: &mut [u8]) -> bool {
        number < 3
    }
    let servers = Servers::new();
    let target = servers.relay(servers.backend("b1", Kind::Stream), cut);
    let load = load(&Args { connections: 2, ..args(LoadKind::Http, target) });
    assert!(load.total.cut > 0 && load.total.ok > 0, "{load:#?}");
}

#[test]
fn nobody_there_is_one_long_outage() {
    // Bound, so that nobody else gets it, and not listening.
    let bound = tokio::net::TcpSocket::new_v4().unwrap();
    bound.bind(([127, 0, 0, 1], 0).into()).unwrap();
    let target = bound.local_addr().unwrap();
    let load = load(&args(LoadKind::Probe, target));
    assert_eq!((load.total.due, load.total.failed), (100, 100));
    assert_eq!(load.gaps.len(), 1);
    assert_eq!((load.gaps[0].until, load.gaps[0].failed), (crate::trace::FOREVER, 100));
}

#[test]
fn a_slow_target_does_not_slow_the_clock() {
    let servers = Servers::new();
    let listener = servers.runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let target = listener.local_addr().unwrap();
    // Takes connections and says nothing.
    servers.runtime.spawn(async move {
        let mut kept = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            kept.push(stream);
        }
    });
    let began = std::time::Instant::now();
    let load = load(&Args { patience: 300, ..args(LoadKind::Probe, target) });
    assert_eq!(load.total.due, 100, "all that was due was begun");
    assert_eq!(load.total.failed, 100);
    assert!(began.elapsed() < Duration::from_secs(10));
}

#[test]
fn it_ends_when_it_is_told_to_and_after_its_count() {
    let servers = Servers::new();
    let target = servers.backend("b1", Kind::Stream);
    let counted = load(&Args { time: 60_000, count: 7, ..args(LoadKind::Probe, target) });
    assert_eq!(counted.total.due, 7);
    let stop = Arc::new(AtomicBool::new(true));
    let stopped = generate(&Args { time: 60_000, ..args(LoadKind::Probe, target) }, &stop).unwrap();
    assert_eq!(stopped.total.due, 0);
}

#[test]
fn bad_arguments_are_refused() {
    let target = "127.0.0.1:9".parse().unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    for bad in [
        Args { rate: 0, ..args(LoadKind::Probe, target) },
        Args { rate: RATE_MAX + 1, ..args(LoadKind::Probe, target) },
        Args { connections: 0, ..args(LoadKind::Probe, target) },
        Args { time: u64::MAX, ..args(LoadKind::Probe, target) },
    ] {
        assert!(generate(&bad, &stop).is_err());
    }
    for bad in ["", "b1", "b1=b1", "/ x=b1"] {
        assert!(bad.parse::<Ask>().is_err(), "{bad:?}");
    }
    let ask: Ask = "/b1=b1|b2".parse().unwrap();
    assert_eq!(ask.to_string(), "/b1=b1|b2");
    assert!(ask.allows("b2") && !ask.allows("b3"));
}

/// A stand-in for the generator's process.
fn script(text: &str) -> std::process::Command {
    let mut command = std::process::Command::new("sh");
    command.args(["-c", text]);
    command
}

fn spec() -> Spec {
    Spec {
        patience: Duration::ZERO,
        ..Spec::probe("a", "127.0.0.1:9".parse().unwrap(), Duration::ZERO, Vec::new())
    }
}

#[test]
fn what_a_generator_saw_is_written_down_in_the_times_of_the_run() {
    let recorder = crate::trace::Recorder::new(crate::trace::Run::default(), Vec::new());
    let mut load = Load { complete: true, ..Load::default() };
    load.seconds.push(crate::trace::Second { at: recorder.began() + 5, ..Default::default() });
    load.gaps.push(crate::trace::Gap {
        from: recorder.began() + 7,
        until: crate::trace::FOREVER,
        failed: 1,
        lag: 0,
    });
    let line = serde_json::to_string(&Line::Load(Box::new(load))).unwrap();
    let text = format!("echo '\"ready\"'; read -r _; echo '{line}'");
    let driver = Driver::start(script(&text), Spec { node: Some("n1".into()), ..spec() }).unwrap();
    driver.finish(&recorder);
    let trace = recorder.finish();
    let load = &trace.loads[0];
    assert!(load.complete && load.node.as_deref() == Some("n1"), "{load:?}");
    assert_eq!((load.seconds[0].at, load.gaps[0].from, load.gaps[0].until), (5, 7, crate::trace::FOREVER));
}

#[test]
fn a_generator_that_dies_is_not_taken_for_one_that_saw_nothing() {
    let recorder = crate::trace::Recorder::new(crate::trace::Run::default(), Vec::new());
    Driver::start(script("echo '\"ready\"'"), spec()).unwrap().finish(&recorder);
    let trace = recorder.finish();
    assert!(!trace.loads[0].complete);
    assert!(trace.notes[0].text.contains("did not tell"), "{:?}", trace.notes);
    assert!(Driver::start(script("exit 3"), spec()).is_err());
    assert!(Driver::start(script("echo nonsense"), spec()).is_err());
}
