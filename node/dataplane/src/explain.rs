//! Why a request goes where it goes: `trestle route explain`.
//!
//! The winner comes from the router that requests go through; what is said of the others is worked out
//! match by match, beside it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use serde::{Deserialize, Serialize};
use trestle_config::Config;
use trestle_config::model::{self, HostPattern, LocalAnswer, Match, PathMatch, Scheme, ValueMatch};

use crate::l7::router::{Closeness, Entry, Router, Subject};
use crate::l7::{target, values};
use crate::snapshot::entries;

/// A request to think through, as people write it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Asked {
    pub method: String,
    /// `http://host:port/path?query`
    pub url: String,
    /// `name: value`
    #[serde(default)]
    pub headers: Vec<String>,
    /// The client's address; 127.0.0.1 if it is not given.
    #[serde(default)]
    pub client: Option<IpAddr>,
    #[serde(default)]
    pub listener: Option<String>,
}

impl Asked {
    pub fn question(&self) -> Result<Question, Unanswered> {
        let url: Uri = self.url.parse().map_err(|_| Unanswered::Url(self.url.clone()))?;
        let header = |line: &String| {
            let (name, value) = line.split_once(':')?;
            let name = HeaderName::from_bytes(name.trim().as_bytes()).ok()?;
            Some((name, HeaderValue::from_str(value.trim()).ok()?))
        };
        let headers =
            self.headers.iter().map(|line| header(line).ok_or_else(|| Unanswered::Header(line.clone())));
        Ok(Question {
            method: self.method.parse().map_err(|_| Unanswered::Method(self.method.clone()))?,
            url,
            headers: headers.collect::<Result<_, _>>()?,
            client: self.client.unwrap_or(IpAddr::from([127, 0, 0, 1])),
            listener: self.listener.clone(),
        })
    }
}

