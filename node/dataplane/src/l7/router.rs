//! Which rule takes a request: Gateway API precedence, compiled.
//!
//! Of all matches that fit a request the winner is the one with the longest host, then an exact path,
//! then a regular expression, then the longest prefix, a method, most headers (cookies, client networks
//! and the scheme count as such), most query parameters, then the older route, the route's name, the
//! rule's place in its route. [`Router::compile`] sorts by that once, so that a look-up takes the first that
//! fits: hosts by hash (a wildcard's suffix too, from the longest), exact paths by hash, prefixes in
//! a tree of path elements that is walked down and then up again; how these are laid out is the [`tree`]'s affair.
//! A test holds it against a scan of all matches.
//!
//! A host whose rules do not fit gives way to the next less specific one.

mod tree;

use std::cmp::Reverse;
use std::collections::HashMap;
use std::net::IpAddr;

use http::{HeaderMap, HeaderName, Method};
use trestle_config::model::{HeaderMatch, HostPattern, Match, PathMatch, Scheme, ValueMatch, ValueOf};
use trestle_config::text::Pattern;

use self::tree::{At, Seedling, Tree, Way};
use super::{path, values};
use crate::networks::{Networks, Sets};

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

#[derive(Debug)]
pub(crate) struct Router {
    /// The root is any host.
    tree: Tree<Taker>,
    /// Those of a place together, in order of precedence.
    candidates: Box<[Vec<Candidate>]>,
}

/// Who takes the requests that come to a host, an exact path or a prefix.
#[derive(Clone, Copy, Debug, Default)]
enum Taker {
    #[default]
    Nobody,
    /// A rule that asks nothing more: the most common case, answered from where it was found.
    Always { rule: u32, prefix: u16 },
    /// The first that fits of the candidates with this number.
    First(u32),
}

// Beside its 12 bytes of its own a node of the tree has this; there may be hundreds of thousands.
const _: () = assert!(size_of::<Taker>() == 8);

/// The matches of one host, on their way into a router.
#[derive(Debug, Default)]
struct Site {
    /// With any path.
    all: Vec<Candidate>,
    exact: Vec<(String, Candidate)>,
    regexes: Vec<Candidate>,
    /// By elements, without the first slash.
    prefixes: Vec<(String, Candidate)>,
}

/// A router that is being compiled.
#[derive(Debug)]
struct Compiler {
    tree: Seedling<Taker>,
    candidates: Vec<Vec<Candidate>>,
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
    clients: Option<Networks>,
    scheme: Option<Scheme>,
    pattern: Option<Pattern>,
}

impl Router {
    pub(crate) fn compile(mut entries: Vec<Entry<'_>>, sets: &Sets) -> Self {
        // Stable order of insertion is order of precedence within a host and path.
        entries.sort_by_cached_key(rank);
        let mut sites: HashMap<&HostPattern, Site, ahash::RandomState> = HashMap::default();
        for entry in &entries {
            // A name or method that can't occur in a request never matches one.
            let Some(candidate) = Candidate::compile(entry, sets) else { continue };
            sites.entry(entry.host).or_default().insert(entry.condition.path.as_ref(), candidate);
        }
        let tree = Seedling::new(Taker::Nobody, ahash::RandomState::new());
        let mut compiler = Compiler { tree, candidates: Vec::new() };
        for (host, site) in sites {
            compiler.site(host, site);
        }
        Self { tree: compiler.tree.finish(), candidates: compiler.candidates.into() }
    }

    /// The rule that takes this request.
    pub(crate) fn find(&self, subject: Subject<'_>) -> Option<Found> {
        let root = At::ROOT;
        if let Some(site) = self.tree.step(root, Way::Host, subject.host.as_bytes())
            && let Some(rule) = self.find_at(site, subject)
        {
            return Some(rule);
        }
        if self.tree.leads(root.node, Way::Suffix) {
            let mut rest = subject.host;
            while let Some((label, suffix)) = rest.split_once('.') {
                // `*.example.com` takes `a.example.com`, not `.example.com`.
                if (!label.is_empty() || rest.len() < subject.host.len())
                    && let Some(site) = self.tree.step(root, Way::Suffix, suffix.as_bytes())
                    && let Some(rule) = self.find_at(site, subject)
                {
                    return Some(rule);
                }
                rest = suffix;
            }
        }
        self.find_at(root, subject)
    }

