//! A valid document: its config, its canonical text, its warnings.

use std::fmt;
use std::sync::Arc;

use serde_json::Value as Json;

use crate::canonical;
use crate::check::{Sink, check};
use crate::contents::{self, NamedContent};
use crate::model::{Config, Digest};
use crate::problem::{Fault, Problem, Problems, excerpt};
use crate::schema::language::DOCUMENT;
use crate::tree::{DOCUMENT_MAX, Mark, Place, Tree, step_name};
use crate::value::Fields;
use crate::{build, validate};

/// A text to parse.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// What messages call it: a file's name, or `-`.
    pub name: &'a str,
    /// YAML or JSON, at most [`DOCUMENT_MAX`] bytes.
    pub text: &'a str,
}

/// A valid document. Cheap to clone; two are equal if they set the same values.
#[derive(Clone)]
pub struct Document(Arc<Inner>);

struct Inner {
    config: Arc<Config>,
    canonical: String,
    json: Json,
    contents: Vec<NamedContent>,
    warnings: Vec<Problem>,
}

/// A document that is not valid.
#[derive(Debug)]
pub struct Flawed {
    /// Everything that is wrong with it.
    pub problems: Problems,
    /// What was understood all the same, if anything: enough to look for further problems in what it names.
    pub rest: Option<Box<Rest>>,
}

/// What of a document that is not valid was understood. Nothing to go by.
#[derive(Debug)]
pub struct Rest {
    pub config: Config,
    pub contents: Vec<NamedContent>,
}

impl From<Problems> for Flawed {
    fn from(problems: Problems) -> Self {
        Flawed { problems, rest: None }
    }
}

/// Reads a document.
///
/// # Errors
/// Everything that is wrong with it, sorted by place. After text that is no YAML nothing further is
/// looked at.
pub fn parse(source: Source<'_>) -> Result<Document, Problems> {
    parse_as_far(source).map_err(|flawed| flawed.problems)
}

/// The same for whoever goes on after errors.
///
/// # Errors
/// As [`parse`].
pub fn parse_as_far(source: Source<'_>) -> Result<Document, Flawed> {
    let reading = Tree::read(source.text);
    let tree = &reading.tree;
    let mut report = Report::new(source);
    for fault in reading.faults {
        let path = fault.within.map(|node| tree.path(node)).unwrap_or_default();
        report.add(fault.mark, path, fault.fault);
    }
    if !reading.complete {
        return Err(report.problems().into());
    }
    let (root, mut sink) = check(tree, &DOCUMENT);
    let Some(root) = root else {
        report.add_all(tree, sink);
        return Err(report.problems().into());
    };
    let config = build::config(&root, &mut sink);
    validate::errors(&root, &config, &mut sink);
    report.add_all(tree, sink);
    if !report.found.is_empty() {
        let contents = report.contents(tree, &root);
        return Err(Flawed { problems: report.problems(), rest: Some(Box::new(Rest { config, contents })) });
    }

    let json = root.to_json();
    let canonical = canonical::yaml(&json);
    if canonical.len() > DOCUMENT_MAX {
        let message =
            format!("the canonical form has {} bytes, at most {DOCUMENT_MAX} are allowed", canonical.len());
        report.add(Mark::START, String::new(), Fault::new(message));
        return Err(report.problems().into());
    }
    let mut doubts = Sink::default();
    validate::warnings(&root, &config, &mut doubts);
    report.add_all(tree, doubts);
    let contents = report.contents(tree, &root);
    let warnings = report.problems().0;
    Ok(Document(Arc::new(Inner { config: Arc::new(config), canonical, json, contents, warnings })))
}

impl Document {
    /// A document that sets nothing.
    pub fn empty() -> Document {
        let json = Json::Object(serde_json::Map::new());
        let canonical = canonical::yaml(&json);
        let config = Arc::new(Config::default());
        let (contents, warnings) = (Vec::new(), Vec::new());
        Document(Arc::new(Inner { config, canonical, json, contents, warnings }))
    }

    pub fn config(&self) -> &Arc<Config> {
        &self.0.config
    }

    /// What was set, without defaults, as YAML in block style: keys in the order of the reference,
    /// resources by name, units as large as they go. Parsing it yields an equal document.
    pub fn canonical(&self) -> &str {
        &self.0.canonical
    }

    /// The same as JSON; [`parse`] takes it too.
    pub fn to_json(&self) -> Json {
        self.0.json.clone()
    }

    pub(crate) fn json(&self) -> &Json {
        &self.0.json
    }

    /// What it takes from files, what is stored beside it, and what of that stands in it.
    pub fn contents(&self) -> &[NamedContent] {
        &self.0.contents
    }

