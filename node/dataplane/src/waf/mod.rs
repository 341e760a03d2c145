//! The web application firewall: looks for SQL injection and scripts in what a request brings, in the very form in
//! which a member gets it, and refuses it or tells of it.
//!
//! [`Waf`] is a policy, compiled for a rule. A request's header is inspected before it is answered or given to a
//! member; its body, where it has a type that is read ([`body`]), is held back up to a bound and inspected as a
//! whole. Values come from [`inspection`] (places and exceptions), are decoded ([`decode`]) and judged by an
//! [`engine`], whose rules are a table ([`rules`]).
//!
//! Nothing here waits or keeps anything between two requests. What it may cost is bounded by the header's limits,
//! by `inspect_body` and by the bounds in [`engine`].

mod body;
#[cfg(test)]
mod corpus;
mod decode;
mod engine;
mod files;
mod inspection;
mod normal;
mod rules;

use std::sync::Arc;

use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue};
use trestle_config::model::{self, WafField, WafMode, WafRule};
use trestle_config::{Contents, path};

use crate::l7::head;
use crate::metrics::Counter;
pub(crate) use body::Form;
use engine::Engine;
pub(crate) use files::Asked;
pub use files::check as check_rule_files;
use files::{FileRules, Known, OfFiles};
use inspection::Inspection;
use rules::{Rule, Rules};

/// Findings of one request that are told in `detect`; in `block` the first decides.
const FINDINGS_MAX: usize = 8;

/// Bytes of a field's name that are told.
const NAME_SHOWN: usize = 64;

/// A policy, compiled.
#[derive(Debug)]
pub(crate) struct Waf {
    mode: WafMode,
    /// Of the built-in ones.
    rules: Rules,
    files: Option<FileRules>,
    /// Bytes of a body that are held back and looked at; 0: bodies are not.
    pub(crate) body_max: usize,
    /// A longer one is refused.
    pub(crate) refuses_longer: bool,
    exceptions: Box<[Exception]>,
    engine: Engine,
    counters: Arc<WafCounters>,
}

/// Where some rules don't hold.
#[derive(Debug)]
struct Exception {
    /// Built-in ones.
    rules: Rules,
    of_files: OfFiles,
    /// With all below it; `None`: every path.
    path: Option<Box<str>>,
    /// `None`: everywhere in the request.
    field: Option<WafField>,
}

/// Where in a request something was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Path,
    Query,
    Header,
    Cookie,
    Body,
    /// A string of a body of JSON.
    Json,
    /// No part of it by itself.
    Request,
}

impl Place {
    fn label(self) -> &'static str {
        match self {
            Place::Path => "path",
            Place::Query => "query",
            Place::Header => "header",
            Place::Cookie => "cookie",
            Place::Body | Place::Json => "body",
            Place::Request => "request",
        }
    }
}

/// A rule, as log and metrics call it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RuleName {
    Builtin(Rule),
    /// Of a file, by its id.
    File(u32),
}

impl std::fmt::Display for RuleName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Builtin(rule) => rule.fmt(f),
            Self::File(id) => id.fmt(f),
        }
    }
}

/// What was found in a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hit {
    pub(crate) rule: RuleName,
    place: Place,
    /// Empty for the path.
    name: Box<[u8]>,
    /// The bytes that the rule is about, decoded and shortened; of a secret how many there are.
    pub(crate) matched: Box<[u8]>,
    is_hidden: bool,
}

impl Hit {
    fn new(rule: RuleName, (place, name): (Place, &[u8]), matched: &[u8]) -> Self {
        // What stands before the sign in a value that was cut at one of its semicolons is of the value.
        let name = if place == Place::Cookie && !name.iter().all(is_of_cookie_name) { b"" } else { name };
        let is_secret = is_secret(place, name);
        let name = name[..name.len().min(NAME_SHOWN)].into();
        let hit = Self { rule, place, name, matched: matched.into(), is_hidden: false };
        if is_secret { hit.hidden() } else { hit }
    }

