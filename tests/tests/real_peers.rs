//! Programs that everybody has: curl in front, nginx behind.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

use anyhow::ensure;
use trestle_tests::{Cluster, Nginx, eventually, example, free_port, http, peers};

/// Files, uploads, and what it was asked; and where it listens.
fn nginx() -> (Nginx, u16) {
    let port = free_port();
    let nginx = Nginx::start(|dir| {
        std::fs::create_dir(dir.join("www")).expect("folder");
        let mut big = std::fs::File::create(dir.join("www/big")).expect("file");
        let block: Vec<u8> = (0..65_536u32).map(|i| (i % 253) as u8).collect();
        for _ in 0..160 {
            big.write_all(&block).expect("write");
        }
        format!(
            "server {{ listen 127.0.0.1:{port}; root {}/www; location /upload {{ dav_methods PUT; }}\n\
             location /seen {{ return 200 \"$http_x_forwarded_for|$http_x_forwarded_proto|$http_connection|$http_x_secret|$request_uri\"; }} }}",
            dir.display()
        )
    });
    eventually(Duration::from_secs(10), "nginx answers", || {
        http::get(([127, 0, 0, 1], port).into(), "x", "/seen")
    });
    (nginx, port)
}

#[test]
fn curl_through_us_to_nginx() {
    if !peers::have(&["curl", "nginx"]) {
        return;
    }
    let (server, port) = nginx();
    let config = format!(
        "listeners:\n  web: {{ bind: \"127.0.0.1:0\", protocol: http, pool: p }}\n  \
           inner: {{ bind: \"127.0.0.1:0\", protocol: http, pool: p, trusted_proxies: [127.0.0.0/8] }}\n\
         pools: {{ p: {{ members: [\"127.0.0.1:{}\"] }} }}\n",
        port
    );
    let cluster = Cluster::start(1, &config);
    let web = cluster.nodes[0].listener("web").expect("bound");
    let curl = |args: &[&str]| {
        let output =
            Command::new("curl").args(["-sS", "--max-time", "20"]).args(args).output().expect("curl runs");
        assert!(output.status.success(), "curl {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };

    // Forwarding headers are ours, hop-by-hop headers stay behind, the path is as it was asked.
    let seen = curl(&[
        "-H",
        "X-Forwarded-For: 6.6.6.6",
        "-H",
        "Connection: x-secret",
        "-H",
        "X-Secret: 1",
        &format!("http://{web}/seen?q=%2F..%41"),
    ]);
    let seen = String::from_utf8_lossy(&seen).into_owned();
    let parts: Vec<_> = seen.split('|').collect();
    assert_eq!(parts[0], "127.0.0.1", "{seen}");
    assert_eq!(parts[1], "http", "{seen}");
    assert!(!parts[2].contains("x-secret"), "{seen}");
    assert_eq!(parts[3], "", "{seen}");
    assert_eq!(parts[4], "/seen?q=%2F..%41", "{seen}");

    // Behind a proxy that is trusted they are believed.
    let inner = cluster.nodes[0].listener("inner").expect("bound");
    let seen = curl(&[
        "-H",
        "X-Forwarded-For: 6.6.6.6, 198.51.100.7",
        "-H",
        "X-Forwarded-Proto: https",
        &format!("http://{inner}/seen"),
    ]);
    let seen = String::from_utf8_lossy(&seen).into_owned();
    assert!(seen.starts_with("6.6.6.6, 198.51.100.7, 127.0.0.1|https|"), "{seen}");

    // A large download and several requests on one connection.
    let big = curl(&[&format!("http://{web}/big")]);
    assert_eq!(big.len(), 160 * 65_536);
    assert!(big.chunks(65_536).all(|c| c.iter().enumerate().all(|(i, &b)| b == (i % 253) as u8)));
    let reused = curl(&[
        "-o",
        "/dev/null",
        "-o",
        "/dev/null",
        "-w",
        "%{num_connects}\n",
        &format!("http://{web}/seen"),
        &format!("http://{web}/seen"),
    ]);
    assert_eq!(String::from_utf8_lossy(&reused), "1\n0\n", "the connection is kept");
    let code = curl(&[
        "-o",
        "/dev/null",
        "-w",
        "%{http_code}",
        "--path-as-is",
        &format!("http://{web}/a/../missing"),
    ]);
    assert_eq!(String::from_utf8_lossy(&code), "404");

    // nginx goes away for good: 503 or 502 with a request id, nothing else.
    drop(server);
    eventually(Duration::from_secs(10), "an error page", || {
        let answer = http::get(web, "x", "/seen")?;
        ensure!(matches!(answer.status, 502 | 503), "{}", answer.status);
        let id = answer.header("x-request-id").unwrap_or("").to_owned();
        ensure!(id.len() == 36 && answer.text().contains(&id), "{answer:?}");
        Ok(())
    });
}

/// An application with sessions of its own, which hints at what a page needs. It ends with the test.
fn application(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || serve(name, stream));
        }
    });
    address
}

