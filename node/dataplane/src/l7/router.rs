//! Which rule takes a request: Gateway API precedence, compiled.
//!
//! Of all matches that fit a request the winner is the one with the longest host, then an exact path,
//! then a regular expression, then the longest prefix, a method, most headers (cookies, client networks
//! and the scheme count as such), most query parameters, then the older route, the route's name, the
//! rule's place in its route. [`Router::compile`] sorts by that once, so that a look-up takes the first that
//! fits: hosts by hash (a wildcard's suffix too, from the longest), exact paths by hash, prefixes in
//! a tree of path elements that is walked down and then up again. A test holds it against a scan of
//! all matches.
//!
//! A host whose rules do not fit gives way to the next less specific one.

use std::cmp::Reverse;
use std::collections::HashMap;

use std::net::IpAddr;

use http::{HeaderMap, HeaderName, Method};
use ipnet::IpNet;
use trestle_config::model::{HeaderMatch, HostPattern, Match, PathMatch, Scheme, ValueMatch, ValueOf};
use trestle_config::text::Pattern;

use super::{path, values};

type Map<V> = HashMap<Box<str>, V, ahash::RandomState>;

/// One match of one rule under one host.
#[derive(Clone, Debug)]
pub(crate) struct Entry<'a> {
    pub(crate) host: &'a HostPattern,
    pub(crate) condition: &'a Match,
    pub(crate) route: &'a str,
    /// First revision that had the route.
    pub(crate) birth: u64,
    /// Place in its route.
    pub(crate) index: usize,
    /// What [`Router::find`] answers.
    pub(crate) rule: usize,
}

/// What of a request decides.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Subject<'a> {
    /// Lower case, without port.
    pub(crate) host: &'a str,
    /// Normalised.
    pub(crate) path: &'a str,
    pub(crate) query: Option<&'a str>,
    pub(crate) method: &'a Method,
    pub(crate) headers: &'a HeaderMap,
    pub(crate) client: IpAddr,
    pub(crate) scheme: Scheme,
}

/// Which rule takes a request, and by which prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// As the entry said.
    pub(crate) rule: usize,
    /// Bytes of the path that are the prefix, without its final slash.
    pub(crate) prefix: usize,
}

#[derive(Debug, Default)]
pub(crate) struct Router {
    exact: Map<Paths>,
    suffixes: Map<Paths>,
    any: Paths,
}

/// The matches of one host.
#[derive(Debug)]
struct Paths {
    exact: Map<Vec<Candidate>>,
    /// In order of precedence.
    regexes: Vec<(Pattern, Candidate)>,
    /// The first is the root, `/`.
    prefixes: Vec<Node>,
}

/// A path element of some prefix.
#[derive(Debug, Default)]
struct Node {
    parent: usize,
    children: Map<usize>,
    candidates: Vec<Candidate>,
}

#[derive(Debug)]
struct Candidate {
    methods: Box<[Method]>,
    headers: Box<[(HeaderName, ValueMatch)]>,
    more: Option<Box<More>>,
    found: Found,
}

/// Conditions that few matches have.
#[derive(Debug)]
struct More {
    query: Box<[ValueOf]>,
    cookies: Box<[ValueOf]>,
    clients: Box<[IpNet]>,
    scheme: Option<Scheme>,
}

impl Default for Paths {
    fn default() -> Self {
        Self { exact: Map::default(), regexes: Vec::new(), prefixes: vec![Node::default()] }
    }
}

impl Router {
    pub(crate) fn compile(mut entries: Vec<Entry<'_>>) -> Self {
        // Stable order of insertion is order of precedence within a host and path.
        entries.sort_by(|a, b| rank(a).cmp(&rank(b)));
        let mut router = Self::default();
        for entry in &entries {
            // A name or method that can't occur in a request never matches one.
            let Some(candidate) = Candidate::compile(entry) else { continue };
            let paths = match entry.host {
                HostPattern::Any => &mut router.any,
                HostPattern::Exact(host) => router.exact.entry(host.as_str().into()).or_default(),
                HostPattern::Suffix(host) => router.suffixes.entry(host.as_str().into()).or_default(),
            };
            paths.insert(entry.condition.path.as_ref(), candidate);
        }
        router
    }

