//! XML: text between tags, values of attributes, CDATA, and what a document type declares.
//!
//! A field is called as its element, or its attribute. Text is looked at as whoever reads the document gets it: what
//! comments, instructions and CDATA cut is one again, and so is an element's text with the texts of the elements in
//! it. Entities are undone later, with all the other encodings; a document that declares its own is a finding.

use memchr::{memchr, memchr2, memmem};

use super::{Part, WHOLE, is_known_charset};
use crate::waf::rules::Rule;

/// Elements within each other.
const DEPTH_MAX: usize = 256;

/// How often the text of a whole document is looked at once more, since elements with text stand within each other.
const AGAIN_MAX: usize = 8;

/// Beginnings of addresses of document types.
const KNOWN_ADDRESSES: [&[u8]; 3] =
    [b"http://www.w3.org/", b"https://www.w3.org/", b"http://www.apple.com/DTDs/"];

pub(super) fn read(body: &[u8], see: &mut dyn FnMut(Part<'_>) -> bool) {
    let mut reader = Reader {
        rest: body,
        levels: Vec::new(),
        text: Vec::new(),
        run: 0,
        runs: 0,
        left: body.len().saturating_mul(AGAIN_MAX),
    };
    while !reader.rest.is_empty() {
        if !reader.step(see) {
            return;
        }
    }
    reader.end(see);
}

#[derive(Debug)]
struct Reader<'a> {
    rest: &'a [u8],
    levels: Vec<Level<'a>>,
    /// Of the outermost element, so far.
    text: Vec<u8>,
    /// Where in `text` that begins which stands between two tags.
    run: usize,
    /// How many such there were.
    runs: usize,
    /// Bytes that may be looked at once more.
    left: usize,
}

/// An element that has not ended.
#[derive(Clone, Copy, Debug)]
pub(in crate::waf) struct Level<'a> {
    pub(in crate::waf) name: &'a [u8],
    /// In the text.
    start: usize,
    /// Before it.
    runs: usize,
    /// Not only in elements within it.
    has_text: bool,
}