    /// The same with every file, and every key that stands in it, named by a digest under which that is
    /// stored: what the cluster agrees on.
    ///
    /// # Errors
    /// If it has become too large, which takes one of almost [`DOCUMENT_MAX`] bytes.
    pub fn stored(&self, digest_of: impl FnMut(&NamedContent) -> Digest) -> Result<Document, Problems> {
        if !self.contents().iter().any(NamedContent::is_stored_beside) {
            return Ok(self.clone());
        }
        let json = contents::stored(&self.0.json, self.contents(), digest_of);
        parse(Source { name: "-", text: &json.to_string() })
    }

    /// What is allowed and yet probably not meant, sorted by place.
    pub fn warnings(&self) -> &[Problem] {
        &self.0.warnings
    }
}

impl PartialEq for Document {
    fn eq(&self, other: &Document) -> bool {
        self.0.canonical == other.0.canonical
    }
}

impl Eq for Document {}

impl fmt::Debug for Document {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.contents().iter().any(NamedContent::is_stored_beside) {
            return f.debug_tuple("Document").field(&self.0.canonical).finish();
        }
        // There may be a private key in it.
        let json = contents::stored(&self.0.json, self.contents(), |_| Digest([0; 32]));
        f.debug_tuple("Document").field(&json).finish()
    }
}

/// Turns faults with places into problems with excerpts.
struct Report<'a> {
    name: &'a str,
    lines: Vec<&'a str>,
    found: Vec<(Mark, String, Fault)>,
    left_out: usize,
}

impl<'a> Report<'a> {
    fn new(source: Source<'a>) -> Report<'a> {
        Report { name: source.name, lines: lines(source.text), found: Vec::new(), left_out: 0 }
    }

    fn add(&mut self, mark: Mark, path: String, fault: Fault) {
        if self.found.len() < crate::PROBLEMS_MAX {
            self.found.push((mark, path, fault));
        } else {
            self.left_out += 1;
        }
    }

    fn add_all(&mut self, tree: &Tree<'_>, sink: Sink) {
        self.left_out += sink.left_out;
        for (place, fault) in sink.found {
            self.add(tree.mark(place), tree.path(place.node()), fault);
        }
    }

    fn contents(&self, tree: &Tree<'_>, root: &Fields) -> Vec<NamedContent> {
        let mut all = Vec::new();
        contents::find(root, &mut Vec::new(), &mut |steps, content, value| {
            let path = tree.path(value.node);
            let secret = contents::is_secret(steps);
            let mark = tree.mark(Place::Value(value.node));
            let mut place = self.problem(mark, path.clone(), Fault::new(""));
            if secret {
                place.excerpt = None;
            }
            all.push(NamedContent { path, content: content.clone(), secret, steps: steps.to_vec(), place });
        });
        all
    }

    fn problems(mut self) -> Problems {
        self.found.sort_by(|a, b| (a.0, &a.2.message).cmp(&(b.0, &b.2.message)));
        let mut problems: Vec<Problem> = Vec::with_capacity(self.found.len() + 1);
        let found = std::mem::take(&mut self.found);
        problems.extend(found.into_iter().map(|(mark, path, fault)| self.problem(mark, path, fault)));
        if self.left_out > 0
            && let Some(last) = problems.last()
        {
            problems.push(Problem {
                path: String::new(),
                message: format!("{} more problems are not shown", self.left_out),
                help: None,
                excerpt: None,
                ..last.clone()
            });
        }
        Problems(problems)
    }

    fn problem(&self, mark: Mark, path: String, fault: Fault) -> Problem {
        let (line, column) = (mark.line as usize, mark.column as usize);
        let excerpt = self
            .lines
            .get(line - 1)
            .filter(|text| !text.trim().is_empty())
            .map(|text| excerpt(line, text, column, mark.width as usize));
        Problem {
            file: self.name.to_owned(),
            line,
            column,
            path,
            message: fault.message,
            help: fault.help,
            excerpt,
        }
    }
}

/// Lines as YAML counts them (1.2, 5.4): a lone carriage return ends one too.
fn lines(text: &str) -> Vec<&str> {
    let mut lines = Vec::new();
    let mut rest = text;
    while let Some(end) = rest.find(['\n', '\r']) {
        lines.push(&rest[..end]);
        let skip = if rest[end..].starts_with("\r\n") { 2 } else { 1 };
        rest = &rest[end + skip..];
    }
    lines.push(rest);
    lines
}

/// A path of steps, for whoever walks a document's JSON.
pub(crate) fn join(path: &str, key: &str) -> String {
    if path.is_empty() { step_name(key) } else { format!("{path}.{}", step_name(key)) }
}
