//! A document as it was written: nodes with their places, before anybody asks what they mean.
//!
//! Made from the events of `saphyr-parser`, with scalars raw: `no`, `0800` and `1.20` are the text
//! that stands there, and what type a value has is the schema's to say. Nodes live in one arena and
//! know their parents, so a place can name its path without every value carrying one.
//!
//! Bounds: [`DOCUMENT_MAX`] bytes, [`DEPTH_MAX`] levels, [`NODES_MAX`] nodes; aliases are refused,
//! so a small text can't grow into a large tree.

use std::borrow::Cow;
use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle, Span};

use crate::problem::{Fault, shown};

/// Bytes of a document, and of its canonical form. Also what one entry of the cluster's log holds.
pub const DOCUMENT_MAX: usize = 8 << 20;
/// Levels of maps and lists in one another. The language itself needs 9.
pub const DEPTH_MAX: usize = 64;
/// Keys' values and list items together. 10,000 members with every key set are some 70,000, 10,000 hosts with
/// ten rules each some 720,000.
pub const NODES_MAX: usize = 1_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct NodeId(u32);

impl NodeId {
    pub(crate) const ROOT: NodeId = NodeId(0);
}

/// Where text stands: line and column from 1, in characters; `width` on its first line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Mark {
    pub(crate) line: u32,
    pub(crate) column: u32,
    pub(crate) width: u32,
}

impl Mark {
    pub(crate) const START: Mark = Mark { line: 1, column: 1, width: 1 };

    fn new(span: Span) -> Mark {
        let width = if span.end.line() == span.start.line() { span.len() } else { 1 };
        Mark {
            line: clamp(span.start.line().max(1)),
            column: clamp(span.start.col() + 1),
            width: clamp(width.max(1)),
        }
    }
}

/// A document has at most [`DOCUMENT_MAX`] characters, so nothing is lost.
fn clamp(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

pub(crate) struct Node<'a> {
    parent: NodeId,
    /// Index in the parent's list or entries.
    step: u32,
    pub(crate) mark: Mark,
    pub(crate) kind: NodeKind<'a>,
}

pub(crate) enum NodeKind<'a> {
    Scalar { text: Cow<'a, str>, plain: bool },
    List(Vec<NodeId>),
    Map(Vec<Entry<'a>>),
}

pub(crate) struct Entry<'a> {
    pub(crate) key: Cow<'a, str>,
    pub(crate) mark: Mark,
    pub(crate) value: NodeId,
}

/// What a problem points at: a value, or the key in front of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Value(NodeId),
    Key(NodeId),
}

impl Place {
    pub(crate) fn node(self) -> NodeId {
        match self {
            Place::Value(id) | Place::Key(id) => id,
        }
    }
}

pub(crate) struct Tree<'a> {
    nodes: Vec<Node<'a>>,
}

/// What [`Tree::read`] found.
pub(crate) struct Reading<'a> {
    pub(crate) tree: Tree<'a>,
    pub(crate) complete: bool,
    pub(crate) faults: Vec<TreeFault>,
}

pub(crate) struct TreeFault {
    pub(crate) mark: Mark,
    /// The map in which it stands.
    pub(crate) within: Option<NodeId>,
    pub(crate) fault: Fault,
}

impl<'a> Tree<'a> {
    /// Reads the one document in `text`. After a fault that leaves the rest readable (a duplicate
    /// key) the tree is complete; after any other it is what was read before.
    pub(crate) fn read(text: &'a str) -> Reading<'a> {
        let mut reader = Reader::default();
        let end = reader.read(text);
        let complete = end.is_ok();
        if let Err((mark, fault)) = end {
            reader.faults.push(TreeFault { mark, within: None, fault });
        }
        Reading { tree: Tree { nodes: reader.nodes }, complete, faults: reader.faults }
    }

    pub(crate) fn node(&self, id: NodeId) -> &Node<'a> {
        &self.nodes[id.0 as usize]
    }

    /// A plain scalar without text, `~` or `null`: a key whose value was left out.
    pub(crate) fn is_null(&self, id: NodeId) -> bool {
        matches!(&self.node(id).kind, NodeKind::Scalar { text, plain: true }
            if matches!(text.as_ref(), "" | "~" | "null" | "Null" | "NULL"))
    }

    pub(crate) fn mark(&self, place: Place) -> Mark {
        let id = place.node();
        match place {
            Place::Value(_) if !self.is_null(id) => self.node(id).mark,
            _ => self.entry(id).map_or(self.node(id).mark, |entry| entry.mark),
        }
    }

