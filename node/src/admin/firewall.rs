//! `/v1/firewall`: rules of firewalls, as they are in force, added and removed.
//!
//! Adding or removing a rule edits the document in force and is a new revision. Places are called
//! `listener:NAME` (or the bare name), `route:NAME`, `rule:ROUTE/NAME` and `policy:NAME`.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use trestle_cluster::{Files, PlaceCounts};
use trestle_config::{Config, Document, near_miss};
use trestle_dataplane::FirewallView;

use super::config::{self, Edit, Why};
use super::{Api, ApiError, Author, Params, body};

// === as they are ===

#[derive(Serialize)]
struct Firewall {
    place: String,
    /// The bundle that it stands in, if it is pulled in.
    of: Option<String>,
    rules: Vec<Rule>,
    default: Default,
}

#[derive(Serialize)]
struct Rule {
    index: usize,
    action: &'static str,
    from: Vec<String>,
    ports: Vec<String>,
    #[serde(flatten)]
    hits: Hits,
}

#[derive(Serialize)]
struct Default {
    action: &'static str,
    #[serde(flatten)]
    hits: Hits,
}

/// Whom it has decided about.
#[derive(Serialize)]
struct Hits {
    /// On all nodes that have told.
    hits: u64,
    nodes: BTreeMap<String, u64>,
}

#[derive(Deserialize)]
pub(super) struct ListQuery {
    place: Option<String>,
}

pub(super) async fn list(
    State(api): State<Arc<Api>>,
    Params(query): Params<ListQuery>,
) -> Result<Response, ApiError> {
    let cluster = api.cluster()?;
    let in_force = cluster.in_force();
    let wanted = query.place.as_deref().map(Place::parse).transpose()?;
    if let Some(place) = &wanted {
        place.find(in_force.config())?;
    }
    let document = in_force.document.to_json();
    let told = cluster.firewall_hits().await;
    let mut firewalls: Vec<Firewall> = Vec::new();
    for view in api.node.plane.firewalls() {
        let Ok(place) = Place::parse(&view.place) else { continue };
        let of = place.object_in(in_force.config(), &document).and_then(|object| bundle(object, &document));
        let is_wanted = wanted.as_ref().is_none_or(|wanted| match wanted {
            Place::Policy(name) => of.as_ref() == Some(name),
            wanted => *wanted == place,
        });
        if is_wanted {
            firewalls.push(shown(view, of, &told));
        }
    }
    let silent: Vec<_> = told.iter().filter(|(_, hits)| hits.is_none()).map(|(node, _)| node).collect();
    Ok(Json(json!({ "firewalls": firewalls, "silent": silent })).into_response())
}

/// What each node has counted by place, the default last; `None`: it has not told, or serves another revision.
type Told = BTreeMap<String, Option<PlaceCounts>>;

fn shown(view: FirewallView, of: Option<String>, told: &Told) -> Firewall {
    let hits = |at: usize| {
        let of_node = |(node, places): (&String, &Option<PlaceCounts>)| {
            Some((node.clone(), *places.as_ref()?.get(&view.place)?.get(at)?))
        };
        let nodes: BTreeMap<String, u64> = told.iter().filter_map(of_node).collect();
        Hits { hits: nodes.values().sum(), nodes }
    };
    let rules = view.rules.iter().enumerate().map(|(index, one)| Rule {
        index,
        action: one.rule.action.text(),
        from: one.rule.from.iter().map(ToString::to_string).collect(),
        ports: one.rule.ports.iter().map(ToString::to_string).collect(),
        hits: hits(index),
    });
    Firewall {
        rules: rules.collect(),
        default: Default { action: view.default.text(), hits: hits(view.rules.len()) },
        of,
        place: view.place,
    }
}

// === added, removed ===

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewRule {
    rule: RuleText,
    /// Its place in the list.
    #[serde(default)]
    at: usize,
    message: Option<String>,
    if_revision: Option<u64>,
}

/// As in the document.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct RuleText {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    from: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    ports: Vec<Value>,
    action: String,
}

impl fmt::Display for RuleText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.action)?;
        if !self.from.is_empty() {
            write!(f, " {}", self.from.join(","))?;
        }
        // A number or a range, as it was sent.
        let port = |port: &Value| port.as_str().map_or_else(|| port.to_string(), str::to_owned);
        if !self.ports.is_empty() {
            write!(f, " on {}", self.ports.iter().map(port).collect::<Vec<_>>().join(","))?;
        }
        Ok(())
    }
}

