//! A config that changes all the time under clients that ask all the time: none of them is let down.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use trestle_tests::backend::HttpBackend;
use trestle_tests::{Node, http, peers, python};

const CHANGES: u64 = 100;
const REQUESTS: u64 = 10_000;
const SOON: Duration = Duration::from_secs(20);

/// What clients had, all together.
#[derive(Default)]
struct Tally {
    stop: AtomicBool,
    served: AtomicU64,
    failures: Mutex<Vec<String>>,
}

impl Tally {
    /// Runs `ask` until the end of the test, and counts what it says was served.
    fn client(
        self: &Arc<Self>,
        what: &'static str,
        mut ask: impl FnMut() -> anyhow::Result<u64> + Send + 'static,
    ) -> JoinHandle<()> {
        let tally = Arc::clone(self);
        std::thread::spawn(move || {
            while !tally.stop.load(Relaxed) {
                match ask() {
                    Ok(served) => _ = tally.served.fetch_add(served, Relaxed),
                    Err(error) => tally.fail(format!("{what}: {error:#}")),
                }
            }
        })
    }

    fn fail(&self, failure: String) {
        self.failures.lock().expect("not poisoned").push(failure);
    }

    fn wait_for(&self, served: u64) {
        let deadline = Instant::now() + SOON;
        while self.served.load(Relaxed) < served {
            assert!(Instant::now() < deadline, "clients stand still at {}", self.served.load(Relaxed));
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// A 200, and whether the connection goes on after it.
fn good(response: anyhow::Result<http::Response>) -> anyhow::Result<bool> {
    let response = response?;
    ensure!(response.status == 200, "status {}: {}", response.status, response.text());
    Ok(response.header("connection") != Some("close"))
}

/// Asks on one connection, which no change is a reason to end.
fn kept(address: SocketAddr) -> impl FnMut() -> anyhow::Result<u64> {
    let mut connection = None;
    move || {
        let open = match &mut connection {
            Some(open) => open,
            None => connection.insert(http::Connection::open(address)?),
        };
        let outcome = good(open.request("GET", "shop", "/", &[], b""));
        if outcome.is_err() {
            connection = None;
        }
        ensure!(outcome?, "told to go, though the listener stays");
        Ok(1)
    }
}

/// Answers each request when it is told to.
struct Slow {
    address: SocketAddr,
    begun: Receiver<()>,
    go: Sender<()>,
}

impl Slow {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound");
        let ((begin, begun), (go, may_go)) = (channel(), channel());
        let may_go = Arc::new(Mutex::new(may_go));
        // Ends with the process: nobody connects after the test.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (begin, may_go) = (begin.clone(), Arc::clone(&may_go));
                std::thread::spawn(move || answer_when_told(stream, &begin, &may_go));
            }
        });
        Self { address, begun, go }
    }
}

fn answer_when_told(stream: TcpStream, begin: &Sender<()>, may_go: &Mutex<Receiver<()>>) -> Option<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = String::new();
        while line.trim_end() != "" || line.is_empty() {
            line.clear();
            (reader.read_line(&mut line).ok()? > 0).then_some(())?;
        }
        begin.send(()).ok()?;
        may_go.lock().ok()?.recv_timeout(SOON).ok()?;
        reader.get_mut().write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nslow").ok()?;
    }
}

/// Everything that a config says differs from step to step; `extra` is open in two of four.
fn config(step: u64, apps: &[HttpBackend; 2], slow: SocketAddr, pairs: &[[String; 2]; 3]) -> Value {
    let [chain, key] = &pairs[step as usize / 2 % 3];
    let members = match step % 3 {
        0 => json!([apps[0].address.to_string()]),
        1 => json!([apps[1].address.to_string()]),
        _ => json!([apps[0].address.to_string(), apps[1].address.to_string()]),
    };
    let mut config = json!({
        "listeners": {
            "web": { "bind": "127.0.0.1:0", "protocol": "http", "http": { "idle": format!("{}s", 60 + step % 7) } },
            "secure": { "bind": "127.0.0.1:0", "protocol": "https", "tls": { "certificates": ["shop"] } },
        },
        "routes": {
            "shop": {
                "response_headers": { "set": { "x-step": step.to_string() } },
                "rules": [
                    { "pools": [if step.is_multiple_of(5) { "other" } else { "app" }] },
                    { "match": [{ "path": { "prefix": format!("/step-{step}") } }], "respond": { "code": 204 } },
                    { "match": [{ "path": { "prefix": "/slow" } }], "pools": ["slow"] },
                ],
            },
        },
        "pools": {
            "app": { "members": members, "balance": if step % 4 < 2 { "round_robin" } else { "least_request" } },
            "other": { "members": [apps[usize::from(step % 2 == 1)].address.to_string()] },
            "slow": { "members": [slow.to_string()], "health": "off" },
        },
        "certificates": { "shop": { "chain": chain, "key": key } },
    });
    if matches!(step % 4, 1 | 2) {
        config["listeners"]["extra"] = json!({ "bind": "127.0.0.1:0", "protocol": "http" });
    }
    config
}

fn pair() -> [String; 2] {
    let key = rcgen::KeyPair::generate().expect("a key");
    let params = rcgen::CertificateParams::new(vec!["shop.example.com".to_owned()]).expect("a name");
    [params.self_signed(&key).expect("a certificate").pem(), key.serialize_pem()]
}

fn apply(node: &Node, config: &Value) {
    let admin = node.admin().expect("it runs");
    let answer = http::request(admin, "PUT", "localhost", "/v1/config", &[], config.to_string().as_bytes());
    let answer = answer.expect("an answer");
    assert_eq!(answer.status, 200, "{}", answer.text());
}

