//! Whatever is read, parse and print agree; whatever is thrown at the parser, it answers.

use std::collections::BTreeMap;

use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Map, Value, json};
use trestle_config::{Source, diff, parse};

/// An object of the keys that were chosen.
fn object(fields: Vec<(&'static str, Option<Value>)>) -> Value {
    let set: Map<String, Value> =
        fields.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect();
    Value::Object(set)
}

fn duration() -> impl Strategy<Value = Value> {
    (1u64..5_000, select(vec!["ms", "s", "m", "h"]))
        .prop_map(|(n, unit)| json!(format!("{n}{unit}")))
        .boxed()
        // No `400d`: a year is the most.
        .prop_filter("within a year", |d| d.as_str().is_some_and(|d| !d.ends_with('h') || d.len() < 5))
}

fn size() -> impl Strategy<Value = Value> {
    prop_oneof![
        (1u64..16_384).prop_map(|n| json!(format!("{n}KiB"))),
        (1_024u64..16_000_000).prop_map(Value::from)
    ]
}

fn share() -> impl Strategy<Value = Value> {
    prop_oneof![(0u32..=1_000).prop_map(|n| json!(f64::from(n) / 1_000.0)), select(vec![json!(0), json!(1)])]
}

/// Names, some of which YAML would take for something else.
fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-z][a-z0-9_.-]{0,20}",
        "[0-9]{1,4}(\\.[0-9]{1,2})?",
        select(vec![
            "no",
            "off",
            "true",
            "null",
            "1e3",
            "0x1F",
            "~x".trim_start_matches('~'),
            "_",
            "2s",
            "-",
            "y"
        ])
        .prop_map(str::to_owned),
    ]
}

fn text() -> impl Strategy<Value = Value> {
    // Any text without control characters and outer space is a header's value.
    "\\PC{0,30}".prop_map(|s| Value::String(s.trim_matches([' ', '\t']).to_owned()))
}

fn value_match() -> impl Strategy<Value = Value> {
    prop_oneof![
        text(),
        text().prop_map(|v| json!({ "exact": v })),
        text().prop_map(|v| json!({ "prefix": v })),
        any::<bool>().prop_map(|b| json!({ "present": b })),
    ]
}

fn matches() -> impl Strategy<Value = Value> {
    let path =
        (select(vec!["exact", "prefix"]), "/([a-zA-Z0-9_~é-]|%[2-7][0-9a-fA-F]){0,12}(/[a-z0-9]{1,5}){0,2}")
            .prop_filter("dots", |(_, path)| {
                !path.split('/').any(|segment| matches!(&*segment.to_lowercase(), "%2e" | "%2e%2e"))
            })
            .prop_map(|(kind, path)| json!({ kind: path }));
    let method = prop_oneof![
        Just(json!("GET")),
        vec(select(vec!["GET", "POST", "PURGE", "M-SEARCH"]).prop_map(Value::from), 1..3)
            .prop_map(Value::Array)
    ];
    let headers = btree_map("[a-z][a-z0-9-]{0,10}", value_match(), 0..4).prop_map(|map| json!(map));
    (option::of(path), option::of(method), option::of(headers)).prop_map(|(path, method, headers)| {
        object(vec![("path", path), ("method", method), ("headers", headers)])
    })
}

fn rule(pools: Vec<String>) -> impl Strategy<Value = Value> {
    let pool = (select(pools), option::of(1u32..1_000)).prop_map(|(pool, weight)| match weight {
        Some(weight) => json!([{ "pool": pool, "weight": weight }]),
        None => json!([pool]),
    });
    let timeout = (option::of(duration()), option::of(duration()))
        .prop_map(|(request, first)| object(vec![("request", request), ("first_byte", first)]));
    let retry = (
        option::of(0u32..=10),
        option::of(select(vec![json!([]), json!(["connect"]), json!(["reused", "connect"])])),
    )
        .prop_map(|(attempts, on)| object(vec![("attempts", attempts.map(Value::from)), ("on", on)]));
    (pool, option::of(vec(matches(), 1..4)), option::of(timeout), option::of(retry), option::of(size()))
        .prop_map(|(pools, matches, timeout, retry, max_body)| {
            object(vec![
                ("max_body", max_body),
                ("pools", Some(pools)),
                ("match", matches.map(Value::Array)),
                ("retry", retry),
                ("timeout", timeout),
            ])
        })
}

