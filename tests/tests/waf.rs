//! `examples/waf.yaml` and `examples/waf-rules.yaml` with their addresses mapped: curl in front, nginx behind, which notes every request that it sees.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::Value;
use trestle_tests::{Cluster, Nginx, eventually, example, free_port, http, peers};

const SOON: Duration = Duration::from_secs(20);

/// Where it listens, and its log.
fn nginx() -> (Nginx, u16, PathBuf) {
    let port = free_port();
    let mut log = PathBuf::new();
    let nginx = Nginx::start(|dir| {
        log = dir.join("seen.log");
        format!(
            "log_format seen '$request_method $request_uri';\n\
             server {{ listen 127.0.0.1:{port}; location = /ready {{ return 200 ok; }}\n\
             location / {{ access_log {} seen; return 200 \"served\"; }} }}",
            log.display()
        )
    });
    eventually(SOON, "nginx answers", || http::get(([127, 0, 0, 1], port).into(), "x", "/ready"));
    (nginx, port, log)
}

/// A node with this config and its access log there, and where it listens, once nginx is reached through it.
fn serving(config: &str, access: &Path) -> (Cluster, SocketAddr) {
    let config = format!("{config}\naccess_log: {{ to: \"file:{}\" }}\n", access.display());
    let cluster = Cluster::start(1, &config);
    let web = cluster.nodes[0].listener("web").expect("bound");
    eventually(SOON, "nginx is reached", || {
        let response = http::get(web, "x", "/")?;
        ensure!(response.status == 200, "{}", response.status);
        Ok(())
    });
    (cluster, web)
}

