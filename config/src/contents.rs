//! What a document takes from files, and what of it is stored beside the document.
//!
//! Whoever applies a document reads its files; the cluster stores what is in them, and keys that stand in
//! the document itself, under digests. What is agreed on names digests only.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value as Json;
use zeroize::Zeroize;

use crate::model::{Content, Digest};
use crate::networks::{BadLine, BadLines};
use crate::problem::{Problem, excerpt};
use crate::value::{Fields, Kind, Value};

/// Something that a document needs, and where.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedContent {
    /// Such as `certificates.shop.key_file`.
    pub path: String,
    pub content: Content,
    /// A private key: never shown, and stored sealed also if it stands in the document.
    pub secret: bool,
    /// The names of `path`.
    pub(crate) steps: Vec<String>,
    /// A problem at this place that says nothing yet.
    pub(crate) place: Problem,
}

impl NamedContent {
    /// A problem with what is named here.
    pub fn problem(&self, message: impl Into<String>) -> Problem {
        Problem { message: message.into(), ..self.place.clone() }
    }

    /// The set whose networks it lists.
    pub fn network_set(&self) -> Option<&str> {
        match self.steps.as_slice() {
            [map, set, key] if map == "networks" && key == "file" => Some(set),
            _ => None,
        }
    }

    /// The list of rule files that it is one of, such as `listeners.web.waf.rules`.
    pub fn rule_set(&self) -> Option<&[String]> {
        let (_, list) = self.steps.split_last()?;
        list.ends_with(&["waf".to_owned(), "rules".to_owned()]).then_some(list)
    }

    /// Problems with lines of it: each at its place in the file, where that is at hand.
    pub fn bad_lines(&self, lines: &BadLines) -> Vec<Problem> {
        let mut problems: Vec<_> = lines.found.iter().map(|line| self.bad_line(line)).collect();
        if lines.left_out > 0 {
            problems.push(self.problem(format!("{} more problems are not shown", lines.left_out)));
        }
        problems
    }

    /// A problem in a file that this one names, or in itself if `file` is empty.
    pub fn problem_in(&self, file: &str, line: usize, message: &str) -> Problem {
        let own = match &self.content {
            Content::File(path) => path.display().to_string(),
            _ => String::new(),
        };
        let file = if file.is_empty() { own } else { file.to_owned() };
        if file.is_empty() {
            return self.problem(format!("line {line}: {message}"));
        }
        let mut problem = self.problem(message);
        (problem.file, problem.line, problem.column) = (file, line, 1);
        problem.excerpt = None;
        problem
    }

    fn bad_line(&self, line: &BadLine) -> Problem {
        let mut problem = self.problem(line.fault.message.clone());
        problem.help = line.fault.help.clone();
        match &self.content {
            Content::File(path) => {
                problem.file = path.display().to_string();
                (problem.line, problem.column) = (line.number, line.column);
                problem.excerpt = Some(excerpt(line.number, &line.text, line.column, line.width));
            }
            _ => problem.message = format!("line {}: {}", line.number, problem.message),
        }
        problem
    }

    /// Whether the cluster stores it beside the document.
    pub fn is_stored_beside(&self) -> bool {
        match self.content {
            Content::File(_) => true,
            Content::Inline(_) => self.secret,
            Content::Stored(_) => false,
        }
    }
}

/// What is stored, by digest. Cheap to clone.
#[derive(Clone, Default)]
pub struct Contents(Arc<Opened>);

/// There are private keys among them: whoever has them last wipes them.
#[derive(Default, PartialEq, Eq)]
struct Opened(BTreeMap<Digest, Arc<[u8]>>);

impl Drop for Opened {
    fn drop(&mut self) {
        self.0.values_mut().filter_map(Arc::get_mut).for_each(|bytes| bytes.zeroize());
    }
}

impl Contents {
    /// The bytes of what stands in a document or is stored; `None` for what is not there, and for files,
    /// which only whoever applies has.
    pub fn get<'a>(&'a self, content: &'a Content) -> Option<Cow<'a, [u8]>> {
        match content {
            Content::Inline(text) => Some(Cow::Borrowed(text.as_bytes())),
            Content::Stored(digest) => self.0.0.get(digest).map(|bytes| Cow::Borrowed(&**bytes)),
            Content::File(_) => None,
        }
    }
}

impl FromIterator<(Digest, Arc<[u8]>)> for Contents {
    fn from_iter<I: IntoIterator<Item = (Digest, Arc<[u8]>)>>(stored: I) -> Self {
        Self(Arc::new(Opened(stored.into_iter().collect())))
    }
}

/// Shows no bytes: there are private keys among them.
impl std::fmt::Debug for Contents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.0.keys()).finish()
    }
}

/// Every content below `fields`, in the order of the schema, with the value that has it.
pub(crate) fn find<'f>(
    fields: &'f Fields,
    steps: &mut Vec<String>,
    found: &mut dyn FnMut(&[String], &'f Content, &'f Value),
) {
    for (key, value) in &fields.set {
        steps.push(key.name.to_owned());
        find_in(value, steps, found);
        steps.pop();
    }
}

