//! `examples/dns-server.yaml` and `examples/voip.yaml` as they stand, with their addresses mapped: a real DNS
//! server asked by dig, over UDP and TCP; calls over SIP with media over a range of ports.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::ensure;
use trestle_tests::lan::{Lan, VIP};
use trestle_tests::{Cluster, eventually, example, free_address, http, peers};

const SOON: Duration = Duration::from_secs(15);

fn metric(admin: SocketAddr, name: &str) -> anyhow::Result<u64> {
    let text = http::get(admin, "localhost", "/metrics")?.text();
    let sum =
        text.lines().filter_map(|line| line.strip_prefix(name)?.split(' ').next_back()?.parse::<u64>().ok());
    Ok(sum.sum())
}

// === DNS ===

/// An unbound that knows one zone and asks nobody.
struct Unbound {
    process: Child,
    address: SocketAddr,
    dir: tempfile::TempDir,
}

impl Unbound {
    /// `name` is the answer to `TXT who.example.test`. It answers.
    ///
    /// Its port is held for TCP; somebody else's socket may have it for UDP, so another is tried then.
    fn start(ip: &str, name: &str) -> Self {
        let mut said = String::new();
        for _ in 0..5 {
            let mut server = Self::start_at(free_address(ip.parse().expect("an address")), name);
            let deadline = Instant::now() + SOON;
            while Instant::now() < deadline && server.process.try_wait().expect("a child of ours").is_none() {
                match dig(server.address, &["www.example.test"]) {
                    Ok(_) => return server,
                    Err(e) => said = e.to_string(),
                }
                std::thread::sleep(Duration::from_millis(50));
            }
            said += &std::fs::read_to_string(server.dir.path().join("log")).unwrap_or_default();
        }
        panic!("unbound does not answer: {said}");
    }