    /// As it may be told of what stands in something that is called like a secret.
    fn hidden(mut self) -> Self {
        if std::mem::replace(&mut self.is_hidden, true) {
            return self;
        }
        self.matched = format!("({} bytes, not shown)", self.matched.len()).into_bytes().into();
        self
    }

    /// As `query:q`.
    pub(crate) fn at(&self) -> Vec<u8> {
        let label = self.place.label().as_bytes();
        if self.name.is_empty() { label.to_vec() } else { [label, b":", &self.name].concat() }
    }
}

/// A token (RFC 6265, section 4.1.1), or as PHP has members of its arrays.
fn is_of_cookie_name(byte: &u8) -> bool {
    head::is_token(*byte) || matches!(byte, b'[' | b']')
}

/// Whether a log should not have it, though a rule found something there: cookies, credentials, and whatever is
/// called like a secret.
fn is_secret(place: Place, name: &[u8]) -> bool {
    const NAMES: [&str; 12] = [
        "pass",
        "pwd",
        "secret",
        "token",
        "session",
        "credential",
        "authorization",
        "api_key",
        "api-key",
        "apikey",
        "cookie",
        "otp",
    ];
    let name = name.to_ascii_lowercase();
    let called = |part: &str| memchr::memmem::find(&name, part.as_bytes()).is_some();
    place == Place::Cookie || NAMES.iter().any(|part| called(part))
}

/// How often each rule found something.
#[derive(Debug, Default)]
pub(crate) struct WafCounters {
    blocked: [Counter; Rule::COUNT],
    detected: [Counter; Rule::COUNT],
    /// Of rules of files, with the sets that were compiled.
    files: Known,
}

impl WafCounters {
    /// Rule, action and count of those that were found.
    pub(crate) fn each(&self, mut see: impl FnMut(&str, &'static str, u64)) {
        let mut some = |rule: &str, action, count: &Counter| {
            let count = count.value();
            if count > 0 {
                see(rule, action, count);
            }
        };
        for (action, counters) in [("block", &self.blocked), ("detect", &self.detected)] {
            Rule::ALL.iter().zip(counters).for_each(|(rule, count)| some(rule.id(), action, count));
        }
        for (id, counters) in &*self.files.counters.lock() {
            let id = id.to_string();
            some(&id, "block", &counters.blocked);
            some(&id, "detect", &counters.detected);
            some(&id, "pass", &counters.passed);
        }
    }
}

impl Waf {
    /// `None`: it is off.
    pub(crate) fn compile(
        policy: &model::Waf,
        counters: &Arc<WafCounters>,
        contents: &Contents,
    ) -> Option<Self> {
        let exception = |except: &model::WafException| Exception {
            // Names were checked.
            rules: match &except.rule {
                None => Rules::up_to(u8::MAX),
                Some(WafRule::Builtin(name)) => Rules::named(name).unwrap_or_default(),
                Some(WafRule::Id(_)) => Rules::NONE,
            },
            of_files: OfFiles::of(except.rule.as_ref()),
            path: except.path.as_deref().map(|path| path::of_config(path).trim_end_matches('/').into()),
            field: except.field.clone(),
        };
        if policy.mode == WafMode::Off {
            return None;
        }
        let engine = Engine::Builtin;
        engine.prepare();
        let files = match policy.files.as_slice() {
            [] => None,
            files => match FileRules::compile(files, policy.paranoia, contents, &counters.files) {
                Ok(files) => {
                    files.warn_of_unknown(&policy.except, &counters.files);
                    Some(files)
                }
                Err(why) => {
                    tracing::error!(
                        why,
                        "rule files of the web application firewall can't be used: the built-in rules hold instead"
                    );
                    None
                }
            },
        };
        let builtin = policy.builtin || files.is_none();
        Some(Self {
            mode: policy.mode,
            rules: if builtin { Rules::up_to(policy.paranoia) } else { Rules::OF_FORM },
            files,
            body_max: policy.inspect_body,
            refuses_longer: policy.refuses_longer,
            exceptions: policy.except.iter().map(exception).collect(),
            engine,
            counters: Arc::clone(counters),
        })
    }