    /// Among the rules of one host.
    fn find_at(&self, site: At, subject: Subject<'_>) -> Option<Found> {
        let path = subject.path.as_bytes();
        for (way, text) in [(Way::Path, path), (Way::Regex, b"")] {
            if let Some(at) = self.tree.step(site, way, text)
                && let Some(rule) = self.take(at.node, subject)
            {
                return Some(rule);
            }
        }
        let mut node = self.tree.descend(site, path).node;
        loop {
            if let Some(rule) = self.take(node, subject) {
                return Some(rule);
            }
            if node == site.node {
                return None;
            }
            node = self.tree.before(node);
        }
    }

    fn take(&self, node: u32, subject: Subject<'_>) -> Option<Found> {
        match *self.tree.holds(node) {
            Taker::Nobody => None,
            Taker::Always { rule, prefix } => Some(Found { rule: rule as usize, prefix: prefix.into() }),
            Taker::First(number) => {
                let fitting =
                    self.candidates[number as usize].iter().find(|candidate| candidate.fits(subject));
                fitting.map(|candidate| candidate.found)
            }
        }
    }
}

impl Site {
    fn insert(&mut self, path: Option<&PathMatch>, mut candidate: Candidate) {
        match path {
            Some(PathMatch::Exact(exact)) => self.exact.push((normal(exact), candidate)),
            Some(PathMatch::Regex(_)) => self.regexes.push(candidate),
            Some(PathMatch::Prefix(prefix)) => {
                let normal = normal(prefix);
                let bare = normal.strip_suffix('/').unwrap_or(&normal);
                candidate.found.prefix = bare.len();
                match bare.strip_prefix('/') {
                    Some(elements) => self.prefixes.push((elements.to_owned(), candidate)),
                    None => self.all.push(candidate),
                }
            }
            None => self.all.push(candidate),
        }
    }
}

impl Compiler {
    fn site(&mut self, host: &HostPattern, site: Site) {
        let root = At::ROOT;
        let at = match host {
            HostPattern::Any => root,
            HostPattern::Exact(host) => self.tree.grow(root, Way::Host, host.as_bytes(), Taker::Nobody),
            HostPattern::Suffix(host) => self.tree.grow(root, Way::Suffix, host.as_bytes(), Taker::Nobody),
        };
        *self.tree.holds_mut(at) = self.taker(site.all);
        if !site.regexes.is_empty() {
            let taker = self.taker(site.regexes);
            self.tree.grow(at, Way::Regex, b"", taker);
        }
        for (path, taker) in self.takers(site.exact) {
            self.tree.grow(at, Way::Path, path.as_bytes(), taker);
        }
        let prefixes = self.takers(site.prefixes);
        let prefixes: Vec<_> = prefixes.iter().map(|(path, taker)| (path.as_str(), *taker)).collect();
        self.prefixes(at, &prefixes);
    }

    /// Who takes requests at each path, in the order of their elements.
    fn takers(&mut self, mut candidates: Vec<(String, Candidate)>) -> Vec<(String, Taker)> {
        // Stable: those of one path stay in order of precedence.
        candidates.sort_by(|(a, _), (b, _)| a.split('/').cmp(b.split('/')));
        let mut places: Vec<(String, Vec<Candidate>)> = Vec::with_capacity(candidates.len());
        for (path, candidate) in candidates {
            match places.last_mut() {
                Some((last, of_path)) if *last == path => of_path.push(candidate),
                _ => places.push((path, vec![candidate])),
            }
        }
        places.into_iter().map(|(path, candidates)| (path, self.taker(candidates))).collect()
    }

    fn taker(&mut self, candidates: Vec<Candidate>) -> Taker {
        let Some(first) = candidates.first() else { return Taker::Nobody };
        if first.is_unconditional()
            && let (Ok(rule), Ok(prefix)) = (first.found.rule.try_into(), first.found.prefix.try_into())
        {
            return Taker::Always { rule, prefix };
        }
        self.candidates.push(candidates);
        Taker::First(tree::number(self.candidates.len() - 1))
    }

    /// Prefixes below a node, in the order of their elements, no two alike.
    fn prefixes(&mut self, from: At, prefixes: &[(&str, Taker)]) {
        for branch in prefixes.chunk_by(|(a, _), (b, _)| a.split('/').next() == b.split('/').next()) {
            // What the first and the last one share those between them share too.
            let [(first, taker), rest @ ..] = branch else { continue };
            let label = shared(first, branch[branch.len() - 1].0);
            let (taker, below) = if label == *first { (*taker, rest) } else { (Taker::Nobody, branch) };
            let node = self.tree.grow(from, Way::Elements, label.as_bytes(), taker);
            let below: Vec<_> =
                below.iter().map(|(path, taker)| (&path[label.len() + 1..], *taker)).collect();
            self.prefixes(node, &below);
        }
    }
}

