//! The cluster's key is exchanged while the cluster serves: by `trestle key rotate` and rolling restarts.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, HandshakeKind, RootCertStore, StreamOwned};
use serde_json::Value;
use trestle_tests::backend::HttpBackend;
use trestle_tests::cluster::SETTLE;
use trestle_tests::pki::Authority;
use trestle_tests::{Cluster, Node, eventually, trestle};

const NAME: &str = "shop.example.com";
const NODES: usize = 3;

/// Three nodes. The admin API of the last one is not bound to loopback: it speaks TLS and wants the key.
struct Site {
    cluster: Cluster,
    outside: Node,
    key: PathBuf,
}

impl Site {
    fn start() -> Site {
        let cluster = Cluster::start(NODES - 1, "pools: {}\n");
        let key = cluster.key().to_owned();
        let outside = cluster.node("n3", &["--join", &cluster.seed(), "--admin", "0.0.0.0:0"]);
        cluster.wait_voters(NODES);
        Site { cluster, outside, key }
    }

    fn node(&self, n: usize) -> &Node {
        self.cluster.nodes.get(n).unwrap_or(&self.outside)
    }

    /// Its admin API, as it is asked at from this machine.
    fn url(&self, n: usize) -> anyhow::Result<String> {
        let port = self.node(n).admin()?.port();
        let scheme = if n < NODES - 1 { "http" } else { "https" };
        Ok(format!("{scheme}://127.0.0.1:{port}"))
    }

    /// `trestle ARGS` of somebody with the key file as it is.
    fn ask(&self, n: usize, args: &[&str]) -> anyhow::Result<Output> {
        let mut command = Command::new(trestle());
        Ok(command.args(args).args(["--admin", &self.url(n)?, "--key-file"]).arg(&self.key).output()?)
    }

    fn done(&self, n: usize, args: &[&str]) -> String {
        let output = self.ask(n, args).expect("it runs");
        assert!(output.status.success(), "trestle {args:?}: {}", said(&output));
        said(&output)
    }

    fn refused(&self, n: usize, args: &[&str], expected: &[&str]) {
        let before = std::fs::read(&self.key).expect("the key file");
        let output = self.ask(n, args).expect("it runs");
        let text = said(&output);
        assert_eq!(output.status.code(), Some(1), "trestle {args:?} was done: {text}");
        for part in expected {
            assert!(text.contains(part), "{part:?} is not in {text}");
        }
        assert_eq!(std::fs::read(&self.key).expect("the key file"), before, "it is as it was");
    }

    fn status(&self, n: usize) -> anyhow::Result<Value> {
        let output = self.ask(n, &["status", "-o", "json"])?;
        serde_json::from_slice(&output.stdout).with_context(|| said(&output))
    }

    fn listener(&self, n: usize) -> anyhow::Result<SocketAddr> {
        let status = self.status(n)?;
        let listeners = status["listeners"].as_array().context("listeners")?;
        let web = listeners.iter().find(|l| l["listener"] == "web").context("web")?;
        Ok(web["address"].as_str().context("not bound")?.parse()?)
    }

    /// All nodes take part, as each of them says.
    fn settle(&self) {
        for n in 0..NODES {
            eventually(SETTLE, &format!("n{} sees all nodes", n + 1), || {
                let status = self.status(n)?;
                let nodes = status["nodes"].as_array().context("nodes")?;
                ensure!(nodes.len() == NODES && status["ready"] == true, "{status}");
                ensure!(nodes.iter().all(|n| n["alive"] == true && n["seated"] == true), "{nodes:?}");
                Ok(())
            });
        }
    }

    /// Stops it by plan and starts it again with the key file as it is now.
    fn restart(&mut self, n: usize, traffic: &Traffic) {
        // As whoever stands before the nodes does it: it goes by their readiness.
        traffic.avoid(Some(n));
        let key = self.key.to_str().expect("a plain name").to_owned();
        let args = ["--key-file", &key, "--admin", "0.0.0.0:0"];
        let args = if n < NODES - 1 { &args[..2] } else { &args[..] };
        let node = self.cluster.nodes.get_mut(n).unwrap_or(&mut self.outside);
        assert_eq!(node.stop().code(), Some(0));
        node.restart_with(args);
        self.settle();
        traffic.avoid(None);
    }