    /// Counts what was found; true: the request must not pass.
    pub(crate) fn refuses(&self, hits: &[Hit]) -> bool {
        let blocks = self.blocks();
        let of = if blocks { &self.counters.blocked } else { &self.counters.detected };
        for hit in hits {
            if let RuleName::Builtin(rule) = hit.rule {
                of[rule as usize].inc();
            }
        }
        blocks && !hits.is_empty()
    }

    /// What rules of files say of a request, when all that is looked at of it is here. Each is counted; told are those of
    /// a request that they refuse.
    pub(crate) fn by_files(
        &self,
        asked: &Asked<'_>,
        headers: &HeaderMap,
        body: Option<(&Form, &[u8])>,
    ) -> Vec<Hit> {
        let Some(files) = &self.files else { return Vec::new() };
        let mut verdict = files.judge(asked, headers, body, &self.exceptions);
        verdict.exhausted &= self.broken(asked.path, Rule::FilesWork).is_some();
        if verdict.denied.is_none() && !verdict.exhausted {
            files.count(&verdict, |counters| &counters.passed);
            return Vec::new();
        }
        match self.mode {
            WafMode::Block => files.count(&verdict, |counters| &counters.blocked),
            _ => files.count(&verdict, |counters| &counters.detected),
        }
        let mut hits = files::hits(&verdict, headers);
        if verdict.exhausted {
            hits.push(files::exhausted());
        }
        hits
    }

    /// Looks at path, query and header.
    pub(crate) fn header(&self, path: &str, query: Option<&str>, headers: &HeaderMap) -> Vec<Hit> {
        let mut inspection = Inspection::new(self, path);
        inspection.path(path);
        if let Some(query) = query {
            inspection.query(query);
        }
        inspection.headers(headers);
        inspection.hits
    }

    /// How the body of a request with this header is read; `None`: it passes as it comes.
    pub(crate) fn form(&self, headers: &HeaderMap) -> Option<Form> {
        if self.body_max == 0 { None } else { Form::of(headers) }
    }

    /// Looks at what the header says of a body that is going to be read.
    pub(crate) fn disguise(&self, path: &str, headers: &HeaderMap) -> Option<Hit> {
        self.broken(path, Form::disguise(headers)?)
    }

    /// Looks at a body, or at as much of one as `body_max` says, and at its trailers.
    pub(crate) fn body(
        &self,
        path: &str,
        form: &Form,
        body: &[u8],
        trailers: Option<&HeaderMap>,
    ) -> Vec<Hit> {
        let mut inspection = Inspection::new(self, path);
        inspection.body(form, body);
        trailers.into_iter().for_each(|trailers| inspection.headers(trailers));
        inspection.hits
    }

    /// Of a body that is longer than what is looked at.
    pub(crate) fn over(&self, path: &str) -> Option<Hit> {
        if self.refuses_longer { self.broken(path, Rule::BodyOver) } else { None }
    }

    /// Of a body that the node had no room for.
    pub(crate) fn unread(&self, path: &str) -> Option<Hit> {
        self.broken(path, Rule::BodyMemory)
    }

    pub(crate) fn blocks(&self) -> bool {
        self.mode == WafMode::Block
    }

