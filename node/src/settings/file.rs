//! The node file: a flat YAML mapping of the same names as the flags.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use saphyr_parser::{Event, Parser, Span};

use super::{KEYS, Mistakes};

/// A node file larger than this is not one.
const SIZE_MAX: u64 = 64 << 10;

/// What a node file says, not yet checked value by value.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NodeFile {
    pub(crate) path: PathBuf,
    pub(crate) entries: BTreeMap<&'static str, Entry>,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// A list is joined by commas, as its flag takes it.
    pub(crate) value: String,
    pub(crate) line: usize,
}

impl NodeFile {
    pub(crate) fn read(path: &Path) -> Result<NodeFile, Mistakes> {
        let refuse = |why: String| Mistakes(vec![format!("--node-file {}: {why}", path.display())]);
        let size = std::fs::metadata(path).map_err(|e| refuse(e.to_string()))?.len();
        if size > SIZE_MAX {
            return Err(refuse(format!("{size} bytes are too many, at most {SIZE_MAX}")));
        }
        let text = std::fs::read_to_string(path).map_err(|e| refuse(e.to_string()))?;
        NodeFile::parse(path, &text)
    }

    /// Reports every unknown, repeated or nested key, each with its line.
    pub(crate) fn parse(path: &Path, text: &str) -> Result<NodeFile, Mistakes> {
        let mut reading = Reading { path, entries: BTreeMap::new(), mistakes: Vec::new() };
        let events: Result<Vec<_>, _> = Parser::new_from_str(text).collect();
        match events {
            Ok(events) => reading.document(&events),
            Err(e) => reading.mistake(e.marker().line(), e.info()),
        }
        if reading.mistakes.is_empty() {
            Ok(NodeFile { path: path.to_owned(), entries: reading.entries })
        } else {
            Err(Mistakes(reading.mistakes))
        }
    }
}

struct Reading<'a> {
    path: &'a Path,
    entries: BTreeMap<&'static str, Entry>,
    mistakes: Vec<String>,
}

impl Reading<'_> {
    fn mistake(&mut self, line: usize, what: impl std::fmt::Display) {
        self.mistakes.push(format!("{}:{line}: {what}", self.path.display()));
    }

    fn document(&mut self, events: &[(Event<'_>, Span)]) {
        let mut rest = events.iter().skip_while(|(event, _)| {
            matches!(event, Event::Nothing | Event::StreamStart | Event::DocumentStart(_))
        });
        match rest.next() {
            None | Some((Event::StreamEnd | Event::DocumentEnd, _)) => return,
            Some((Event::MappingStart(..), _)) => {}
            // A file of comments only is an empty scalar to the parser.
            Some((Event::Scalar(text, ..), _)) if text.is_empty() || text == "~" => return,
            Some((_, span)) => return self.mistake(span.start.line(), "a mapping of options is expected"),
        }
        while let Some((event, span)) = rest.next() {
            let line = span.start.line();
            match event {
                Event::MappingEnd => break,
                Event::Scalar(name, ..) => {
                    let name = name.to_string();
                    let value = self.value(&name, &mut rest);
                    self.entry(&name, line, value);
                }
                _ => return self.mistake(line, "an option's name is expected"),
            }
        }
        if let Some((_, span)) = rest.find(|(event, _)| matches!(event, Event::DocumentStart(_))) {
            self.mistake(span.start.line(), "a second document is not expected");
        }
    }

    /// Consumes one value; `None` when it was refused.
    fn value<'e>(
        &mut self,
        name: &str,
        rest: &mut impl Iterator<Item = &'e (Event<'e>, Span)>,
    ) -> Option<String> {
        let (event, span) = rest.next()?;
        match event {
            Event::Scalar(text, ..) => Some(text.to_string()),
            Event::SequenceStart(..) => self.list(name, rest),
            Event::MappingStart(..) => {
                self.mistake(
                    span.start.line(),
                    format_args!("{name}: a single value is expected, not a mapping"),
                );
                skip_nested(rest);
                None
            }
            _ => {
                self.mistake(span.start.line(), format_args!("{name}: a single value is expected"));
                None
            }
        }
    }

    fn list<'e>(
        &mut self,
        name: &str,
        rest: &mut impl Iterator<Item = &'e (Event<'e>, Span)>,
    ) -> Option<String> {
        let mut items = Vec::new();
        let mut fits = true;
        while let Some((event, span)) = rest.next() {
            match event {
                Event::SequenceEnd => break,
                Event::Scalar(text, ..) => items.push(text.to_string()),
                Event::MappingStart(..) | Event::SequenceStart(..) => {
                    self.mistake(span.start.line(), format_args!("{name}: plain items are expected"));
                    skip_nested(rest);
                    fits = false;
                }
                _ => fits = false,
            }
        }
        fits.then(|| items.join(","))
    }

    fn entry(&mut self, name: &str, line: usize, value: Option<String>) {
        let Some(key) = KEYS.iter().find(|key| key.name == name) else {
            let near = nearest(name).map(|near| format!("; did you mean {near:?}?")).unwrap_or_default();
            return self.mistake(line, format_args!("unknown option {name:?}{near}"));
        };
        let Some(value) = value else { return };
        if self.entries.insert(key.name, Entry { value, line }).is_some() {
            self.mistake(line, format_args!("{name} is given twice"));
        }
    }
}