    fn restart_all(&mut self, traffic: &Traffic) {
        (0..NODES).for_each(|n| self.restart(n, traffic));
    }

    /// (current, other) of each node, as this node tells it.
    fn keys(&self, n: usize) -> anyhow::Result<Vec<(String, Option<String>)>> {
        let status = self.status(n)?;
        let key = |node: &Value| {
            let key = &node["key"];
            let current = key["current"].as_str().with_context(|| node.to_string())?.to_owned();
            Ok((current, key["other"].as_str().map(str::to_owned)))
        };
        status["nodes"].as_array().context("nodes")?.iter().map(key).collect()
    }

    /// Waits until each node tells that every node has these.
    fn all_have(&self, current: &str, other: Option<&str>) {
        for n in 0..NODES {
            eventually(SETTLE, "every node tells its keys", || {
                let keys = self.keys(n)?;
                let right = (current.to_owned(), other.map(str::to_owned));
                ensure!(keys == vec![right; NODES], "{keys:?}");
                Ok(())
            });
        }
    }

    fn rotate(&self, n: usize) -> Value {
        serde_json::from_str(&self.done(n, &["key", "rotate", "-o", "json"])).expect("JSON")
    }
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

// === clients ===

struct Answer {
    member: String,
    cookie: Option<String>,
    resumed: bool,
}

fn trusting(authority: &Path) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(authority).expect("a certificate")).expect("an authority");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    Arc::new(config)
}

/// One request on a connection of its own.
fn get(tls: &Arc<ClientConfig>, address: SocketAddr, cookie: Option<&str>) -> anyhow::Result<Answer> {
    let stream = TcpStream::connect_timeout(&address, Duration::from_secs(10)).context("connect")?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let connection = ClientConnection::new(tls.clone(), ServerName::try_from(NAME)?)?;
    let mut stream = BufReader::new(StreamOwned::new(connection, stream));
    let cookie = cookie.map(|cookie| format!("cookie: {cookie}\r\n")).unwrap_or_default();
    let request = format!("GET / HTTP/1.1\r\nhost: {NAME}\r\nconnection: close\r\n{cookie}\r\n");
    stream.get_mut().write_all(request.as_bytes()).context("send")?;
    let (mut status, mut length, mut set) = (None, 0, None);
    loop {
        let mut line = String::new();
        ensure!(stream.read_line(&mut line).context("a line")? > 0, "it was closed");
        let line = line.trim_end();
        match line.split_once(": ") {
            None if line.is_empty() => break,
            None => status = line.split(' ').nth(1).map(str::to_owned),
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => length = value.parse()?,
            Some((name, value)) if name.eq_ignore_ascii_case("set-cookie") => {
                set = value.split(';').next().map(str::to_owned);
            }
            Some(_) => {}
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).context("the body")?;
    let member = String::from_utf8(body)?;
    if status.as_deref() != Some("200") {
        bail!("{status:?}: {member}");
    }
    let resumed = stream.get_ref().conn.handshake_kind() == Some(HandshakeKind::Resumed);
    Ok(Answer { member, cookie: set, resumed })
}

/// A client that comes again and again, with its cookie, to the nodes in turn.
struct Traffic {
    addresses: Arc<Mutex<Vec<Option<SocketAddr>>>>,
    all: Vec<SocketAddr>,
    served: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    client: Option<JoinHandle<anyhow::Result<()>>>,
}

impl Traffic {
    fn start(tls: Arc<ClientConfig>, all: Vec<SocketAddr>) -> Traffic {
        let addresses: Arc<Mutex<Vec<Option<SocketAddr>>>> =
            Arc::new(Mutex::new(all.iter().copied().map(Some).collect()));
        let (served, stop) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let client = std::thread::spawn({
            let (addresses, served, stop) = (addresses.clone(), served.clone(), stop.clone());
            move || {
                let first = get(&tls, all[0], None).context("the first request")?;
                let mut cookie = first.cookie.context("no cookie")?;
                for turn in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    // Held for the request: a node is left alone before it is stopped.
                    let addresses = addresses.lock().expect("nobody panicked");
                    let Some(address) = addresses[turn % addresses.len()] else { continue };
                    let answer = get(&tls, address, Some(&cookie))
                        .with_context(|| format!("request {turn}, to node {}", turn % addresses.len() + 1))?;
                    drop(addresses);
                    ensure!(answer.member == first.member, "request {turn} went to {}", answer.member);
                    cookie = answer.cookie.unwrap_or(cookie);
                    served.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(20));
                }
                Ok(())
            }
        });
        let all = addresses.lock().expect("nobody panicked").iter().flatten().copied().collect();
        Traffic { addresses, all, served, stop, client: Some(client) }
    }

    fn avoid(&self, node: Option<usize>) {
        let mut addresses = self.addresses.lock().expect("nobody panicked");
        *addresses = self.all.iter().copied().map(Some).collect();
        if let Some(node) = node {
            addresses[node] = None;
        }
    }

    /// How many requests were served; none failed.
    fn end(mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        let client = self.client.take().expect("it runs");
        client.join().expect("no panic").expect("no request failed");
        self.served.load(Ordering::Relaxed)
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(client) = self.client.take() {
            let _ = client.join();
        }
    }
}