    /// The entry whose value `id` is; `None` for list items and the root.
    fn entry(&self, id: NodeId) -> Option<&Entry<'a>> {
        let node = self.node(id);
        match &self.node(node.parent).kind {
            NodeKind::Map(entries) if id != NodeId::ROOT => entries.get(node.step as usize),
            _ => None,
        }
    }

    /// `routes.shop.rules[0]`; keys that are no plain words are quoted.
    pub(crate) fn path(&self, id: NodeId) -> String {
        let mut steps = Vec::new();
        let mut at = id;
        while at != NodeId::ROOT {
            steps.push(match self.entry(at) {
                Some(entry) => step_name(&entry.key),
                None => format!("[{}]", self.node(at).step),
            });
            at = self.node(at).parent;
        }
        let mut path = String::new();
        for step in steps.iter().rev() {
            if !path.is_empty() && !step.starts_with('[') {
                path.push('.');
            }
            path.push_str(step);
        }
        path
    }
}

/// A key as one step of a path.
pub(crate) fn step_name(key: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if !key.is_empty() && key.len() <= 64 && key.chars().all(plain) {
        key.to_owned()
    } else {
        shown(key).replace('`', "\"")
    }
}

/// Builds the tree from events.
#[derive(Default)]
struct Reader<'a> {
    nodes: Vec<Node<'a>>,
    open: Vec<Open<'a>>,
    faults: Vec<TreeFault>,
    documents: usize,
}

/// A list or map whose end has not come yet.
struct Open<'a> {
    id: NodeId,
    /// Key read, value awaited.
    key: Option<(Cow<'a, str>, Mark)>,
    /// Keys seen, with their marks. Only for maps.
    seen: HashMap<String, Mark>,
}

type Stop = (Mark, Fault);

impl<'a> Reader<'a> {
    fn read(&mut self, text: &'a str) -> Result<(), Stop> {
        if text.len() > DOCUMENT_MAX {
            let message =
                format!("the document has {} bytes, at most {DOCUMENT_MAX} are allowed", text.len());
            return Err((Mark::START, Fault::new(message)));
        }
        for event in Parser::new_from_str(text) {
            let (event, span) = event.map_err(|e| {
                (Mark::new(Span::empty(*e.marker())), syntax_fault(e.info(), text, e.marker().line()))
            })?;
            self.take(event, Mark::new(span))?;
        }
        if self.nodes.is_empty() {
            let fault = Fault::new("the document is empty").help("write `{}` for a config without resources");
            return Err((Mark::START, fault));
        }
        Ok(())
    }

    fn take(&mut self, event: Event<'a>, mark: Mark) -> Result<(), Stop> {
        match event {
            Event::DocumentStart(_) => {
                self.documents += 1;
                if self.documents > 1 {
                    let fault = Fault::new("a second document begins here")
                        .help("a config is one document; remove the `---`");
                    return Err((mark, fault));
                }
            }
            Event::Alias(_) => {
                let fault = Fault::new("aliases are not supported").help("write the value out");
                return Err((mark, fault));
            }
            Event::Scalar(text, style, _, tag) => {
                self.refuse_tag(tag.is_some(), mark);
                let plain = style == ScalarStyle::Plain;
                if self.awaits_key() {
                    self.key(text, mark);
                } else {
                    self.add(NodeKind::Scalar { text, plain }, mark)?;
                }
            }
            Event::SequenceStart(_, tag) => self.enter(NodeKind::List(Vec::new()), tag.is_some(), mark)?,
            Event::MappingStart(_, tag) => self.enter(NodeKind::Map(Vec::new()), tag.is_some(), mark)?,
            Event::SequenceEnd | Event::MappingEnd => {
                self.open.pop();
            }
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => {}
        }
        Ok(())
    }

    /// Whether the next scalar is a key of the innermost map.
    fn awaits_key(&self) -> bool {
        self.open.last().is_some_and(|open| {
            open.key.is_none() && matches!(self.nodes[open.id.0 as usize].kind, NodeKind::Map(_))
        })
    }

    fn key(&mut self, text: Cow<'a, str>, mark: Mark) {
        let Some(open) = self.open.last_mut() else { return };
        let first = *open.seen.entry(text.to_string()).or_insert(mark);
        open.key = Some((text.clone(), mark));
        if text == "<<" {
            self.fault(mark, Fault::new("merge keys are not supported").help("write the values out"));
        } else if first != mark {
            let message =
                format!("{} is given twice, first at {}:{}", shown(&text), first.line, first.column);
            self.fault(mark, Fault::new(message));
        }
    }

    fn enter(&mut self, kind: NodeKind<'a>, tagged: bool, mark: Mark) -> Result<(), Stop> {
        self.refuse_tag(tagged, mark);
        if self.awaits_key() {
            return Err((mark, Fault::new("a key must be a word, not a list or a map")));
        }
        if self.open.len() == DEPTH_MAX {
            return Err((mark, Fault::new(format!("more than {DEPTH_MAX} levels deep"))));
        }
        let id = self.add(kind, mark)?;
        self.open.push(Open { id, key: None, seen: HashMap::new() });
        Ok(())
    }

