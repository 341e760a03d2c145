//! `examples/routing.yaml` as it stands, with its addresses mapped to real servers: curl in front,
//! nginx behind.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use trestle_tests::{Cluster, Nginx, eventually, free_port, http, peers};

/// One nginx that answers at a port for each of the example's backends, and says what it was asked.
struct Backends {
    _nginx: Nginx,
    ports: BTreeMap<&'static str, u16>,
}

const BACKENDS: [(&str, &[&str]); 7] = [
    ("video", &["192.0.2.21:80", "192.0.2.22:80"]),
    ("acme", &["192.0.2.41:80"]),
    ("app", &["192.0.2.11:80", "192.0.2.12:80"]),
    ("orders", &["192.0.2.51:80"]),
    ("next", &["192.0.2.52:80"]),
    ("users", &["192.0.2.61:80"]),
    ("wiki", &["192.0.2.71:80"]),
];

const WIKI: &str = "<title>Home</title><a href=http://wiki.internal:8080/a>a</a> <a href=http://wiki.internal:8080/b>b</a>\n";

impl Backends {
    fn start() -> Self {
        let ports: BTreeMap<_, _> = BACKENDS.iter().map(|(name, _)| (*name, free_port())).collect();
        let servers: String = ports
            .iter()
            .filter(|(name, _)| **name != "wiki")
            .map(|(name, port)| {
                format!(
                    "server {{ listen 127.0.0.1:{port}; add_header X-Powered-By old; location / {{ default_type text/plain; \
                     return 200 \"{name} $host $request_uri $http_x_client $http_x_edge\"; }} }}\n"
                )
            })
            .collect();
        let wiki = |dir: &Path| {
            std::fs::write(dir.join("index.html"), WIKI).expect("the folder is writable");
            let (port, dir) = (ports["wiki"], dir.display());
            format!(
                "server {{ listen 127.0.0.1:{port}; root {dir}; gzip on; gzip_min_length 1; gzip_proxied any; default_type text/html; }}\n"
            )
        };
        let backends = Self { _nginx: Nginx::start(|dir| servers + &wiki(dir)), ports: ports.clone() };
        for port in backends.ports.values() {
            eventually(Duration::from_secs(10), "nginx answers", || {
                http::get(([127, 0, 0, 1], *port).into(), "x", "/")
            });
        }
        backends
    }
}