    /// The rule that takes this request.
    pub(crate) fn find(&self, subject: Subject<'_>) -> Option<Found> {
        if let Some(paths) = self.exact.get(subject.host)
            && let Some(rule) = paths.find(subject)
        {
            return Some(rule);
        }
        if !self.suffixes.is_empty() {
            let mut rest = subject.host;
            while let Some((label, suffix)) = rest.split_once('.') {
                // `*.example.com` takes `a.example.com`, not `.example.com`.
                if (!label.is_empty() || rest.len() < subject.host.len())
                    && let Some(paths) = self.suffixes.get(suffix)
                    && let Some(rule) = paths.find(subject)
                {
                    return Some(rule);
                }
                rest = suffix;
            }
        }
        self.any.find(subject)
    }
}

impl Paths {
    fn insert(&mut self, path: Option<&PathMatch>, candidate: Candidate) {
        match path {
            Some(PathMatch::Exact(exact)) => {
                self.exact.entry(normal(exact).into()).or_default().push(candidate);
            }
            Some(PathMatch::Regex(pattern)) => self.regexes.push((pattern.clone(), candidate)),
            Some(PathMatch::Prefix(prefix)) => {
                let node = self.node(&normal(prefix));
                self.prefixes[node].candidates.push(candidate);
            }
            None => self.prefixes[0].candidates.push(candidate),
        }
    }

    fn node(&mut self, prefix: &str) -> usize {
        elements(prefix.strip_suffix('/').unwrap_or(prefix)).fold(0, |parent, element| {
            if let Some(child) = self.prefixes[parent].children.get(element) {
                return *child;
            }
            let child = self.prefixes.len();
            self.prefixes.push(Node { parent, ..Node::default() });
            self.prefixes[parent].children.insert(element.into(), child);
            child
        })
    }

    fn find(&self, subject: Subject<'_>) -> Option<Found> {
        if !self.exact.is_empty()
            && let Some(candidates) = self.exact.get(subject.path)
            && let Some(rule) = first_fit(candidates, subject)
        {
            return Some(rule);
        }
        let matches = |(pattern, candidate): &&(Pattern, Candidate)| {
            candidate.fits(subject) && pattern.is_match(subject.path.as_bytes())
        };
        if let Some((_, candidate)) = self.regexes.iter().find(matches) {
            return Some(candidate.found);
        }
        let mut node = self.deepest(subject.path);
        loop {
            if let Some(rule) = first_fit(&self.prefixes[node].candidates, subject) {
                return Some(rule);
            }
            if node == 0 {
                return None;
            }
            node = self.prefixes[node].parent;
        }
    }

    fn deepest(&self, path: &str) -> usize {
        let mut node = 0;
        for element in elements(path) {
            match self.prefixes[node].children.get(element) {
                Some(child) => node = *child,
                None => break,
            }
            // Most trees are shallow: don't split what is left of the path.
            if self.prefixes[node].children.is_empty() {
                break;
            }
        }
        node
    }
}

impl Candidate {
    fn compile(entry: &Entry<'_>) -> Option<Self> {
        let method = |name: &String| Method::from_bytes(name.as_bytes()).ok();
        let header = |header: &HeaderMatch| {
            Some((HeaderName::from_bytes(header.name.as_bytes()).ok()?, header.value.clone()))
        };
        Some(Self {
            methods: entry.condition.methods.iter().map(method).collect::<Option<_>>()?,
            headers: entry.condition.headers.iter().map(header).collect::<Option<_>>()?,
            more: More::compile(entry.condition),
            found: Found { rule: entry.rule, prefix: prefix_length(entry.condition) },
        })
    }