    fn start_at(address: SocketAddr, name: &str) -> Self {
        let (ip, port) = (address.ip(), address.port());
        let dir = tempfile::tempdir().expect("a folder");
        let large = "0123456789".repeat(20);
        let large: Vec<_> = (0..40)
            .map(|n| format!("  local-data: 'large.example.test. 60 IN TXT \"{n} {large}\"'\n"))
            .collect();
        let config = format!(
            "server:\n  interface: {ip}\n  port: {port}\n  chroot: \"\"\n  username: \"\"\n  directory: \"{}\"\n  \
               pidfile: \"{}/pid\"\n  use-syslog: no\n  do-daemonize: no\n  num-threads: 1\n  module-config: iterator\n  \
               access-control: 127.0.0.0/8 allow\n  local-zone: example.test. static\n  \
               local-data: 'www.example.test. 60 IN A 198.51.100.7'\n  \
               local-data: 'who.example.test. 60 IN TXT \"{name}\"'\n{}\
             remote-control:\n  control-enable: no\n",
            dir.path().display(),
            dir.path().display(),
            large.concat(),
        );
        let file = dir.path().join("unbound.conf");
        std::fs::write(&file, config).expect("written");
        let mut command = Command::new("/usr/sbin/unbound");
        let log = std::fs::File::create(dir.path().join("log")).expect("created");
        command.arg("-c").arg(&file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let process = command.spawn().expect("unbound starts");
        Self { process, address, dir }
    }
}

impl Drop for Unbound {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn dig(at: SocketAddr, args: &[&str]) -> anyhow::Result<String> {
    let mut command = Command::new("dig");
    command.arg(format!("@{}", at.ip())).args([
        "-p",
        &at.port().to_string(),
        "+time=3",
        "+tries=2",
        "+short",
    ]);
    let output = command.args(args).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "dig {args:?}: {text}");
    Ok(text)
}

#[test]
fn dns_servers_are_asked_over_udp_and_tcp_at_one_listener() {
    if !peers::have(&["dig", "unbound"]) {
        return;
    }
    let mut servers = vec![Unbound::start("127.0.0.1", "one"), Unbound::start("127.0.0.1", "two")];
    let config = example(
        "dns-server.yaml",
        &[
            ("0.0.0.0:53", "127.0.0.1:0".to_owned()),
            ("192.0.2.61:53", servers[0].address.to_string()),
            ("192.0.2.62:53", servers[1].address.to_string()),
        ],
    );
    let cluster = Cluster::start(1, &config);
    let node = &cluster.nodes[0];
    let dns = node.listener("dns").expect("bound");

    // The same port, over UDP and TCP.
    for transport in ["+notcp", "+tcp"] {
        let answer = dig(dns, &[transport, "www.example.test"]).expect("an answer");
        assert_eq!(answer, "198.51.100.7\n", "{transport}");
    }
    // An answer too large for a datagram of 512 bytes is cut, and asked for again over TCP.
    let large = dig(dns, &["+bufsize=512", "TXT", "large.example.test"]).expect("an answer");
    assert_eq!(large.lines().count(), 40);
    // One of 4,096 bytes or more in one datagram is passed on whole.
    let large = dig(dns, &["+notcp", "+ignore", "+bufsize=65000", "+noedns", "TXT", "large.example.test"]);
    assert!(large.is_ok(), "{large:?}");

    // Each answer ends its session; none waits for its idle time.
    eventually(SOON, "sessions end", || {
        let replied = metric(
            node.admin().expect("an address"),
            r#"trestle_listener_ended_total{listener="dns",reason="replied"}"#,
        )?;
        ensure!(replied >= 3, "{replied}");
        Ok(())
    });

    // A server that goes is found by its check, or by its first refusal; dig asks again.
    drop(servers.remove(0));
    eventually(SOON, "the other server answers", || {
        for _ in 0..8 {
            let who = dig(dns, &["+tries=1", "TXT", "who.example.test"])?;
            ensure!(who == "\"two\"\n", "{who}");
        }
        Ok(())
    });
}

// === telephony ===

/// An exchange at an address of its own: answers SIP, and sends media back on the ports that it was given.
struct Exchange {
    ip: Ipv4Addr,
    ends: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    /// Ports at which it heard media.
    heard: Arc<Mutex<Vec<u16>>>,
}

impl Exchange {
    fn start(ip: Ipv4Addr, sip: u16, media: &[u16]) -> Self {
        let (ends, heard) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let mut threads = Vec::new();
        for port in media.iter().copied().chain([sip]) {
            let socket = UdpSocket::bind((ip, port)).expect("bind");
            socket.set_read_timeout(Some(Duration::from_millis(50))).expect("an option");
            let (ends, heard) = (Arc::clone(&ends), Arc::clone(&heard));
            threads.push(std::thread::spawn(move || {
                let mut buffer = [0; 4096];
                while !ends.load(Relaxed) {
                    let Ok((len, from)) = socket.recv_from(&mut buffer) else { continue };
                    if port == sip {
                        let answer =
                            format!("SIP/2.0 200 OK\r\nContact: <sip:{ip}>\r\nContent-Length: 0\r\n\r\n");
                        let _ = socket.send_to(answer.as_bytes(), from);
                    } else {
                        heard.lock().expect("whole").push(port);
                        let _ = socket.send_to(&buffer[..len], from);
                    }
                }
            }));
        }
        Self { ip, ends, threads, heard }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.ends.store(true, Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// The first of a thousand ports in a row that nobody uses, below those that the system chooses from.
fn free_range() -> u16 {
    let offset = (std::process::id() % 16) as u16;
    let free = |first: &u16| (*first..first + 1_000).all(|port| UdpSocket::bind(("0.0.0.0", port)).is_ok());
    (0..20).map(|turn| 10_000 + (offset + turn) % 20 * 1_000).find(free).expect("a free range")
}

#[test]
fn calls_have_their_signalling_and_their_media_at_one_member() {
    let first = free_range();
    let media: Vec<u16> = (0..8).flat_map(|call| [first + call * 120, first + call * 120 + 1]).collect();
    let exchanges = [2, 3].map(|last| Exchange::start(Ipv4Addr::new(127, 0, 0, last), 5060, &media));
    let config = example(
        "voip.yaml",
        &[
            ("0.0.0.0:5060", "127.0.0.1:0".to_owned()),
            ("0.0.0.0:10000-10999", format!("127.0.0.1:{first}-{}", first + 999)),
            ("192.0.2.71:5060", "127.0.0.2:5060".to_owned()),
            ("192.0.2.72:5060", "127.0.0.3:5060".to_owned()),
        ],
    );
    let cluster = Cluster::start(1, &config);
    let sip = cluster.nodes[0].listener("sip").expect("bound");

    let caller = |to: SocketAddr| {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("bind");
        socket.set_read_timeout(Some(Duration::from_secs(5))).expect("an option");
        socket.connect(to).expect("connect");
        socket
    };
    let ask = |socket: &UdpSocket, bytes: &[u8]| -> anyhow::Result<Vec<u8>> {
        socket.send(bytes)?;
        let mut buffer = [0; 4096];
        let len = socket.recv(&mut buffer)?;
        Ok(buffer[..len].to_vec())
    };
    let signalling = caller(sip);
    let answer = ask(&signalling, b"INVITE sip:b@example.test SIP/2.0\r\n\r\n").expect("an answer");
    let answer = String::from_utf8_lossy(&answer).into_owned();
    assert!(answer.starts_with("SIP/2.0 200"), "{answer}");
    let of = |exchange: &Exchange| answer.contains(&format!("<sip:{}>", exchange.ip));

    // Media of all calls go to the ports of the same number, of the member that has the signalling.
    let flows: Vec<UdpSocket> =
        media.iter().map(|port| caller(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), *port))).collect();
    for sequence in 0..10u8 {
        for flow in &flows {
            let packet = [&[0x80, 0, 0, sequence][..], &[0xd5; 168]].concat();
            assert_eq!(ask(flow, &packet).expect("media"), packet);
        }
    }
    for exchange in &exchanges {
        let mut heard = exchange.heard.lock().expect("whole").clone();
        heard.sort_unstable();
        heard.dedup();
        assert_eq!(heard, if of(exchange) { media.clone() } else { Vec::new() }, "at {}", exchange.ip);
    }

    // SIP over TCP at the same port: nobody listens there here, so it is refused, not left open.
    let mut over_tcp = TcpStream::connect(sip).expect("connects");
    over_tcp.set_read_timeout(Some(Duration::from_secs(5))).expect("an option");
    let refused = over_tcp.write_all(b"OPTIONS").and_then(|()| over_tcp.read(&mut [0; 8]));
    assert!(refused.is_err(), "{refused:?}");
}

// === unreachable members ===

/// Ended when it is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A router says that a host is gone: the session ends, and the member is blamed.
#[test]
fn a_host_that_a_router_calls_unreachable_ends_its_sessions() {
    if !peers::have_namespaces() {
        return;
    }
    let config = format!(
        "vips: {{ front: {{ addresses: [{VIP}/24], ttl: 1s }} }}\n\
         listeners:\n  web: {{ bind: \"@front:80\", protocol: http, pool: app }}\n  \
           far: {{ bind: \"0.0.0.0:5300\", protocol: udp, pool: far }}\n\
         pools:\n  app: {{ members: [\"198.18.0.50:9000\"] }}\n  far: {{ members: [\"198.18.7.2:9000\"] }}\n"
    );
    let lan = Lan::with_config(1, &config);
    let inside = |namespace: &str, line: &str| {
        let namespace = lan.ns(namespace);
        let done = Command::new("ip")
            .args(["netns", "exec", &namespace])
            .args(line.split(' '))
            .output()
            .expect("it runs");
        assert!(done.status.success(), "{line}: {}", String::from_utf8_lossy(&done.stderr));
    };
    inside("n1", "ip route add 198.18.7.2/32 via 198.18.0.50");
    inside("be", "ip addr add 198.18.7.2/32 dev lo");
    inside("be", "sysctl -q -w net.ipv4.ip_forward=1");
    let echo = "import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\ns.bind(('198.18.7.2', 9000))\n\
                while True:\n d, a = s.recvfrom(100)\n s.sendto(d, a)";
    let backend = Command::new("ip")
        .args(["netns", "exec", &lan.ns("be"), "python3", "-c", echo])
        .stdin(Stdio::null())
        .spawn()
        .expect("python3 starts");
    let backend = Running(backend);
    // One client, told by lines what to send; it says what came, or nothing.
    let talk = "import socket, sys\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\ns.connect(('198.18.0.11', 5300))\n\
                s.settimeout(0.3)\n\
                for line in sys.stdin:\n s.send(line.strip().encode())\n try: print(s.recv(100).decode(), flush=True)\n \
                except OSError: print('', flush=True)";
    let client =
        lan.client("python3").args(["-c", talk]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut client = Running(client.expect("python3 starts"));
    let mut input = client.0.stdin.take().expect("piped");
    let mut output = BufReader::new(client.0.stdout.take().expect("piped"));
    let mut ask = |what: &str| -> anyhow::Result<String> {
        writeln!(input, "{what}")?;
        let mut line = String::new();
        output.read_line(&mut line)?;
        Ok(line.trim().to_owned())
    };
    eventually(SOON, "the member answers", || {
        let answer = ask("hello")?;
        ensure!(answer == "hello", "{answer:?}");
        Ok(())
    });
    drop(backend);
    inside("be", "ip addr del 198.18.7.2/32 dev lo");
    inside("be", "ip route add unreachable 198.18.7.2/32");
    eventually(SOON, "the session ends", || {
        // What is late from before may come.
        assert_ne!(ask("anybody?")?, "anybody?");
        let metrics = lan.beside(0, "curl").args(["-sS", "http://127.0.0.1:7480/metrics"]).output()?;
        let metrics = String::from_utf8_lossy(&metrics.stdout).into_owned();
        let ended = "trestle_listener_ended_total{listener=\"far\",reason=\"upstream_unreachable\"} ";
        ensure!(metrics.lines().any(|line| line.starts_with(ended)), "no session has ended so");
        Ok(())
    });
}
