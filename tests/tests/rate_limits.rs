//! A rate is the cluster's: three nodes together let through what one would, however unevenly they are asked.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use trestle_tests::backend::HttpBackend;
use trestle_tests::{Cluster, eventually, http};

/// Asks this node so many times a second, evenly, over one connection.
struct Asker {
    to: SocketAddr,
    a_second: u32,
    admitted: AtomicU64,
    refused: AtomicU64,
}

impl Asker {
    fn new(to: SocketAddr, a_second: u32) -> Asker {
        Asker { to, a_second, admitted: AtomicU64::new(0), refused: AtomicU64::new(0) }
    }

    /// A pause of the machine is not made up for by more than a few requests at once.
    fn run(&self, until: Instant) {
        let pause = Duration::from_secs(1) / self.a_second;
        let mut connection = http::Connection::open(self.to).expect("connects");
        let mut due = Instant::now();
        while due < until {
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            due = (due + pause).max(Instant::now().checked_sub(10 * pause).unwrap_or(due));
            let answer = connection.request("GET", "x", "/", &[], b"").expect("an answer");
            match answer.status {
                200 => &self.admitted,
                429 => &self.refused,
                other => panic!("status {other}"),
            }
            .fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// What came of asking.
struct Asked {
    /// What was let through a second, of the time that is measured.
    a_second: f64,
    /// In all.
    admitted: u64,
    refused: u64,
}

/// Asks for this long, of which the last `measured` is.
fn ask(askers: &[(SocketAddr, u32)], warm: Duration, measured: Duration) -> Asked {
    ask_and(askers, warm, measured, || ())
}

/// The same, and has a look meanwhile.
fn ask_and(askers: &[(SocketAddr, u32)], warm: Duration, measured: Duration, look: impl FnOnce()) -> Asked {
    let askers: Vec<Asker> = askers.iter().map(|(to, a_second)| Asker::new(*to, *a_second)).collect();
    let sum =
        |of: fn(&Asker) -> &AtomicU64| askers.iter().map(|a| of(a).load(Ordering::Relaxed)).sum::<u64>();
    let until = Instant::now() + warm + measured;
    std::thread::scope(|scope| {
        for asker in &askers {
            scope.spawn(|| asker.run(until));
        }
        std::thread::sleep(warm);
        let (start, before) = (Instant::now(), sum(|asker| &asker.admitted));
        std::thread::sleep(measured / 2);
        look();
        let end = until - Duration::from_millis(100);
        std::thread::sleep(end.saturating_duration_since(Instant::now()));
        let after = sum(|asker| &asker.admitted);
        // Nobody asks later.
        let took = start.elapsed().min(until.saturating_duration_since(start));
        let refused = sum(|asker| &asker.refused);
        let each: Vec<u64> = askers.iter().map(|asker| asker.admitted.load(Ordering::Relaxed)).collect();
        eprintln!("{} let through in {took:.1?} ({each:?} in all), {refused} refused", after - before);
        let a_second = (after - before) as f64 / took.as_secs_f64();
        Asked { a_second, admitted: after, refused }
    })
}

fn cluster(backend: &HttpBackend) -> (Cluster, Vec<SocketAddr>) {
    let config = format!(
        "listeners:\n  web: {{ bind: \"127.0.0.1:0\", protocol: http, pool: p, \
         rate_limits: [{{ by: client, rate: 100/s, burst: 20 }}] }}\npools: {{ p: {{ members: [\"{}\"] }} }}\n",
        backend.address
    );
    let cluster = Cluster::start(3, &config);
    cluster.wait_revision(1);
    cluster.wait_grown_up();
    let addresses = cluster.nodes.iter().map(|node| node.listener("web").expect("bound")).collect();
    (cluster, addresses)
}

/// Within 5 percent. What a machine loses that stands still for longer than a bucket holds, a fifth of a second, is no
/// fault of the limit's, so there are three tries; more than the rate is let through at none.
fn is_kept(mut measure: impl FnMut() -> f64) {
    let mut seen = Vec::new();
    for _ in 0..3 {
        let a_second = measure();
        assert!(a_second <= 105.0, "{a_second:.1} a second of 100");
        if a_second >= 95.0 {
            return;
        }
        seen.push(a_second);
    }
    panic!("{seen:.1?} a second of 100");
}

#[test]
fn three_nodes_let_the_rate_through_however_they_are_asked() {
    let backend = HttpBackend::start("a");
    let (mut cluster, to) = cluster(&backend);
    let seconds = Duration::from_secs;

    let listed = || {
        let listed = cluster.nodes[0].json(&["clients"])?;
        let client = &listed["clients"][0];
        ensure!(client["client"] == "127.0.0.1", "{listed}");
        let rate = client["rate"].as_u64().context("a number")?;
        ensure!((150..=400).contains(&rate), "275 a second are asked for over three nodes: {listed}");
        let limit = &client["limits"][0];
        let told = [&limit["at"], &limit["of"], &limit["limit"]];
        ensure!(told == ["listener web", "requests", "100/s"], "{listed}");
        ensure!(limit["used"].as_u64() > Some(150), "{listed}");
        Ok(())
    };
    let look = || eventually(seconds(4), "`clients` shows what is asked for", listed);
    is_kept(|| {
        let asked = ask_and(&[(to[0], 200), (to[1], 60), (to[2], 15)], seconds(2), seconds(10), look);
        let all = asked.admitted;
        assert!(all <= 20 + 12 * 100 + 5, "{all} in 12 s, of 100 a second and a burst of 20");
        asked.a_second
    });

    // All of it moves to another node, which has the whole rate within 2 s.
    is_kept(|| {
        ask(&[(to[0], 250)], seconds(1), seconds(1));
        ask(&[(to[1], 250)], seconds(2), seconds(10)).a_second
    });

    // A node dies: what it had of the rate goes to the others.
    let victim = (cluster.leader() + 1) % 3;
    let rest: Vec<SocketAddr> = (0..3).filter(|n| *n != victim).map(|n| to[n]).collect();
    ask(&[(to[victim], 150), (rest[0], 60)], seconds(1), seconds(1));
    cluster.nodes[victim].kill9();
    is_kept(|| ask(&[(rest[0], 150), (rest[1], 60)], seconds(3), seconds(5)).a_second);
}

#[test]
fn below_the_rate_nobody_is_refused_on_any_node() {
    let backend = HttpBackend::start("a");
    let (_cluster, to) = cluster(&backend);
    let asked = ask(&[(to[0], 20), (to[1], 20), (to[2], 20)], Duration::from_secs(1), Duration::from_secs(3));
    // A node that stands still for long asks for its part late.
    assert!(asked.admitted > 20 && asked.refused * 20 <= asked.admitted, "{} refused", asked.refused);
}

/// So many seconds, of which two may have passed.
fn is_about(told: Option<&str>, name: &str, seconds: u64) -> bool {
    (seconds - 2..=seconds).any(|seconds| told == Some(&format!("{name}{seconds}")))
}

#[test]
fn above_its_rate_a_client_is_told_so_and_metrics_count_it() {
    let backend = HttpBackend::start("a");
    let config = format!(
        "listeners:\n  web: {{ bind: \"127.0.0.1:0\", protocol: http, pool: p, \
         rate_limits: [{{ by: client, rate: 2/m, headers: true }}] }}\npools: {{ p: {{ members: [\"{}\"] }} }}\n",
        backend.address
    );
    let cluster = Cluster::start(1, &config);
    let web = cluster.nodes[0].listener("web").expect("bound");
    let first = http::get(web, "x", "/").expect("an answer");
    assert_eq!((first.status, first.header("ratelimit-policy")), (200, Some("\"client\";q=2;w=60")));
    assert!(is_about(first.header("ratelimit"), "\"client\";r=1;t=", 30), "{first:?}");
    assert_eq!(http::get(web, "x", "/").expect("an answer").status, 200);
    let refused = http::get(web, "x", "/").expect("an answer");
    assert_eq!(refused.status, 429, "{}", refused.text());
    assert!(is_about(refused.header("retry-after"), "", 30), "{refused:?}");
    assert!(is_about(refused.header("ratelimit"), "\"client\";r=0;t=", 60), "{refused:?}");
    let metrics = cluster.nodes[0].metrics().expect("metrics");
    let counted = metrics.lines().any(|line| line.contains("reason=\"rate_limit\"") && line.ends_with(" 1"));
    assert!(counted, "{metrics}");
    assert!(metrics.contains("trestle_rate_limit_keys 1\n"), "{metrics}");
}

/// Whether a server that greets with one byte is reached.
fn is_greeted(to: SocketAddr) -> bool {
    let mut stream = TcpStream::connect(to).expect("connects");
    stream.set_read_timeout(Some(Duration::from_secs(5))).expect("a time-out");
    match stream.read(&mut [0; 1]) {
        Ok(n) => n == 1,
        Err(error) if error.kind() == ErrorKind::ConnectionReset => false,
        Err(error) => panic!("neither greeted nor refused: {error}"),
    }
}

#[test]
fn the_rate_limits_example_does_what_it_says() {
    let app = HttpBackend::start("app");
    let smtp = TcpListener::bind("127.0.0.1:0").expect("a port");
    let smtp_address = smtp.local_addr().expect("an address");
    // Ends with the process: nobody waits for it.
    std::thread::spawn(move || {
        for mut stream in smtp.incoming().flatten() {
            let _ = stream.write_all(b"2");
        }
    });
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/rate-limits.yaml");
    let mut config = std::fs::read_to_string(file).expect("the example is there");
    for (theirs, ours) in [
        ("192.0.2.11:8080", app.address.to_string()),
        ("192.0.2.51:25", smtp_address.to_string()),
        ("0.0.0.0:2525", "127.0.0.1:0".to_owned()),
        ("0.0.0.0:5353", "127.0.0.1:0".to_owned()),
        ("0.0.0.0:8080", "127.0.0.1:0".to_owned()),
    ] {
        config = config.replace(theirs, &ours);
    }
    let cluster = Cluster::start(1, &config);
    let [web, mail] = ["web", "mail"].map(|name| cluster.nodes[0].listener(name).expect("bound"));

    // Each key has its own rate, and who has none none.
    let mut connection = http::Connection::open(web).expect("connects");
    let mut status = |method: &str, host: &str, path: &str, key: Option<&str>| {
        let headers: Vec<_> = key.iter().map(|key| ("x-api-key", *key)).collect();
        connection.request(method, host, path, &headers, b"").expect("an answer").status
    };
    // What a rate gives while it is asked: so many an hour.
    let gained =
        |per_hour: f64, since: Instant| (since.elapsed().as_secs_f64() * per_hour / 3_600.0).ceil() as usize;
    let (key, began) = (Some("first"), Instant::now());
    let admitted = (0..110).filter(|_| status("GET", "api.example.com", "/", key) == 200).count();
    let most = 100 + gained(60_000.0, began);
    assert!((100..=most).contains(&admitted), "{admitted} of a burst of 100, at most {most}");
    assert_eq!(status("GET", "api.example.com", "/", Some("second")), 200);
    assert_eq!(status("GET", "api.example.com", "/", None), 200);

    let tries: Vec<u16> = (0..11).map(|_| status("POST", "api.example.com", "/login", None)).collect();
    assert_eq!((tries[9], tries[10]), (200, 429), "ten a minute");
    let told =
        http::request(web, "GET", "api.example.com", "/", &[("x-api-key", "third")], b"").expect("an answer");
    assert_eq!(told.header("ratelimit-policy"), Some("\"header\";q=100;w=6"));

    let began = Instant::now();
    let greeted = (0..12).filter(|_| is_greeted(mail)).count();
    let most = 10 + gained(1_800.0, began);
    assert!((10..=most).contains(&greeted), "{greeted} of 10 connections of mail at once, at most {most}");
}
