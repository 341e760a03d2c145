//! A listener on a range of ports. A process of its own, for its descriptors, threads and memory are counted.

mod plane;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use trestle_config::{Config, Contents};
use trestle_dataplane::{Install, Plane};

const PATIENCE: Duration = Duration::from_secs(20);
const PORTS: u16 = 1_000;
const WORKERS: usize = 2;

/// Members are at other addresses of loopback, at the same ports.
const MEMBERS: [&str; 2] = ["127.0.0.2", "127.0.0.3"];

/// The first of so many ports in a row that nobody uses, below those that the system chooses from.
fn free_range() -> u16 {
    let first = 10_000 + (std::process::id() % 16) as u16 * PORTS;
    let free = |first: &u16| {
        (*first..first + PORTS).all(|port| {
            UdpSocket::bind(("0.0.0.0", port)).is_ok() && TcpListener::bind(("0.0.0.0", port)).is_ok()
        })
    };
    (0..20).map(|turn| 10_000 + (first - 10_000 + turn * PORTS) % 20_000).find(free).expect("a free range")
}

fn config(first: u16, ports: u16) -> Config {
    let members = MEMBERS.map(|member| format!("\"{member}:5060\"")).join(", ");
    let last = first + ports - 1;
    let text = format!(
        "listeners:\n  voip: {{ bind: \"127.0.0.1:{first}-{last}\", protocol: tcp+udp, pool: media, udp: {{ idle: 2s }} }}\n\
         pools:\n  media: {{ members: [{members}], balance: maglev, health: off }}\n"
    );
    let source = trestle_config::Source { name: "test", text: &text };
    let document = trestle_config::parse(source).unwrap_or_else(|problems| panic!("{problems}"));
    Config::clone(document.config())
}

fn install(plane: &Plane, revision: u64, config: Config) -> Vec<Result<SocketAddr, String>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let install = Install {
        revision,
        config: Arc::new(config),
        route_births: Arc::default(),
        contents: Contents::default(),
        orders: Arc::default(),
    };
    runtime.block_on(plane.install(install)).into_iter().map(|bound| bound.state).collect()
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("proc").count()
}

/// A line of /proc/self/status, as a number.
fn status(name: &str) -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("proc");
    let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("there");
    line.trim_start_matches(':').split_whitespace().next().expect("a value").parse().expect("a number")
}

