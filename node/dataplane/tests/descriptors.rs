//! What happens when the process runs out of file descriptors. A process of its own, since the limit is
//! the process's.

mod plane;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use trestle_config::model::{Bind, Listener, Member, Pool, Protocol};
use trestle_config::{Config, Contents};
use trestle_dataplane::{Install, Plane};

const PATIENCE: Duration = Duration::from_secs(20);

fn config(member: SocketAddr) -> Config {
    let bind = Bind { ip: Some([127, 0, 0, 1].into()), port: 0, more: 0 };
    let listener = Listener { pool: Some("app".into()), ..Listener::new(Protocol::Http, bind) };
    let members = vec![Member::new("a", member)];
    let mut config = Config::default();
    config.listeners.insert("web".into(), listener);
    config.pools.insert("app".into(), Pool { members, ..Pool::default() });
    config
}

fn backend() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            std::thread::spawn(move || {
                while stream.read(&mut [0; 4096]).is_ok_and(|n| n > 0) {
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
                }
            });
        }
    });
    address
}

/// Of the whole process; needs no descriptor.
fn cpu_seconds() -> f64 {
    let spent = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    spent.tv_sec as f64 + spent.tv_nsec as f64 / 1e9
}

#[test]
fn without_descriptors_accepting_pauses_and_goes_on_when_there_are_some() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let plane = Plane::start(plane::options(NonZeroUsize::MIN)).expect("a plane");
    let install = Install {
        revision: 1,
        config: Arc::new(config(backend())),
        route_births: Arc::default(),
        contents: Contents::default(),
        orders: Arc::default(),
    };
    let bound = runtime.block_on(plane.install(install));
    let address = *bound[0].state.as_ref().expect("listens");

    // Waiting clients need descriptors of this process too: connect first, then take the rest away.
    let mut clients: Vec<TcpStream> =
        (0..20).map(|_| TcpStream::connect(address).expect("connects")).collect();
    std::thread::sleep(Duration::from_millis(200));
    let open = std::fs::read_dir("/proc/self/fd").expect("proc").count() as u64;
    let before = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(open + 1), ..before }).expect("a limit");
    let mut late = Vec::new();
    while let Ok(stream) = TcpStream::connect(address) {
        late.push(stream);
    }
    assert!(!late.is_empty(), "a client waits that can't be accepted");

    let cpu = cpu_seconds();
    std::thread::sleep(Duration::from_secs(1));
    let spent = cpu_seconds() - cpu;
    assert!(spent < 0.3, "{spent} s of a second were spent on accepting in vain");

    setrlimit(Resource::Nofile, before).expect("the limit back");
    let began = Instant::now();
    for stream in clients.iter_mut().chain(&mut late) {
        stream.set_read_timeout(Some(PATIENCE)).expect("an option");
        stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").expect("written");
        let mut answer = [0; 15];
        stream.read_exact(&mut answer).expect("an answer");
        assert_eq!(&answer, b"HTTP/1.1 200 OK");
    }
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    plane.shutdown();
}