pub(super) async fn add(
    State(api): State<Arc<Api>>,
    Path(place): Path<String>,
    Extension(author): Extension<Author>,
    body: Body,
) -> Result<Response, ApiError> {
    let order: NewRule = serde_json::from_slice(&body::bytes(body).await?).map_err(|e| {
        ApiError::bad_request(format!(
            "expected {{\"rule\": {{\"from\": [NETWORK], \"ports\": [PORT], \"action\": ACTION}}, \"at\": N, \"message\": \
             TEXT, \"if_revision\": N}}: {e}"
        ))
    })?;
    if order.rule.from.is_empty() && order.rule.ports.is_empty() {
        let why =
            "the rule would be about everybody: name networks or ports, or write `default` into the document";
        return Err(ApiError::bad_request(why));
    }
    let place = Place::parse(&place)?;
    let edit = Edit {
        expected: order.if_revision,
        message: order.message.unwrap_or_else(|| format!("firewall of {place}: {} added", order.rule)),
        author,
    };
    let rule = serde_json::to_value(&order.rule).map_err(ApiError::internal)?;
    config::edit(api.cluster()?, edit, Files::default(), |present| with_rule(present, &place, order.at, rule))
        .await
}

fn with_rule(present: &Document, place: &Place, at: usize, rule: Value) -> Result<String, ApiError> {
    let mut json = present.to_json();
    place.find(present.config())?;
    if let Some(bundle) = place.object_in(present.config(), &json).and_then(|object| bundle(object, &json)) {
        let message = format!(
            "{place} takes its firewall from policy {bundle}, whose rules one of its own would replace: change \
             policy:{bundle}, which concerns all that use it; nothing was changed"
        );
        return Err(ApiError::new(StatusCode::CONFLICT, "in_policy", message));
    }
    let object = place.object_mut(present.config(), &mut json).ok_or_else(|| place.lost())?;
    let firewall = object.entry("firewall").or_insert_with(|| json!({}));
    let Some(firewall) = firewall.as_object_mut() else { return Err(place.lost()) };
    let rules = firewall.entry("rules").or_insert_with(|| json!([]));
    let Some(rules) = rules.as_array_mut() else { return Err(place.lost()) };
    if at > rules.len() {
        let message = format!("{place} has {} rules: a new one comes to 0 to {0}, not {at}", rules.len());
        return Err(ApiError::bad_request(message));
    }
    rules.insert(at, rule);
    Ok(json.to_string())
}

pub(super) async fn remove(
    State(api): State<Arc<Api>>,
    Path((place, index)): Path<(String, usize)>,
    Params(why): Params<Why>,
    Extension(author): Extension<Author>,
) -> Result<Response, ApiError> {
    let place = Place::parse(&place)?;
    let edit = why.edit(author, || format!("firewall of {place}: rule {index} removed"));
    config::edit(api.cluster()?, edit, Files::default(), |present| without_rule(present, &place, index)).await
}

fn without_rule(present: &Document, place: &Place, index: usize) -> Result<String, ApiError> {
    let mut json = present.to_json();
    place.find(present.config())?;
    let used = place.object_in(present.config(), &json).and_then(|object| bundle(object, &json));
    let object = place.object_mut(present.config(), &mut json).ok_or_else(|| place.lost())?;
    let firewall = object.get_mut("firewall").and_then(Value::as_object_mut);
    let rules = firewall.and_then(|firewall| firewall.get_mut("rules")?.as_array_mut());
    let count = rules.as_ref().map_or(0, |rules| rules.len());
    match rules {
        Some(rules) if index < count => drop(rules.remove(index)),
        _ => {
            let elsewhere = used.map(|bundle| format!("; it takes its firewall from policy:{bundle}"));
            let message = format!("{place} has {count} rules of its own{}", elsewhere.unwrap_or_default());
            return Err(ApiError::new(StatusCode::NOT_FOUND, "no_such_rule", message));
        }
    }
    // Nothing is left of what `add` has made.
    if object.get("firewall") == Some(&json!({ "rules": [] })) && !object.contains_key("use") {
        object.remove("firewall");
    }
    Ok(json.to_string())
}

/// The bundle that a listener, route or rule without a firewall of its own takes one from.
fn bundle(object: &Map<String, Value>, document: &Value) -> Option<String> {
    if object.contains_key("firewall") {
        return None;
    }
    let used = object.get("use")?.as_array()?.iter().filter_map(Value::as_str);
    let mut with_one = used.filter(|name| document["policies"][*name].get("firewall").is_some());
    with_one.next().map(str::to_owned)
}

// === places ===