fn route(pools: Vec<String>) -> impl Strategy<Value = Value> {
    let hosts = select(vec![json!(["*"]), json!(["*.Example.com", "a.example"]), json!(["[2001:DB8::1]"])]);
    (vec(rule(pools), 1..4), option::of(hosts))
        .prop_map(|(rules, hosts)| object(vec![("rules", Some(rules.into())), ("hosts", hosts)]))
}

fn pool() -> impl Strategy<Value = Value> {
    let members = btree_map(1u8..=250, option::of(1u32..100), 0..5).prop_map(|members| {
        let members = members.into_iter().map(|(host, weight)| match weight {
            Some(weight) => json!({ "weight": weight, "address": format!("192.0.2.{host}:80"), "name": format!("m{host}") }),
            None => json!(format!("[2001:db8::{host}]:443")),
        });
        members.collect::<Value>()
    });
    let health = prop_oneof![
        Just(json!("off")),
        Just(json!(false)),
        Just(json!({})),
        (duration(), 1u32..9)
            .prop_map(|(interval, fall)| json!({ "fall": fall, "interval": interval, "tcp": {} })),
        (text(), select(vec![json!(200), json!("200-204"), json!([200, "301-302"])])).prop_map(
            |(header, status)| {
                json!({ "http": { "status": status, "path": "/h?a=b", "header": { "X-Ok": header } } })
            }
        ),
    ];
    let balance = select(vec!["round_robin", "random", "random_two", "least_request"]).prop_map(Value::from);
    (members, option::of(health), option::of(balance), option::of(share())).prop_map(
        |(members, health, balance, panic)| {
            object(vec![
                ("health", health),
                ("members", Some(members)),
                ("panic", panic),
                ("balance", balance),
            ])
        },
    )
}

fn listener(pools: Vec<String>) -> impl Strategy<Value = Value> {
    let bind = select(vec![json!(":0"), json!(["127.0.0.1:0", "[::1]:0"]), json!(["0.0.0.0:0"])]);
    let tcp = (option::of(duration()), any::<bool>())
        .prop_map(|(idle, nodelay)| object(vec![("nodelay", Some(nodelay.into())), ("idle", idle)]));
    let protocol = select(vec!["http", "tcp", "udp", "tcp+udp"]).prop_map(Value::from);
    (protocol, bind, select(pools), option::of(tcp)).prop_map(|(protocol, bind, pool, tcp)| {
        object(vec![
            ("pool", Some(pool.into())),
            ("protocol", Some(protocol)),
            ("tcp", tcp),
            ("bind", Some(bind)),
        ])
    })
}

/// VIPs by name; their addresses are given by [`numbered`].
fn vip() -> impl Strategy<Value = Value> {
    let nodes = select(vec![json!([]), json!(["n1", "n2"]), json!(["n2", "0800", "no"])]);
    let interface = select(vec!["auto", "eth0", "no"]);
    let ttl = (100u64..=60_000).prop_map(|ms| json!(format!("{ms}ms")));
    let (loss, notify) = (select(vec!["hold", "release"]), select(vec!["", "/bin/true", "/a b: c/d"]));
    let all = (
        1usize..4,
        option::of(interface),
        option::of(nodes),
        option::of(ttl),
        option::of(loss),
        option::of(notify),
    );
    (all, option::of(any::<bool>())).prop_map(|((count, interface, nodes, ttl, loss, notify), preempt)| {
        object(vec![
            ("notify", notify.map(Value::from)),
            ("prefer", nodes.as_ref().map(|_| json!(["n2"]))),
            ("nodes", nodes.filter(|nodes| nodes != &json!([]))),
            ("addresses", Some(json!(count))),
            ("ttl", ttl),
            ("on_quorum_loss", loss.map(Value::from)),
            ("preempt", preempt.map(Value::from)),
            ("interface", interface.map(Value::from)),
        ])
    })
}

/// Gives each VIP as many addresses of its own as it asks for, and each listener that may a port of its
/// own at a VIP.
fn numbered(vips: &mut BTreeMap<String, Value>, listeners: &mut BTreeMap<String, Value>, at_vip: &[bool]) {
    for (i, vip) in vips.values_mut().enumerate() {
        let count = vip["addresses"].as_u64().unwrap_or(1);
        let address = |n| match n % 2 {
            0 => format!("198.18.{i}.{}/{}", n + 1, 24 + n),
            _ => format!("2001:DB8:{i}::{n}/64"),
        };
        vip["addresses"] = (0..count).map(address).collect();
    }
    let names: Vec<&String> = vips.keys().collect();
    for (i, (listener, at_vip)) in listeners.values_mut().zip(at_vip).enumerate() {
        if *at_vip && !names.is_empty() {
            listener["bind"] = json!([format!("@{}:{}", names[i % names.len()], 1_000 + i), ":0"]);
        }
    }
}

