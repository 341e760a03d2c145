//! A limit is the cluster's: three nodes together admit what one would, whichever of them is asked.

use std::io::{ErrorKind, Read};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::ensure;
use trestle_tests::backend::HttpBackend;
use trestle_tests::held::{Client, Gate, Greeter};
use trestle_tests::{Cluster, eventually, http, series};

const LIMIT: &str = "connections_per_client: 100";

fn cluster(greeter: &Greeter, limits: &str) -> (Cluster, Vec<SocketAddr>) {
    let config = format!(
        "listeners:\n  raw: {{ bind: \"127.0.0.1:0\", protocol: tcp, pool: p, limits: {{ {limits} }} }}\n\
         pools: {{ p: {{ members: [\"{}\"] }} }}\ncluster: {{ seat: 3s }}\n",
        greeter.address
    );
    let cluster = Cluster::start(3, &config);
    cluster.wait_revision(1);
    cluster.wait_grown_up();
    let addresses = cluster.nodes.iter().map(|node| node.listener("raw").expect("bound")).collect();
    (cluster, addresses)
}

fn lists(cluster: &Cluster, open: u64) {
    for node in &cluster.nodes {
        eventually(Duration::from_secs(5), "`clients` shows what is open", || {
            let used = node.used_of_limit()?;
            ensure!(used == open, "{open} are open, {used} listed");
            Ok(())
        });
    }
}

#[test]
fn three_nodes_that_are_asked_alike_admit_the_limit() {
    let greeter = Greeter::start();
    let (_cluster, addresses) = cluster(&greeter, LIMIT);
    let mut client = Client::new(&addresses, 600);
    let after = client.push_until(95);
    let later = client.push(Duration::from_secs(2));
    eprintln!("200 to each of three nodes: 95 after {after:?}, {later} 2 s later, at most {}", client.peak);
    assert!(client.peak <= 102, "{} at once", client.peak);
    assert!(later >= 95, "{later}");
}

#[test]
fn one_node_that_is_asked_alone_admits_the_limit_and_gives_it_back() {
    let greeter = Greeter::start();
    let (cluster, addresses) = cluster(&greeter, LIMIT);
    let mut client = Client::new(&addresses[..1], 600);
    let after = client.push_until(95);
    let later = client.push(Duration::from_secs(1));
    eprintln!("600 to one of three nodes: 95 after {after:?}, {later} 1 s later, at most {}", client.peak);
    assert!(client.peak <= 100, "{} at once", client.peak);
    assert!(later >= 95, "{later}");

    // Whoever is asked tells what is open, not what nodes hold to themselves.
    lists(&cluster, client.held() as u64);

    // The client moves to another node: what it had here ends, and counts there.
    drop(client);
    lists(&cluster, 0);
    let mut client = Client::new(&addresses[1..2], 600);
    let moved = client.push_until(95);
    eprintln!("then 600 to another one: {} after {moved:?}", client.held());
    client.push(Duration::from_millis(200));
    assert!(client.peak <= 100, "{} at once", client.peak);
}

#[test]
fn what_a_killed_node_had_is_admitted_by_the_others() {
    let greeter = Greeter::start();
    let (mut cluster, addresses) = cluster(&greeter, LIMIT);
    let victim = (cluster.leader() + 1) % 3;
    // It has all of the limit: asked alike, any two of the nodes may have come to hold nearly all.
    let mut client = Client::new(&addresses[victim..=victim], 600);
    client.push_until(95);
    client.turn_to(&addresses);
    cluster.nodes[victim].kill9();
    let (low, back) = client.push_after_kill(Duration::from_secs(12));
    assert!(client.peak <= 102, "{} at once", client.peak);
    assert!(low < 95 && back.is_some_and(|back| back < Duration::from_secs(10)), "{low}, {back:?}");

    // It comes back, and takes nothing from anybody beyond the limit.
    cluster.nodes[victim].restart();
    client.push(Duration::from_secs(4));
    client.push_until(95);
    assert!(client.peak <= 102, "{} at once", client.peak);
}

#[test]
fn above_its_limits_http_is_told_so_and_metrics_count_it() {
    let backend = HttpBackend::start("a");
    let config = format!(
        "listeners:\n  web: {{ bind: \"127.0.0.1:0\", protocol: http, pool: p, limits: {{ connections_per_client: 2 }} }}\n\
         pools: {{ p: {{ members: [\"{}\"] }} }}\n",
        backend.address
    );
    let cluster = Cluster::start(1, &config);
    let web = cluster.nodes[0].listener("web").expect("bound");
    let mut held: Vec<_> = (0..2).map(|_| http::Connection::open(web).expect("connects")).collect();
    for connection in &mut held {
        assert_eq!(connection.request("GET", "x", "/", &[], b"").expect("an answer").status, 200);
    }
    let refused = http::get(web, "x", "/").expect("an answer");
    assert_eq!((refused.status, refused.header("retry-after")), (429, Some("1")), "{}", refused.text());
    let metrics = cluster.nodes[0].metrics().expect("metrics");
    let counted =
        metrics.lines().any(|line| line.contains("reason=\"client_limit\"") && line.ends_with(" 1"));
    assert!(counted, "{metrics}");
    drop(held);
    eventually(Duration::from_secs(5), "there is room again", || {
        ensure!(http::get(web, "x", "/")?.status == 200);
        Ok(())
    });
}