fn find_in<'f>(
    value: &'f Value,
    steps: &mut Vec<String>,
    found: &mut dyn FnMut(&[String], &'f Content, &'f Value),
) {
    match &value.kind {
        Kind::Content(content) => found(steps, content, value),
        Kind::Object(fields) => find(fields, steps, found),
        Kind::Map(entries) => {
            for (name, value) in entries {
                steps.push(name.clone());
                find_in(value, steps, found);
                steps.pop();
            }
        }
        Kind::List(items) | Kind::OneOrList(items) => {
            for (at, value) in items.iter().enumerate() {
                steps.push(at.to_string());
                find_in(value, steps, found);
                steps.pop();
            }
        }
        _ => {}
    }
}

pub(crate) fn is_secret(steps: &[String]) -> bool {
    matches!(steps, [map, _, key] if map == "certificates" && (key == "key" || key == "key_file"))
}

/// The document's JSON, with what is stored beside it named by digest.
pub(crate) fn stored(
    json: &Json,
    contents: &[NamedContent],
    mut digest_of: impl FnMut(&NamedContent) -> Digest,
) -> Json {
    let mut json = json.clone();
    for named in contents.iter().filter(|named| named.is_stored_beside()) {
        let Some((key, outer)) = named.steps.split_last() else { continue };
        let object = outer.iter().try_fold(&mut json, |json, step| match json {
            Json::Array(items) => items.get_mut(step.parse::<usize>().ok()?),
            other => other.get_mut(step),
        });
        let mut digest = || Json::from(Content::Stored(digest_of(named)).to_string());
        let object = match object {
            Some(Json::Object(object)) => object,
            Some(Json::Array(items)) => {
                if let Some(item) = key.parse().ok().and_then(|at: usize| items.get_mut(at)) {
                    *item = digest();
                }
                continue;
            }
            // A list of one is written without brackets.
            Some(only) => {
                *only = digest();
                continue;
            }
            None => continue,
        };
        object.remove(key);
        // `chain` and `key` are themselves; other files have no other key.
        let key = match key.as_str() {
            "chain_file" => "chain",
            "key_file" => "key",
            key => key,
        };
        object.insert(key.to_owned(), digest());
    }
    json
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Document, Source, parse};

    const KEY: &str = "-----BEGIN PRIVATE KEY-----\nMII\n-----END PRIVATE KEY-----\n";

    fn document(text: &str) -> Document {
        parse(Source { name: "a.yaml", text }).expect("a valid document")
    }

    fn digest_of(named: &NamedContent) -> Digest {
        Digest([named.path.len() as u8; 32])
    }

    #[test]
    fn files_and_keys_are_named_by_digest_in_what_is_agreed_on() {
        let text = serde_json::json!({
            "listeners": { "web": {
                "bind": ":443", "protocol": "https", "pool": "app",
                "tls": { "certificates": ["a"], "client": { "mode": "required", "ca_file": "ca.pem" } }
            } },
            "routes": { "r": { "rules": [{
                "pools": ["app"], "error_pages": { "503": "503.html" },
                "waf": { "mode": "block", "rules": ["builtin", "a.conf", "b.conf"] }
            }], "waf": { "mode": "block", "rules": "one.conf" } } },
            "pools": { "app": { "members": [], "tls": { "ca_file": "up.pem" } } },
            "certificates": {
                "a": { "chain_file": "a.pem", "key_file": "a.key", "ocsp_file": "a.ocsp" },
                "b": { "chain": "-----BEGIN CERTIFICATE-----", "key": KEY },
            },
        });
        let document = document(&text.to_string());
        let paths: Vec<(&str, bool)> =
            document.contents().iter().map(|named| (named.path.as_str(), named.secret)).collect();
        assert_eq!(
            paths,
            [
                ("listeners.web.tls.client.ca_file", false),
                ("routes.r.rules[0].waf.rules[1]", false),
                ("routes.r.rules[0].waf.rules[2]", false),
                ("routes.r.rules[0].error_pages.503", false),
                ("routes.r.waf.rules", false),
                ("pools.app.tls.ca_file", false),
                ("certificates.a.chain_file", false),
                ("certificates.a.key_file", true),
                ("certificates.a.ocsp_file", false),
                ("certificates.b.chain", false),
                ("certificates.b.key", true),
            ]
        );
        let stored = document.stored(digest_of).expect("a valid document");
        assert!(!stored.canonical().contains("PRIVATE"), "{}", stored.canonical());
        assert!(stored.canonical().contains("BEGIN CERTIFICATE"), "what is no secret stays where it stands");
        let names = |content: &Content| matches!(content, Content::Stored(_));
        assert_eq!(stored.contents().iter().filter(|named| names(&named.content)).count(), 10);
        let certificate = &stored.config().certificates["a"];
        assert_eq!(certificate.key, Content::Stored(Digest([23; 32])));
        assert_eq!(stored.stored(|_| panic!("all is stored")).expect("as it is"), stored);
    }

    #[test]
    fn a_problem_with_a_key_does_not_show_it() {
        let text = serde_json::json!({ "certificates": { "b": { "chain": "-----BEGIN X", "key": KEY } } });
        let document = document(&text.to_string());
        let key = document.contents().last().expect("a key");
        let problem = key.problem("does not fit");
        assert!(problem.to_string().starts_with("a.yaml:1:"), "{problem}");
        assert!(problem.to_string().ends_with("certificates.b.key: does not fit"), "{problem}");
        assert_eq!(problem.excerpt(), None);
        let debug = format!("{document:?}{:?}", document.config());
        assert!(debug.contains("BEGIN X") && !debug.contains("MII"), "{debug}");
    }
}