    fn fits(&self, subject: Subject<'_>) -> bool {
        (self.methods.is_empty() || self.methods.contains(subject.method))
            && self
                .headers
                .iter()
                .all(|(name, value)| values::fits(values::header(subject.headers, name), value))
            && self.more.as_ref().is_none_or(|more| more.fits(subject))
    }
}

impl More {
    fn compile(condition: &Match) -> Option<Box<Self>> {
        let Match { query, cookies, clients, scheme, .. } = condition;
        let none = query.is_empty() && cookies.is_empty() && clients.is_empty() && scheme.is_none();
        (!none).then(|| {
            Box::new(Self {
                query: query.clone().into(),
                cookies: cookies.clone().into(),
                clients: clients.clone().into(),
                scheme: *scheme,
            })
        })
    }

    fn fits(&self, subject: Subject<'_>) -> bool {
        self.scheme.is_none_or(|scheme| scheme == subject.scheme)
            && (self.clients.is_empty() || self.clients.iter().any(|net| net.contains(&subject.client)))
            && self
                .cookies
                .iter()
                .all(|of| values::fits(values::cookie(subject.headers, &of.name), &of.value))
            && self.query.iter().all(|of| values::fits(values::query(subject.query, &of.name), &of.value))
    }
}

fn first_fit(candidates: &[Candidate], subject: Subject<'_>) -> Option<Found> {
    candidates.iter().find(|candidate| candidate.fits(subject)).map(|candidate| candidate.found)
}

fn prefix_length(condition: &Match) -> usize {
    match &condition.path {
        Some(PathMatch::Prefix(prefix)) => {
            let normal = normal(prefix);
            normal.strip_suffix('/').unwrap_or(&normal).len()
        }
        _ => 0,
    }
}

/// How closely a match asks, beside its host and the kind of its path; more goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Closeness {
    pub(crate) path: usize,
    pub(crate) method: bool,
    /// Conditions on headers; those on cookies, clients and the scheme count as such.
    pub(crate) headers: usize,
    pub(crate) query: usize,
}

impl Closeness {
    pub(crate) fn of(condition: &Match) -> Self {
        let path = match &condition.path {
            Some(PathMatch::Exact(path) | PathMatch::Prefix(path)) => path.len(),
            Some(PathMatch::Regex(pattern)) => pattern.as_str().len(),
            None => 1,
        };
        let headers = condition.headers.len()
            + condition.cookies.len()
            + usize::from(!condition.clients.is_empty())
            + usize::from(condition.scheme.is_some());
        Self { path, method: !condition.methods.is_empty(), headers, query: condition.query.len() }
    }
}

/// Smaller goes first. Host, and the kind of path, are decided by where a candidate is kept.
fn rank<'a>(entry: &Entry<'a>) -> (Reverse<Closeness>, u64, &'a str, usize) {
    (Reverse(Closeness::of(entry.condition)), entry.birth, entry.route, entry.index)
}

/// A configured path in the form in which requests are looked up.
fn normal(path: &str) -> String {
    path::normalise(path, false).map_or_else(|_| path.to_owned(), |path| path.into_owned())
}

