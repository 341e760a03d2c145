//! `examples/routing.yaml` as it stands, with its addresses mapped to real servers: curl in front,
//! nginx behind.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use trestle_tests::{Cluster, Nginx, eventually, http, peers};

/// One nginx that answers at a port for each of the example's backends, and says what it was asked.
struct Backends {
    _nginx: Nginx,
    ports: BTreeMap<&'static str, u16>,
}

const BACKENDS: [(&str, &[&str]); 5] = [
    ("video", &["192.0.2.21:80", "192.0.2.22:80"]),
    ("acme", &["192.0.2.41:80"]),
    ("app", &["192.0.2.11:80", "192.0.2.12:80"]),
    ("orders", &["192.0.2.51:80"]),
    ("users", &["192.0.2.61:80"]),
];

impl Backends {
    fn start() -> Self {
        // Held until all are known, so that no two are the same.
        let free: Vec<_> = BACKENDS
            .iter()
            .map(|(name, _)| (*name, std::net::TcpListener::bind("127.0.0.1:0").expect("a free port")))
            .collect();
        let port = |(name, socket): &(&'static str, std::net::TcpListener)| {
            (*name, socket.local_addr().expect("it is bound").port())
        };
        let ports: BTreeMap<_, _> = free.iter().map(port).collect();
        drop(free);
        let servers: String = ports
            .iter()
            .map(|(name, port)| {
                format!(
                    "server {{ listen 127.0.0.1:{port}; add_header X-Powered-By old; location / {{ default_type text/plain; \
                     return 200 \"{name} $host $request_uri $http_x_client $http_x_edge\"; }} }}\n"
                )
            })
            .collect();
        let backends = Self { _nginx: Nginx::start(|_| servers), ports };
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

    let at = |host: &str, path: &str| format!("http://{host}:{}{path}", web.port());
    let (status, location, _) = curl(web, shop, "/p/12?from=mail", &[]);
    assert_eq!((status.as_str(), location), ("301", at(shop, "/products/12?from=mail")));
    let (status, location, _) = curl(web, "www.old.example.com", "/a", &[]);
    assert_eq!((status.as_str(), location), ("308", at(shop, "/a")));
    assert_eq!(curl(web, "elsewhere.example.com", "/", &[]).0, "404");

    let head = body(shop, "/", &["-o", "/dev/null", "-D", "-"]).to_lowercase();
    assert!(!head.contains("\nserver:") && !head.contains("x-powered-by"), "{head}");
    assert!(head.contains("x-content-type-options: nosniff"), "{head}");

    // What the node says beforehand is what it does.
    let explained = node.json(&["route", "explain", "GET", &at(shop, "/videos/7"), "-H", "tenant: acme"]);
    let explained = explained.expect("it explains");
    assert_eq!(explained["listeners"][0]["winner"]["rule"], "videos", "{explained}");
    let acme =
        explained["listeners"][0]["others"].as_array().expect("others").iter().find(|o| o["rule"] == "acme");
    assert_eq!(acme.expect("it is one")["why"], "shop/videos has the longer path", "{explained}");
}

#[test]
fn a_client_from_elsewhere_gets_the_answer_of_the_rule_itself() {
    let config = "listeners: { web: { bind: \"127.0.0.1:0\", protocol: http } }\n\
                  pools: { a: { members: [] } }\n\
                  routes: { all: { rules: [\n\
                  { match: [{ path: { prefix: /admin } }], respond: { code: 403, body: \"${client.ip} may not change ${path}\\n\" } },\n\
                  { match: [{ path: { prefix: /admin }, clients: [192.0.2.0/24] }], pools: [a] }] } }\n";
    let cluster = Cluster::start(1, config);
    let web = cluster.nodes[0].listener("web").expect("bound");
    let reply = http::get(web, "x", "/admin/../admin/%41").expect("an answer");
    assert_eq!((reply.status, reply.text().as_str()), (403, "127.0.0.1 may not change /admin/A\n"));
}