/// A limit of 6 divides into shares of 2: what is above waits for the other nodes, which give theirs.
#[test]
fn a_browser_that_opens_all_it_may_at_once_at_one_node_is_not_refused() {
    let (greeter, gate) = (Greeter::start(), Gate::start());
    let config = format!(
        "listeners:\n\
         \x20 raw: {{ bind: \"127.0.0.1:0\", protocol: tcp, pool: raw, limits: {{ connections_per_client: 6 }} }}\n\
         \x20 web: {{ bind: \"127.0.0.1:0\", protocol: http, pool: web, limits: {{ requests_per_client: 6 }} }}\n\
         pools: {{ raw: {{ members: [\"{}\"] }}, web: {{ members: [\"{}\"] }} }}\n",
        greeter.address, gate.address
    );
    let cluster = Cluster::start(3, &config);
    cluster.wait_revision(1);
    cluster.wait_grown_up();
    let node = &cluster.nodes[0];
    // Who is not let in within 0.1 s is refused, and a node may be too busy to answer in that: another client comes then.
    let mut clients = (1..=200).map(|last| IpAddr::from([127, 0, 1, last]));
    let mut all_are_let_in = |what: &str, count: usize, admitted: &dyn Fn(IpAddr) -> usize| {
        let tries: Vec<usize> = clients
            .by_ref()
            .take(5)
            .map(admitted)
            .inspect(|admitted| assert!(*admitted <= 6, "{admitted} of {count} {what}"))
            .take_while(|admitted| *admitted != 6)
            .collect();
        assert!(tries.len() < 5, "{tries:?} of {count} {what} were let in");
    };

    let raw = node.listener("raw").expect("bound");
    for count in [6, 12] {
        let admitted = |client| {
            // The reset of one that is refused may come before the connect has returned.
            let connect = |_| match http::connect_from(client, raw) {
                Err(error) if error.kind() == ErrorKind::ConnectionReset => None,
                connected => Some(connected.expect("accepted")),
            };
            let streams: Vec<TcpStream> = (0..count).filter_map(connect).collect();
            let began = Instant::now();
            let greeted = |mut stream: &TcpStream| {
                stream.set_read_timeout(Some(Duration::from_secs(10))).expect("an option");
                stream.read(&mut [0]).is_ok_and(|count| count == 1)
            };
            let admitted = streams.iter().filter(|stream| greeted(stream)).count();
            eprintln!("{count} connections of 6 at once: {admitted} admitted after {:?}", began.elapsed());
            admitted
        };
        all_are_let_in("connections", count, &admitted);
    }

    let web = node.listener("web").expect("bound");
    let refused = || {
        let name = "trestle_listener_requests_total{listener=\"web\",status=\"4xx\"}";
        anyhow::Ok(series(&node.metrics()?, name).unwrap_or_default() as usize)
    };
    for count in [6, 12] {
        let admitted = |client| {
            gate.set_open(false);
            let before = gate.asked() + refused().expect("metrics");
            let open = |_| http::Connection::open_from(client, web).expect("accepted");
            let mut connections: Vec<_> = (0..count).map(open).collect();
            for connection in &mut connections {
                connection.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").expect("sent");
            }
            eventually(Duration::from_secs(10), "all are under way or refused", || {
                let now = gate.asked() + refused()?;
                ensure!(now - before == count, "{} are", now - before);
                Ok(())
            });
            gate.set_open(true);
            let status =
                |connection: &mut http::Connection| connection.response(false).expect("an answer").status;
            let statuses: Vec<u16> = connections.iter_mut().map(status).collect();
            let of = |wanted| statuses.iter().filter(|status| **status == wanted).count();
            assert_eq!(of(200) + of(429), count, "{statuses:?}");
            of(200)
        };
        all_are_let_in("requests", count, &admitted);
    }
    let metrics = node.metrics().expect("metrics");
    assert!(!metrics.contains("trestle_limits_waited_total 0\n"), "the shares are smaller:\n{metrics}");
}

/// What a node has not yet of the limit comes while clients wait, and so does what others give back.
#[test]
fn with_time_to_wait_one_node_admits_the_whole_limit_without_refusing_anybody() {
    let greeter = Greeter::start();
    let (cluster, addresses) = cluster(&greeter, "connections_per_client: 30, wait: 30s");
    let mut elsewhere = Client::new(&addresses[1..2], 10);
    elsewhere.push_until(10);
    let mut here = Client::new(&addresses[..1], 30);
    here.push_until(20);
    let waiting = |count: f64| {
        let metrics = cluster.nodes[0].metrics()?;
        let told = series(&metrics, "trestle_limits_waiting");
        ensure!(told == Some(count), "{told:?} wait");
        Ok(())
    };
    eventually(Duration::from_secs(5), "the others wait", || waiting(10.0));
    assert_eq!(here.held(), 20);
    drop(elsewhere);
    here.push_until(30);
    waiting(0.0).expect("nobody waits any more");
    let text = cluster.nodes[0].metrics().expect("metrics");
    assert!(!text.contains("client_limit\"} 1"), "nobody was refused:\n{text}");
}