fn elements(path: &str) -> impl Iterator<Item = &str> {
    path.strip_prefix('/').into_iter().flat_map(|rest| rest.split('/'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What a config says, owned.
    #[derive(Clone, Debug)]
    struct Line {
        host: HostPattern,
        condition: Match,
        route: String,
        birth: u64,
        index: usize,
    }

    fn router(lines: &[Line]) -> Router {
        let entry = |(rule, line): (usize, &'static Line)| Entry {
            host: &line.host,
            condition: &line.condition,
            route: &line.route,
            birth: line.birth,
            index: line.index,
            rule,
        };
        let lines: &'static [Line] = Box::leak(lines.to_vec().into_boxed_slice());
        Router::compile(lines.iter().enumerate().map(entry).collect())
    }

    fn header_count(condition: &Match) -> usize {
        let Match { headers, cookies, clients, scheme, .. } = condition;
        headers.len() + cookies.len() + usize::from(!clients.is_empty()) + usize::from(scheme.is_some())
    }

    /// The dumb twin: every line is held against the request, the best is kept.
    fn scan(lines: &[Line], subject: Subject<'_>) -> Option<usize> {
        let host_rank = |host: &HostPattern| match host {
            HostPattern::Exact(exact) => (exact == subject.host).then_some((2, exact.len())),
            HostPattern::Suffix(suffix) => {
                let label = subject.host.strip_suffix(suffix.as_str())?.strip_suffix('.')?;
                (!label.is_empty()).then_some((1, suffix.len()))
            }
            HostPattern::Any => Some((0, 0)),
        };
        let path_rank = |path: &Option<PathMatch>| match path {
            Some(PathMatch::Exact(exact)) => (exact == subject.path).then_some((2, exact.len())),
            Some(PathMatch::Regex(pattern)) => {
                pattern.is_match(subject.path.as_bytes()).then_some((1, pattern.as_str().len()))
            }
            Some(PathMatch::Prefix(prefix)) => {
                let bare = prefix.strip_suffix('/').unwrap_or(prefix);
                let rest = subject.path.strip_prefix(bare)?;
                (rest.is_empty() || rest.starts_with('/')).then_some((0, prefix.len()))
            }
            None => Some((0, 1)),
        };
        let fitting = lines.iter().enumerate().filter_map(|(rule, line)| {
            let condition = &line.condition;
            let method = condition.methods.is_empty()
                || condition.methods.iter().any(|m| m.as_str() == subject.method.as_str());
            let fits = |value: Option<&str>, condition: &ValueMatch| match condition {
                ValueMatch::Exact(exact) => value == Some(exact),
                ValueMatch::Prefix(prefix) => value.is_some_and(|v| v.starts_with(prefix)),
                ValueMatch::Present(present) => value.is_some() == *present,
                ValueMatch::Regex(pattern) => value.is_some_and(|v| pattern.is_match(v.as_bytes())),
            };
            let header = |name: &str| subject.headers.get(name).and_then(|v| v.to_str().ok());
            let pair = |text: Option<&'static str>, name: &str| {
                let pairs =
                    text.unwrap_or_default().split(['&', ';']).filter_map(|pair| pair.split_once('='));
                pairs.map(|(key, value)| (key.to_owned(), value)).find(|(key, _)| key == name).map(|(_, v)| v)
            };
            let leaked = |text: Option<&str>| text.map(|text| &*Box::leak(text.to_owned().into_boxed_str()));
            let (query, cookie) = (leaked(subject.query), leaked(header("cookie")));
            let headers = condition.headers.iter().all(|h| fits(header(&h.name), &h.value))
                && condition.query.iter().all(|of| fits(pair(query, &of.name), &of.value))
                && condition.cookies.iter().all(|of| fits(pair(cookie, &of.name), &of.value))
                && condition.scheme.is_none_or(|scheme| scheme == subject.scheme)
                && (condition.clients.is_empty()
                    || condition.clients.iter().any(|net| net.contains(&subject.client)));
            let (host, path) = (host_rank(&line.host)?, path_rank(&condition.path)?);
            let key = (
                (host, path, !condition.methods.is_empty(), header_count(condition), condition.query.len()),
                (Reverse(line.birth), Reverse(line.route.clone()), Reverse(line.index)),
            );
            (method && headers).then_some((key, rule))
        });
        fitting.max_by(|a, b| a.0.cmp(&b.0)).map(|(_, rule)| rule)
    }

    fn line(host: HostPattern, path: PathMatch) -> Line {
        let condition = Match { path: Some(path), ..Match::default() };
        Line { host, condition, route: "r".into(), birth: 1, index: 0 }
    }

    fn subject<'a>(host: &'a str, path: &'a str, method: &'a Method, headers: &'a HeaderMap) -> Subject<'a> {
        let client = IpAddr::from([192, 0, 2, 1]);
        Subject { host, path, query: None, method, headers, client, scheme: Scheme::Http }
    }

    fn find(router: &Router, host: &str, path: &str) -> Option<usize> {
        let headers = HeaderMap::new();
        router.find(subject(host, path, &Method::GET, &headers)).map(|found| found.rule)
    }

    fn prefix(path: &str) -> Line {
        line(HostPattern::Any, PathMatch::Prefix(path.into()))
    }

    #[test]
    fn a_prefix_matches_by_path_element() {
        let router = router(&[prefix("/foo"), prefix("/foo/bar/")]);
        for (path, rule) in [
            ("/foo", Some(0)),
            ("/foo/", Some(0)),
            ("/foo/baz", Some(0)),
            ("/foo/bar", Some(1)),
            ("/foo/bar/x", Some(1)),
            ("/foobar", None),
            ("/foo/barx", Some(0)),
            ("/", None),
            ("*", None),
        ] {
            assert_eq!(find(&router, "a", path), rule, "{path}");
        }
    }

    #[test]
    fn a_wildcard_takes_one_or_more_labels_and_never_the_bare_name() {
        let suffix = |host: &str| line(HostPattern::Suffix(host.into()), PathMatch::Prefix("/".into()));
        let router = router(&[suffix("example.com"), suffix("b.example.com")]);
        for (host, rule) in [
            ("a.example.com", Some(0)),
            ("a.a.example.com", Some(0)),
            ("b.example.com", Some(0)),
            ("a.b.example.com", Some(1)),
            ("example.com", None),
            (".example.com", None),
            ("aexample.com", None),
            ("", None),
        ] {
            assert_eq!(find(&router, host, "/"), rule, "{host}");
        }
    }

    #[test]
    fn a_host_without_a_fitting_rule_gives_way_to_a_less_specific_one() {
        let exact = line(HostPattern::Exact("a.b".into()), PathMatch::Prefix("/x".into()));
        let router = router(&[exact, prefix("/")]);
        assert_eq!(find(&router, "a.b", "/x"), Some(0));
        assert_eq!(find(&router, "a.b", "/y"), Some(1));
    }

    #[test]
    fn a_configured_path_is_normalised_too() {
        let router = router(&[prefix("/%7Euser/../%7ejohn")]);
        assert_eq!(find(&router, "a", "/~john/x"), Some(0));
    }

    #[test]
    fn the_older_route_wins_then_its_name_then_the_rules_place() {
        let with = |birth, route: &str, index| Line { birth, route: route.into(), index, ..prefix("/") };
        assert_eq!(find(&router(&[with(2, "a", 0), with(1, "b", 0)]), "h", "/"), Some(1));
        assert_eq!(find(&router(&[with(1, "b", 0), with(1, "a", 1)]), "h", "/"), Some(1));
        assert_eq!(find(&router(&[with(1, "a", 1), with(1, "a", 0)]), "h", "/"), Some(1));
    }

    fn arb_line() -> impl Strategy<Value = Line> {
        let host = prop_oneof![
            Just(HostPattern::Any),
            "(a|b)\\.(x|y\\.x)".prop_map(HostPattern::Exact),
            "(x|y\\.x|b\\.y\\.x)".prop_map(HostPattern::Suffix),
        ];
        let path = prop_oneof![
            Just(None),
            "/|(/[ab]{1,2}){1,3}/?".prop_map(|p| Some(PathMatch::Exact(p))),
            "/|(/[ab]{1,2}){1,3}/?".prop_map(|p| Some(PathMatch::Prefix(p))),
            "/[ab](\\.|[ab])\\*".prop_map(|p| Some(PathMatch::Regex(p.parse().expect("a pattern")))),
        ];
        let methods = prop_oneof![
            Just(vec![]),
            Just(vec!["GET".to_owned()]),
            Just(vec!["POST".to_owned(), "PUT".to_owned()])
        ];
        let value = prop_oneof![
            "[pq]{1,2}".prop_map(ValueMatch::Exact),
            "[pq]".prop_map(ValueMatch::Prefix),
            any::<bool>().prop_map(ValueMatch::Present),
            "[pq]\\+".prop_map(|p| ValueMatch::Regex(p.parse().expect("a pattern"))),
        ];
        let header = ("(m|n)", value.clone()).prop_map(|(name, value)| HeaderMatch { name, value });
        let of = ("(m|n)", value).prop_map(|(name, value)| ValueOf { name, value });
        let few = || prop_oneof![3 => Just(0usize..1), 1 => Just(0..3)];
        let list =
            move |of| few().prop_flat_map(move |count| prop::collection::vec(Clone::clone(&of), count));
        let client = prop_oneof![
            4 => Just(vec![]),
            1 => Just(vec!["192.0.2.0/25".parse().expect("a network")]),
            1 => Just(vec!["192.0.2.128/25".parse().expect("one"), "2001:db8::/32".parse().expect("one")]),
        ];
        let scheme =
            prop_oneof![5 => Just(None), 1 => Just(Some(Scheme::Http)), 1 => Just(Some(Scheme::Https))];
        let headers = prop::collection::vec(header, 0..3);
        let condition = (path, methods, headers, list(of.clone()), list(of), client, scheme).prop_map(
            |(path, methods, headers, query, cookies, clients, scheme)| Match {
                path,
                methods,
                headers,
                query,
                cookies,
                clients,
                scheme,
            },
        );
        (host, condition, "[rs]", 1u64..3, 0usize..3)
            .prop_map(|(host, condition, route, birth, index)| Line { host, condition, route, birth, index })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn the_compiled_router_agrees_with_a_scan_of_all_matches(
            lines in prop::collection::vec(arb_line(), 0..14),
            requests in prop::collection::vec(
                (
                    "((a|b|c)\\.)?(y\\.)?(x|z)",
                    "/|(/[ab]{1,2}){1,4}/?",
                    0usize..3,
                    ("([pq]{0,3})", "([pq]{0,3})"),
                    ("(|m=[pq]{0,2}|n=[pq]{0,2}|n=q&m=[pq])", "(|m=[pq]{0,2}|n=[pq]{0,2}|n=q;m=[pq])"),
                    (any::<u8>(), any::<bool>()),
                ),
                1..12,
            ),
        ) {
            let router = router(&lines);
            for (host, path, method, (m, n), (query, cookie), (last, tls)) in requests {
                let mut headers = HeaderMap::new();
                for (name, value) in [("m", m), ("n", n), ("cookie", cookie)] {
                    if !value.is_empty() {
                        headers.insert(name, value.parse().expect("a header value"));
                    }
                }
                let method = [Method::GET, Method::POST, Method::PUT][method].clone();
                let subject = Subject {
                    query: Some(query.as_str()).filter(|query| !query.is_empty()),
                    client: IpAddr::from([192, 0, 2, last]),
                    scheme: if tls { Scheme::Https } else { Scheme::Http },
                    ..subject(&host, &path, &method, &headers)
                };
                let found = router.find(subject).map(|found| found.rule);
                let expected = scan(&lines, subject);
                // Two lines of one route and place can tie in everything: either is right.
                let same = |a: usize, b: usize| {
                    let key = |l: &Line| (l.route.clone(), l.birth, l.index);
                    key(&lines[a]) == key(&lines[b])
                };
                let agree = match (found, expected) {
                    (Some(a), Some(b)) => a == b || same(a, b),
                    (a, b) => a == b,
                };
                prop_assert!(agree, "{subject:?}: found {found:?}, expected {expected:?}");
            }
        }
    }
}