fn serve(name: &str, stream: TcpStream) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    while lines.next().transpose()?.is_some() {
        let mut fields = std::collections::BTreeMap::new();
        while let Some(line) = lines.next().transpose()?.filter(|line| !line.is_empty()) {
            if let Some((name, value)) = line.split_once(": ") {
                fields.insert(name.to_lowercase(), value.to_owned());
            }
        }
        let field = |name: &str| fields.get(name).map_or("", String::as_str);
        let body = format!("{name}|{}|{}|{}", field("cookie"), field("x-forwarded-for"), field("forwarded"));
        let hint = "HTTP/1.1 103 Early Hints\r\nLink: </app.css>; rel=preload; as=style\r\n\r\n";
        (&stream).write_all(hint.as_bytes())?;
        let session = match field("cookie") {
            "" => format!("Set-Cookie: JSESSIONID=\"{name} 1\"; Path=/\r\n"),
            _ => String::new(),
        };
        write!(&stream, "HTTP/1.1 200 OK\r\n{session}Content-Length: {}\r\n\r\n{body}", body.len())?;
    }
    Ok(())
}

#[test]
fn the_example_behind_a_cdn_does_what_it_says() {
    if !peers::have(&["curl"]) {
        return;
    }
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/behind-cdn.yaml");
    let mut config = std::fs::read_to_string(file).expect("the example is there");
    for (address, here) in [
        ("0.0.0.0:8080", "127.0.0.1:0".to_owned()),
        ("198.51.100.0/24", "127.0.0.0/8".to_owned()),
        ("192.0.2.11:80", application("one").to_string()),
        ("192.0.2.12:80", application("two").to_string()),
    ] {
        assert!(config.contains(address), "{address}");
        config = config.replace(address, &here);
    }
    let cluster = Cluster::start(1, &config);
    let web = cluster.nodes[0].listener("web").expect("bound");
    let dir = tempfile::tempdir().expect("a folder");
    let curl = |jar: &str, client: &str, more: &[&str]| {
        let jar = dir.path().join(jar).display().to_string();
        let client = format!("X-Forwarded-For: 192.0.2.66, {client}");
        let output = Command::new("curl")
            .args(["-sS", "--max-time", "20", "-i", "-b", &jar, "-c", &jar, "-H", &client])
            .args(more)
            .output()
            .expect("curl runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).replace("\r\n", "\n")
    };
    let url = |path: &str| format!("http://{web}{path}");
    let https = ["-H", "X-Forwarded-Proto: https"];

    // A browser's first page, with hints before it, and its second.
    let mut members = std::collections::BTreeSet::new();
    for jar in ["a", "b"] {
        let first = curl(jar, "203.0.113.9", &[&https[..], &[&url("/")]].concat());
        assert!(
            first.starts_with(
                "HTTP/1.1 103 Early Hints\nlink: </app.css>; rel=preload; as=style\n\nHTTP/1.1 200 OK\n"
            ),
            "{first}"
        );
        let body = first.lines().last().expect("a body");
        let (name, rest) = body.split_once('|').expect("a name");
        let host = web.to_string();
        let list = "192.0.2.66, 203.0.113.9, 127.0.0.1";
        assert_eq!(rest, format!("|{list}|for=203.0.113.9;host=\"{host}\";proto=https"));
        for _ in 0..4 {
            let again = curl(jar, "203.0.113.9", &[&https[..], &[&url("/")]].concat());
            let body = again.lines().last().expect("a body");
            assert!(body.starts_with(&format!("{name}|JSESSIONID=\"{name} 1\"|")), "{again}");
        }
        members.insert(name.to_owned());
    }
    assert_eq!(members.len(), 2);

    let plain = curl("c", "203.0.113.9", &["-H", "X-Forwarded-Proto: http", &url("/a")]);
    assert!(plain.contains("HTTP/1.1 301") && plain.contains("location: https://127.0.0.1/a\n"), "{plain}");
    let office = curl("c", "203.0.113.9", &[&https[..], &[&url("/admin")]].concat());
    assert!(office.contains("\nHTTP/1.1 200 OK\n"), "{office}");
    let stranger = curl("c", "198.18.0.9", &[&https[..], &[&url("/admin")]].concat());
    assert!(
        stranger.starts_with("HTTP/1.1 403") && stranger.contains("198.18.0.9 may not go there"),
        "{stranger}"
    );
}

#[test]
fn the_example_with_passwords_lets_those_in_who_know_one() {
    if !peers::have(&["curl", "nginx"]) {
        return;
    }
    let (_server, port) = nginx();
    let config = example(
        "passwords.yaml",
        &[
            (":8080\", protocol", "127.0.0.1:0\", protocol".to_owned()),
            ("192.0.2.11:8080", format!("127.0.0.1:{port}")),
        ],
    );
    let cluster = Cluster::start(1, &config);
    let web = cluster.nodes[0].listener("web").expect("bound");
    let status = |path: &str, login: &[&str]| {
        let mut curl = Command::new("curl");
        curl.args(["-sS", "--max-time", "20", "-o", "/dev/null", "-w", "%{http_code}"]).args(login);
        let output = curl.arg(format!("http://{web}{path}")).output().expect("curl runs");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert_eq!(status("/seen", &[]), "200");
    for (login, expected) in
        [("ann:tree house", "404"), ("bob:river stone", "404"), ("ann:river stone", "401"), ("eve:x", "401")]
    {
        assert_eq!(
            status("/staff", &["-u", login]),
            expected,
            "{login}: nginx says 404 to whom we let through"
        );
    }
    assert_eq!(status("/staff", &[]), "401");
}
