//! Backends that a test can stop and start again on the same port.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// An HTTP/1.1 server that answers every request with its name; `/healthz` answers [`HttpBackend::health`].
pub struct HttpBackend {
    pub name: String,
    pub address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

struct Shared {
    name: String,
    stop: AtomicBool,
    requests: AtomicU64,
    probes: AtomicU64,
    health: AtomicU16,
}

impl HttpBackend {
    pub fn start(name: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
        Self::on(name, listener)
    }

    /// One for each of these addresses, named by them, all at one port that the system chose.
    pub fn start_at(ips: &[&str]) -> Vec<Self> {
        let ip = |ip: &&str| ip.parse::<IpAddr>().expect("an address");
        let bound = crate::eventually(Duration::from_secs(5), "a port that is free at all addresses", || {
            let first = TcpListener::bind((ip(&ips[0]), 0))?;
            let port = first.local_addr()?.port();
            let others = ips[1..].iter().map(|other| TcpListener::bind((ip(other), port)));
            Ok(std::iter::once(Ok(first)).chain(others).collect::<Result<Vec<_>, _>>()?)
        });
        ips.iter().zip(bound).map(|(ip, listener)| Self::on(ip, listener)).collect()
    }

    fn on(name: &str, listener: TcpListener) -> Self {
        let address = listener.local_addr().expect("a bound socket has an address");
        let shared = Arc::new(Shared {
            name: name.to_owned(),
            stop: AtomicBool::new(false),
            requests: AtomicU64::new(0),
            probes: AtomicU64::new(0),
            health: AtomicU16::new(200),
        });
        listener.set_nonblocking(true).expect("a socket can be non-blocking");
        let acceptor = std::thread::spawn({
            let shared = shared.clone();
            move || accept(&listener, &shared)
        });
        Self { name: name.to_owned(), address, shared, acceptor: Some(acceptor) }
    }

    /// Closes the port and every connection.
    pub fn stop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(acceptor) = self.acceptor.take() {
            acceptor.join().expect("the backend did not panic");
        }
    }

    /// Listens again where it did.
    pub fn restart(&mut self) {
        self.stop();
        let listener = bind_again(self.address);
        *self = Self::on(&self.name.clone(), listener);
    }

    /// Requests answered, health checks left out.
    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::Relaxed)
    }

    pub fn probes(&self) -> u64 {
        self.shared.probes.load(Ordering::Relaxed)
    }

    /// Status with which `/healthz` is answered from now on.
    pub fn set_health(&self, status: u16) {
        self.shared.health.store(status, Ordering::Relaxed);
    }
}

impl Drop for HttpBackend {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

fn bind_again(address: SocketAddr) -> TcpListener {
    crate::eventually(Duration::from_secs(5), "the backend's port is free again", || {
        Ok(TcpListener::bind(address)?)
    })
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    let mut connections = Vec::new();
    while !shared.stop.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((stream, _)) => {
                let shared = shared.clone();
                connections.push(std::thread::spawn(move || {
                    let _ = serve(stream, &shared);
                }));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(2)),
        }
        connections.retain(|c| !c.is_finished());
    }
    for connection in connections {
        let _ = connection.join();
    }
}

fn serve(stream: TcpStream, shared: &Shared) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_millis(50)))?;
    let mut reader = BufReader::new(stream);
    loop {
        let Some((line, length)) = read_head(&mut reader, shared)? else { return Ok(()) };
        let mut body = vec![0; length];
        reader.get_ref().set_read_timeout(Some(Duration::from_secs(5)))?;
        reader.read_exact(&mut body)?;
        reader.get_ref().set_read_timeout(Some(Duration::from_millis(50)))?;
        let (status, text) = if line.contains(" /healthz ") {
            shared.probes.fetch_add(1, Ordering::Relaxed);
            (shared.health.load(Ordering::Relaxed), String::from("health"))
        } else {
            shared.requests.fetch_add(1, Ordering::Relaxed);
            (200, shared.name.clone())
        };
        let head_only = line.starts_with("HEAD ");
        let sent = if head_only { "" } else { text.as_str() };
        write!(
            reader.get_mut(),
            "HTTP/1.1 {status} X\r\ncontent-type: text/plain\r\nx-backend: {}\r\ncontent-length: {}\r\n\r\n{sent}",
            shared.name,
            text.len()
        )?;
    }
}

/// Request line and Content-Length; `None` at the end of the connection or of the backend.
fn read_head(reader: &mut BufReader<TcpStream>, shared: &Shared) -> std::io::Result<Option<(String, usize)>> {
    let mut head = Vec::new();
    loop {
        let before = head.len();
        match reader.read_until(b'\n', &mut head) {
            Ok(0) => return Ok(None),
            Ok(_) if head[before..].trim_ascii().is_empty() => break,
            Ok(_) => {}
            Err(e) if matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
                if shared.stop.load(Ordering::Relaxed) {
                    return Ok(None);
                }
            }
            Err(e) => return Err(e),
        }
    }
    let text = String::from_utf8_lossy(&head).into_owned();
    let length = text
        .lines()
        .filter_map(|l| l.split_once(':'))
        .find(|(n, _)| n.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, v)| v.trim().parse().ok())
        .unwrap_or(0);
    Ok(Some((text.lines().next().unwrap_or("").to_owned(), length)))
}

/// Echoes bytes until the client has closed its half, then closes too.
pub struct TcpEcho {
    pub address: SocketAddr,
    stop: Arc<AtomicBool>,
    acceptor: Option<JoinHandle<()>>,
}

impl TcpEcho {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        listener.set_nonblocking(true).expect("a socket can be non-blocking");
        let stop = Arc::new(AtomicBool::new(false));
        let acceptor = std::thread::spawn({
            let stop = stop.clone();
            move || {
                while !stop.load(Ordering::Relaxed) {
                    match listener.accept() {
                        Ok((stream, _)) => drop(std::thread::spawn(move || echo(stream))),
                        Err(_) => std::thread::sleep(Duration::from_millis(2)),
                    }
                }
            }
        });
        Self { address, stop, acceptor: Some(acceptor) }
    }
}

fn echo(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    let mut buffer = [0; 16 << 10];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            n => stream.write_all(&buffer[..n])?,
        }
    }
}

impl Drop for TcpEcho {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

/// Answers each datagram with itself.
pub struct UdpEcho {
    pub address: SocketAddr,
    stop: Arc<AtomicBool>,
    server: Option<JoinHandle<()>>,
}

impl UdpEcho {
    pub fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("loopback has a free port");
        let address = socket.local_addr().expect("a bound socket has an address");
        socket.set_read_timeout(Some(Duration::from_millis(50))).expect("a socket has a time-out");
        let stop = Arc::new(AtomicBool::new(false));
        let server = std::thread::spawn({
            let stop = stop.clone();
            move || {
                let mut buffer = vec![0; 65_536];
                while !stop.load(Ordering::Relaxed) {
                    if let Ok((n, from)) = socket.recv_from(&mut buffer) {
                        let _ = socket.send_to(&buffer[..n], from);
                    }
                }
            }
        });
        Self { address, stop, server: Some(server) }
    }
}

impl Drop for UdpEcho {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(server) = self.server.take() {
            let _ = server.join();
        }
    }
}
