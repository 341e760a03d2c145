//! Why a request goes where it goes: `trestle route explain`.
//!
//! The winner comes from the router that requests go through; what is said of the others is worked out
//! match by match, beside it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use http::header::{HOST, ORIGIN};
use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use serde::{Deserialize, Serialize};
use trestle_config::model::{self, HostPattern, LocalAnswer, Match, PathMatch, Scheme, ValueMatch};
use trestle_config::{Config, Contents};

use crate::l7::cors::{Cors, preflight};
use crate::l7::head::{is_host, is_origin};
use crate::l7::router::{Closeness, Entry, Router, Subject, normal};
use crate::l7::{target, values};
use crate::networks::Sets;
use crate::snapshot::{entries, sees};

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
            chosen: Vec::new(),
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
    /// `None`: those that take the URL's scheme at its port, else all that take it.
    pub listener: Option<String>,
    /// Listeners with the ports that the system chose for them, as far as they are known.
    pub chosen: Vec<(String, u16)>,
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
    #[error("CONNECT asks for a tunnel: such a request is refused with 501")]
    Connect,
    #[error("no request line may have {0:?} as it is: such a request is refused with 400")]
    Target(String),
    #[error(
        "{0:?} is no host (a name or an address, a port or none, and no user): such a request is refused with 400"
    )]
    Host(String),
    #[error("Host is given more than once: such a request is refused with 400")]
    Hosts,
    #[error("no listener takes {scheme}: {there}")]
    Scheme { scheme: Box<str>, there: String },
    #[error("there is no http listener {0:?}; the config has {1}")]
    Listener(String, String),
    #[error("the config has no http listener")]
    NoListener,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    pub method: String,
    /// Of the URL.
    pub scheme: String,
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
    /// All other rules, nearest first: those that fit, those of the request's host, then the rest; each in the
    /// order of their names.
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
    /// None of its hosts is the request's.
    pub elsewhere: bool,
    pub why: String,
}

/// `births`: the first revision of each route; without them all are equally old. Of `contents` it needs the
/// files of networks.
pub fn explain(
    config: &Config,
    contents: &Contents,
    births: &BTreeMap<String, u64>,
    question: &Question,
) -> Result<Explanation, Unanswered> {
    let Some(authority) = question.url.authority() else {
        return Err(Unanswered::Url(question.url.to_string()));
    };
    let mut headers = HeaderMap::new();
    question.headers.iter().for_each(|(name, value)| _ = headers.append(name, value.clone()));
    let asked_host = host_of(question, authority, &headers)?;
    let mut seen = |merge_slashes| {
        let mut url = question.url.clone();
        target::normalise(&mut url, &mut headers, merge_slashes).map_err(|_| Unanswered::Path)?;
        Ok(url)
    };
    let (url, merged) = (seen(false)?, seen(true)?);
    headers.insert(HOST, asked_host.clone());
    let host = target::route_host(Some(&asked_host)).into_owned();
    let scheme = match question.url.scheme_str() {
        None | Some("http") => Scheme::Http,
        Some("https") => Scheme::Https,
        Some(_) => return Err(Unanswered::Url(question.url.to_string())),
    };
    let port = authority.port_u16().unwrap_or(scheme.port());
    let sets = Sets::compile(config, contents, None);
    let at = |(name, settings): (&String, &model::Listener)| {
        let url = if settings.http.merge_slashes { &merged } else { &url };
        let subject = Subject {
            host: &host,
            path: url.path(),
            query: url.query(),
            method: &question.method,
            headers: &headers,
            client: question.client,
            scheme,
        };
        at_listener(config, births, name, settings, Case { subject, sets: &sets })
    };
    Ok(Explanation {
        method: question.method.to_string(),
        scheme: scheme.as_str().to_owned(),
        host: host.clone(),
        path: url.path().to_owned(),
        listeners: asked(config, question, scheme, port)?.into_iter().map(at).collect(),
    })
}