/// Status and body.
fn curl(url: &str, args: &[&str]) -> (String, String) {
    let output = Command::new("curl")
        .args(["-sS", "--max-time", "20", "--globoff", "--path-as-is", "-w", "\n%{http_code}", url])
        .args(args)
        .output()
        .expect("curl runs");
    assert!(output.status.success(), "curl {url} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (body, status) = text.rsplit_once('\n').expect("a status");
    (status.to_owned(), body.to_owned())
}

#[test]
fn the_waf_example_keeps_attacks_from_nginx_and_lets_all_else_through() {
    if !peers::have(&["curl", "nginx"]) {
        return;
    }
    let (_nginx, port, seen) = nginx();
    let config = example(
        "waf.yaml",
        &[("0.0.0.0:8080", "127.0.0.1:0".to_owned()), ("192.0.2.11:8080", format!("127.0.0.1:{port}"))],
    );
    let access = seen.with_file_name("access.log");
    let (cluster, web) = serving(&config, &access);
    let node = &cluster.nodes[0];
    let url = |path: &str| format!("http://{web}{path}");

    let json = ["-H", "Content-Type: application/json", "-d"];
    // More than one argument of a program may have.
    let file = seen.with_file_name("long");
    std::fs::write(&file, format!("a={}", "x".repeat(200_000))).expect("written");
    let long = format!("@{}", file.display());
    let attacks: &[(&str, &[&str])] = &[
        ("/blocked?id=1%27%20or%20%271%27=%271", &[]),
        ("/blocked?id=1%2527%2520union%2520select%25201,2--", &[]),
        ("/blocked/%3Cscript%3Ealert(1)%3C/script%3E", &[]),
        ("/blocked", &["-A", "x' or 1=1--"]),
        ("/blocked", &["-e", "http://x/?q=%3Csvg%20onload=alert(1)%3E"]),
        ("/blocked", &["-b", "id=1%27%3B%20drop%20table%20users--"]),
        ("/blocked", &["--data-urlencode", "q=<img src=x onerror=alert(1)>"]),
        ("/blocked", &[json[0], json[1], json[2], r#"{"a":[{"b":"\u003cscript\u003ealert(1)"}]}"#]),
        ("/blocked", &["-F", "q=' union select user,password from mysql.user#"]),
        ("/blocked", &["-F", "f=x;filename=\"<script>alert(1)\""]),
        ("/blocked", &["-H", "Content-Type: text/xml", "-d", "<a b=\"1' or 1=1--\"/>"]),
        ("/blocked", &["-H", "Content-Type: application/json", "-H", "Content-Encoding: gzip", "-d", "{}"]),
        ("/blocked", &["-H", "Transfer-Encoding: chunked", "-d", "q=<script>alert(1)</script>"]),
        ("/blocked", &["-d", &long]),
        ("/cms/blocked", &["--data-urlencode", "body=' or 1=1--"]),
        ("/blocked", &["--data-urlencode", "body=<script>alert(1)</script>"]),
    ];
    let mut ids = Vec::new();
    for (path, args) in attacks {
        let (status, body) = curl(&url(path), args);
        assert_eq!(status, "403", "{path} {args:?}: {body}");
        ids.push(body.lines().find_map(|line| line.strip_prefix("request ")).expect("an id").to_owned());
    }
    // With HTTP/2, without TLS.
    let (status, _) = curl(&url("/blocked?q=%3Cscript%3Ealert(1)"), &["--http2-prior-knowledge"]);
    assert_eq!(status, "403");

    let innocent: &[(&str, &[&str])] = &[
        ("/passed/1?name=O%27Brien&city=Val-d%27Or", &[]),
        ("/passed/2", &["--data-urlencode", "text=Please select a table from the list; I'd like 2 or 3."]),
        ("/passed/3", &["-F", "name=Ann O'Neill", "-F", "f=x;filename=\"a (1).pdf\""]),
        ("/passed/4", &[json[0], json[1], json[2], r#"{"a":{"b":"it's 5 o'clock -- or 6"}}"#]),
        ("/cms/passed", &["--data-urlencode", "body=<h1 onclick=go(1)>hi</h1><script>x</script>"]),
        ("/paste/passed", &["--data-urlencode", "text=select * from users where 1=1; drop table users"]),
        ("/upload/passed", &["-d", &long]),
        ("/passed/5", &["-b", "_tracking=%3Cscript%3E; session=a1b2"]),
    ];
    for (path, args) in innocent {
        assert_eq!(curl(&url(path), args), ("200".to_owned(), "served".to_owned()), "{path} {args:?}");
    }

    // nginx notes what it has answered, a moment later.
    let seen = eventually(SOON, "nginx has noted all", || {
        let seen = std::fs::read_to_string(&seen)?;
        ensure!(seen.lines().filter(|line| line.contains("passed")).count() >= innocent.len(), "{seen}");
        Ok(seen)
    });
    assert!(!seen.contains("blocked"), "{seen}");
    assert_eq!(seen.lines().filter(|line| line.contains("passed")).count(), innocent.len(), "{seen}");

    // Each refusal is in the log under the id that its client was told, with rule, place and bytes.
    let refused = |id: &String| -> anyhow::Result<Value> {
        let log = std::fs::read_to_string(&access)?;
        let line = log.lines().find(|line| line.contains(id.as_str()));
        Ok(serde_json::from_str(line.with_context(|| format!("no line of {id}"))?)?)
    };
    for (id, (path, args)) in ids.iter().zip(attacks) {
        let line = eventually(SOON, "the refusal is logged", || refused(id));
        assert_eq!(
            (&line["reason"], &line["status"]),
            (&"waf".into(), &403.into()),
            "{path} {args:?}: {line}"
        );
        assert!(line["waf_rule"].is_string() && line["waf_at"].is_string(), "{line}");
    }
    let first = refused(&ids[0]).expect("a line");
    assert_eq!(
        (&first["waf_rule"], &first["waf_at"]),
        (&"sqli-tautology".into(), &"query:id".into()),
        "{first}"
    );
    assert_eq!(first["waf_match"], "or '1'='1", "{first}");
    let metrics = node.metrics().expect("metrics");
    let counts = |name: &str| metrics.lines().find(|line| line.starts_with(name)).map(str::to_owned);
    let ended = counts("trestle_route_ended_total{route=\"shop\",reason=\"waf\"}").expect("counted");
    assert!(ended.ends_with(&format!(" {}", attacks.len() + 1)), "{ended}");
    assert!(counts("trestle_waf_findings_total{rule=\"body-over\",action=\"block\"}").is_some(), "{metrics}");
    assert!(metrics.contains("action=\"detect\""), "the paste is told of");
}

#[test]
fn the_core_rule_set_holds_beside_the_built_in_rules() {
    if !peers::have(&["curl", "nginx"]) || !peers::have_file(peers::CRS, "modsecurity-crs") {
        return;
    }
    let (_nginx, port, seen) = nginx();
    let rules = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/waf-rules.conf");
    let config = example(
        "waf-rules.yaml",
        &[
            ("0.0.0.0:8080", "127.0.0.1:0".to_owned()),
            ("192.0.2.11:8080", format!("127.0.0.1:{port}")),
            ("waf-rules.conf", format!("\"{}\"", rules.display())),
        ],
    );
    let access = seen.with_file_name("access.log");
    let (cluster, web) = serving(&config, &access);
    let node = &cluster.nodes[0];
    let url = |path: &str| format!("http://{web}{path}");
    // What only the set knows: a path of the system, a command, a scanner; and the shop's own rule.
    let attacks: &[(&str, &[&str], &str)] = &[
        ("/blocked?file=../../../../etc/passwd", &[], "930100"),
        ("/blocked?x=%3Bcat%20/etc/passwd", &[], "932"),
        ("/blocked", &["-A", "Nikto/2.1"], "913100"),
        ("/blocked", &["-d", "a=java.lang.Runtime"], "944100"),
        ("/blocked", &["-X", "TRACK"], "911100"),
        ("/admin/blocked", &[], "2"),
        ("/blocked?id=1%27%20or%20%271%27=%271", &[], "sqli-tautology"),
    ];
    for (path, args, rule) in attacks {
        let (status, body) = curl(&url(path), args);
        assert_eq!(status, "403", "{path} {args:?}: {body}");
        let id = body.lines().find_map(|line| line.strip_prefix("request ")).expect("an id").to_owned();
        let line: Value = eventually(SOON, "the refusal is logged", || {
            let log = std::fs::read_to_string(&access)?;
            let line = log.lines().find(|line| line.contains(&id)).context("no line yet")?;
            Ok(serde_json::from_str(line)?)
        });
        let told = line["waf_rule"].as_str().unwrap_or_default();
        assert!(told.split(',').any(|told| told.starts_with(rule)), "{path} {args:?}: {line}");
        assert_eq!((&line["reason"], &line["status"]), (&"waf".into(), &403.into()), "{line}");
    }
    let innocent: &[(&str, &[&str])] = &[
        ("/passed/1?name=O%27Brien&city=Cork", &[]),
        ("/passed/2", &["-d", "comment=I would like two of these, please."]),
        ("/passed/3", &["-H", "Content-Type: application/json", "-d", r#"{"a":{"b":"it is 5 o'clock"}}"#]),
        ("/passed/4", &["-F", "name=Ann O'Neill", "-F", "f=x;filename=a.pdf"]),
        ("/cms/passed", &["--data-urlencode", "body=<b onclick=go(1)>hi</b>"]),
    ];
    for (path, args) in innocent {
        assert_eq!(curl(&url(path), args), ("200".to_owned(), "served".to_owned()), "{path} {args:?}");
    }
    let seen = std::fs::read_to_string(seen).expect("nginx's log");
    assert!(!seen.contains("blocked"), "{seen}");
    let metrics = node.metrics().expect("metrics");
    for sample in ["{rule=\"949110\",action=\"block\"}", "{rule=\"2\",action=\"block\"}"] {
        assert!(metrics.contains(&format!("trestle_waf_findings_total{sample}")), "{sample}: {metrics}");
    }
}