    fn broken(&self, path: &str, rule: Rule) -> Option<Hit> {
        let inspection = Inspection::new(self, path);
        let at = (Place::Body, [].as_slice());
        inspection.rules(at.0, at.1).has(rule).then(|| Hit::new(RuleName::Builtin(rule), at, b""))
    }
}

/// For fuzzers: judges a body that is read as its first byte says, and each form of it by itself.
pub(crate) fn any_bytes(data: &[u8]) {
    let Some((kind, body)) = data.split_first() else { return };
    let forms = [
        Form::Urlencoded,
        Form::Json,
        Form::Multipart { boundary: b"x".to_vec() },
        Form::Xml,
        Form::Text,
        Form::Unknown,
    ];
    let policy = model::Waf { mode: WafMode::Detect, paranoia: 4, ..model::Waf::default() };
    let Some(waf) = Waf::compile(&policy, &Arc::default(), &Contents::default()) else { return };
    let hits = waf.body("/", &forms[usize::from(*kind) % forms.len()], body, None);
    assert!(hits.len() <= FINDINGS_MAX + 1, "{}", hits.len());
    assert!(hits.iter().all(|hit| hit.at().len() <= NAME_SHOWN + 8));
    if let Some(decoded) = decode::round(body) {
        assert!(decoded.len() <= body.len());
    }
    // Its first line, as what a body says that it is.
    let line = body.split(|byte| *byte == b'\n').next().unwrap_or_default();
    if let Ok(value) = HeaderValue::from_bytes(line) {
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, value)]);
        let _ = (Form::of(&headers), Form::disguise(&headers));
    }
}

#[cfg(test)]
mod tests {
    use trestle_config::model::WAF_RULES;

    use super::*;

    #[test]
    fn what_is_called_like_a_secret_is_not_shown() {
        let shown = |place, name: &str| {
            !Hit::new(RuleName::Builtin(Rule::FilesWork), (place, name.as_bytes()), b"' or 1=1")
                .matched
                .ends_with(b"shown)")
        };
        for (place, name) in [
            (Place::Cookie, "a"),
            (Place::Header, "Authorization"),
            (Place::Body, "user.newPassword"),
            (Place::Query, "access_token"),
        ] {
            assert!(!shown(place, name), "{name}");
        }
        for (place, name) in [(Place::Body, "author"), (Place::Query, "q"), (Place::Path, "")] {
            assert!(shown(place, name), "{name}");
        }
    }

    #[test]
    fn of_a_cookie_the_name_alone_is_told() {
        let at = |name: &str| {
            let hit = Hit::new(RuleName::File(1), (Place::Cookie, name.as_bytes()), b"' or 1=1");
            assert!(hit.matched.ends_with(b"shown)"), "{name}");
            String::from_utf8(hit.at()).expect("text")
        };
        assert_eq!(at("sid"), "cookie:sid");
        assert_eq!(at("prefs[lang]"), "cookie:prefs[lang]");
        for name in ["", "hunter2' or 1", "hunter2\"<img src", "a b", "a,b", "\u{e9}"] {
            assert_eq!(at(name), "cookie", "{name}");
        }
    }

    #[test]
    fn the_config_knows_the_names_of_all_rules_and_classes() {
        let mut ours: Vec<&str> =
            Rule::ALL.iter().map(|rule| rule.id()).chain(["sqli", "xss", "body"]).collect();
        let mut theirs = WAF_RULES.to_vec();
        ours.sort_unstable();
        theirs.sort_unstable();
        assert_eq!(ours, theirs);
        assert!(theirs.iter().all(|name| Rules::named(name).is_some()));
        assert_eq!(Rules::named("sql"), None);
    }

    #[test]
    fn the_fuzzers_corpus_is_judged() {
        let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/waf");
        let files = std::fs::read_dir(corpus).expect("it is there");
        let files: Vec<_> = files.map(|file| file.expect("listed").path()).collect();
        assert!(files.len() >= 7);
        for file in files {
            any_bytes(&std::fs::read(&file).expect("readable"));
        }
    }

    #[test]
    fn levels_add_rules() {
        for level in 1..4 {
            let (fewer, more) = (Rules::up_to(level), Rules::up_to(level + 1));
            assert!(fewer.without(more).is_empty() && !more.without(fewer).is_empty(), "{level}");
        }
    }
}