    /// Adds a node as the next child of the innermost open one.
    fn add(&mut self, kind: NodeKind<'a>, mark: Mark) -> Result<NodeId, Stop> {
        if self.nodes.len() == NODES_MAX {
            return Err((mark, Fault::new(format!("more than {NODES_MAX} values in one document"))));
        }
        let id = NodeId(clamp(self.nodes.len()));
        let mut mark = mark;
        if !matches!(kind, NodeKind::Scalar { .. }) {
            // Its opening bracket, or its first key.
            mark.width = 1;
        }
        let mut node = Node { parent: NodeId::ROOT, step: 0, mark, kind };
        if let Some(open) = self.open.last_mut() {
            node.parent = open.id;
            match &mut self.nodes[open.id.0 as usize].kind {
                NodeKind::List(items) => {
                    node.step = clamp(items.len());
                    items.push(id);
                }
                NodeKind::Map(entries) => {
                    node.step = clamp(entries.len());
                    let (key, mark) = open.key.take().unwrap_or((Cow::Borrowed(""), mark));
                    entries.push(Entry { key, mark, value: id });
                }
                NodeKind::Scalar { .. } => unreachable!("only lists and maps are opened"),
            }
        }
        self.nodes.push(node);
        Ok(id)
    }

    fn refuse_tag(&mut self, tagged: bool, mark: Mark) {
        if tagged {
            self.fault(mark, Fault::new("tags such as `!!str` are not supported").help("quote the text"));
        }
    }

    fn fault(&mut self, mark: Mark, fault: Fault) {
        if self.faults.len() <= crate::problem::PROBLEMS_MAX {
            let within = self.open.last().map(|open| open.id);
            self.faults.push(TreeFault { mark, within, fault });
        }
    }
}

/// The parser's message, with what usually is behind it.
fn syntax_fault(info: &str, text: &str, line: usize) -> Fault {
    let fault = Fault::new(format!("this is not YAML: {info}"));
    let written = text.lines().nth(line.saturating_sub(1)).unwrap_or("");
    let indent = &written[..written.len() - written.trim_start().len()];
    if indent.contains('\t') {
        fault.help("indent with spaces, not with tabs")
    } else if info.contains("mapping values are not allowed") {
        fault.help("quote text that holds `: `, and check the indentation")
    } else if info.contains("did not find expected key") {
        fault.help("check the indentation")
    } else if info.contains("did not find expected ',' or") {
        fault.help("a bracket or a brace is not closed, or a comma is missing")
    } else if info.contains("Unicode character escape") {
        fault.help("write the character itself, or one `\\U` escape")
    } else if info.contains("unknown anchor") {
        fault.help("quote text that begins with `*`")
    } else if info.contains("unexpected character: `@'") || info.contains("unexpected character: '@'") {
        fault.help("quote text that begins with `@`")
    } else {
        fault
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault_of(text: &str) -> String {
        Tree::read(text).faults[0].fault.message.clone()
    }

    #[test]
    fn scalars_keep_their_text() {
        let tree = Tree::read("a: no\nb: 0800\nc: 1.20\nd: 'x'\n").tree;
        let NodeKind::Map(entries) = &tree.node(NodeId::ROOT).kind else { panic!() };
        let texts: Vec<_> = entries
            .iter()
            .map(|e| match &tree.node(e.value).kind {
                NodeKind::Scalar { text, plain } => (text.to_string(), *plain),
                _ => panic!(),
            })
            .collect();
        assert_eq!(
            texts,
            [("no".into(), true), ("0800".into(), true), ("1.20".into(), true), ("x".into(), false)]
        );
    }

    #[test]
    fn a_path_names_every_step() {
        let tree = Tree::read("routes:\n  shop.eu:\n    rules:\n      - pools: [a, b]\n").tree;
        let last = NodeId(clamp(tree.nodes.len() - 1));
        assert_eq!(tree.path(last), "routes.\"shop.eu\".rules[0].pools[1]");
        assert_eq!(tree.mark(Place::Value(last)), Mark { line: 4, column: 20, width: 1 });
    }

    #[test]
    fn size_depth_and_number_of_nodes_are_bounded() {
        assert!(fault_of(&"#".repeat(DOCUMENT_MAX + 1)).contains("bytes"));
        assert!(fault_of(&"[".repeat(DEPTH_MAX + 1)).contains("levels"));
        let wide = format!("[{}]", "1,".repeat(NODES_MAX));
        assert!(fault_of(&wide).contains("values"));
    }

    #[test]
    fn what_would_grow_or_hide_values_is_refused() {
        assert!(fault_of("a: &x [1]\nb: *x\n").contains("aliases"));
        assert!(fault_of("a:\n  <<: {b: 1}\n").contains("merge"));
        assert!(fault_of("{\"<<\": 1}").contains("merge"));
        assert!(fault_of("a: 1\n---\nb: 2\n").contains("second document"));
        assert_eq!(fault_of("a: 1\nb: 2\na: 3\n"), "`a` is given twice, first at 1:1");
    }
}