/// Clients of a listener that will close: all that they ask is answered, and they are told to go.
struct Guests {
    kept: JoinHandle<anyhow::Result<u64>>,
    under_way: JoinHandle<anyhow::Result<()>>,
    over_http2: Option<Child>,
}

impl Guests {
    fn arrive(extra: SocketAddr, slow: &Slow, with_http2: bool) -> Self {
        let kept = std::thread::spawn(move || {
            let mut connection = http::Connection::open(extra)?;
            let mut served = 1;
            while good(connection.request("GET", "shop", "/", &[], b""))? {
                served += 1;
            }
            Ok(served)
        });
        let under_way = std::thread::spawn(move || {
            let mut connection = http::Connection::open(extra)?;
            let goes_on = good(connection.request("GET", "shop", "/slow", &[], b""))?;
            ensure!(!goes_on, "it was not told to go");
            Ok(())
        });
        let over_http2 = with_http2.then(|| {
            let url = format!("http://{extra}/slow");
            let args = ["-sS", "--max-time", "20", "--http2-prior-knowledge", "-w", " %{http_code}", &url];
            Command::new("curl")
                .args(args)
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .expect("curl runs")
        });
        for _ in 0..1 + usize::from(with_http2) {
            slow.begun.recv_timeout(SOON).expect("the slow request has reached its backend");
        }
        Self { kept, under_way, over_http2 }
    }

    /// Once the listener has closed.
    fn leave(self, slow: &Slow, tally: &Tally) {
        let mut served = 1;
        for _ in 0..1 + usize::from(self.over_http2.is_some()) {
            slow.go.send(()).expect("the slow backend lives");
        }
        match self.kept.join().expect("no panic") {
            Ok(answers) => served += answers,
            Err(error) => tally.fail(format!("kept, of a listener that closes: {error:#}")),
        }
        if let Err(error) = self.under_way.join().expect("no panic") {
            tally.fail(format!("under way when its listener closed: {error:#}"));
        }
        if let Some(curl) = self.over_http2 {
            let output = curl.wait_with_output().expect("curl ends");
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            if said != "slow 200" {
                tally.fail(format!("over HTTP/2: {said:?} {}", String::from_utf8_lossy(&output.stderr)));
            }
            served += 1;
        }
        tally.served.fetch_add(served, Relaxed);
    }
}

#[test]
fn none_of_ten_thousand_requests_fails_over_a_hundred_changes() {
    if !peers::have(&["curl", "python3"]) {
        return;
    }
    let (apps, slow) = ([HttpBackend::start("a"), HttpBackend::start("b")], Slow::start());
    let pairs = [pair(), pair(), pair()];
    let dir = tempfile::tempdir().expect("a temporary folder can be made");
    let first = dir.path().join("first.yaml");
    let config = |step| config(step, &apps, slow.address, &pairs);
    std::fs::write(&first, config(0).to_string()).expect("the folder is writable");
    let first = first.to_str().expect("a plain name");
    let node = Node::start("n1", dir.path(), &["--bootstrap", "--config", first, "--workers", "2"]);
    node.wait_ready();
    let (web, secure) = (node.listener("web").expect("bound"), node.listener("secure").expect("bound"));

    let tally = Arc::new(Tally::default());
    let mut clients: Vec<_> = (0..2).map(|_| tally.client("kept", kept(web))).collect();
    clients.push(tally.client("new", move || good(http::get(web, "shop", "/")).map(|_| 1)));
    clients.push(tally.client("HTTP/2", move || {
        let url = format!("https://{secure}/[1-50]");
        let args = [
            "-sSk",
            "--max-time",
            "20",
            "--http2",
            "-o",
            "/dev/null",
            "-w",
            "%{http_code} %{http_version}\n",
            &url,
        ];
        let output = Command::new("curl").args(args).output()?;
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        let good = told.lines().filter(|line| *line == "200 2").count();
        ensure!(output.status.success() && good == 50, "{told} {}", String::from_utf8_lossy(&output.stderr));
        Ok(50)
    }));
    let port = secure.port().to_string();
    let mut over_tls = python::script("tls_load.py", &["127.0.0.1", &port]);
    let over_tls = over_tls.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("python runs");

    let started = Instant::now();
    let mut guests: Option<Guests> = None;
    for step in 1..=CHANGES {
        apply(&node, &config(step));
        match step % 4 {
            1 => {
                let extra = node.listener("extra").expect("open once the change is made");
                guests = Some(Guests::arrive(extra, &slow, step % 20 == 1));
            }
            3 => guests.take().into_iter().for_each(|guests| guests.leave(&slow, &tally)),
            _ => {}
        }
        tally.wait_for(step * REQUESTS / CHANGES);
    }
    let took = started.elapsed();
    tally.stop.store(true, Relaxed);
    clients.into_iter().for_each(|client| client.join().expect("no panic"));
    // Its input ends.
    let told = over_tls.wait_with_output().expect("python ends");
    let told: Value = serde_json::from_slice(&told.stdout).context("of python").expect("JSON");

    let failures = tally.failures.lock().expect("not poisoned");
    assert!(
        failures.is_empty(),
        "{} failed, such as {:?}",
        failures.len(),
        &failures[..failures.len().min(5)]
    );
    assert_eq!(told["failures"], json!([]), "{told}");
    assert_eq!((told["certificates"].as_u64(), told["ended"].as_u64()), (Some(3), Some(0)), "{told}");
    let served = tally.served.load(Relaxed);
    assert!(served >= REQUESTS && told["served"].as_u64() > Some(CHANGES), "{served}, {told}");
    assert_eq!(node.status().expect("it runs")["revision"], CHANGES + 1);
    eprintln!("{served} requests and {} over TLS in {took:?}", told["served"]);
}