/// The host that is asked for: by `Host`, if that is given beside the URL, as clients send it to an address.
///
/// # Errors
/// A node would refuse the request before it looks for a route.
fn host_of(
    question: &Question,
    authority: &Authority,
    headers: &HeaderMap,
) -> Result<HeaderValue, Unanswered> {
    if question.method == Method::CONNECT {
        return Err(Unanswered::Connect);
    }
    let target = question.url.path_and_query().map_or("/", PathAndQuery::as_str);
    // `http://host?query` has no path, which is no fault of an absolute target.
    let slash = if target.starts_with('/') { "" } else { "/" };
    if !is_origin(question.method.as_str().as_bytes(), format!("{slash}{target}").as_bytes()) {
        return Err(Unanswered::Target(target.to_owned()));
    }
    let named = HeaderValue::from_str(authority.as_str());
    let named = named.ok().filter(|host| is_host(host.as_bytes()));
    let named = named.ok_or_else(|| Unanswered::Host(authority.to_string()))?;
    let mut hosts = headers.get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (None, _) => Ok(named),
        (Some(host), None) if is_host(host.as_bytes()) => Ok(host.clone()),
        (Some(host), None) => Err(Unanswered::Host(String::from_utf8_lossy(host.as_bytes()).into_owned())),
        (Some(_), Some(_)) => Err(Unanswered::Hosts),
    }
}

/// A request, and what is named by those that may fit it.
#[derive(Clone, Copy)]
struct Case<'a> {
    subject: Subject<'a>,
    sets: &'a Sets,
}

type Named<'a> = (&'a String, &'a model::Listener);

fn own_scheme(settings: &model::Listener) -> Scheme {
    if settings.tls.is_some() { Scheme::Https } else { Scheme::Http }
}

/// The listeners that such a request comes to.
fn asked<'a>(
    config: &'a Config,
    question: &Question,
    scheme: Scheme,
    port: u16,
) -> Result<Vec<Named<'a>>, Unanswered> {
    let all: Vec<Named<'_>> = config.listeners.iter().filter(|(_, l)| l.protocol.has_requests()).collect();
    if all.is_empty() {
        return Err(Unanswered::NoListener);
    }
    let mut there: Vec<Named<'_>> = match &question.listener {
        Some(wanted) => all.iter().filter(|(name, _)| *name == wanted).copied().collect(),
        None => {
            let written = |l: &model::Listener| l.bind.iter().any(|bind| bind.port == port);
            let chosen = |name: &str| question.chosen.iter().any(|(of, at)| of == name && *at == port);
            all.iter().filter(|(name, l)| written(l) || chosen(name)).copied().collect()
        }
    };
    if let (true, Some(wanted)) = (there.is_empty(), &question.listener) {
        let names = all.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ");
        return Err(Unanswered::Listener(wanted.clone(), names));
    }
    if there.is_empty() {
        there = all;
    }
    let takes: Vec<_> = there.iter().filter(|(_, l)| own_scheme(l) == scheme).copied().collect();
    if !takes.is_empty() {
        return Ok(takes);
    }
    // A proxy in front may say that the client came by the other one.
    let told: Vec<_> = there.iter().filter(|(_, l)| !l.trusted_proxies.is_empty()).copied().collect();
    if !told.is_empty() {
        return Ok(told);
    }
    let is = |(name, l): &Named<'_>| format!("{name} takes {}", own_scheme(l).as_str());
    let there = there.iter().map(is).collect::<Vec<_>>().join(", ");
    Err(Unanswered::Scheme { scheme: scheme.as_str().into(), there })
}

fn at_listener(
    config: &Config,
    births: &BTreeMap<String, u64>,
    name: &str,
    settings: &model::Listener,
    case: Case<'_>,
) -> AtListener {
    let entries = entries(config, name, settings, births);
    let router = Router::compile(entries.clone(), case.sets);
    let asked = preflight(case.subject.method, case.subject.headers);
    // By the rule that would take the request that the browser wants to send, if that has `cors`.
    let answered = asked.as_ref().and_then(|method| {
        let case = Case { subject: Subject { method, ..case.subject }, ..case };
        let found = router.find(case.subject).map(|found| found.rule);
        let winner = winner(&entries, found, case);
        let policies = match winner {
            Some(winner) => rule(config, winner)?.policies.or(&settings.policies),
            None if settings.pool.is_some() && settings.serves(case.subject.host) => {
                settings.policies.clone()
            }
            None => return None,
        };
        let does = answers(&*Cors::compile(policies.cors.as_ref()?)?, method, case.subject.headers);
        Some((case, found, winner, does))
    });
    let (case, found, winner, does) = answered.unwrap_or_else(|| {
        let found = router.find(case.subject).map(|found| found.rule);
        let winner = winner(&entries, found, case);
        let does = match winner {
            Some(winner) => does(rule(config, winner)),
            None => unrouted(settings, case.subject.host),
        };
        (case, found, winner, does)
    });
    let mut rules: BTreeMap<usize, Vec<&Entry<'_>>> = BTreeMap::new();
    for entry in entries.iter().filter(|entry| Some(entry.rule) != found) {
        rules.entry(entry.rule).or_default().push(entry);
    }
    let mut others: Vec<_> = rules.values().map(|matches| other(config, matches, winner, case)).collect();
    others.extend(unserved(config, name, settings, case.subject.host));
    others.sort_by(|a, b| (!a.fits, a.elsewhere, &a.name).cmp(&(!b.fits, b.elsewhere, &b.name)));
    let winner = winner.map(|winner| rule_name(config, winner));
    AtListener { listener: name.to_owned(), winner, does, others }
}