impl Candidate {
    fn compile(entry: &Entry<'_>, sets: &Sets) -> Option<Self> {
        let method = |name: &String| Method::from_bytes(name.as_bytes()).ok();
        let header = |header: &HeaderMatch| {
            Some((HeaderName::from_bytes(header.name.as_bytes()).ok()?, header.value.clone()))
        };
        Some(Self {
            methods: entry.condition.methods.iter().map(method).collect::<Option<_>>()?,
            headers: entry.condition.headers.iter().map(header).collect::<Option<_>>()?,
            more: More::compile(entry.condition, sets),
            found: Found { rule: entry.rule, prefix: 0 },
        })
    }

    fn is_unconditional(&self) -> bool {
        self.methods.is_empty() && self.headers.is_empty() && self.more.is_none()
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
    fn compile(condition: &Match, sets: &Sets) -> Option<Box<Self>> {
        let Match { path, query, cookies, clients, scheme, .. } = condition;
        let pattern = match path {
            Some(PathMatch::Regex(pattern)) => Some(pattern.clone()),
            _ => None,
        };
        let none = query.is_empty()
            && cookies.is_empty()
            && clients.is_empty()
            && scheme.is_none()
            && pattern.is_none();
        (!none).then(|| {
            Box::new(Self {
                query: query.clone().into(),
                cookies: cookies.clone().into(),
                clients: (!clients.is_empty()).then(|| sets.resolve(clients)),
                scheme: *scheme,
                pattern,
            })
        })
    }

    fn fits(&self, subject: Subject<'_>) -> bool {
        self.scheme.is_none_or(|scheme| scheme == subject.scheme)
            && self.clients.as_ref().is_none_or(|clients| clients.contains(subject.client))
            && self
                .cookies
                .iter()
                .all(|of| values::fits(values::cookie(subject.headers, &of.name), &of.value))
            && self.query.iter().all(|of| values::fits(values::query(subject.query, &of.name), &of.value))
            && self.pattern.as_ref().is_none_or(|pattern| pattern.is_match(subject.path.as_bytes()))
    }
}

/// How closely a match asks, beside its host and the kind of its path; more goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Closeness {
    /// Bytes of its normal form, of a prefix without the final slash.
    pub(crate) path: usize,
    pub(crate) method: bool,
    /// Conditions on headers; those on cookies, clients and the scheme count as such.
    pub(crate) headers: usize,
    pub(crate) query: usize,
}

impl Closeness {
    pub(crate) fn of(condition: &Match) -> Self {
        let path = match &condition.path {
            Some(PathMatch::Exact(path)) => normal(path).len(),
            Some(PathMatch::Regex(pattern)) => pattern.as_str().len(),
            Some(PathMatch::Prefix(path)) => {
                let normal = normal(path);
                normal.strip_suffix('/').unwrap_or(&normal).len()
            }
            None => 0,
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
pub(crate) fn normal(path: &str) -> String {
    path::of_config(path)
}

/// The elements with which both begin.
fn shared<'a>(a: &'a str, b: &str) -> &'a str {
    let same = a.split('/').zip(b.split('/')).take_while(|(a, b)| a == b);
    let end = same.map(|(element, _)| element.len() + 1).sum::<usize>();
    &a[..end.saturating_sub(1)]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use trestle_config::model::NetworkRef;

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
        Router::compile(lines.iter().enumerate().map(entry).collect(), &Sets::default())
    }

    fn header_count(condition: &Match) -> usize {
        let Match { headers, cookies, clients, scheme, .. } = condition;
        headers.len() + cookies.len() + usize::from(!clients.is_empty()) + usize::from(scheme.is_some())
    }

    /// The normal form of the paths that are tried here.
    fn plain(path: &str) -> String {
        let decoded = [("%61", "a"), ("%62", "b"), ("%7e", "~"), ("%7E", "~"), ("%2f", "%2F")];
        decoded.iter().fold(path.to_owned(), |path, (from, to)| path.replace(from, to))
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
            Some(PathMatch::Exact(exact)) => {
                let exact = plain(exact);
                (exact == subject.path).then_some((2, exact.len()))
            }
            Some(PathMatch::Regex(pattern)) => {
                pattern.is_match(subject.path.as_bytes()).then_some((1, pattern.as_str().len()))
            }
            Some(PathMatch::Prefix(prefix)) => {
                let prefix = plain(prefix);
                let bare = prefix.strip_suffix('/').unwrap_or(&prefix);
                let rest = subject.path.strip_prefix(bare)?;
                (rest.is_empty() || rest.starts_with('/')).then_some((0, bare.len()))
            }
            None => Some((0, 0)),
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
                    || condition.clients.iter().any(|client| match client {
                        NetworkRef::Network(net) => net.contains(&subject.client),
                        NetworkRef::Set(_) => false,
                    }));
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
    fn prefixes_branch_wherever_their_elements_do() {
        let prefixes = ["/a/b/c/d", "/a/b/c", "/a/b/x/y", "/a/bb", "//", "/z//z"];
        let router = router(&prefixes.map(prefix));
        for (path, rule) in [
            ("/a/b/c/d", Some(0)),
            ("/a/b/c/d/e", Some(0)),
            ("/a/b/c/dd", Some(1)),
            ("/a/b/c", Some(1)),
            ("/a/b/c/", Some(1)),
            ("/a/b/cc", None),
            ("/a/b", None),
            ("/a/b/x", None),
            ("/a/b/x/y/z", Some(2)),
            ("/a/bb/c", Some(3)),
            ("/a", None),
            ("/", Some(4)),
            ("//a/b", Some(4)),
            ("/z", None),
            ("/z/", None),
            ("/z//z", Some(5)),
            ("/z/z", None),
        ] {
            assert_eq!(find(&router, "a", path), rule, "{path}");
        }
    }