/// Where a firewall stands.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    Listener(String),
    Route(String),
    Rule(String, String),
    Policy(String),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Listener(name) => write!(f, "listener:{name}"),
            Place::Route(name) => write!(f, "route:{name}"),
            Place::Rule(route, name) => write!(f, "rule:{route}/{name}"),
            Place::Policy(name) => write!(f, "policy:{name}"),
        }
    }
}

impl Place {
    fn parse(text: &str) -> Result<Place, ApiError> {
        let wrong = || {
            ApiError::bad_request(format!(
                "{text:?} is no place of a firewall: a listener's name, or listener:NAME, route:NAME, \
                 rule:ROUTE/NAME or policy:NAME"
            ))
        };
        let Some((kind, name)) = text.split_once(':') else { return Ok(Place::Listener(text.to_owned())) };
        let own = name.to_owned();
        Ok(match kind {
            "listener" => Place::Listener(own),
            "route" => Place::Route(own),
            "policy" => Place::Policy(own),
            "rule" => {
                let (route, rule) = name.split_once('/').ok_or_else(wrong)?;
                Place::Rule(route.to_owned(), rule.to_owned())
            }
            _ => return Err(wrong()),
        })
    }

    /// Whether the config has it. Bundles it does not list: they are looked for in the document.
    fn find(&self, config: &Config) -> Result<(), ApiError> {
        let (what, name, names): (_, _, Vec<&str>) = match self {
            Place::Listener(name) => {
                ("listener", name, config.listeners.keys().map(String::as_str).collect())
            }
            Place::Route(name) => ("route", name, config.routes.keys().map(String::as_str).collect()),
            Place::Rule(route, name) => match config.routes.get(route) {
                Some(found) => {
                    ("rule of that route", name, found.rules.iter().map(|r| r.name.as_str()).collect())
                }
                None => ("route", route, config.routes.keys().map(String::as_str).collect()),
            },
            Place::Policy(_) => return Ok(()),
        };
        if names.contains(&name.as_str()) {
            return Ok(());
        }
        let hint = match near_miss(name, names.iter().copied()) {
            Some(near) => format!("did you mean {near}?"),
            None if names.is_empty() => "there is none".to_owned(),
            None => format!("there is {}", listed(&names)),
        };
        Err(ApiError::new(
            StatusCode::NOT_FOUND,
            "no_such_place",
            format!("no {what} has the name {name:?}; {hint}"),
        ))
    }

    fn steps(&self, config: &Config) -> Option<Vec<Step>> {
        let name = |name: &String| Step::Key(name.clone());
        let key = |key: &str| Step::Key(key.to_owned());
        Some(match self {
            Place::Listener(listener) => vec![key("listeners"), name(listener)],
            Place::Route(route) => vec![key("routes"), name(route)],
            Place::Policy(policy) => vec![key("policies"), name(policy)],
            Place::Rule(route, rule) => {
                let at = config.routes.get(route)?.rules.iter().position(|known| known.name == *rule)?;
                vec![key("routes"), name(route), key("rules"), Step::At(at)]
            }
        })
    }

    fn object_in<'j>(&self, config: &Config, document: &'j Value) -> Option<&'j Map<String, Value>> {
        let steps = self.steps(config)?;
        let found = steps.iter().try_fold(document, |json, step| match step {
            Step::Key(key) => json.get(key),
            Step::At(at) => json.get(at),
        });
        found?.as_object()
    }

    fn object_mut<'j>(&self, config: &Config, document: &'j mut Value) -> Option<&'j mut Map<String, Value>> {
        let steps = self.steps(config)?;
        let found = steps.iter().try_fold(document, |json, step| match step {
            Step::Key(key) => json.get_mut(key),
            Step::At(at) => json.get_mut(at),
        });
        found?.as_object_mut()
    }

    fn lost(&self) -> ApiError {
        let message = format!("the document has no {self}; nothing was changed");
        ApiError::new(StatusCode::NOT_FOUND, "no_such_place", message)
    }
}

enum Step {
    Key(String),
    At(usize),
}

