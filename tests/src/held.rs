//! Connections that are held: by the backend that takes them, and by the client that wants as many as it gets.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Who was refused comes again after this long.
const AGAIN: Duration = Duration::from_millis(60);

/// Greets whoever comes with one byte, and holds the connection until the other side ends it.
pub struct Greeter {
    pub address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Greeter {
    pub fn start() -> Greeter {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.set_nonblocking(true).expect("nonblocking");
        let address = listener.local_addr().expect("address");
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut held: Vec<TcpStream> = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                while let Ok((mut stream, _)) = listener.accept() {
                    if stream.set_nonblocking(true).is_ok() && stream.write_all(b"k").is_ok() {
                        held.push(stream);
                    }
                }
                held.retain(is_open);
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        Greeter { address, stop, thread: Some(thread) }
    }
}

impl Drop for Greeter {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Speaks HTTP: whoever asks has no answer until the test lets all answers go.
pub struct Gate {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    /// Requests that have come.
    asked: AtomicUsize,
    is_open: AtomicBool,
    stop: AtomicBool,
}

impl Gate {
    pub fn start() -> Gate {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.set_nonblocking(true).expect("nonblocking");
        let address = listener.local_addr().expect("address");
        let shared = Arc::<Shared>::default();
        let gate = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            let mut asking: Vec<(TcpStream, Vec<u8>)> = Vec::new();
            while !gate.stop.load(Ordering::Relaxed) {
                while let Ok((stream, _)) = listener.accept() {
                    stream.set_nonblocking(true).expect("nonblocking");
                    asking.push((stream, Vec::new()));
                }
                asking.retain_mut(|(stream, head)| gate.serve(stream, head));
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        Gate { address, shared, thread: Some(thread) }
    }

    /// Requests that have come so far.
    pub fn asked(&self) -> usize {
        self.shared.asked.load(Ordering::Relaxed)
    }

    /// All who have asked, and who come later, are answered; or the latter wait again.
    pub fn set_open(&self, is_open: bool) {
        self.shared.is_open.store(is_open, Ordering::Relaxed);
    }
}

impl Shared {
    /// `false`: the connection is over.
    fn serve(&self, stream: &mut TcpStream, head: &mut Vec<u8>) -> bool {
        let is_whole = |head: &[u8]| head.ends_with(b"\r\n\r\n");
        if !is_whole(head) {
            let mut space = [0; 1024];
            match stream.read(&mut space) {
                Ok(n) if n > 0 => head.extend(&space[..n]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
                _ => return false,
            }
            self.asked.fetch_add(usize::from(is_whole(head)), Ordering::Relaxed);
        }
        if !is_whole(head) || !self.is_open.load(Ordering::Relaxed) {
            return true;
        }
        head.clear();
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").is_ok()
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn is_open(mut stream: &TcpStream) -> bool {
    matches!(stream.read(&mut [0; 16]), Err(error) if error.kind() == ErrorKind::WouldBlock)
}

/// One client's connections, each of which is held once it is admitted and tried again while it is not.
pub struct Client {
    slots: Vec<Slot>,
    /// The most that were held at once.
    pub peak: usize,
}

struct Slot {
    to: SocketAddr,
    state: State,
}

enum State {
    Refused(Instant),
    /// Not greeted yet.
    Waits(TcpStream),
    Held(TcpStream),
}

impl Client {
    pub fn new(to: &[SocketAddr], connections: usize) -> Client {
        let now = Instant::now();
        let slot = |n: usize| Slot { to: to[n % to.len()], state: State::Refused(now) };
        Client { slots: (0..connections).map(slot).collect(), peak: 0 }
    }

    /// What is not held yet is tried at these from now on, the same number at each.
    pub fn turn_to(&mut self, to: &[SocketAddr]) {
        for (n, slot) in self.slots.iter_mut().enumerate() {
            slot.to = to[n % to.len()];
        }
    }

    /// Tries for this long; what is held at its end.
    pub fn push(&mut self, span: Duration) -> usize {
        let start = Instant::now();
        while start.elapsed() < span {
            self.turn();
        }
        self.held()
    }

    /// Goes on for this long after a node was killed: how few were held, and after what time 95 were again.
    pub fn push_after_kill(&mut self, span: Duration) -> (usize, Option<Duration>) {
        let killed = Instant::now();
        while self.push(Duration::from_millis(50)) >= 95 && killed.elapsed() < Duration::from_secs(1) {}
        let low = self.held();
        let mut back = None;
        while killed.elapsed() < span {
            if self.push(Duration::from_millis(50)) >= 95 && back.is_none() {
                back = Some(killed.elapsed());
            }
        }
        eprintln!("one of three killed: {low} left, 95 again after {back:?}, at most {}", self.peak);
        (low, back)
    }

    /// Until so many are held; after what time.
    pub fn push_until(&mut self, held: usize) -> Duration {
        let start = Instant::now();
        while self.held() < held {
            assert!(start.elapsed() < Duration::from_secs(20), "{} of {held} are held", self.held());
            self.turn();
        }
        start.elapsed()
    }

    fn turn(&mut self) {
        self.slots.iter_mut().for_each(Slot::turn);
        self.peak = self.peak.max(self.held());
        std::thread::sleep(Duration::from_millis(1));
    }

    pub fn held(&self) -> usize {
        self.slots.iter().filter(|slot| matches!(slot.state, State::Held(_))).count()
    }
}

impl Slot {
    fn turn(&mut self) {
        let now = Instant::now();
        let refused = || State::Refused(now + AGAIN);
        self.state = match std::mem::replace(&mut self.state, refused()) {
            State::Refused(again) if now < again => State::Refused(again),
            State::Refused(_) => match TcpStream::connect(self.to) {
                Ok(stream) if stream.set_nonblocking(true).is_ok() => State::Waits(stream),
                _ => refused(),
            },
            State::Waits(mut stream) => match stream.read(&mut [0; 1]) {
                Ok(1) => State::Held(stream),
                Err(error) if error.kind() == ErrorKind::WouldBlock => State::Waits(stream),
                _ => refused(),
            },
            State::Held(stream) if is_open(&stream) => State::Held(stream),
            State::Held(_) => refused(),
        };
    }
}
