//! Rules of an operator's files, beside the built-in ones: [`FileRules`].
//!
//! They see a request once, when all that is looked at of it is here. Each worker has an engine of its own, made when
//! the first request needs it; a set of rules is compiled once for all revisions that have it.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Weak};

use http::{HeaderMap, Version};
use parking_lot::Mutex;
use trestle_config::Contents;
use trestle_config::model::{Content, WafException, WafRule};
use trestle_seclang::{Arg, Engine, Fault, Limits, Processor, Request, Rules, Skips, Source, Verdict};

use super::body::{self, Form, Part};
use super::inspection::{has_secret_parameter, is_it, percent};
use super::rules::Rule;
use super::{Exception, FINDINGS_MAX, Hit, Place, RuleName};
use crate::metrics::Counter;

/// Bytes of the name of an element, or of a part whose header has several lines, that are kept with each value.
const SHARED_NAME_MAX: usize = 1 << 10;

/// What a request is, beside its fields and its body.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked<'a> {
    pub(crate) client: IpAddr,
    pub(crate) method: &'a str,
    pub(crate) path: &'a str,
    pub(crate) query: Option<&'a str>,
    pub(crate) version: Version,
    pub(crate) host: &'a [u8],
    pub(crate) id: &'a str,
}

#[derive(Debug)]
pub(super) struct FileRules {
    rules: Arc<Rules>,
    paranoia: u8,
    /// By id.
    counters: BTreeMap<u32, Arc<FileCounters>>,
}

/// How often a rule of a file fitted.
#[derive(Debug, Default)]
pub(super) struct FileCounters {
    pub(super) blocked: Counter,
    pub(super) detected: Counter,
    /// In requests that were let through, since it is not enough by itself.
    pub(super) passed: Counter,
}

/// Files, and what they were compiled to for as long as somebody has it.
type Compiled = (Box<[Content]>, Weak<Rules>);

/// Sets that were compiled, and counters of their rules, for all revisions.
#[derive(Debug, Default)]
pub(super) struct Known {
    sets: Mutex<Vec<Compiled>>,
    pub(super) counters: Mutex<BTreeMap<u32, Arc<FileCounters>>>,
    /// Numbers without a rule that were told of.
    warned: Mutex<BTreeSet<u32>>,
}

thread_local! {
    /// Of this worker, for as long as somebody has the rules.
    static ENGINES: RefCell<Vec<(Weak<Rules>, Engine)>> = const { RefCell::new(Vec::new()) };
}

/// Says what is wrong with rule files that make one set: the number of the file, and what.
pub fn check(files: &[&[u8]]) -> Result<(), (usize, Fault)> {
    Rules::compile(files).map(drop)
}

impl FileRules {
    /// # Errors
    /// What is wrong with them, though they were checked when they were applied.
    pub(super) fn compile(
        files: &[Content],
        paranoia: u8,
        contents: &Contents,
        known: &Known,
    ) -> Result<Self, String> {
        let rules = known.set(files, contents)?;
        let mut all = known.counters.lock();
        let counters = rules.ids().map(|id| (id, Arc::clone(all.entry(id).or_default()))).collect();
        Ok(Self { rules, paranoia, counters })
    }

    /// Of exceptions that hold for nothing, once for each number that no file has.
    pub(super) fn warn_of_unknown(&self, exceptions: &[WafException], known: &Known) {
        for exception in exceptions {
            if let Some(WafRule::Id(id)) = exception.rule
                && !self.counters.contains_key(&id)
                && known.warned.lock().insert(id)
            {
                tracing::warn!(
                    rule = id,
                    "an exception of `waf` does nothing: its rule files have no rule about requests with this number"
                );
            }
        }
    }