/// Names of places, of which there may be thousands.
fn listed(names: &[&str]) -> String {
    const LISTED_MAX: usize = 20;
    let some = names.iter().take(LISTED_MAX).copied().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(LISTED_MAX) {
        0 => some,
        more => format!("{some} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use trestle_config::Source;
    use trestle_config::model::Action;

    use super::*;

    fn document(text: &str) -> Document {
        trestle_config::parse(Source { name: "t", text }).unwrap()
    }

    const BASE: &str = r#"
listeners:
  raw: { bind: ":25", protocol: tcp, pool: p }
  web: { bind: ":80", protocol: http, use: [edge] }
routes: { shop: { rules: [{ name: a, pools: [p] }, { match: [{ path: { prefix: /x } }], pools: [p] }] } }
policies: { edge: { firewall: { rules: [{ from: [192.0.2.0/24], action: deny }] } }, other: {} }
pools: { p: { members: [] } }
"#;

    fn rule(from: &str) -> Value {
        json!({ "from": [from], "action": "deny" })
    }

    #[test]
    fn a_rule_is_told_with_its_ports() {
        let told = |rule: Value| serde_json::from_value::<RuleText>(rule).unwrap().to_string();
        assert_eq!(told(json!({ "ports": ["8000-8999", 25], "action": "deny" })), "deny on 8000-8999,25");
        assert_eq!(told(json!({ "from": ["@a", "192.0.2.1"], "action": "allow" })), "allow @a,192.0.2.1");
        let both = json!({ "from": ["192.0.2.1"], "ports": [25], "action": "reset" });
        assert_eq!(told(both), "reset 192.0.2.1 on 25");
    }

    #[test]
    fn of_many_names_some_are_listed_and_the_rest_is_counted() {
        let names: Vec<String> = (0..23).map(|n| format!("l{n}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        assert_eq!(listed(&names[..2]), "l0, l1");
        assert!(listed(&names[..20]).ends_with(", l19"));
        assert!(listed(&names).ends_with(", l19 and 3 more"), "{}", listed(&names));
    }

    #[test]
    fn a_rule_comes_and_goes_and_the_rest_of_the_document_stays() {
        for place in ["raw", "listener:raw", "route:shop", "rule:shop/a", "rule:shop/1", "policy:other"] {
            let (present, place) = (document(BASE), Place::parse(place).unwrap());
            let one = document(&with_rule(&present, &place, 0, rule("198.51.100.0/24")).unwrap());
            let two = document(&with_rule(&one, &place, 0, rule("203.0.113.0/24")).unwrap());
            assert!(two.canonical().contains("203.0.113.0/24"), "{place}");
            let left = document(&without_rule(&two, &place, 0).unwrap());
            assert_eq!(left, one, "{place}");
            assert_eq!(document(&without_rule(&left, &place, 0).unwrap()), present, "{place}");
            assert_eq!(without_rule(&present, &place, 0).unwrap_err().code, "no_such_rule");
            assert_eq!(with_rule(&present, &place, 1, rule("::1")).unwrap_err().status, 400);
        }
        let present = document(BASE);
        let place = Place::parse("rule:shop/1").unwrap();
        let one = document(&with_rule(&present, &place, 0, rule("198.51.100.0/24")).unwrap());
        let rules = &one.config().routes["shop"].rules;
        assert!(rules[0].firewall.is_none() && rules[1].firewall.is_some());
        assert_eq!(rules[1].firewall.as_ref().unwrap().default, Action::Allow);
    }

    #[test]
    fn what_a_bundle_says_is_changed_in_the_bundle() {
        let (present, place) = (document(BASE), Place::parse("web").unwrap());
        let refused = with_rule(&present, &place, 0, rule("198.51.100.0/24")).unwrap_err();
        assert_eq!(refused.code, "in_policy");
        assert!(refused.message.contains("change policy:edge"), "{}", refused.message);
        let refused = without_rule(&present, &place, 0).unwrap_err();
        assert!(refused.message.contains("takes its firewall from policy:edge"), "{}", refused.message);
        let edge = Place::parse("policy:edge").unwrap();
        let grown = document(&with_rule(&present, &edge, 1, rule("198.51.100.0/24")).unwrap());
        assert_eq!(grown.config().listeners["web"].firewall.as_ref().unwrap().rules.len(), 2);
    }

    #[test]
    fn a_place_that_is_not_there_is_told_with_what_may_be_meant() {
        let present = document(BASE);
        for (place, expected) in [
            ("wep", "no listener has the name \"wep\"; did you mean web?"),
            ("route:shops", "no route has the name \"shops\"; did you mean shop?"),
            ("rule:shop/zzz", "no rule of that route has the name \"zzz\"; there is a, 1"),
            ("rule:x/a", "no route has the name \"x\"; there is shop"),
            ("policy:none", "the document has no policy:none; nothing was changed"),
        ] {
            let place = Place::parse(place).unwrap();
            assert_eq!(with_rule(&present, &place, 0, rule("::1")).unwrap_err().message, expected);
        }
        assert_eq!(Place::parse("vip:x").unwrap_err().status, 400);
        assert_eq!(Place::parse("rule:x").unwrap_err().status, 400);
    }
}
