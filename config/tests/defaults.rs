//! A default that is documented is the default that runs: writing it out changes nothing.

use serde_json::{Map, Value, json};
use trestle_config::model::{
    AccessLog, ClusterSettings, HealthCheck, HttpCheck, HttpSettings, Outlier, Pool, PoolTimeouts, Retry,
    RouteTimeouts, TcpSettings, UdpSettings, Vip,
};
use trestle_config::{Document, Source, json_schema, parse};

fn document(json: &Value) -> Document {
    parse(Source { name: "test", text: &json.to_string() })
        .unwrap_or_else(|problems| panic!("{problems}\n{json}"))
}

/// The object of the schema that `name` leads to, with every default written out; `required` are
/// the keys without one that the document needs.
fn written_out(schema: &Value, object: &Value, required: &Value) -> Value {
    let mut out = Map::new();
    for (key, property) in object["properties"].as_object().expect("an object has properties") {
        if let Some(value) = required.get(key) {
            out.insert(key.clone(), value.clone());
        } else if let Some(default) = property.get("default") {
            let target = property["$ref"].as_str().map(|r| schema.pointer(&r[1..]).expect("a definition"));
            let value = match (target, default) {
                (Some(target), Value::Object(empty)) if empty.is_empty() => {
                    written_out(schema, target, &json!({}))
                }
                _ => default.clone(),
            };
            out.insert(key.clone(), value);
        }
    }
    Value::Object(out)
}

#[test]
fn writing_every_default_out_changes_nothing() {
    let schema = json_schema();
    let object = |name: &str, required: Value| written_out(&schema, &schema["$defs"][name], &required);
    let short = json!({
        "listeners": {
            "web": { "bind": ":80", "protocol": "http" },
            "mail": { "bind": ":25", "protocol": "tcp", "pool": "app" },
        },
        "routes": { "shop": { "rules": [{ "pools": ["app"], "match": [{ "method": "GET" }] }] } },
        "pools": {
            "app": { "members": ["192.0.2.1:80"] },
            "checked": { "members": [], "health": { "http": {} } },
        },
        "vips": { "front": { "addresses": ["198.18.0.100/24"] } },
    });
    let matches = object("rule.match", json!({ "method": "GET" }));
    let weighted = object("rule.pool", json!({ "pool": "app" }));
    let rule = object("rule", json!({ "pools": [weighted], "match": [matches] }));
    let member = object("pool.member", json!({ "address": "192.0.2.1:80" }));
    // At most one kind of check may be written.
    let mut health = object("pool.health", json!({}));
    let mut health_http = health.clone();
    health_http.as_object_mut().unwrap().remove("tcp");
    health_http["http"] = object("pool.health.http", json!({}));
    health["tcp"] = json!({});
    let long = json!({
        "listeners": {
            "web": object("listener", json!({ "bind": ":80", "protocol": "http" })),
            "mail": object("listener", json!({ "bind": [":25"], "protocol": "tcp", "pool": "app" })),
        },
        "routes": { "shop": object("route", json!({ "rules": [rule] })) },
        "policies": {},
        "pools": {
            "app": object("pool", json!({ "members": [member], "health": health })),
            "checked": object("pool", json!({ "members": [], "health": health_http })),
        },
        "certificates": {}, "networks": {},
        "vips": { "front": object("vip", json!({ "addresses": ["198.18.0.100/24"] })) },
        "access_log": object("access_log", json!({})),
        "cluster": object("cluster", json!({})),
    });
    assert!(long.to_string().len() > 10 * short.to_string().len(), "the defaults were written out: {long}");
    assert_eq!(document(&long).config(), document(&short).config());
}

#[test]
fn a_document_that_sets_nothing_has_the_models_defaults() {
    let document = parse(Source { name: "test", text: "{}" }).unwrap();
    assert_eq!(document, Document::empty());
    assert_eq!(document.canonical(), "{}\n");
    assert_eq!(document.config().cluster, ClusterSettings::default());
    assert_eq!(document.config().access_log, AccessLog::default());

    let text = r#"
listeners: { web: { bind: ":80", protocol: http } }
routes: { all: { rules: [{ pools: [app] }] } }
pools: { app: { members: [] }, checked: { members: [], health: { http: {} } } }
vips: { front: { addresses: [198.18.0.100/24] } }
"#;
    let document = parse(Source { name: "test", text }).unwrap();
    let config = document.config();
    let web = &config.listeners["web"];
    assert_eq!(
        (&web.udp, &web.tcp, &web.http),
        (&UdpSettings::default(), &TcpSettings::default(), &HttpSettings::default())
    );
    let addresses = config.vips["front"].addresses.clone();
    assert_eq!(config.vips["front"], Vip { addresses, ..Vip::default() });
    let rule = &config.routes["all"].rules[0];
    assert_eq!(
        (&rule.timeout, &rule.retry, rule.max_body),
        (&RouteTimeouts::default(), &Retry::default(), 0)
    );
    assert_eq!(config.pools["app"], Pool::default());
    assert_eq!(config.pools["app"].outlier, Outlier::default());
    assert_eq!(config.pools["app"].timeout, PoolTimeouts::default());
    let checked = config.pools["checked"].health.as_ref().unwrap();
    let kind = trestle_config::model::CheckKind::Http(HttpCheck::default());
    assert_eq!(*checked, HealthCheck { kind, ..HealthCheck::default() });
}