    /// What they say of a request, and of its body if that is looked at.
    pub(super) fn judge(
        &self,
        asked: &Asked<'_>,
        headers: &HeaderMap,
        body: Option<(&Form, &[u8])>,
        exceptions: &[Exception],
    ) -> Verdict {
        let about = |exception: &&Exception| exception.is_about(asked.path);
        let exceptions: Vec<&Exception> = exceptions.iter().filter(about).collect();
        if exceptions.iter().any(|exception| exception.field.is_none() && exception.of_files == OfFiles::All)
        {
            return Verdict::default();
        }
        let request = request(asked, headers, body);
        let skips = Excepted { exceptions: &exceptions, is_json: request.processor == Processor::Json };
        let skips: Option<&dyn Skips> = if exceptions.is_empty() { None } else { Some(&skips) };
        ENGINES.with_borrow_mut(|engines| {
            let mine = |(rules, _): &(Weak<Rules>, Engine)| Weak::as_ptr(rules) == Arc::as_ptr(&self.rules);
            let at = engines.iter().position(mine).unwrap_or_else(|| {
                engines.retain(|(rules, _)| rules.strong_count() > 0);
                engines.push((Arc::downgrade(&self.rules), Engine::new(&self.rules, Limits::default())));
                engines.len() - 1
            });
            match engines.get_mut(at) {
                Some((_, engine)) => engine.judge(&request, self.paranoia, skips),
                None => Verdict::default(),
            }
        })
    }

    /// Counts each rule that fitted, by what came of it.
    pub(super) fn count(&self, verdict: &Verdict, of: fn(&FileCounters) -> &Counter) {
        for found in &verdict.matches {
            if let Some(counters) = self.counters.get(&found.rule) {
                of(counters).inc();
            }
        }
    }
}

impl Known {
    fn set(&self, files: &[Content], contents: &Contents) -> Result<Arc<Rules>, String> {
        let mut sets = self.sets.lock();
        sets.retain(|(_, rules)| rules.strong_count() > 0);
        let known = sets.iter().find(|(known, _)| **known == *files);
        if let Some(rules) = known.and_then(|(_, rules)| rules.upgrade()) {
            return Ok(rules);
        }
        let bytes: Option<Vec<Cow<'_, [u8]>>> = files.iter().map(|file| contents.get(file)).collect();
        let bytes = bytes.ok_or("a rule file is not here")?;
        let bytes: Vec<&[u8]> = bytes.iter().map(|bytes| &**bytes).collect();
        let rules = Arc::new(Rules::compile(&bytes).map_err(|(_, fault)| fault.to_string())?);
        sets.push((files.into(), Arc::downgrade(&rules)));
        Ok(rules)
    }
}

/// Which rules of files an exception is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OfFiles {
    All,
    Id(u32),
    /// Those with this tag.
    Tag(&'static str),
    None,
}

impl OfFiles {
    pub(super) fn of(rule: Option<&WafRule>) -> Self {
        match rule {
            None => Self::All,
            Some(WafRule::Id(id)) => Self::Id(*id),
            Some(WafRule::Builtin(name)) => match name.as_str() {
                "sqli" => Self::Tag("attack-sqli"),
                "xss" => Self::Tag("attack-xss"),
                _ => Self::None,
            },
        }
    }

    fn has(self, rule: u32, tags: &[Box<str>]) -> bool {
        match self {
            Self::All => true,
            Self::Id(id) => id == rule,
            Self::Tag(tag) => tags.iter().any(|known| **known == *tag),
            Self::None => false,
        }
    }
}

/// Those that are about a path.
struct Excepted<'a> {
    exceptions: &'a [&'a Exception],
    /// The body is.
    is_json: bool,
}

impl Skips for Excepted<'_> {
    fn skips(&self, rule: u32, tags: &[Box<str>], source: Source, name: &[u8]) -> bool {
        let place = match place(source) {
            // Those behind `json.` in the name are what the names of a document end with.
            Some(Place::Body) if self.is_json => Some(Place::Json),
            place => place,
        };
        self.exceptions.iter().any(|exception| {
            let here = match (&exception.field, place) {
                (None, _) => true,
                (Some(field), Some(place)) => is_it(field, place, name),
                (Some(_), None) => false,
            };
            here && exception.of_files.has(rule, tags)
        })
    }
}