fn metrics(plane: &Plane) -> String {
    let mut text = String::new();
    plane.render_metrics(&mut text);
    text
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A stream of a call: a sender of numbered packets, and both members at the same port.
struct Flow {
    port: u16,
    caller: UdpSocket,
    members: Vec<UdpSocket>,
}

impl Flow {
    fn begin(port: u16) -> Self {
        let at = |ip: &str, port: u16| {
            let socket = UdpSocket::bind((ip, port)).expect("bind");
            socket.set_nonblocking(true).expect("an option");
            socket
        };
        let caller = at("127.0.0.1", 0);
        caller.connect(("127.0.0.1", port)).expect("connect");
        Self { port, caller, members: MEMBERS.iter().map(|member| at(member, port)).collect() }
    }

    /// An RTP packet (RFC 3550, section 5.1) of 20 ms of G.711 with this sequence number.
    fn packet(&self, sequence: u16) -> Vec<u8> {
        let mut packet = vec![0x80, 0];
        packet.extend(sequence.to_be_bytes());
        packet.extend((u32::from(sequence) * 160).to_be_bytes());
        packet.extend(u32::from(self.port).to_be_bytes());
        packet.resize(12 + 160, 0xd5);
        packet
    }

    /// The next packet to whichever member it goes to: which one, from where, and the packet.
    fn heard(&self) -> (usize, SocketAddr, Vec<u8>) {
        let (mut heard, mut buffer) = (None, [0; 2048]);
        until("a packet", || {
            let each = self.members.iter().enumerate();
            heard = each.filter_map(|(at, member)| Some((at, member.recv_from(&mut buffer).ok()?))).next();
            heard.is_some()
        });
        let (at, (len, from)) = heard.expect("heard");
        (at, from, buffer[..len].to_vec())
    }

    fn answered(&self) -> Vec<u8> {
        let (mut len, mut buffer) = (None, [0; 2048]);
        until("an answer", || {
            len = self.caller.recv(&mut buffer).ok();
            len.is_some()
        });
        buffer[..len.expect("answered")].to_vec()
    }
}

fn calls_go_to_the_same_port_of_one_member(first: u16) {
    // RTP and RTCP of ten calls, on ports far from each other.
    let ports = (0..10).flat_map(|call| [first + call * 100, first + call * 100 + 1]);
    let flows: Vec<Flow> = ports.chain([first + PORTS - 1]).map(Flow::begin).collect();
    let mut of = None;
    for sequence in 0..20 {
        for flow in &flows {
            flow.caller.send(&flow.packet(sequence)).expect("send");
        }
        for flow in &flows {
            let (member, from, packet) = flow.heard();
            assert!(packet == flow.packet(sequence), "port {}, packet {sequence}", flow.port);
            // One client, one member: by its address, whatever its ports.
            assert_eq!(*of.get_or_insert(member), member, "port {}", flow.port);
            flow.members[member].send_to(&packet, from).expect("send");
            assert!(flow.answered() == flow.packet(sequence));
        }
    }
}

fn connections_go_to_the_same_port(first: u16) {
    for port in [first, first + 1, first + 555, first + PORTS - 1] {
        let members = MEMBERS.map(|member| TcpListener::bind((member, port)).expect("bind"));
        let mut caller = TcpStream::connect(("127.0.0.1", port)).expect("connects");
        caller.write_all(b"INVITE").expect("written");
        members.iter().for_each(|member| member.set_nonblocking(true).expect("an option"));
        let mut accepted = None;
        until("a connection", || {
            accepted = members.iter().find_map(|member| member.accept().ok());
            accepted.is_some()
        });
        let (mut stream, _) = accepted.expect("accepted");
        stream.set_nonblocking(false).expect("an option");
        stream.set_read_timeout(Some(PATIENCE)).expect("an option");
        let mut heard = [0; 6];
        stream.read_exact(&mut heard).expect("read");
        assert_eq!(&heard, b"INVITE");
    }
}

/// A port at which no member listens says nothing of the members.
fn a_silent_port_ejects_nobody(plane: &Plane, first: u16) {
    for port in first + 700..first + 712 {
        let caller = UdpSocket::bind("127.0.0.1:0").expect("bind");
        caller.send_to(b"?", ("127.0.0.1", port)).expect("send");
        let refused = TcpStream::connect(("127.0.0.1", port)).and_then(|mut stream| stream.read(&mut [0; 1]));
        assert!(refused.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset));
    }
    let ended = r#"trestle_listener_ended_total{listener="voip",reason="upstream_unreachable"} 12"#;
    until("sessions end", || metrics(plane).contains(ended));
    assert!(plane.members().iter().all(|member| !member.ejected), "{:?}", plane.members());
}

#[test]
fn a_thousand_ports_are_one_listener() {
    let plane = Plane::start(plane::options(NonZeroUsize::new(WORKERS).expect("some"))).expect("a plane");
    let first = free_range();
    // What the first listener of any kind costs is not the range's.
    let one = install(&plane, 1, config(first, 2));
    assert_eq!(one, [Ok(SocketAddr::from(([127, 0, 0, 1], first)))]);
    let (open, threads, memory) = (descriptors(), status("Threads"), status("VmRSS"));

    // From two ports to a thousand in one revision, over the same ports.
    assert_eq!(install(&plane, 2, config(first, PORTS)), one);
    until("the old sockets are closed", || descriptors() <= open + 2 * usize::from(PORTS));
    let more = descriptors() - open;
    // One descriptor a port and transport, and not one for each worker.
    assert!(more <= 2 * usize::from(PORTS), "{more} descriptors more");
    assert_eq!(status("Threads"), threads);
    // In KiB; the kernel's part of a socket is not in it.
    let grown = status("VmRSS").saturating_sub(memory);
    assert!(grown < 4 * 1024, "{grown} KiB more");

    calls_go_to_the_same_port_of_one_member(first);
    connections_go_to_the_same_port(first);
    a_silent_port_ejects_nobody(&plane, first);

    // A port that somebody else has: the listener says which one, and has none of the others.
    assert_eq!(install(&plane, 3, Config::default()), []);
    until("all are closed", || descriptors() < open + 20);
    let taken = UdpSocket::bind(("127.0.0.1", first + 77)).expect("bind");
    let refused = install(&plane, 4, config(first, 100));
    assert!(
        refused[0].as_ref().is_err_and(|error| error.contains(&format!("port {}", first + 77))),
        "{refused:?}"
    );
    drop(taken);
    plane.shutdown();
}