    #[test]
    fn an_exact_path_and_a_prefix_of_one_spelling_stay_apart() {
        let exact = line(HostPattern::Any, PathMatch::Exact("/x".into()));
        let router = router(&[prefix("/*"), exact, prefix("/x")]);
        for (path, rule) in [("*", None), ("/*", Some(0)), ("/x", Some(1)), ("/x/", Some(2)), ("x", None)] {
            assert_eq!(find(&router, "a", path), rule, "{path}");
        }
    }

    #[test]
    fn a_prefix_of_any_length_is_cut_off_whole() {
        let long = format!("/{}", "x".repeat(70_000));
        let router = router(&[prefix(&long), prefix("/y/z/")]);
        let headers = HeaderMap::new();
        let found = |path: &str| router.find(subject("a", path, &Method::GET, &headers));
        let expected = Found { rule: 0, prefix: long.len() };
        assert_eq!(found(&format!("{long}/y")), Some(expected));
        assert_eq!(found("/y/z/x"), Some(Found { rule: 1, prefix: 4 }));
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
    fn a_path_counts_as_long_as_its_normal_form_is_and_a_prefix_without_its_final_slash() {
        let with = |path: &str, methods: &[&str]| {
            let mut line = prefix(path);
            line.condition.methods = methods.iter().map(|method| (*method).to_owned()).collect();
            line
        };
        let of = |a, b| find(&router(&[a, b]), "h", "/~u/x");
        assert_eq!(of(with("/%7Eu", &[]), with("/~u", &["GET"])), Some(1));
        assert_eq!(of(with("/~u/", &[]), with("/~u", &["GET"])), Some(1));
        let anywhere = Line { condition: Match::default(), ..with("/", &[]) };
        assert_eq!(of(with("/", &["GET"]), anywhere.clone()), Some(0));
        assert_eq!(
            of(Line { route: "z".into(), ..with("/", &[]) }, anywhere),
            Some(1),
            "it says the same as `/`"
        );
    }

    #[test]
    fn the_older_route_wins_then_its_name_then_the_rules_place() {
        let with = |birth, route: &str, index| Line { birth, route: route.into(), index, ..prefix("/") };
        assert_eq!(find(&router(&[with(2, "a", 0), with(1, "b", 0)]), "h", "/"), Some(1));
        assert_eq!(find(&router(&[with(1, "b", 0), with(1, "a", 1)]), "h", "/"), Some(1));
        assert_eq!(find(&router(&[with(1, "a", 1), with(1, "a", 0)]), "h", "/"), Some(1));
    }

    fn network(text: &str) -> NetworkRef {
        NetworkRef::Network(text.parse().expect("a network"))
    }

    fn arb_line() -> impl Strategy<Value = Line> {
        let host = prop_oneof![
            Just(HostPattern::Any),
            "(a|b)\\.(x|y\\.x)".prop_map(HostPattern::Exact),
            "(x|y\\.x|b\\.y\\.x)".prop_map(HostPattern::Suffix),
        ];
        let path = prop_oneof![
            Just(None),
            "/|(/([ab~]|%61|%62|%7e|%7E|%2f){1,2}){1,3}/?".prop_map(|p| Some(PathMatch::Exact(p))),
            "/|(/([ab~]|%61|%62|%7e|%7E|%2f){1,2}){1,3}/?".prop_map(|p| Some(PathMatch::Prefix(p))),
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
            1 => Just(vec![network("192.0.2.0/25")]),
            1 => Just(vec![network("192.0.2.128/25"), network("2001:db8::/32")]),
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
                    "/|(/([ab]|[ab]|[ab]|~|%2F){1,2}){1,4}/?",
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