fn config(backends: &[HttpBackend]) -> String {
    format!(
        "listeners:\n  web:\n    bind: \"127.0.0.1:0\"\n    protocol: https\n    pool: app\n    tls: {{ certificates: [shop] }}\n\
         pools:\n  app:\n    members: [\"{}\", \"{}\"]\n    sticky: {{ cookie: member }}\n\
         certificates:\n  shop:\n    chain_file: first.pem\n    key_file: first.key\n",
        backends[0].address, backends[1].address
    )
}

#[test]
fn a_new_key_takes_the_place_of_the_old_one_while_requests_are_served() {
    let backends = ["a", "b"].map(HttpBackend::start);
    let mut site = Site::start();
    let dir = site.cluster.dir().to_owned();
    let authority = Authority::new("test authority");
    let trusted = authority.write(&dir, "authority");
    let [_, second] = ["first", "second"].map(|name| authority.issue(&dir, name, &[NAME]));
    let document = dir.join("web.yaml");
    std::fs::write(&document, config(&backends)).expect("the test's folder is writable");
    let document = document.to_str().expect("a plain name").to_owned();
    site.done(0, &["apply", "-f", &document]);
    let [chain, key] = second.each_ref().map(|path| path.to_str().expect("a plain name"));
    site.done(0, &["certificate", "set", "shop", "--chain", chain, "--key", key]);
    // The first one is in the history alone by now; it comes back by a rollback at the end.
    site.cluster.wait_revision(3);
    let addresses: Vec<_> =
        (0..NODES).map(|n| eventually(SETTLE, "the listener is bound", || site.listener(n))).collect();

    let tls = trusting(&trusted);
    let mut no_tickets = ClientConfig::clone(&tls);
    no_tickets.resumption = rustls::client::Resumption::disabled();
    let no_tickets = Arc::new(no_tickets);
    let began = get(&tls, addresses[0], None).expect("served");
    let old_cookie = began.cookie.clone().expect("a cookie");
    let traffic = Traffic::start(no_tickets.clone(), addresses.clone());

    let only_old = dir.join("only-old.key");
    std::fs::copy(&site.key, &only_old).expect("a copy");
    let old = shown(&site.key)["current"].as_str().expect("an id").to_owned();
    site.all_have(&old, None);

    // A new key beside the old one. It is not used while a node does not know it.
    let added = site.rotate(2);
    let new = added["other"].as_str().expect("an id").to_owned();
    assert_eq!((&added["step"], added["current"].as_str()), (&Value::from("add"), Some(old.as_str())));
    site.refused(2, &["key", "rotate"], &["node n1 does not know the new key", "node n3 does not know"]);
    site.restart(0, &traffic);
    site.restart(2, &traffic);
    site.refused(0, &["key", "rotate"], &["node n2 does not know the new key", "the file is as it was"]);
    let warnings = site.status(0).expect("status")["warnings"].to_string();
    assert!(warnings.contains("different cluster keys") && warnings.contains("alone at n2"), "{warnings}");
    site.restart(1, &traffic);
    site.all_have(&old, Some(&new));

    // It is used. The old one is not dropped while a node uses it.
    let used = site.rotate(2);
    assert_eq!((&used["step"], used["current"].as_str()), (&Value::from("use"), Some(new.as_str())));
    let with_both = dir.join("with-both.key");
    std::fs::copy(&site.key, &with_both).expect("a copy");
    site.restart(0, &traffic);
    site.restart(1, &traffic);
    site.refused(0, &["key", "rotate"], &["node n3 does not use the new key"]);
    // Who came with a cookie of the old key stays where he was, and gets one of the new key.
    let back = get(&no_tickets, addresses[0], Some(&old_cookie)).expect("served");
    assert_eq!(back.member, began.member);
    let new_cookie = back.cookie.expect("a cookie of the new key");
    assert_ne!(new_cookie, old_cookie);
    site.restart(2, &traffic);
    site.all_have(&new, Some(&old));
    let warnings = site.status(2).expect("status")["warnings"].to_string();
    assert!(warnings.contains("two cluster keys are in place"), "{warnings}");

    // It is dropped, once all is sealed under the new one.
    let dropped = eventually(SETTLE, "all is sealed under the new key", || {
        let output = site.ask(2, &["key", "rotate", "-o", "json"])?;
        ensure!(output.status.success(), "{}", said(&output));
        Ok(serde_json::from_slice::<Value>(&output.stdout)?)
    });
    assert_eq!((&dropped["step"], dropped["other"].as_str()), (&Value::from("drop"), None));
    site.restart_all(&traffic);
    site.all_have(&new, None);
    let warnings = site.status(0).expect("status")["warnings"].to_string();
    assert!(!warnings.contains("cluster key"), "{warnings}");

    let requests = traffic.end();
    println!("{requests} requests served through three rolling restarts, none failed");
    assert!(requests > 100, "{requests}");

    // What came before is as it was: the session, the cookie, names of contents, the history.
    assert!(get(&tls, addresses[1], Some(&new_cookie)).expect("served").resumed, "the ticket opens");
    let stays = get(&no_tickets, addresses[2], Some(&new_cookie)).expect("served");
    assert_eq!((stays.member, stays.cookie), (began.member, None));
    assert_ne!(get(&no_tickets, addresses[2], Some(&old_cookie)).expect("served").cookie, None);
    site.done(1, &["rollback", "2"]);
    site.cluster.wait_revision(4);
    let applied = site.done(2, &["apply", "-f", &document, "-o", "json"]);
    let applied: Value = serde_json::from_str(&applied).expect("JSON");
    assert_eq!(applied["revision"], 4, "equal content has its name yet: {applied}");
    for address in &addresses {
        get(&no_tickets, *address, None).expect("served");
    }

    // Neither the old key nor a node that has it alone gets in.
    let stranger_dir = tempfile::tempdir().expect("a temporary folder can be made");
    let only_old = only_old.to_str().expect("a plain name");
    let stranger = Node::start(
        "stranger",
        stranger_dir.path(),
        &["--join", &site.cluster.seed(), "--key-file", only_old],
    );
    eventually(SETTLE, "it is told that its key is another", || {
        ensure!(stranger.log().contains("another cluster key"), "{}", stranger.log());
        Ok(())
    });
    let url = site.url(2).expect("a port");
    let refused = Command::new(trestle()).args(["status", "--admin", &url, "--key-file", only_old]).output();
    let refused = refused.expect("it runs");
    assert!(said(&refused).contains("another cluster key"), "{}", said(&refused));
    assert_eq!(site.cluster.nodes[0].stop().code(), Some(0));
    site.cluster.nodes[0].restart_with(&["--key-file", only_old]);
    assert_eq!(site.cluster.nodes[0].wait_exit(SETTLE).code(), Some(1));
    assert!(site.cluster.nodes[0].log().contains("belongs to a cluster with key"));

    // One that was away is started with the file that has both.
    site.cluster.nodes[0].restart_with(&["--key-file", with_both.to_str().expect("a plain name")]);
    site.settle();
    get(&no_tickets, addresses[0], None).expect("served");
}

/// What `trestle key show` tells of a file.
fn shown(file: &Path) -> Value {
    let output = Command::new(trestle()).args(["key", "show", "-o", "json"]).arg(file).output();
    serde_json::from_slice(&output.expect("it runs").stdout).expect("JSON")
}