/// What curl got: status, `Location`, body.
fn curl(web: SocketAddr, host: &str, path: &str, more: &[&str]) -> (String, String, String) {
    let url = format!("http://{host}:{}{path}", web.port());
    let resolve = format!("{host}:{}:127.0.0.1", web.port());
    let args =
        ["-sS", "--max-time", "20", "--resolve", &resolve, "-w", "\n%{http_code} %{redirect_url}", &url];
    let output = Command::new("curl").args(args).args(more).output().expect("curl runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (body, last) = text.rsplit_once('\n').expect("the last line is curl's");
    let (status, location) = last.split_once(' ').expect("status and location");
    (status.to_owned(), location.to_owned(), body.to_owned())
}

#[test]
fn the_routing_example_does_what_it_says() {
    if !peers::have(&["curl", "nginx"]) {
        return;
    }
    let backends = Backends::start();
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/routing.yaml");
    let mut config = std::fs::read_to_string(file).expect("the example is there");
    for (name, addresses) in BACKENDS {
        // One server stands for all members of a pool.
        let there = format!("127.0.0.1:{}", backends.ports[name]);
        config = config.replace(addresses[0], &there);
        addresses[1..].iter().for_each(|more| config = config.replace(&format!(", \"{more}\""), ""));
    }
    let cluster = Cluster::start(1, &config.replace("0.0.0.0:8080", "127.0.0.1:0"));
    let node = &cluster.nodes[0];
    let web = node.listener("web").expect("bound");
    let body = |host: &str, path: &str, more: &[&str]| curl(web, host, path, more).2;

    let shop = "shop.example.com";
    let edge = |route: &str| format!("127.0.0.1 {}/{route}", node.name);
    assert_eq!(body(shop, "/videos/7?x", &[]), format!("video {shop} /videos/7?x {}", edge("shop")));
    assert!(body(shop, "/", &["-H", "tenant: acme"]).starts_with("acme "));
    assert!(body(shop, "/", &["-b", "tenant=acme; x=y"]).starts_with("acme "));
    // The longer path goes before more headers.
    assert!(body(shop, "/videos/7", &["-H", "tenant: acme"]).starts_with("video "));
    assert!(body(shop, "/videosx", &[]).starts_with("app "));
    assert_eq!(
        body("api.example.com", "/orders/12?a=b", &[]),
        format!("orders orders.internal /12?a=b {}", edge("api"))
    );
    assert_eq!(body("api.example.com", "/users", &[]), format!("users users.internal / {}", edge("api")));
    assert!(
        body("api.example.com", "/admin/x", &["-X", "POST"]).starts_with("users api.example.com /admin/x")
    );

    // A page of the shop may write there, one of another site may not.
    let preflight = |origin: &str| {
        let origin = format!("origin: {origin}");
        let more = ["-X", "OPTIONS", "-H", &origin, "-H", "access-control-request-method: PUT", "-D", "-"];
        let (status, _, head) = curl(web, "api.example.com", "/users/7", &more);
        (status, head.to_lowercase())
    };
    let (status, head) = preflight("https://shop.example.com");
    assert!(
        status == "204" && head.contains("access-control-allow-methods: get, head, post, put, delete"),
        "{head}"
    );
    let (status, head) = preflight("https://shop.example.net");
    assert!(status == "204" && !head.contains("access-control-allow-origin"), "{head}");
    // Two requests for orders were copied, and nothing else was.
    body("api.example.com", "/orders/13", &["-d", "a=b"]);
    eventually(Duration::from_secs(5), "the copies are sent", || {
        let metrics = http::get(node.admin()?, "localhost", "/metrics")?.text();
        let sent = "trestle_pool_mirrored_total{pool=\"orders-next\"} 2";
        anyhow::ensure!(metrics.lines().any(|line| line == sent), "{metrics}");
        let picked = "trestle_member_picked_total{pool=\"orders-next\"";
        anyhow::ensure!(
            metrics.lines().any(|line| line.starts_with(picked) && line.ends_with(" 2")),
            "{metrics}"
        );
        Ok(())
    });

    let at = |host: &str, path: &str| format!("http://{host}:{}{path}", web.port());
    let (status, location, _) = curl(web, shop, "/p/12?from=mail", &[]);
    assert_eq!((status.as_str(), location), ("301", at(shop, "/products/12?from=mail")));
    let (status, location, _) = curl(web, "www.old.example.com", "/a", &[]);
    assert_eq!((status.as_str(), location), ("308", at(shop, "/a")));
    assert_eq!(curl(web, "elsewhere.example.com", "/", &[]).0, "404");

    let head = body(shop, "/", &["-o", "/dev/null", "-D", "-"]).to_lowercase();
    assert!(!head.contains("\nserver:") && !head.contains("x-powered-by"), "{head}");
    assert!(head.contains("x-content-type-options: nosniff"), "{head}");

    // The wiki's nginx would compress, and answer with a part.
    let wiki = "wiki.example.com";
    let edited = "<title>Home (intranet)</title><a href=http://wiki.example.com/a>a</a> <a href=http://wiki.example.com/b>b</a>\n";
    for more in [&["--compressed"][..], &["-r", "0-3"], &["--http2-prior-knowledge"]] {
        assert_eq!(body(wiki, "/", more), edited, "{more:?}");
    }
    let head = body(wiki, "/", &["-o", "/dev/null", "-D", "-"]).to_lowercase();
    assert!(
        head.contains(&format!("content-length: {}", edited.len())) && head.contains("etag: w/\""),
        "{head}"
    );
    assert!(!head.contains("accept-ranges"), "{head}");

    // What the node says beforehand is what it does.
    let preflight = ["-H", "origin: https://shop.example.com", "-H", "access-control-request-method: PUT"];
    let explained = node.json(
        &[&["route", "explain", "OPTIONS", &at("api.example.com", "/users/7")][..], &preflight].concat(),
    );
    let explained = explained.expect("it explains");
    assert_eq!(explained["listeners"][0]["winner"]["rule"], "users", "{explained}");
    assert!(
        explained["listeners"][0]["does"].as_str().is_some_and(|does| does.contains("204")),
        "{explained}"
    );
    let refused =
        node.json(&["route", "explain", "GET", "https://shop.example.com/"]).expect_err("nobody takes it");
    assert!(refused.to_string().contains("no listener takes https: web takes http"), "{refused}");
    let explained = node.json(&["route", "explain", "GET", &at(shop, "/videos/7"), "-H", "tenant: acme"]);
    let explained = explained.expect("it explains");
    assert_eq!(explained["listeners"][0]["winner"]["rule"], "videos", "{explained}");
    let acme =
        explained["listeners"][0]["others"].as_array().expect("others").iter().find(|o| o["rule"] == "acme");
    assert_eq!(acme.expect("it is one")["why"], "shop/videos has the longer path", "{explained}");
}

#[test]
fn a_client_from_elsewhere_gets_the_answer_of_the_rule_itself() {
    let config = "listeners: { web: { bind: \"127.0.0.1:0\", protocol: http }, more: { bind: \"127.0.0.1:0\", protocol: http } }\n\
                  pools: { a: { members: [] } }\n\
                  routes: { all: { rules: [\n\
                  { match: [{ path: { prefix: /admin } }], respond: { code: 403, body: \"${client.ip} may not change ${path}\\n\" } },\n\
                  { match: [{ path: { prefix: /admin }, clients: [192.0.2.0/24] }], pools: [a] }] } }\n";
    let cluster = Cluster::start(1, config);
    let web = cluster.nodes[0].listener("web").expect("bound");
    let ask = || http::get(web, "x", "/admin/../admin/%41").expect("an answer");
    let reply = ask();
    assert_eq!((reply.status, reply.text().as_str()), (403, "127.0.0.1 may not change /admin/A\n"));

    // Which listener a URL comes to, the node knows by the ports that the system chose.
    let node = &cluster.nodes[0];
    let explain = |args: &[&str]| node.json(&[&["route", "explain"], args].concat());
    let asked = explain(&["GET", &format!("http://192.0.2.1:{}/", web.port()), "-H", "host: x"]);
    let asked = asked.expect("it explains");
    let listeners = asked["listeners"].as_array().expect("a list").iter();
    let at: Vec<_> = listeners.filter_map(|at| at["listener"].as_str()).collect();
    assert_eq!((at, asked["host"].as_str()), (vec!["web"], Some("x")), "{asked}");
    let refused = explain(&["CONNECT", "http://x/"]).expect_err("no node serves it").to_string();
    assert!(refused.contains("refused with 501"), "{refused}");

    // A large set comes from a file beside the document, and goes with it to the node.
    let (node, dir) = (&cluster.nodes[0], cluster.dir());
    let networks: String =
        (0..100_000).map(|n| format!("10.{}.{}.{}\n", n >> 16, n >> 8 & 255, n & 255)).collect();
    let office = |more: &str| {
        std::fs::write(dir.join("office.txt"), format!("# office\n{networks}{more}\n")).expect("write")
    };
    let config = "listeners: { web: { bind: \"127.0.0.1:0\", protocol: http } }\n\
                  networks: { office: { entries: [\"2001:db8::/32\"], file: office.txt } }\n\
                  routes: { all: { rules: [\n\
                  { name: closed, respond: { code: 403 } },\n\
                  { name: open, match: [{ clients: [\"@office\"] }], respond: { code: 204 } }] } }\n";
    office("127.0.0.1/8");
    let refused = node.apply(config).expect_err("a bad line").to_string();
    assert!(
        refused.contains("office.txt:100002:1: networks.office.file: `127.0.0.1/8` has bits behind"),
        "{refused}"
    );
    office("192.0.2.0/24");
    node.apply(config).expect("applied");
    eventually(Duration::from_secs(5), "the set is in force", || {
        anyhow::ensure!(ask().status == 403 && ask().text().is_empty(), "the old rule");
        Ok(())
    });
    office("127.0.0.0/8");
    node.apply(config).expect("applied");
    eventually(Duration::from_secs(5), "the new set is in force", || {
        anyhow::ensure!(ask().status == 204, "the old set");
        Ok(())
    });
    let file = dir.join("apply-n1.yaml");
    for from in [&[][..], &["-f", file.to_str().expect("a plain name")]] {
        let explain = |client: &str| {
            let args = [&["route", "explain", "GET", "http://x/", "--client", client], from].concat();
            node.json(&args).expect("it explains")["listeners"][0].clone()
        };
        assert_eq!(explain("10.1.134.159")["winner"]["rule"], "open", "{from:?}");
        let elsewhere = explain("198.51.100.1");
        assert_eq!(elsewhere["winner"]["rule"], "closed", "{from:?}");
        assert_eq!(elsewhere["others"][0]["why"], "the client 198.51.100.1 is not in @office");
    }
}
