//! Members drained, weighted, added and removed while traffic flows, at one node and seen by the others.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::Value;
use trestle_tests::backend::{HttpBackend, TcpEcho};
use trestle_tests::cluster::SETTLE;
use trestle_tests::{Cluster, Node, eventually, http};

/// Requests without a pause, each on a connection of its own, until it is stopped.
struct Traffic {
    stop: Arc<AtomicBool>,
    requests: Arc<AtomicU64>,
    thread: Option<JoinHandle<Vec<String>>>,
}

impl Traffic {
    fn start(web: SocketAddr) -> Self {
        let (stop, requests) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let thread = std::thread::spawn({
            let (stop, requests) = (stop.clone(), requests.clone());
            move || {
                let mut failures = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    match http::get(web, "x", "/") {
                        Ok(answer) if answer.status == 200 => {}
                        Ok(answer) => failures.push(format!("{} {}", answer.status, answer.text())),
                        Err(error) => failures.push(format!("{error:#}")),
                    }
                    requests.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(2));
                }
                failures
            }
        });
        Self { stop, requests, thread: Some(thread) }
    }

    fn end(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let failures = self.thread.take().expect("it runs").join().expect("no panic");
        let requests = self.requests.load(Ordering::Relaxed);
        assert!(requests > 50, "only {requests} requests");
        assert_eq!(failures, Vec::<String>::new(), "of {requests} requests");
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// `trestle ARGS` at this node; what it said on both outputs.
fn said(node: &Node, args: &[&str]) -> (bool, String) {
    let output = node.cli(args).expect("it runs");
    let text =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    (output.status.success(), text)
}

fn done(node: &Node, args: &[&str]) -> String {
    let (success, text) = said(node, args);
    assert!(success, "trestle {args:?}: {text}");
    text
}

fn refused(node: &Node, args: &[&str], expected: &str) {
    let (success, text) = said(node, args);
    assert!(!success && text.contains(expected), "trestle {args:?}: {text}");
}

/// A member as `member list` shows it at this node.
fn member(node: &Node, pool: &str, name: &str) -> anyhow::Result<Value> {
    let list = node.json(&["member", "list", pool])?;
    let members = list["pools"][0]["members"].as_array().context("members")?;
    members.iter().find(|member| member["name"] == name).cloned().with_context(|| format!("{name} in {list}"))
}

/// Waits until a node's traffic goes to exactly these.
fn goes_to(node: &Node, expected: &[&str]) {
    let expected: BTreeSet<String> = expected.iter().map(|name| (*name).to_owned()).collect();
    eventually(SETTLE, &format!("traffic of {} goes to {expected:?}", node.name), || {
        let web = node.listener("web")?;
        let seen: BTreeSet<_> =
            (0..20).map(|_| Ok(http::get(web, "x", "/")?.text())).collect::<anyhow::Result<_>>()?;
        ensure!(seen == expected, "{seen:?}");
        Ok(())
    });
}

fn config(backends: &[HttpBackend], echo: &TcpEcho, marker: &str) -> String {
    let member =
        |backend: &HttpBackend| format!("{{ address: \"{}\", name: {} }}", backend.address, backend.name);
    let members: Vec<_> = backends.iter().map(member).collect();
    format!(
        "listeners:\n  web: {{ bind: \"127.0.0.1:0\", protocol: http, pool: app }}\n\
         \x20 echo: {{ bind: \"127.0.0.1:0\", protocol: tcp, pool: echo }}\n\
         pools:\n  app: {{ members: [{}] }}\n  echo: {{ members: [\"{}\"] }}\n  {marker}: {{ members: [] }}\n",
        members.join(", "),
        echo.address
    )
}

#[test]
fn members_are_drained_weighted_added_and_removed_under_traffic() {
    let names = ["a", "b", "c"];
    let backends: Vec<_> = names.iter().map(|name| HttpBackend::start(name)).collect();
    let echo = TcpEcho::start();
    let mut cluster = Cluster::start(3, &config(&backends, &echo, "one"));
    cluster.wait_revision(1);
    for node in &cluster.nodes {
        goes_to(node, &names);
    }
    let traffic: Vec<_> =
        (0..3).map(|n| Traffic::start(cluster.nodes[n].listener("web").expect("bound"))).collect();

    // Ordered at one node, done by all.
    let text = done(&cluster.nodes[0], &["member", "drain", "app", "a"]);
    assert!(text.contains("member a of app is draining"), "{text}");
    goes_to(&cluster.nodes[0], &["b", "c"]);
    goes_to(&cluster.nodes[1], &["b", "c"]);
    goes_to(&cluster.nodes[2], &["b", "c"]);
    let text = done(&cluster.nodes[1], &["member", "list", "app"]);
    assert!(text.lines().any(|line| line.contains(" a ") && line.contains("draining")), "{text}");

    // What is under way goes on, and is seen.
    let at = echo.address.to_string();
    let mut open = TcpStream::connect(cluster.nodes[1].listener("echo").expect("bound")).expect("connects");
    open.set_read_timeout(Some(Duration::from_secs(10))).expect("a time-out");
    let mut round = |text: &[u8; 4]| {
        open.write_all(text).expect("sends");
        let mut back = [0; 4];
        open.read_exact(&mut back).expect("the echo");
        assert_eq!(&back, text);
    };
    round(b"ping");
    let text = done(&cluster.nodes[0], &["member", "drain", "echo", &at, "--all"]);
    assert!(text.contains("no member of pool echo takes new traffic"), "{text}");
    eventually(SETTLE, "the second node drains it too", || {
        let shown = member(&cluster.nodes[1], "echo", &at)?;
        ensure!(shown["drain"] == "all" && shown["in_flight"] == 1, "{shown}");
        Ok(())
    });
    round(b"pong");
    let fresh = TcpStream::connect(cluster.nodes[1].listener("echo").expect("bound")).expect("accepted");
    fresh.set_read_timeout(Some(Duration::from_secs(10))).expect("a time-out");
    assert!(matches!((&fresh).read(&mut [0; 1]), Ok(0) | Err(_)), "nothing new gets through");
    // Also where nothing of it is.
    let wait = ["member", "drain", "echo", &at, "--all", "--wait", "--timeout"];
    let (success, text) = said(&cluster.nodes[0], &[&wait[..], &["4s"]].concat());
    assert!(
        !success && text.contains("0 on this node, 1 on others") && text.contains("still under way"),
        "{text}"
    );
    drop(open);
    let text = done(&cluster.nodes[0], &[&wait[..], &["30s"]].concat());
    assert!(text.contains("is empty"), "{text}");

    // A weight in place of the config's.
    done(&cluster.nodes[2], &["member", "weight", "app", "b", "0"]);
    for node in &cluster.nodes {
        goes_to(node, &["c"]);
        let shown = member(node, "app", "b").expect("it is there");
        assert_eq!((&shown["weight"], &shown["configured_weight"]), (&0.into(), &1.into()), "{shown}");
    }

    // Both survive an apply, and the restart of a node.
    let applied = cluster.nodes[1].apply(&config(&backends, &echo, "two")).expect("applied");
    assert_eq!(applied["revision"], 2);
    cluster.wait_revision(2);
    for node in &cluster.nodes {
        goes_to(node, &["c"]);
    }
    traffic.into_iter().for_each(Traffic::end);
    cluster.nodes[1].kill9();
    cluster.nodes[1].restart();
    cluster.nodes[1].wait_ready();
    goes_to(&cluster.nodes[1], &["c"]);
    let traffic: Vec<_> =
        (0..3).map(|n| Traffic::start(cluster.nodes[n].listener("web").expect("bound"))).collect();
    done(&cluster.nodes[1], &["member", "weight", "app", "b", "--reset"]);
    done(&cluster.nodes[1], &["member", "drain", "app", "a", "--undo"]);
    for node in &cluster.nodes {
        goes_to(node, &names);
    }

    // One more is a revision.
    let d = HttpBackend::start("d");
    let address = d.address.to_string();
    let add = ["member", "add", "app", &address, "--name", "d", "--weight", "2"];
    let text = done(&cluster.nodes[2], &[&add[..], &["-m", "one more"]].concat());
    assert!(text.contains(&format!("+      - address: \"{address}\"")) || text.contains(&address), "{text}");
    assert!(text.lines().any(|line| line.starts_with('+')) && text.contains("revision 3"), "{text}");
    for node in &cluster.nodes {
        goes_to(node, &["a", "b", "c", "d"]);
    }
    let history = cluster.nodes[0].json(&["history"]).expect("history");
    assert_eq!(history["revisions"][0]["message"], "one more");
    refused(&cluster.nodes[0], &add, "is already a member");
    refused(
        &cluster.nodes[0],
        &["member", "remove", "app", "d", "--if-revision", "2"],
        "expected revision 2",
    );

    // Its drain goes with it.
    done(&cluster.nodes[0], &["member", "drain", "app", "d"]);
    for node in &cluster.nodes {
        goes_to(node, &names);
    }
    let text = done(&cluster.nodes[1], &["member", "remove", "app", "d"]);
    assert!(text.lines().any(|line| line.starts_with('-')) && text.contains("revision 4"), "{text}");
    cluster.wait_revision(4);
    refused(&cluster.nodes[0], &["member", "drain", "app", "d"], "pool app has no member \"d\"");
    done(&cluster.nodes[0], &add);
    for node in &cluster.nodes {
        goes_to(node, &["a", "b", "c", "d"]);
    }
    traffic.into_iter().for_each(Traffic::end);

    refused(&cluster.nodes[0], &["member", "drain", "ap", "a"], "did you mean app?");
    refused(&cluster.nodes[0], &["member", "weight", "app", "a", "70000"], "0 to 65535");
    refused(&cluster.nodes[0], &["member", "add", "app", "nonsense"], "nothing was changed");
}

#[test]
fn a_client_keeps_its_member_of_tcp_on_all_nodes_until_that_drains_and_its_deadline_cuts() {
    let backends = ["a", "b", "c", "d"].map(HttpBackend::start);
    let members: Vec<_> =
        backends.iter().map(|b| format!("{{ address: \"{}\", name: {} }}", b.address, b.name)).collect();
    let config = format!(
        "listeners: {{ raw: {{ bind: \"127.0.0.1:0\", protocol: tcp, pool: app }} }}\n\
         pools: {{ app: {{ members: [{}], sticky: {{ client: 1h }} }} }}\n",
        members.join(", ")
    );
    let cluster = Cluster::start(3, &config);
    let raw: Vec<_> = cluster.nodes.iter().map(|node| node.listener("raw").expect("bound")).collect();
    let who = |at: SocketAddr| -> anyhow::Result<String> { Ok(http::get(at, "x", "/")?.text()) };
    let own = who(raw[0]).expect("an answer");
    for at in raw.iter().cycle().take(9) {
        assert_eq!(who(*at).expect("an answer"), own, "every node finds the same member");
    }
    let mut held: Vec<TcpStream> = raw.iter().map(|at| TcpStream::connect(at).expect("connected")).collect();
    eventually(SETTLE, "they are carried", || {
        for node in &cluster.nodes {
            let open = node.json(&["member", "list"])?.to_string();
            ensure!(open.contains("\"in_flight\":1"), "{open}");
        }
        Ok(())
    });
    let text = done(&cluster.nodes[1], &["member", "drain", "app", &own, "--deadline", "2s"]);
    assert!(text.contains("what is carried there is cut in 2s"), "{text}");
    eventually(SETTLE, "the client has another member, the same on all nodes", || {
        let others = raw.iter().map(|at| who(*at)).collect::<anyhow::Result<BTreeSet<_>>>()?;
        ensure!(others.len() == 1 && !others.contains(&own), "{others:?}, not {own}");
        Ok(())
    });
    for stream in &mut held {
        stream.set_read_timeout(Some(SETTLE)).expect("a socket");
        let ended = stream.read(&mut [0; 1]).expect_err("cut");
        assert_eq!(ended.kind(), std::io::ErrorKind::ConnectionReset);
    }
}
