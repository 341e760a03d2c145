//! What a document means: values as the model holds them, shorthands, units, JSON.

use std::time::Duration;

use expect_test::expect;
use trestle_config::model::{
    Balance, CheckKind, DnsName, Exchange, HeaderMatch, HostPattern, HttpCheck, NamedMember, OnQuorumLoss,
    PathMatch, Protocol, ValueMatch,
};
use trestle_config::{Change, Document, PROBLEMS_MAX, Source, diff, parse};

#[track_caller]
fn document(text: &str) -> Document {
    parse(Source { name: "test.yaml", text }).unwrap_or_else(|problems| panic!("{problems}"))
}

#[track_caller]
fn refused(text: &str) -> String {
    parse(Source { name: "test.yaml", text }).expect_err("refused").to_string()
}

const WEB: &str = include_str!("../../examples/web.yaml");

#[test]
fn the_example_reads_as_written() {
    let document = document(WEB);
    let config = document.config();
    let web = &config.listeners["web"];
    assert_eq!(web.bind.iter().map(ToString::to_string).collect::<Vec<_>>(), ["0.0.0.0:8080", "[::1]:8081"]);
    assert_eq!(web.http.header_timeout, Duration::from_secs(5));
    assert_eq!(web.http.max_headers, 32 << 10);
    assert_eq!(config.listeners["dns"].protocol, Protocol::Udp);
    assert_eq!(config.listeners["dns"].udp.replies, 1);

    let shop = &config.routes["shop"];
    assert_eq!(
        shop.hosts,
        [HostPattern::Exact("shop.example.com".into()), HostPattern::Suffix("shop.example.com".into())]
    );
    let [testers, api, canary] = shop.rules.as_slice() else { panic!("{:?}", shop.rules) };
    let header = |name: &str, value| HeaderMatch { name: name.into(), value };
    assert_eq!(testers.matches[0].headers, [header("x-canary", ValueMatch::Exact("always".into()))]);
    assert_eq!(api.matches.len(), 2);
    assert_eq!(api.matches[0].path, Some(PathMatch::Prefix("/api".into())));
    assert_eq!(api.matches[0].methods, ["GET", "POST"]);
    assert_eq!(api.matches[0].headers, [header("x-tenant", ValueMatch::Prefix("acme-".into()))]);
    assert_eq!(api.timeout.first_byte, Some(Duration::from_secs(2)));
    assert!(api.retry.on_connect && !api.retry.on_reused);
    assert_eq!(api.max_body, 1 << 20);
    assert_eq!(canary.pools.iter().map(|pool| pool.weight).collect::<Vec<_>>(), [95, 5]);
    assert_eq!(canary.matches, [Default::default()], "no match is one that fits everything");

    let app = &config.pools["app-v1"];
    assert_eq!(app.balance, Balance::LeastRequest);
    assert_eq!(app.members[0].name, "a1");
    assert_eq!(app.members[1].name, "192.0.2.12:8080");
    assert_eq!((app.members[0].weight, app.members[1].weight), (2, 1));
    let Some(CheckKind::Http(HttpCheck { path, status, .. })) = app.health.as_ref().map(|h| h.kind.clone())
    else {
        panic!("{:?}", app.health)
    };
    assert_eq!((path.as_str(), status.as_slice()), ("/healthz", &[(200, 200), (204, 204)][..]));
    assert_eq!(config.cluster.drain.deadline, Duration::from_secs(60));
}