/// `None`: it is of no part of the request that has a name.
fn place(source: Source) -> Option<Place> {
    match source {
        Source::Query => Some(Place::Query),
        Source::Header => Some(Place::Header),
        Source::Cookie => Some(Place::Cookie),
        Source::Body | Source::File | Source::PartHeader | Source::Xml => Some(Place::Body),
        Source::Line | Source::Computed => None,
    }
}

/// What a verdict tells, for the log.
pub(super) fn hits(verdict: &Verdict, headers: &HeaderMap) -> Vec<Hit> {
    let told = verdict.matches.iter().take(FINDINGS_MAX).map(|found| {
        let place = place(found.source).unwrap_or(Place::Request);
        let hit = Hit::new(RuleName::File(found.rule), (place, &found.name), &found.matched);
        // Rules see a URL as one value, whatever parameters it has.
        let mut values = std::str::from_utf8(&found.name).into_iter().flat_map(|name| headers.get_all(name));
        let is_secret = values.any(|value| has_secret_parameter(value.as_bytes()));
        if place == Place::Header && is_secret { hit.hidden() } else { hit }
    });
    told.collect()
}

/// Of a request that took too much work.
pub(super) fn exhausted() -> Hit {
    Hit::new(RuleName::Builtin(Rule::FilesWork), (Place::Request, b""), b"")
}

fn request<'a>(asked: &Asked<'a>, headers: &'a HeaderMap, body: Option<(&'a Form, &'a [u8])>) -> Request<'a> {
    let mut args = Vec::with_capacity(16);
    let mut add = |source, name: &[u8], value: &[u8]| {
        // Rules don't look at the names of these, which many values may share.
        let is_shared = matches!(source, Source::Xml | Source::PartHeader);
        let name = if is_shared { &name[..name.len().min(SHARED_NAME_MAX)] } else { name };
        args.push(Arg { source, name: name.to_vec().into(), value: value.to_vec().into() });
        // More than the engine takes: it need not all be here for that.
        args.len() <= Limits::default().values
    };
    let mut fields = Vec::with_capacity(headers.len() + 1);
    if !headers.contains_key(http::header::HOST) {
        fields.push(("host", asked.host));
    }
    for (name, value) in headers {
        fields.push((name.as_str(), value.as_bytes()));
        if *name == http::header::COOKIE {
            for pair in value.as_bytes().split(|byte| *byte == b';').map(<[u8]>::trim_ascii) {
                // One without a name is a value.
                let (name, value) = match memchr::memchr(b'=', pair) {
                    Some(at) => (&pair[..at], &pair[at + 1..]),
                    None => ([].as_slice(), pair),
                };
                if !pair.is_empty() && !add(Source::Cookie, name, &percent(value)) {
                    break;
                }
            }
        }
    }
    if let Some(query) = asked.query {
        body::pairs(query.as_bytes(), &mut |part| match part {
            Part::Field { name, value } => add(Source::Query, name, value),
            _ => true,
        });
    }
    let mut processor = Processor::None;
    if let Some((form, bytes)) = body {
        let form = form.guessed(bytes);
        let source = if matches!(form, Form::Xml) { Source::Xml } else { Source::Body };
        let is_json = matches!(form, Form::Json);
        processor = match form {
            Form::Urlencoded => Processor::Urlencoded,
            Form::Json => Processor::Json,
            Form::Multipart { .. } => Processor::Multipart,
            Form::Xml => Processor::Xml,
            Form::Text | Form::Unknown => Processor::None,
        };
        form.read(bytes, &mut |part| match part {
            // As ModSecurity calls them; what has no name stays without.
            Part::String { path, value } if !path.is_empty() => {
                add(source, &[b"json.", path].concat(), value)
            }
            Part::Name { name, .. } if is_json => add(source, &[b"json.", name].concat(), b""),
            Part::String { path: name, value } => add(source, name, value),
            // Those of elements are no values.
            Part::Name { .. } => true,
            Part::Field { name, value } | Part::Element { name, value, .. } => add(source, name, value),
            Part::File { name, file } => add(Source::File, name, file),
            Part::Head { name, line } => add(Source::PartHeader, name, line),
            Part::Broken(_) => true,
        });
    }
    Request {
        client: Cow::Owned(asked.client.to_canonical().to_string()),
        method: asked.method,
        path: asked.path,
        query: asked.query,
        protocol: match asked.version {
            Version::HTTP_10 => "HTTP/1.0",
            Version::HTTP_2 => "HTTP/2.0",
            _ => "HTTP/1.1",
        },
        id: asked.id,
        headers: fields,
        args,
        body: body.map_or(&[], |(_, bytes)| bytes),
        processor,
    }
}