/// Past the end of a collection whose start was just read.
fn skip_nested<'e>(rest: &mut impl Iterator<Item = &'e (Event<'e>, Span)>) {
    let mut depth = 1_usize;
    while depth > 0 {
        match rest.next() {
            Some((Event::MappingStart(..) | Event::SequenceStart(..), _)) => depth += 1,
            Some((Event::MappingEnd | Event::SequenceEnd, _)) => depth -= 1,
            Some(_) => {}
            None => return,
        }
    }
}

fn nearest(name: &str) -> Option<&'static str> {
    let spelled = name.replace('_', "-").to_lowercase();
    KEYS.iter()
        .map(|key| (strsim::damerau_levenshtein(&spelled, key.name), key.name))
        .min()
        .filter(|(distance, near)| *distance <= near.len() / 3 + 1)
        .map(|(_, near)| near)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &str) {
        let got = NodeFile::parse(Path::new("n.yaml"), text).map_err(|e| e.to_string());
        assert_eq!(got, Err(expected.to_owned()));
    }

    #[test]
    fn scalars_and_lists_are_read_with_their_lines() {
        let file =
            NodeFile::parse(Path::new("n.yaml"), "# a node\nname: a\njoin: [b:1, c:2]\nbootstrap: yes\n")
                .unwrap();
        assert_eq!(file.entries["name"], Entry { value: "a".into(), line: 2 });
        assert_eq!(file.entries["join"].value, "b:1,c:2");
        assert_eq!(file.entries["bootstrap"].value, "yes");
    }

    #[test]
    fn an_empty_file_says_nothing() {
        for text in ["", "\n", "# only a comment\n", "---\n", "{}\n"] {
            let file = NodeFile::parse(Path::new("n.yaml"), text);
            assert_eq!(file.map(|f| f.entries.len()), Ok(0), "{text:?}");
        }
    }

    #[test]
    fn unknown_options_are_refused_with_line_and_suggestion() {
        check(
            "name: a\ndata_dir: /tmp\nclutser: 127.0.0.1:1\nzzzzzzzzz: 1\n",
            "n.yaml:2: unknown option \"data_dir\"; did you mean \"data-dir\"?\n\
             n.yaml:3: unknown option \"clutser\"; did you mean \"cluster\"?\n\
             n.yaml:4: unknown option \"zzzzzzzzz\"",
        );
    }

    #[test]
    fn what_is_no_flat_mapping_is_refused() {
        check("- a\n", "n.yaml:1: a mapping of options is expected");
        check("name: { a: [1] }\nworkers: 2\n", "n.yaml:1: name: a single value is expected, not a mapping");
        check("name: a\nname: b\n", "n.yaml:2: name is given twice");
        check("join: [[a]]\n", "n.yaml:1: join: plain items are expected");
    }

    proptest::proptest! {
        #[test]
        fn no_file_makes_the_reader_panic(text in "\\PC{0,200}") {
            let _ = NodeFile::parse(Path::new("n.yaml"), &text);
        }
    }
}