/// Of the matches of the rule that was found the one that wins.
fn winner<'e, 'a>(entries: &'e [Entry<'a>], found: Option<usize>, case: Case<'_>) -> Option<&'e Entry<'a>> {
    let fitting = |entry: &&Entry<'_>| misfit(entry, case).is_none();
    entries.iter().filter(|e| Some(e.rule) == found).filter(fitting).max_by_key(|e| precedence(e))
}

fn unrouted(settings: &model::Listener, host: &str) -> String {
    match &settings.pool {
        _ if !settings.serves(host) => {
            let hosts = settings.hosts.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            format!("is answered with 404, since the listener serves {hosts} only")
        }
        Some(pool) => format!("goes to the listener's pool {pool}, since no rule fits"),
        None => "is answered with 404, since no rule fits".to_owned(),
    }
}

/// What a browser is told.
fn answers(cors: &Cors, method: &Method, headers: &HeaderMap) -> String {
    let origin = headers.get(ORIGIN);
    let shown = String::from_utf8_lossy(origin.map(HeaderValue::as_bytes).unwrap_or_default());
    let may = match origin.is_some_and(|origin| cors.allows(origin)) {
        true if cors.allows_method(method) => "may",
        true => "may send others, not that",
        false => "may not",
    };
    format!("is a preflight for {method}, answered here with 204: {shown} {may}")
}

/// Rules of routes that the listener would have, if it served their hosts.
fn unserved<'a>(
    config: &'a Config,
    name: &'a str,
    settings: &'a model::Listener,
    host: &'a str,
) -> impl Iterator<Item = Other> + 'a {
    let routes = config
        .routes
        .iter()
        .filter(move |(_, route)| sees(route, name, settings) && settings.hosts_of(&route.hosts).is_empty());
    routes.flat_map(move |(route_name, route)| {
        let elsewhere = !route.hosts.iter().any(|pattern| pattern.matches(host));
        route.rules.iter().map(move |rule| Other {
            name: RuleName { route: route_name.clone(), rule: rule.name.clone() },
            fits: false,
            elsewhere,
            why: "the listener serves none of its route's hosts".to_owned(),
        })
    })
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