#[test]
fn a_bind_at_a_vip_is_one_at_each_of_its_addresses() {
    let text = r#"
vips:
  front: { addresses: [198.18.0.100/24, "2001:db8::100/64"], interface: eth0, nodes: [n1, n2], prefer: [n2],
           ttl: 500ms, on_quorum_loss: hold, preempt: true, notify: /usr/local/bin/tell }
  back: { addresses: [198.18.0.200/32], interface: auto, notify: "" }
listeners:
  web: { bind: ["@front:80", "127.0.0.1:0", "@back:80"], protocol: http }
"#;
    let document = document(text);
    let config = document.config();
    let binds: Vec<_> = config.listeners["web"].bind.iter().map(ToString::to_string).collect();
    assert_eq!(
        binds,
        ["127.0.0.1:0", "198.18.0.100:80", "[2001:db8::100]:80", "198.18.0.200:80"],
        "those of VIPs stand last, so that they move no other"
    );
    let front = &config.vips["front"];
    let addresses: Vec<_> = front.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["198.18.0.100/24", "2001:db8::100/64"]);
    assert_eq!(front.interface.as_deref(), Some("eth0"));
    assert_eq!(
        (front.nodes.as_slice(), front.prefer.as_slice()),
        (&["n1".into(), "n2".into()][..], &["n2".into()][..])
    );
    assert_eq!(front.ttl, Duration::from_millis(500));
    assert_eq!((front.on_quorum_loss, front.preempt), (OnQuorumLoss::Hold, true));
    assert_eq!(front.notify.as_deref(), Some(std::path::Path::new("/usr/local/bin/tell")));
    assert!(front.allows("n1") && !front.allows("n3") && config.vips["back"].allows("n3"));
    assert_eq!((&config.vips["back"].interface, &config.vips["back"].notify), (&None, &None));

    let ip = |text: &str| text.parse().unwrap();
    assert_eq!(config.vip_at(ip("2001:db8::100")), Some("front"));
    assert_eq!(config.vip_at(ip("198.18.0.101")), None);
    assert_eq!(config.ttl_min(), Duration::from_millis(500));
    expect![[r#"
        listeners:
          web:
            bind:
              - "@front:80"
              - "127.0.0.1:0"
              - "@back:80"
            protocol: http
        vips:
          back:
            addresses:
              - "198.18.0.200/32"
            interface: auto
            notify: ""
          front:
            addresses:
              - "198.18.0.100/24"
              - "2001:db8::100/64"
            interface: eth0
            nodes:
              - n1
              - n2
            prefer:
              - n2
            ttl: 500ms
            on_quorum_loss: hold
            preempt: true
            notify: /usr/local/bin/tell
    "#]]
    .assert_eq(document.canonical());
}

#[test]
fn a_change_of_a_vip_is_a_change_of_that_vip_alone() {
    let text = |addresses: &str| {
        document(&format!(
            "vips: {{ front: {{ addresses: [{addresses}] }} }}\n\
             listeners: {{ web: {{ bind: \"@front:80\", protocol: http }} }}\n"
        ))
    };
    let (old, new) = (text("198.18.0.1/24"), text("198.18.0.1/24, 198.18.0.2/24"));
    let changes = diff(&old, &new);
    let added =
        Change::Added { path: "vips.front.addresses[1]".into(), value: serde_json::json!("198.18.0.2/24") };
    assert_eq!(changes.changes(), [added]);
    assert_eq!(new.config().listeners["web"].bind.len(), 2);
}

#[test]
fn plain_words_stay_text() {
    let document = document(
        "listeners: { web: { bind: \":80\", protocol: http } }\n\
         pools: { app: { members: [] } }\n\
         routes:\n  r:\n    rules:\n      - pools: [app]\n        match:\n          - headers: { a: no, b: 0800, c: 1.20, d: 0x1F, e: 12:30, f: true, g: .inf }\n",
    );
    let headers = &document.config().routes["r"].rules[0].matches[0].headers;
    let values: Vec<_> = headers
        .iter()
        .map(|header| match &header.value {
            ValueMatch::Exact(text) => text.as_str(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(values, ["no", "0800", "1.20", "0x1F", "12:30", "true", ".inf"]);
}

#[test]
fn a_pool_of_udp_alone_is_not_checked_unless_asked() {
    let health = |listeners: &str, pool: &str| {
        let text = format!(
            "listeners: {{ {listeners} }}\npools: {{ p: {{ members: [\"192.0.2.1:53\"]{pool} }} }}\n"
        );
        document(&text).config().pools["p"].health.is_some()
    };
    let udp = "u: { bind: \":53\", protocol: udp, pool: p }";
    assert!(!health(udp, ""));
    assert!(health(udp, ", health: { interval: 5s }"));
    assert!(health("t: { bind: \":53\", protocol: tcp+udp, pool: p }", ""));
    assert!(health(&format!("{udp}, t: {{ bind: \":54\", protocol: tcp, pool: p }}"), ""));
    assert!(health("", ""), "a pool that nobody uses yet is checked");
    assert!(!health("", ", health: off"));
    assert!(!health("", ", health: false"));
}

#[test]
fn the_canonical_form_is_block_style_in_the_order_of_the_reference() {
    let document = document(
        r#"{"pools": {"b": {"health": {"fall": 2, "interval": "2000ms"}, "members": [{"address": "192.0.2.1:80", "weight": 1}, {"address": "192.0.2.2:80"}], "panic": 0}, "a": {"members": []}},
            "routes": {"r": {"rules": [{"pools": [{"pool": "b"}, {"pool": "a", "weight": 0}], "match": [{"headers": {"X-B": {"exact": "1.20"}, "X-A": {"present": true}}, "method": ["GET"]}]}]}},
            "listeners": {"web": {"protocol": "http", "bind": [":80"], "waf": {"mode": false}, "http": {"idle": "3600s", "max_headers": 65536}}}}"#,
    );
    expect![[r#"
        listeners:
          web:
            bind: ":80"
            protocol: http
            http:
              idle: 1h
              max_headers: 64KiB
            waf:
              mode: off
        routes:
          r:
            rules:
              - match:
                  - method: GET
                    headers:
                      x-a:
                        present: true
                      x-b: "1.20"
                pools:
                  - b
                  - pool: a
                    weight: 0
        pools:
          a:
            members: []
          b:
            members:
              - address: "192.0.2.1:80"
                weight: 1
              - "192.0.2.2:80"
            panic: 0
            health:
              interval: 2s
              fall: 2
    "#]]
    .assert_eq(document.canonical());
    assert_eq!(self::document(document.canonical()), document);
    assert_eq!(self::document(&document.to_json().to_string()), document);
}

#[test]
fn json_and_yaml_of_one_document_are_equal() {
    let yaml = document(WEB);
    let json = serde_json::to_string_pretty(&yaml.to_json()).unwrap();
    assert_eq!(document(&json), yaml);
    assert_eq!(document(&json).config(), yaml.config());
    assert_eq!(document(&WEB.replace('\n', "\r\n")), yaml);
    assert_eq!(document(&format!("\u{feff}{WEB}")), yaml);
}

#[test]
fn a_document_cannot_hide_behind_its_number_of_problems() {
    let keys: String = (0..5 * PROBLEMS_MAX).map(|i| format!("k{i}: 1\n")).collect();
    let problems = parse(Source { name: "-", text: &keys }).unwrap_err();
    assert_eq!(problems.as_slice().len(), PROBLEMS_MAX + 1);
    assert_eq!(
        problems.iter().last().unwrap().message,
        format!("{} more problems are not shown", 4 * PROBLEMS_MAX)
    );
}

#[test]
fn a_duplicate_key_does_not_hide_other_problems() {
    let text = "cluster: { voters: 3 }\naccess_log: { format: x }\ncluster: { voters: 5 }\n";
    let message = refused(text);
    assert!(message.contains("given twice, first at 1:1"), "{message}");
    assert!(message.contains("access_log.format"), "{message}");
}

#[test]
fn places_count_characters_from_one() {
    let problems =
        parse(Source { name: "x", text: "pools:\n  # ü\n  a: { \"mémbers\": [] }\n" }).unwrap_err();
    let places: Vec<_> = problems.iter().map(|p| (p.line, p.column, p.path.as_str())).collect();
    assert_eq!(places, [(3, 3, "pools.a"), (3, 8, "pools.a.\"mémbers\"")]);
}

#[test]
fn ten_thousand_members_fit() {
    let members: String = (0..10_000)
        .map(|i| format!("      - {{ address: \"10.0.{}.{}:80\", name: m{i} }}\n", i / 250, i % 250))
        .collect();
    let document = document(&format!("pools:\n  big:\n    members:\n{members}"));
    assert_eq!(document.config().pools["big"].members.len(), 10_000);
}

#[test]
fn members_by_name_stand_beside_the_others_with_what_is_said_of_them() {
    let document = document(
        "pools:\n  p:\n    members: [\"192.0.2.1:80\", \"App.internal:8080\", { address: \"srv:_http._tcp.app.internal.\", \
         name: old, zone: z, backup: 2, max_connections: 7 }]\n    zone_aware: true\n    queue: { max: 1 }\n",
    );
    assert_eq!(document.warnings().len(), 0, "{:?}", document.warnings());
    assert!(document.canonical().contains("app.internal:8080"), "{}", document.canonical());
    let pool = &document.config().pools["p"];
    assert_eq!(pool.members.iter().map(|member| member.name.as_str()).collect::<Vec<_>>(), ["192.0.2.1:80"]);
    let host = NamedMember::new(DnsName::Host { host: "app.internal".into(), port: 8080 });
    assert_eq!((host.label.as_str(), &pool.named[0]), ("app.internal", &host));
    let srv = NamedMember::new(DnsName::Srv("_http._tcp.app.internal.".into()));
    let said = NamedMember { label: "old".into(), zone: "z".into(), backup: 2, max_connections: 7, ..srv };
    assert_eq!(pool.named[1], said);
}

#[test]
fn a_document_has_a_thousand_names_at_most() {
    let names = |n: usize| (0..n).map(|i| format!("\"a{i}.internal:80\"")).collect::<Vec<_>>().join(", ");
    let text =
        |a, b| format!("pools:\n  a: {{ members: [{}] }}\n  b: {{ members: [{}] }}\n", names(a), names(b));
    document(&text(1_000, 1_000));
    let problems = parse(Source { name: "x", text: &text(600, 1_001) }).unwrap_err();
    let told: Vec<_> = problems.iter().map(|p| (p.path.as_str(), p.message.as_str())).collect();
    assert_eq!(told, [("pools.b.members", "more than 1000 DNS names in one document")]);
}

#[test]
fn a_diff_names_what_changed_and_shows_it_in_place() {
    let old = document(
        "pools:\n  a: { members: [\"192.0.2.1:80\", \"192.0.2.2:80\", \"192.0.2.3:80\"] }\n  b: { members: [] }\n",
    );
    let new = document(
        "pools:\n  a: { members: [\"192.0.2.2:80\", \"192.0.2.3:80\"], panic: 0 }\n  c.d: { members: [] }\n",
    );
    let diff = diff(&old, &new);
    assert!(!diff.is_empty());
    let changes: Vec<_> = diff
        .changes()
        .iter()
        .map(|change| match change {
            Change::Added { path, value } => format!("+ {path} {value}"),
            Change::Removed { path, value } => format!("- {path} {value}"),
            Change::Changed { path, old, new } => format!("~ {path} {old} {new}"),
        })
        .collect();
    assert_eq!(
        changes,
        [
            "- pools.b {\"members\":[]}",
            "- pools.a.members[0] \"192.0.2.1:80\"",
            "+ pools.a.panic 0",
            "+ pools.\"c.d\" {\"members\":[]}",
        ]
    );
    expect![[r#"
        --- old
        +++ new
        @@ -1,8 +1,8 @@
         pools:
           a:
             members:
        -      - "192.0.2.1:80"
               - "192.0.2.2:80"
               - "192.0.2.3:80"
        -  b:
        +    panic: 0
        +  c.d:
             members: []
    "#]]
    .assert_eq(&diff.to_string());
}

#[test]
fn equal_documents_have_no_diff() {
    let diff = diff(&document(WEB), &document(document(WEB).canonical()));
    assert!(diff.is_empty() && diff.changes().is_empty() && diff.to_string().is_empty());
}

#[test]
fn members_that_are_spoken_to_over_tls_are_checked_so_unless_a_check_is_named() {
    let kind = |pool: &str| {
        let text = format!("pools: {{ app: {{ members: [\"192.0.2.1:443\"], {pool} }} }}");
        document(&text).config().pools["app"].health.as_ref().map(|check| (check.kind.clone(), check.rise))
    };
    for (pool, expected) in [
        ("tls: {}", Some((CheckKind::Tls, 2))),
        ("tls: {}, health: { rise: 3 }", Some((CheckKind::Tls, 3))),
        ("tls: {}, health: { tcp: {} }", Some((CheckKind::Tcp, 2))),
        ("tls: {}, health: { grpc: {} }", Some((CheckKind::Grpc(String::new()), 2))),
        ("tls: {}, health: { smtp: {} }", Some((CheckKind::Smtp, 2))),
        ("health: { rise: 3, dns: { name: Example.COM. } }", Some((CheckKind::Dns("example.com".into()), 3))),
        ("health: { dns: { name: \".\" } }", Some((CheckKind::Dns(".".into()), 2))),
        ("health: { exchange: {} }", Some((CheckKind::Exchange(Exchange::default()), 2))),
        (
            r"health: { exchange: { over: udp, send: '\xff\\', expect: pong\r\n } }",
            Some((
                CheckKind::Exchange(Exchange {
                    udp: true,
                    send: b"\xff\\".into(),
                    expect: b"pong\r\n".into(),
                }),
                2,
            )),
        ),
        ("tls: {}, health: off", None),
        ("tls: off", Some((CheckKind::Tcp, 2))),
        ("health: { rise: 3 }", Some((CheckKind::Tcp, 3))),
    ] {
        assert_eq!(kind(pool), expected, "{pool}");
    }
}