/// A valid document, its keys in no particular order.
fn document() -> impl Strategy<Value = Value> {
    btree_map(name(), pool(), 1..4).prop_flat_map(|pools| {
        let names: Vec<String> = pools.keys().cloned().collect();
        let listeners = btree_map(name(), listener(names.clone()), 0..3);
        let routes = btree_map(name(), route(names), 0..3);
        let voters = option::of((1u32..=9).prop_map(|voters| json!({ "voters": voters })));
        let vips = (btree_map(name(), vip(), 0..3), vec(any::<bool>(), 3));
        (Just(pools), listeners, routes, voters, vips).prop_map(
            |(pools, mut listeners, routes, cluster, (mut vips, at_vip))| {
                numbered(&mut vips, &mut listeners, &at_vip);
                object(vec![
                    ("cluster", cluster),
                    ("vips", Some(json!(vips))),
                    ("pools", Some(json!(pools))),
                    ("routes", Some(json!(routes))),
                    ("listeners", Some(json!(listeners))),
                ])
            },
        )
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn parse_print_parse_is_stable(json in document()) {
        let text = json.to_string();
        let first = parse(Source { name: "first", text: &text }).map_err(|e| TestCaseError::fail(e.to_string()))?;
        let second = parse(Source { name: "second", text: first.canonical() })
            .map_err(|e| TestCaseError::fail(format!("{e}\n{}", first.canonical())))?;
        prop_assert_eq!(second.canonical(), first.canonical());
        prop_assert_eq!(second.config(), first.config());
        prop_assert_eq!(second.to_json(), first.to_json());
        prop_assert!(diff(&first, &second).is_empty());
        let third = parse(Source { name: "third", text: &first.to_json().to_string() })
            .map_err(|e| TestCaseError::fail(e.to_string()))?;
        prop_assert_eq!(third, first);
    }

    #[test]
    fn a_diff_is_empty_exactly_for_equal_documents(a in document(), b in document()) {
        let parsed = |json: &Value| parse(Source { name: "-", text: &json.to_string() }).map_err(|e| TestCaseError::fail(e.to_string()));
        let (a, b) = (parsed(&a)?, parsed(&b)?);
        prop_assert_eq!(diff(&a, &b).is_empty(), a == b);
        prop_assert_eq!(diff(&a, &b).to_string().is_empty(), a == b);
    }

    #[test]
    fn any_text_is_answered(text in "\\PC*") {
        let _ = parse(Source { name: "-", text: &text });
    }

    #[test]
    fn any_bytes_are_answered(bytes in vec(any::<u8>(), 0..300)) {
        let _ = parse(Source { name: "-", text: &String::from_utf8_lossy(&bytes) });
    }

    #[test]
    fn text_of_yaml_marks_is_answered(text in "[-:?,\\[\\]{}#&*!|>'\"%@` \n\tab0~<.]{0,120}") {
        if let Err(problems) = parse(Source { name: "-", text: &text }) {
            prop_assert!(!problems.as_slice().is_empty());
            let _ = problems.to_string();
        }
    }

    #[test]
    fn a_damaged_document_is_answered(json in document(), at in any::<prop::sample::Index>(), with in "[-:,\\[\\]{}\"'\n 0a&*|]{0,3}", cut in 0usize..4) {
        let mut text: Vec<char> = parse(Source { name: "-", text: &json.to_string() })
            .map_err(|e| TestCaseError::fail(e.to_string()))?.canonical().chars().collect();
        let at = at.index(text.len());
        let end = (at + cut).min(text.len());
        text.splice(at..end, with.chars());
        let text: String = text.into_iter().collect();
        match parse(Source { name: "-", text: &text }) {
            Ok(document) => prop_assert_eq!(&parse(Source { name: "-", text: document.canonical() }).unwrap(), &document),
            Err(problems) => for problem in &problems {
                prop_assert!(problem.line >= 1 && problem.column >= 1);
                prop_assert!(problem.line <= text.lines().count() + 1, "{problem}");
            },
        }
    }
}