impl<'a> Reader<'a> {
    fn step(&mut self, see: &mut dyn FnMut(Part<'_>) -> bool) -> bool {
        let open = memchr(b'<', self.rest).unwrap_or(self.rest.len());
        self.text.extend_from_slice(&self.rest[..open]);
        self.rest = &self.rest[open..];
        if let Some(after) = self.rest.strip_prefix(b"<!--") {
            self.take(after, b"-->");
            true
        } else if let Some(after) = self.rest.strip_prefix(b"<![CDATA[") {
            let (text, after) = behind(after, b"]]>").unwrap_or((after, &[]));
            self.text.extend_from_slice(text);
            self.rest = after;
            true
        } else if let Some(after) = self.rest.strip_prefix(b"<?") {
            instruction(self.take(after, b"?>"), see)
        } else if let Some(after) = self.rest.strip_prefix(b"<!") {
            declaration(self.take(after, b">"), see)
        } else {
            match self.rest.get(1) {
                Some(b'/') => {
                    self.rest = tag(&self.rest[2..]).1;
                    self.flush(see) && self.close(see)
                }
                Some(byte) if byte.is_ascii_alphabetic() || matches!(byte, b'_' | b':' | 0x80..) => {
                    let (tag, after) = tag(&self.rest[1..]);
                    self.rest = after;
                    self.flush(see) && self.open(tag, see)
                }
                // It begins nothing.
                _ => {
                    let (sign, after) = self.rest.split_at(self.rest.len().min(1));
                    self.text.extend_from_slice(sign);
                    self.rest = after;
                    true
                }
            }
        }
    }

    /// What stands before `end`, which is left behind. What does not end is text.
    fn take(&mut self, after: &'a [u8], end: &[u8]) -> &'a [u8] {
        let (found, rest) = behind(after, end).unwrap_or_else(|| {
            self.text.extend_from_slice(after);
            (after, &[])
        });
        self.rest = rest;
        found
    }

    fn open(&mut self, tag: &'a [u8], see: &mut dyn FnMut(Part<'_>) -> bool) -> bool {
        let end =
            tag.iter().position(|byte| byte.is_ascii_whitespace() || *byte == b'/').unwrap_or(tag.len());
        let name = local(&tag[..end]);
        let level = Level { name, start: self.text.len(), runs: self.runs, has_text: false };
        // An attribute stands in its element too.
        self.levels.push(level);
        let around = &self.levels;
        // Its name here, and not with each piece of its text.
        let goes_on = see(Part::Name { name, around })
            && quoted(&tag[end..], |name, value| {
                let name = local(name);
                see(Part::Name { name, around }) && see(Part::Element { name, value, around })
            });
        self.levels.pop();
        if !goes_on || tag.ends_with(b"/") {
            return goes_on;
        }
        if self.levels.len() >= DEPTH_MAX {
            see(Part::Broken(Rule::BodyDepth));
            see(Part::Field { name: WHOLE, value: self.rest });
            return false;
        }
        self.levels.push(level);
        true
    }

    /// Text that a tag ends.
    fn flush(&mut self, see: &mut dyn FnMut(Part<'_>) -> bool) -> bool {
        let value = self.text[self.run..].trim_ascii();
        self.run = self.text.len();
        if value.is_empty() {
            return true;
        }
        self.runs += 1;
        let name = match self.levels.last_mut() {
            Some(level) => {
                level.has_text = true;
                level.name
            }
            None => WHOLE,
        };
        see(Part::Element { name, value, around: &self.levels })
    }

    fn close(&mut self, see: &mut dyn FnMut(Part<'_>) -> bool) -> bool {
        let Some(level) = self.levels.pop() else { return true };
        let goes_on = self.whole(level, see);
        if self.levels.is_empty() {
            self.text.clear();
            self.run = 0;
        }
        goes_on
    }

    /// The text of an element of which there are several pieces.
    fn whole(&mut self, level: Level<'_>, see: &mut dyn FnMut(Part<'_>) -> bool) -> bool {
        if !level.has_text || self.runs - level.runs < 2 {
            return true;
        }
        let value = self.text[level.start..].trim_ascii();
        let Some(left) = self.left.checked_sub(value.len()) else {
            return see(Part::Broken(Rule::BodyDepth));
        };
        self.left = left;
        see(Part::Element { name: level.name, value, around: &self.levels })
    }

    /// The body is at its end; it may have been cut off.
    fn end(&mut self, see: &mut dyn FnMut(Part<'_>) -> bool) {
        if self.flush(see) {
            while !self.levels.is_empty() && self.close(see) {}
        }
    }
}

/// Between `<?` and `?>`.
fn instruction(text: &[u8], see: &mut dyn FnMut(Part<'_>) -> bool) -> bool {
    let is_of_document = text.get(..3).is_some_and(|name| name.eq_ignore_ascii_case(b"xml"));
    quoted(text, |name, value| {
        let is_odd = is_of_document && name == b"encoding" && !is_known_charset(value);
        (!is_odd || see(Part::Broken(Rule::BodyCharset))) && see(Part::Field { name: WHOLE, value })
    })
}

/// Between `<!` and `>`: a document type, or what one declares.
fn declaration(text: &[u8], see: &mut dyn FnMut(Part<'_>) -> bool) -> bool {
    let begins = |name: &[u8]| text.get(..name.len()).is_some_and(|text| text.eq_ignore_ascii_case(name));
    let declares =
        begins(b"DOCTYPE") && (memchr(b'[', text).is_some() || is_external(text)) || begins(b"ENTITY");
    (!declares || see(Part::Broken(Rule::BodyDoctype)))
        && quoted(text, |_, value| see(Part::Field { name: WHOLE, value }))
}

/// Whether a document type says where more declarations are: at an address of its author's choice. Those of the
/// public ones that XHTML, SVG and property lists have declare what everybody knows.
fn is_external(doctype: &[u8]) -> bool {
    let quote = memchr2(b'"', b'\'', doctype).unwrap_or(doctype.len());
    let word = |wanted: &[u8]| {
        let mut words = doctype[..quote].split(u8::is_ascii_whitespace);
        words.any(|word| word.eq_ignore_ascii_case(wanted))
    };
    let is_known = || {
        let mut addresses = Vec::new();
        quoted(doctype, |_, value| {
            addresses.push(value.to_vec());
            true
        });
        let is_w3c = |address: &Vec<u8>| KNOWN_ADDRESSES.iter().any(|known| address.starts_with(known));
        // An identifier alone is looked up by whoever knows it.
        addresses.get(1).is_none_or(is_w3c) && addresses.len() <= 2
    };
    word(b"SYSTEM") || word(b"PUBLIC") && !is_known()
}

/// What stands before `end`, and after it.
fn behind<'a>(text: &'a [u8], end: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    memmem::find(text, end).map(|at| (&text[..at], &text[at + end.len()..]))
}

/// A tag's inside; a `>` in quotes does not end it.
fn tag(text: &[u8]) -> (&[u8], &[u8]) {
    let mut at = 0;
    while let Some(byte) = text.get(at) {
        match byte {
            b'>' => return (&text[..at], &text[at + 1..]),
            b'"' | b'\'' => match memchr(*byte, &text[at + 1..]) {
                Some(end) => at += end + 2,
                // It does not end: then neither does the tag, and all of it is its value.
                None => return (text, &[]),
            },
            _ => at += 1,
        }
    }
    (text, &[])
}

/// Each quoted value with the name before it.
fn quoted(text: &[u8], mut see: impl FnMut(&[u8], &[u8]) -> bool) -> bool {
    let mut rest = text;
    while let Some(open) = memchr2(b'"', b'\'', rest) {
        let before = rest[..open].trim_ascii_end();
        let before = before.strip_suffix(b"=").unwrap_or(before).trim_ascii();
        let from = before.iter().rposition(|byte| byte.is_ascii_whitespace()).map_or(0, |at| at + 1);
        let name = &before[from..];
        let value = &rest[open + 1..];
        let end = memchr(rest[open], value).unwrap_or(value.len());
        if !see(if name.is_empty() { WHOLE } else { name }, &value[..end]) {
            return false;
        }
        rest = &value[(end + 1).min(value.len())..];
    }
    true
}

/// Without its namespace.
fn local(name: &[u8]) -> &[u8] {
    memchr(b':', name).map_or(name, |colon| &name[colon + 1..])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(body: &str) -> Vec<String> {
        let mut found = Vec::new();
        read(body.as_bytes(), &mut |part| {
            match part {
                Part::Field { name, value } | Part::Element { name, value, .. } => {
                    found.push(format!(
                        "{}={}",
                        String::from_utf8_lossy(name),
                        String::from_utf8_lossy(value)
                    ));
                }
                Part::Broken(rule) => found.push(rule.id().to_owned()),
                _ => {}
            }
            true
        });
        found
    }

    #[test]
    fn texts_and_attributes_are_told() {
        let body = "<?xml version='1.0'?><!-- no --><s:a b=\"c > d\" e = 'f'>g<h/>i<![CDATA[<j>]]></s:a>";
        assert_eq!(told(body), ["=1.0", "b=c > d", "e=f", "a=g", "a=i<j>", "a=gi<j>"]);
        assert_eq!(told("<a> <b>c</b> <d>e</d> </a>"), ["b=c", "d=e"]);
        assert_eq!(told("<a><b>c</b>d</a>"), ["b=c", "a=d", "a=cd"]);
    }

    #[test]
    fn text_that_is_cut_is_one_again() {
        for cut in ["<!-- > -->", "<?x > ?>", "<![CDATA[]]>", "<!---->"] {
            assert_eq!(told(&format!("<a>UNI{cut}ON</a>")), ["a=UNION"], "{cut}");
        }
        assert_eq!(told("<a>UNI<![CDATA[ON SEL]]>ECT</a>"), ["a=UNION SELECT"]);
        assert_eq!(told("<a>UNI<b/>ON<c>SEL</c></a>"), ["a=UNI", "a=ON", "c=SEL", "a=UNIONSEL"]);
        // As much as is looked at of a longer one.
        assert_eq!(told("<a>UNI<b>ON"), ["a=UNI", "b=ON", "a=UNION"]);
        assert_eq!(told("<a>b<c>d<e/>f</c></a>"), ["a=b", "c=d", "c=f", "c=df", "a=bdf"]);
        // What does not end.
        assert_eq!(told("<a>b<!-- c"), ["a=b c"]);
        assert_eq!(told("a < b"), ["=a < b"]);
    }

    #[test]
    fn what_a_document_declares_is_told() {
        assert_eq!(told("<!DOCTYPE a [<!ENTITY b 'c'>]><a/>")[..2], ["body-doctype", "=c"]);
        assert_eq!(told("<!DOCTYPE html><html/>").len(), 0);
        let address = "http://www.w3.org/TR/xhtml1/DTD/xhtml1-strict.dtd";
        let known = format!("<!DOCTYPE html PUBLIC \"-//W3C//DTD XHTML 1.0 Strict//EN\" '{address}'><html/>");
        assert_eq!(told(&known)[1..], [format!("={address}")]);
        assert_eq!(told("<!DOCTYPE html PUBLIC '-//W3C//DTD HTML 4.01//EN'>").len(), 1);
        for external in [
            "SYSTEM 'http://a.test/x.dtd'",
            "system\n\"x.dtd\"",
            "SYSTEM'x.dtd'",
            "PUBLIC 'a' 'http://a.test/x.dtd'",
            "PUBLIC '-//W3C//DTD XHTML 1.0 Strict//EN' 'http://www.w3.org.a.test/x.dtd'",
        ] {
            assert_eq!(told(&format!("<!DOCTYPE a {external}><a/>"))[0], "body-doctype", "{external}");
        }
        assert_eq!(told("<?xml version=\"1.0\" encoding=\"UTF-8\"?>"), ["=1.0", "=UTF-8"]);
        assert_eq!(told("<?xml version='1.0' encoding = 'ibm037'?>"), ["=1.0", "body-charset", "=ibm037"]);
    }

    #[test]
    fn a_name_is_told_once_however_many_pieces_its_text_has() {
        let name = "a(b=c)or'd'".repeat(100);
        let body = format!("<{name} e='f'>{}", "a<b/>".repeat(1_000));
        let (mut names, mut pieces) = (Vec::new(), 0);
        read(body.as_bytes(), &mut |part| {
            match part {
                Part::Name { name: b"b", .. } => {}
                Part::Name { name, .. } => names.push(name.to_vec()),
                _ => pieces += 1,
            }
            true
        });
        assert_eq!(names, [name.as_bytes(), b"e"]);
        assert!(pieces > 1_000, "{pieces}");
    }

    #[test]
    fn how_much_is_looked_at_again_is_bounded() {
        let deep = "<a>b".repeat(100_000);
        assert!(told(&deep).contains(&"body-depth".to_owned()));
        // Elements that turn out to have text when those in them are at an end.
        let late = ["<a>".repeat(200), "<b/>c".repeat(10_000), "<b/>d</a>".repeat(200)].concat();
        let mut seen = 0;
        let mut broken = false;
        read(late.as_bytes(), &mut |part| {
            match part {
                Part::Field { value, .. } | Part::Element { value, .. } => seen += value.len(),
                Part::Broken(_) => broken = true,
                _ => {}
            }
            true
        });
        assert!(broken && seen <= late.len() * 10, "{seen} of {}", late.len());
    }
}