/// A request to think through.
#[derive(Clone, Debug)]
pub struct Question {
    pub method: Method,
    /// Absolute: `http://host:port/path?query`.
    pub url: Uri,
    pub headers: Vec<(HeaderName, HeaderValue)>,
    pub client: IpAddr,
    /// `None`: those that listen at the URL's port, else all of http.
    pub listener: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum Unanswered {
    #[error("{0:?} is no method")]
    Method(String),
    #[error("{0:?} is no URL with a host: http://HOST/PATH")]
    Url(String),
    #[error("{0:?} is no header: `name: value`")]
    Header(String),
    #[error("the path can't be brought into its normal form: such a request is refused with 400")]
    Path,
    #[error("there is no http listener {0:?}; the config has {1}")]
    Listener(String, String),
    #[error("the config has no http listener")]
    NoListener,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    pub method: String,
    /// As routes are looked up.
    pub host: String,
    /// In its normal form.
    pub path: String,
    pub listeners: Vec<AtListener>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AtListener {
    pub listener: String,
    /// The rule that takes the request.
    pub winner: Option<RuleName>,
    /// What happens to it.
    pub does: String,
    /// All other rules, nearest first: those that fit, then the rest in the order of their names.
    pub others: Vec<Other>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RuleName {
    pub route: String,
    pub rule: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Other {
    #[serde(flatten)]
    pub name: RuleName,
    /// One of its matches fits, and another rule goes before it.
    pub fits: bool,
    pub why: String,
}

/// `births`: the first revision of each route; without them all are equally old.
pub fn explain(
    config: &Config,
    births: &BTreeMap<String, u64>,
    question: &Question,
) -> Result<Explanation, Unanswered> {
    let Some(authority) = question.url.authority() else {
        return Err(Unanswered::Url(question.url.to_string()));
    };
    let mut headers = HeaderMap::new();
    question.headers.iter().for_each(|(name, value)| _ = headers.append(name, value.clone()));
    let mut seen = |merge_slashes| {
        let mut url = question.url.clone();
        let host = target::normalise(&mut url, &mut headers, merge_slashes).map_err(|_| Unanswered::Path)?;
        Ok((url, target::route_host(host.as_ref()).into_owned()))
    };
    let (url, host) = seen(false)?;
    let (merged, _) = seen(true)?;
    let port = authority.port_u16().or((question.url.scheme_str() == Some("https")).then_some(443));
    let at = |(name, settings): (&String, &model::Listener)| {
        let url = if settings.http.merge_slashes { &merged } else { &url };
        let subject = Subject {
            host: &host,
            path: url.path(),
            query: url.query(),
            method: &question.method,
            headers: &headers,
            client: question.client,
            scheme: if settings.tls.is_some() { Scheme::Https } else { Scheme::Http },
        };
        at_listener(config, births, name, settings, subject)
    };
    Ok(Explanation {
        method: question.method.to_string(),
        host: host.clone(),
        path: url.path().to_owned(),
        listeners: asked(config, question, port)?.into_iter().map(at).collect(),
    })
}

fn asked<'a>(
    config: &'a Config,
    question: &Question,
    port: Option<u16>,
) -> Result<Vec<(&'a String, &'a model::Listener)>, Unanswered> {
    let all: Vec<_> = config.listeners.iter().filter(|(_, l)| l.protocol.has_requests()).collect();
    if let Some(wanted) = &question.listener {
        let found = all.iter().find(|(name, _)| *name == wanted).copied();
        let names = || all.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ");
        return found.map(|found| vec![found]).ok_or_else(|| Unanswered::Listener(wanted.clone(), names()));
    }
    let port = port.unwrap_or(80);
    let there: Vec<_> =
        all.iter().filter(|(_, l)| l.bind.iter().any(|bind| bind.port == port)).copied().collect();
    match (there.is_empty(), all.is_empty()) {
        (false, _) => Ok(there),
        (true, false) => Ok(all),
        (true, true) => Err(Unanswered::NoListener),
    }
}

fn at_listener(
    config: &Config,
    births: &BTreeMap<String, u64>,
    name: &str,
    settings: &model::Listener,
    subject: Subject<'_>,
) -> AtListener {
    let entries = entries(config, name, settings, births);
    let found = Router::compile(entries.clone()).find(subject).map(|found| found.rule);
    let fitting = |entry: &&Entry<'_>| misfit(entry, subject).is_none();
    // Of the winner's matches the one that wins.
    let winner =
        entries.iter().filter(|e| Some(e.rule) == found).filter(fitting).max_by_key(|e| precedence(e));
    let mut rules: BTreeMap<usize, Vec<&Entry<'_>>> = BTreeMap::new();
    for entry in entries.iter().filter(|entry| Some(entry.rule) != found) {
        rules.entry(entry.rule).or_default().push(entry);
    }
    let mut others: Vec<_> = rules.values().map(|matches| other(config, matches, winner, subject)).collect();
    others.sort_by(|a, b| (!a.fits, &a.name).cmp(&(!b.fits, &b.name)));
    let does = match winner {
        Some(winner) => does(rule(config, winner)),
        None => match &settings.pool {
            Some(pool) => format!("goes to the listener's pool {pool}, since no rule fits"),
            None => "is answered with 404, since no rule fits".to_owned(),
        },
    };
    let winner = winner.map(|winner| rule_name(config, winner));
    AtListener { listener: name.to_owned(), winner, does, others }
}

fn rule<'a>(config: &'a Config, entry: &Entry<'_>) -> Option<&'a model::Rule> {
    config.routes.get(entry.route)?.rules.get(entry.index)
}

fn rule_name(config: &Config, entry: &Entry<'_>) -> RuleName {
    let rule = rule(config, entry).map(|rule| rule.name.clone()).unwrap_or_default();
    RuleName { route: entry.route.to_owned(), rule }
}

fn does(rule: Option<&model::Rule>) -> String {
    let Some(rule) = rule else { return String::new() };
    match &rule.answer {
        Some(LocalAnswer::Redirect(redirect)) => format!("is redirected with {}", redirect.code),
        Some(LocalAnswer::Respond(respond)) => format!("is answered with {}", respond.code),
        None => {
            let total: u64 = rule.pools.iter().map(|pool| u64::from(pool.weight)).sum();
            let pool = |pool: &model::WeightedPool| match rule.pools.len() {
                1 => pool.pool.clone(),
                _ => format!("{} ({} of {total})", pool.pool, pool.weight),
            };
            format!("goes to {}", rule.pools.iter().map(pool).collect::<Vec<_>>().join(", "))
        }
    }
}

fn other(config: &Config, matches: &[&Entry<'_>], winner: Option<&Entry<'_>>, subject: Subject<'_>) -> Other {
    let name = rule_name(config, matches[0]);
    let fitting = matches.iter().filter(|entry| misfit(entry, subject).is_none());
    let best = fitting.max_by_key(|entry| precedence(entry));
    if let (Some(best), Some(winner)) = (best, winner) {
        let winner_name = rule_name(config, winner);
        let why = format!("{}/{} {}", winner_name.route, winner_name.rule, goes_before(winner, best));
        return Other { name, fits: true, why };
    }
    // Where a host of it fits, the others say nothing.
    let at_host: Vec<_> = matches.iter().filter(|entry| entry.host.matches(subject.host)).collect();
    let told = if at_host.is_empty() { matches.iter().collect() } else { at_host };
    let mut reasons: Vec<String> = Vec::new();
    for reason in told.into_iter().filter_map(|entry| misfit(entry, subject)) {
        if !reasons.contains(&reason) {
            reasons.push(reason);
        }
    }
    Other { name, fits: false, why: reasons.join("; or ") }
}

/// The order of Gateway API, but for what breaks ties: host, kind of path, and the rest. More goes first.
fn precedence(entry: &Entry<'_>) -> ((u8, usize), u8, Closeness) {
    let host = match entry.host {
        HostPattern::Exact(host) => (2, host.len()),
        HostPattern::Suffix(suffix) => (1, suffix.len()),
        HostPattern::Any => (0, 0),
    };
    let kind = match &entry.condition.path {
        Some(PathMatch::Exact(_)) => 2,
        Some(PathMatch::Regex(_)) => 1,
        Some(PathMatch::Prefix(_)) | None => 0,
    };
    (host, kind, Closeness::of(entry.condition))
}

/// What decides between two that fit.
fn goes_before(winner: &Entry<'_>, loser: &Entry<'_>) -> String {
    let ((w_host, w_kind, w), (l_host, l_kind, l)) = (precedence(winner), precedence(loser));
    let text = if w_host != l_host {
        "names the host more closely"
    } else if w_kind != l_kind {
        match w_kind {
            2 => "names the whole path",
            _ => "has a regular expression, which goes before a prefix",
        }
    } else if w.path != l.path {
        "has the longer path"
    } else if w.method != l.method {
        "names a method"
    } else if w.headers != l.headers {
        "has more conditions on headers, cookies, clients or the scheme"
    } else if w.query != l.query {
        "has more conditions on the query"
    } else if winner.birth != loser.birth {
        return format!("is of an older route (revision {}, not {})", winner.birth, loser.birth);
    } else if winner.route != loser.route {
        "is equal, and its route's name comes first"
    } else {
        "is equal, and stands earlier in its route"
    };
    text.to_owned()
}

/// The first condition that does not hold.
fn misfit(entry: &Entry<'_>, subject: Subject<'_>) -> Option<String> {
    let Match { path, methods, headers, query, cookies, clients, scheme } = entry.condition;
    if !entry.host.matches(subject.host) {
        return Some(format!("the host is not {}", entry.host));
    }
    match path {
        Some(PathMatch::Exact(exact)) if exact != subject.path => {
            return Some(format!("the path is not {exact}"));
        }
        Some(PathMatch::Prefix(prefix)) if !below(subject.path, prefix) => {
            return Some(format!("the path is not below {prefix}"));
        }
        Some(PathMatch::Regex(pattern)) if !pattern.is_match(subject.path.as_bytes()) => {
            return Some(format!("the path does not match {}", pattern.as_str()));
        }
        _ => {}
    }
    if !methods.is_empty() && !methods.iter().any(|method| method == subject.method.as_str()) {
        return Some(format!("the method is not {}", methods.join(" or ")));
    }
    for header in headers {
        let Ok(name) = HeaderName::from_bytes(header.name.as_bytes()) else { continue };
        let what = format!("header {name}");
        if !values::fits(values::header(subject.headers, &name), &header.value) {
            return Some(unmet(&what, &header.value, values::header(subject.headers, &name).next()));
        }
    }
    for of in cookies {
        let found = || values::cookie(subject.headers, &of.name);
        if !values::fits(found(), &of.value) {
            return Some(unmet(&format!("cookie {}", of.name), &of.value, found().next()));
        }
    }
    if !clients.is_empty() && !clients.iter().any(|network| network.contains(&subject.client)) {
        let networks: Vec<_> = clients.iter().map(ToString::to_string).collect();
        return Some(format!("the client {} is not in {}", subject.client, networks.join(" or ")));
    }
    if let Some(scheme) = scheme.filter(|scheme| *scheme != subject.scheme) {
        return Some(format!("the scheme is not {}", scheme.as_str()));
    }
    for of in query {
        let found = || values::query(subject.query, &of.name);
        if !values::fits(found(), &of.value) {
            return Some(unmet(&format!("query parameter {}", of.name), &of.value, found().next()));
        }
    }
    None
}

fn below(path: &str, prefix: &str) -> bool {
    let bare = prefix.strip_suffix('/').unwrap_or(prefix);
    path.strip_prefix(bare).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn unmet(what: &str, wanted: &ValueMatch, found: Option<std::borrow::Cow<'_, [u8]>>) -> String {
    let Some(found) = found else { return format!("{what} is not there") };
    let found = String::from_utf8_lossy(&found).into_owned();
    match wanted {
        ValueMatch::Present(_) => format!("{what} is there"),
        ValueMatch::Exact(exact) => format!("{what} is {found:?}, not {exact:?}"),
        ValueMatch::Prefix(prefix) => format!("{what} is {found:?} and does not begin with {prefix:?}"),
        ValueMatch::Regex(pattern) => {
            format!("{what} is {found:?} and does not match {:?}", pattern.as_str())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::written;

    fn ask(method: &str, url: &str, headers: &[(&'static str, &'static str)]) -> Question {
        let line = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        Question {
            method: method.parse().unwrap(),
            url: url.parse().unwrap(),
            headers: headers.iter().map(line).collect(),
            client: [192, 0, 2, 1].into(),
            listener: None,
        }
    }

    fn config() -> Config {
        written(
            r#"
pools: { a: { members: [] }, b: { members: [] } }
routes:
  shop:
    hosts: [shop.example.com]
    rules:
      - { name: api, match: [{ path: { prefix: /api }, headers: { x-tenant: { prefix: acme- } } }], pools: [a] }
      - { name: health, match: [{ path: { exact: /api/health } }, { path: { exact: /up } }], redirect: { code: 301 } }
      - { name: split, pools: [{ pool: a, weight: 95 }, { pool: b, weight: 5 }] }
  any: { rules: [{ pools: [b] }, { match: [{ query: { debug: { present: true } } }], respond: { code: 204 } }] }
"#,
        )
    }

    #[test]
    fn the_winner_and_why_the_others_are_not() {
        let explained = explain(
            &config(),
            &BTreeMap::new(),
            &ask("GET", "http://Shop.example.com/x/../api/%61", &[("x-tenant", "acme-1")]),
        );
        let explained = explained.unwrap();
        assert_eq!((explained.host.as_str(), explained.path.as_str()), ("shop.example.com", "/api/a"));
        let [at] = &explained.listeners[..] else { panic!("{explained:?}") };
        assert_eq!(at.winner, Some(RuleName { route: "shop".into(), rule: "api".into() }));
        assert_eq!(at.does, "goes to a");
        let others: Vec<_> = at
            .others
            .iter()
            .map(|o| format!("{}/{} {}: {}", o.name.route, o.name.rule, o.fits, o.why))
            .collect();
        assert_eq!(
            others,
            [
                "any/0 true: shop/api names the host more closely",
                "shop/split true: shop/api has the longer path",
                "any/1 false: query parameter debug is not there",
                "shop/health false: the path is not /api/health; or the path is not /up",
            ]
        );
    }

    #[test]
    fn it_says_what_happens() {
        for (question, expected) in [
            (ask("GET", "http://shop.example.com/up", &[]), "is redirected with 301"),
            (ask("GET", "http://shop.example.com/", &[]), "goes to a (95 of 100), b (5 of 100)"),
            (ask("GET", "http://other/?debug", &[]), "is answered with 204"),
        ] {
            let explained = explain(&config(), &BTreeMap::new(), &question).unwrap();
            assert_eq!(explained.listeners[0].does, expected);
        }
        let none = explain(&written(""), &BTreeMap::new(), &ask("GET", "http://a/", &[])).unwrap();
        assert_eq!(none.listeners[0].does, "is answered with 404, since no rule fits");
    }

    #[test]
    fn the_older_route_is_named() {
        let config = written(
            "pools: { a: { members: [] } }\nroutes: { b: { rules: [{ pools: [a] }] }, c: { rules: [{ pools: [a] }] } }",
        );
        let births = BTreeMap::from([("b".to_owned(), 7), ("c".to_owned(), 3)]);
        let explained = explain(&config, &births, &ask("GET", "http://a/", &[])).unwrap();
        assert_eq!(explained.listeners[0].others[0].why, "c/0 is of an older route (revision 3, not 7)");
    }

    #[test]
    fn what_can_not_be_answered_says_why() {
        let refused =
            |question: Question| explain(&config(), &BTreeMap::new(), &question).unwrap_err().to_string();
        assert!(refused(ask("GET", "/path", &[])).contains("no URL with a host"));
        assert!(refused(ask("GET", "http://a/%00", &[])).contains("400"));
        let question = Question { listener: Some("wbe".into()), ..ask("GET", "http://a/", &[]) };
        assert!(refused(question).contains("the config has web"));
    }
}