fn other(config: &Config, matches: &[&Entry<'_>], winner: Option<&Entry<'_>>, case: Case<'_>) -> Other {
    let name = rule_name(config, matches[0]);
    let fitting = matches.iter().filter(|entry| misfit(entry, case).is_none());
    let best = fitting.max_by_key(|entry| precedence(entry));
    if let (Some(best), Some(winner)) = (best, winner) {
        let winner_name = rule_name(config, winner);
        let why = format!("{}/{} {}", winner_name.route, winner_name.rule, goes_before(winner, best));
        return Other { name, fits: true, elsewhere: false, why };
    }
    // Where a host of it fits, the others say nothing.
    let at_host: Vec<_> = matches.iter().filter(|entry| entry.host.matches(case.subject.host)).collect();
    let elsewhere = at_host.is_empty();
    let told = if elsewhere { matches.iter().collect() } else { at_host };
    let mut reasons: Vec<String> = Vec::new();
    for reason in told.into_iter().filter_map(|entry| misfit(entry, case)) {
        if !reasons.contains(&reason) {
            reasons.push(reason);
        }
    }
    Other { name, fits: false, elsewhere, why: reasons.join("; or ") }
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
fn misfit(entry: &Entry<'_>, case: Case<'_>) -> Option<String> {
    let Case { subject, sets } = case;
    let Match { path, methods, headers, query, cookies, clients, scheme } = entry.condition;
    if !entry.host.matches(subject.host) {
        return Some(format!("the host is not {}", entry.host));
    }
    match path {
        Some(PathMatch::Exact(exact)) if normal(exact) != subject.path => {
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
    if !clients.is_empty() && !sets.resolve(clients).contains(subject.client) {
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
    let prefix = normal(prefix);
    let bare = prefix.strip_suffix('/').unwrap_or(&prefix);
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
    use trestle_config::model::Protocol;

    use super::*;
    use crate::testing::tls::listener_tls;
    use crate::testing::{listener, loopback, written};

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
            chosen: Vec::new(),
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
            &Contents::default(),
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
            let explained = explain(&config(), &Contents::default(), &BTreeMap::new(), &question).unwrap();
            assert_eq!(explained.listeners[0].does, expected);
        }
        let none =
            explain(&written(""), &Contents::default(), &BTreeMap::new(), &ask("GET", "http://a/", &[]))
                .unwrap();
        assert_eq!(none.listeners[0].does, "is answered with 404, since no rule fits");
    }

    fn told(at: &AtListener) -> Vec<String> {
        let line =
            |o: &Other| format!("{}/{} {} {}: {}", o.name.route, o.name.rule, o.fits, o.elsewhere, o.why);
        at.others.iter().map(line).collect()
    }

    fn think(text: &str, question: &Question) -> Explanation {
        explain(&written(text), &Contents::default(), &BTreeMap::new(), question).unwrap()
    }

    #[test]
    fn paths_are_held_against_each_other_in_their_normal_form() {
        let config = "pools: { a: { members: [] } }\nroutes: { r: { rules: [\
             { name: long, match: [{ path: { prefix: /%7Eu/ } }], pools: [a] }, \
             { name: get, match: [{ path: { prefix: /~u }, method: GET }], pools: [a] }, \
             { name: exact, match: [{ path: { exact: /%7eu/x } }], respond: { code: 204 } }] } }";
        let at = think(config, &ask("GET", "http://a/~u", &[])).listeners.remove(0);
        assert_eq!(at.winner.as_ref().unwrap().rule, "get");
        assert_eq!(
            told(&at),
            ["r/long true false: r/get names a method", "r/exact false false: the path is not /%7eu/x"]
        );
        let at = think(config, &ask("GET", "http://a/%7Eu/x", &[])).listeners.remove(0);
        assert_eq!((at.winner.unwrap().rule.as_str(), at.does.as_str()), ("exact", "is answered with 204"));
    }

    #[test]
    fn a_preflight_is_answered_by_the_rule_that_takes_what_it_asks_for() {
        let config = "pools: { a: { members: [] } }\nroutes: { r: { rules: [\
             { name: put, match: [{ method: PUT }], pools: [a], cors: { origins: [\"https://x.org\"], methods: [PUT] } }, \
             { name: off, match: [{ path: { prefix: /off } }], pools: [a] }, { name: rest, pools: [a] }] } }";
        let asking = |path: &str, origin, method| {
            let headers = [("origin", origin), ("access-control-request-method", method)];
            think(config, &ask("OPTIONS", &format!("http://a{path}"), &headers)).listeners.remove(0)
        };
        let at = asking("/", "https://x.org", "PUT");
        assert_eq!(at.winner.as_ref().unwrap().rule, "put");
        assert_eq!(at.does, "is a preflight for PUT, answered here with 204: https://x.org may");
        assert_eq!(told(&at)[0], "r/rest true false: r/put names a method");
        let does = asking("/", "https://evil.org", "PUT").does;
        assert_eq!(does, "is a preflight for PUT, answered here with 204: https://evil.org may not");
        for (path, method, expected) in [("/", "GET", "rest"), ("/off", "PUT", "off")] {
            let at = asking(path, "https://x.org", method);
            assert_eq!((at.winner.unwrap().rule.as_str(), at.does.as_str()), (expected, "goes to a"));
        }
        let plain = think(config, &ask("OPTIONS", "http://a/", &[("origin", "https://x.org")]));
        assert_eq!(plain.listeners[0].does, "goes to a", "it asks for no method");

        let outer = "listeners: { web: { bind: \":0\", protocol: http, pool: a, cors: { origins: [\"*\"] } } }\n\
             pools: { a: { members: [] } }";
        let headers = [("origin", "null"), ("access-control-request-method", "PATCH")];
        let at = think(outer, &ask("OPTIONS", "http://a/", &headers)).listeners.remove(0);
        assert_eq!(at.winner, None);
        assert_eq!(
            at.does,
            "is a preflight for PATCH, answered here with 204: null may send others, not that"
        );
    }

    #[test]
    fn a_url_is_asked_of_listeners_that_take_its_scheme() {
        let config = |listeners: &[(&str, u16, Protocol)]| {
            let mut config =
                written("pools: { a: { members: [] } }\nroutes: { r: { rules: [{ pools: [a] }] } }");
            config.listeners.clear();
            for (name, port, protocol) in listeners {
                let mut listener = listener(*protocol, loopback(*port), None);
                listener.tls = (*protocol == Protocol::Https).then(|| listener_tls(&["c"]));
                config.listeners.insert((*name).to_owned(), listener);
            }
            config
        };
        let asked = |config: &Config, url: &str, listener: Option<&str>| {
            let question = Question { listener: listener.map(str::to_owned), ..ask("GET", url, &[]) };
            match explain(config, &Contents::default(), &BTreeMap::new(), &question) {
                Ok(explained) => {
                    let names = explained.listeners.iter().map(|at| at.listener.as_str()).collect::<Vec<_>>();
                    format!("{} {}", explained.scheme, names.join(" "))
                }
                Err(error) => error.to_string(),
            }
        };
        let mut plain = config(&[("web", 8080, Protocol::Http), ("more", 80, Protocol::Http)]);
        assert_eq!(asked(&plain, "http://a/", None), "http more");
        assert_eq!(asked(&plain, "http://a:8081/", None), "http more web");
        assert_eq!(
            asked(&plain, "https://a/", None),
            "no listener takes https: more takes http, web takes http"
        );
        assert_eq!(asked(&plain, "https://a:8080/", None), "no listener takes https: web takes http");
        assert_eq!(asked(&plain, "https://a/", Some("web")), "no listener takes https: web takes http");
        assert!(asked(&plain, "ftp://a/", None).contains("no URL"));
        plain.listeners.get_mut("web").unwrap().trusted_proxies =
            vec![model::NetworkRef::Network("192.0.2.0/24".parse().unwrap())];
        assert_eq!(asked(&plain, "https://a/", None), "https web", "a proxy may have taken it");

        let secure = config(&[("web", 8443, Protocol::Https)]);
        assert_eq!(asked(&secure, "https://a/", None), "https web");
        assert_eq!(asked(&secure, "http://a/", None), "no listener takes http: web takes https");
        let both = config(&[("plain", 8080, Protocol::Http), ("web", 8443, Protocol::Https)]);
        assert_eq!(asked(&both, "https://a/", None), "https web");
        assert_eq!(asked(&both, "http://a/", None), "http plain");
        assert_eq!(asked(&both, "http://a:8443/", None), "no listener takes http: web takes https");
    }

    #[test]
    fn a_host_beside_the_url_is_the_one_that_is_asked_for() {
        let config = "pools: { a: { members: [] } }\nroutes: { r: { hosts: [x.test], rules: [\
             { match: [{ headers: { host: { prefix: X } } }], pools: [a] }] } }";
        let explained = think(config, &ask("GET", "http://192.0.2.1/", &[("host", "X.test:8080")]));
        assert_eq!((explained.host.as_str(), explained.listeners[0].does.as_str()), ("x.test", "goes to a"));
        let explained = think(config, &ask("GET", "http://x.test?q", &[("host", "y.test")]));
        assert_eq!(explained.listeners[0].does, "is answered with 404, since no rule fits");
    }

    #[test]
    fn a_port_that_the_system_chose_is_as_good_as_a_written_one() {
        let mut config = written("pools: { a: { members: [] } }\nroutes: { r: { rules: [{ pools: [a] }] } }");
        config.listeners.clear();
        for name in ["one", "two"] {
            config.listeners.insert(name.to_owned(), listener(Protocol::Http, loopback(0), None));
        }
        let chosen = vec![("one".to_owned(), 4001), ("two".to_owned(), 4002)];
        let question = Question { chosen, ..ask("GET", "http://a:4002/", &[]) };
        let explained = explain(&config, &Contents::default(), &BTreeMap::new(), &question).unwrap();
        let at: Vec<_> = explained.listeners.iter().map(|at| at.listener.as_str()).collect();
        assert_eq!(at, ["two"]);
    }

    #[test]
    fn rules_of_other_hosts_come_last_and_hosts_that_a_listener_does_not_serve_are_told() {
        let config = "listeners: { web: { bind: \":0\", protocol: http, hosts: [\"*.example.com\"], pool: a } }\n\
             pools: { a: { members: [] } }\nroutes:\n  \
             a: { hosts: [x.example.com], rules: [{ pools: [a] }] }\n  \
             b: { hosts: [y.example.com, \"*.example.org\"], rules: [{ match: [{ path: { exact: /b } }], pools: [a] }] }\n  \
             c: { hosts: [y.example.org], rules: [{ pools: [a] }] }\n  \
             d: { rules: [{ match: [{ method: PUT }], pools: [a] }] }\n";
        let at = think(config, &ask("GET", "http://y.example.com/", &[])).listeners.remove(0);
        assert_eq!(at.does, "goes to the listener's pool a, since no rule fits");
        assert_eq!(
            told(&at),
            [
                "b/0 false false: the path is not /b",
                "d/0 false false: the method is not PUT",
                "a/0 false true: the host is not x.example.com",
                "c/0 false true: the listener serves none of its route's hosts",
            ]
        );
        let at = think(config, &ask("PUT", "http://y.example.org/", &[])).listeners.remove(0);
        assert_eq!(at.does, "is answered with 404, since the listener serves *.example.com only");
        assert_eq!(told(&at)[0], "c/0 false false: the listener serves none of its route's hosts");
        assert!(
            told(&at).contains(&"d/0 false true: the host is not *.example.com".to_owned()),
            "{:?}",
            told(&at)
        );
    }

    #[test]
    fn the_older_route_is_named() {
        let config = written(
            "pools: { a: { members: [] } }\nroutes: { b: { rules: [{ pools: [a] }] }, c: { rules: [{ pools: [a] }] } }",
        );
        let births = BTreeMap::from([("b".to_owned(), 7), ("c".to_owned(), 3)]);
        let explained =
            explain(&config, &Contents::default(), &births, &ask("GET", "http://a/", &[])).unwrap();
        assert_eq!(explained.listeners[0].others[0].why, "c/0 is of an older route (revision 3, not 7)");
    }

    #[test]
    fn a_set_of_networks_is_named_and_one_without_networks_holds_nobody() {
        let config = written(
            "networks: { office: { entries: [192.0.2.0/24] }, nobody: {} }\npools: { a: { members: [] } }\n\
             routes: { r: { rules: [{ match: [{ clients: [\"@nobody\", 10.0.0.1] }], pools: [a] }, \
             { match: [{ clients: [\"@office\"] }], respond: { code: 204 } }] } }",
        );
        let ask = |client: [u8; 4]| {
            let question = Question { client: client.into(), ..ask("GET", "http://a/", &[]) };
            explain(&config, &Contents::default(), &BTreeMap::new(), &question).unwrap().listeners.remove(0)
        };
        let inside = ask([192, 0, 2, 1]);
        assert_eq!(inside.does, "is answered with 204");
        assert_eq!(inside.others[0].why, "the client 192.0.2.1 is not in @nobody or 10.0.0.1/32");
        assert_eq!(ask([192, 0, 3, 1]).others[1].why, "the client 192.0.3.1 is not in @office");
    }

    #[test]
    fn what_can_not_be_answered_says_why() {
        let refused = |question: Question| {
            explain(&config(), &Contents::default(), &BTreeMap::new(), &question).unwrap_err().to_string()
        };
        assert!(refused(ask("GET", "/path", &[])).contains("no URL with a host"));
        assert!(refused(ask("GET", "http://a/%00", &[])).contains("400"));
        for (method, url, headers, told) in [
            ("CONNECT", "http://a/", &[][..], "refused with 501"),
            ("GET", "http://a/x\"y", &[][..], "\"/x\\\"y\" as it is: such a request is refused with 400"),
            ("GET", "http://u@a/", &[][..], "\"u@a\" is no host"),
            ("GET", "http://a/", &[("host", "b/c")][..], "\"b/c\" is no host"),
            ("GET", "http://a/", &[("host", "b"), ("host", "b")][..], "more than once"),
        ] {
            let said = refused(ask(method, url, headers));
            assert!(said.contains(told), "{method} {url}: {said}");
        }
        let question = Question { listener: Some("wbe".into()), ..ask("GET", "http://a/", &[]) };
        assert!(refused(question).contains("the config has web"));
    }
}