#[cfg(test)]
mod tests {
    use trestle_config::model::Digest;

    use super::*;

    fn asked() -> Asked<'static> {
        Asked {
            client: [198, 51, 100, 7].into(),
            method: "POST",
            path: "/",
            query: None,
            version: Version::HTTP_11,
            host: b"shop.example.com",
            id: "1",
        }
    }

    fn compiled(text: &str, known: &Known) -> FileRules {
        let digest = Digest([1; 32]);
        let contents = [(digest, Arc::from(text.as_bytes()))].into_iter().collect();
        FileRules::compile(&[Content::Stored(digest)], 1, &contents, known).unwrap()
    }

    #[test]
    fn an_exception_for_a_rule_that_no_file_has_is_told_of_once() {
        let known = Known::default();
        let rules = compiled("SecAction id:5,phase:1,pass\nSecAction id:7,phase:4,pass", &known);
        let of = |id| WafException { rule: Some(WafRule::Id(id)), path: None, field: None };
        rules.warn_of_unknown(&[of(5), of(6)], &known);
        rules.warn_of_unknown(&[of(6), of(7)], &known);
        assert_eq!(*known.warned.lock(), [6, 7].into());
    }

    #[test]
    fn names_that_many_values_share_are_cut_short() {
        let name = "n".repeat(15_000);
        let body = format!("<{name}>{}</{name}>", "a<b/>".repeat(900));
        let (asked, headers) = (asked(), HeaderMap::new());
        let read = request(&asked, &headers, Some((&Form::Xml, body.as_bytes())));
        assert!(read.args.len() > 900);
        assert!(read.args.iter().all(|arg| arg.name.len() <= SHARED_NAME_MAX));
    }

    #[test]
    fn a_url_with_a_secret_is_not_shown() {
        let rules = compiled("SecRule REQUEST_HEADERS \"@rx '\" id:1,phase:1,deny", &Known::default());
        for (url, is_shown) in [("https://a.test/reset?token=SECRET'", false), ("https://a.test/?q='", true)]
        {
            let value = http::HeaderValue::from_str(url).unwrap();
            let headers = HeaderMap::from_iter([(http::header::REFERER, value)]);
            let verdict = rules.judge(&asked(), &headers, None, &[]);
            let hits = hits(&verdict, &headers);
            assert_eq!(hits.len(), 1);
            assert_eq!(!hits[0].matched.ends_with(b"shown)"), is_shown, "{url}");
        }
    }

    #[test]
    fn only_members_of_json_are_excepted_by_their_last_name() {
        let rules = compiled("SecRule ARGS \"@rx '\" id:1,phase:2,deny", &Known::default());
        let exception = Exception {
            rules: super::super::Rules::NONE,
            of_files: OfFiles::Id(1),
            path: None,
            field: Some(trestle_config::model::WafField::Parameter("body".into())),
        };
        let exceptions = [exception];
        let is_denied = |form: Form, body: &str| {
            let verdict =
                rules.judge(&asked(), &HeaderMap::new(), Some((&form, body.as_bytes())), &exceptions);
            verdict.denied.is_some()
        };
        assert!(!is_denied(Form::Json, "{\"article\":{\"body\":\"'\"}}"));
        assert!(!is_denied(Form::Json, "{\"body\":\"'\"}"));
        assert!(!is_denied(Form::Urlencoded, "body='"));
        assert!(is_denied(Form::Urlencoded, "q.body='"));
        assert!(is_denied(Form::Urlencoded, "json.body='"));
    }
}
