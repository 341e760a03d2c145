//! JSON (RFC 8259): every string, and every name. One value after another, as in JSON lines.
//!
//! Names are paths: `a.b` is `b` in `a`; lists have no step of their own. What is no JSON has no name, whatever it
//! stands in: a lenient reader may give it to another one.

use super::{Part, WHOLE};
use crate::waf::rules::Rule;

/// Objects and lists within each other.
pub(super) const DEPTH_MAX: usize = 64;

/// Bytes of a path; what is longer keeps its beginning.
const PATH_MAX: usize = 256;

pub(super) fn read(body: &[u8], see: &mut dyn FnMut(Part<'_>) -> bool) {
    let mut reader = Reader { rest: body, path: Vec::new(), levels: Vec::new(), text: Vec::new() };
    reader.run(see);
}

#[derive(Debug)]
struct Reader<'a> {
    rest: &'a [u8],
    path: Vec<u8>,
    levels: Vec<Level>,
    text: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
struct Level {
    is_object: bool,
    /// Bytes of the path that lead here.
    base: usize,
    /// In an object: the next string is a name.
    wants_name: bool,
    /// In an object: the last name has its value.
    has_value: bool,
}

impl Reader<'_> {
    fn run(&mut self, see: &mut dyn FnMut(Part<'_>) -> bool) {
        while let Some(byte) = self.rest.first().copied() {
            let goes_on = match byte {
                b'"' | b'{' | b'[' | b'-' | b'0'..=b'9' | b'a'..=b'z' if self.is_second() => {
                    self.no_json(see);
                    return;
                }
                b'"' => self.string(see),
                b'{' | b'[' => {
                    self.rest = &self.rest[1..];
                    self.open(byte == b'{', see)
                }
                b'}' | b']' => {
                    self.rest = &self.rest[1..];
                    let base = self.levels.pop().map_or(0, |level| level.base);
                    self.path.truncate(base);
                    true
                }
                b',' => {
                    self.rest = &self.rest[1..];
                    if let Some(level) = self.levels.last_mut() {
                        level.wants_name = level.is_object;
                        level.has_value = false;
                        self.path.truncate(level.base);
                    }
                    true
                }
                // Before each text of a sequence stands a separator (RFC 7464).
                b':' | b' ' | b'\t' | b'\r' | b'\n' | 0x1e => {
                    self.rest = &self.rest[1..];
                    true
                }
                b'-' | b'0'..=b'9' | b'a'..=b'z' => self.word(see),
                _ => {
                    self.no_json(see);
                    return;
                }
            };
            if !goes_on {
                return;
            }
        }
    }

    /// Whether a value that begins here is one too many for its name. Notes that there is one.
    fn is_second(&mut self) -> bool {
        let Some(level) = self.levels.last_mut().filter(|level| level.is_object && !level.wants_name) else {
            return false;
        };
        std::mem::replace(&mut level.has_value, true)
    }

    /// Whoever takes the rest for something takes all of it.
    fn no_json(&self, see: &mut dyn FnMut(Part<'_>) -> bool) {
        see(Part::Field { name: WHOLE, value: self.rest });
    }

    fn name(&self) -> &[u8] {
        if self.path.is_empty() { WHOLE } else { &self.path }
    }

    fn open(&mut self, is_object: bool, see: &mut dyn FnMut(Part<'_>) -> bool) -> bool {
        if self.levels.len() >= DEPTH_MAX {
            see(Part::Broken(Rule::BodyDepth));
            self.no_json(see);
            return false;
        }
        self.levels.push(Level { is_object, base: self.path.len(), wants_name: is_object, has_value: false });
        true
    }

    /// A number, `true` and the like. What else begins so is no JSON, and looked at.
    fn word(&mut self, see: &mut dyn FnMut(Part<'_>) -> bool) -> bool {
        let is_part = |byte: &&u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.');
        let length = self.rest.iter().take_while(is_part).count();
        let word = &self.rest[..length];
        let known = matches!(word, b"true" | b"false" | b"null")
            || !word.iter().any(|byte| byte.is_ascii_alphabetic() && !matches!(byte, b'e' | b'E'));
        if !known {
            self.no_json(see);
            return false;
        }
        self.rest = &self.rest[length..];
        true
    }

    fn string(&mut self, see: &mut dyn FnMut(Part<'_>) -> bool) -> bool {
        let (end, plain) = end_of_string(&self.rest[1..]);
        let raw = &self.rest[1..=end];
        self.rest = &self.rest[(end + 2).min(self.rest.len())..];
        let mut text = std::mem::take(&mut self.text);
        let value = if plain {
            raw
        } else {
            unescape(raw, &mut text);
            &text
        };
        let goes_on = match self.levels.last_mut() {
            Some(level) if level.wants_name => {
                level.wants_name = false;
                self.path.truncate(level.base);
                if !self.path.is_empty() && self.path.len() < PATH_MAX {
                    self.path.push(b'.');
                }
                let room = PATH_MAX.saturating_sub(self.path.len());
                self.path.extend_from_slice(&value[..value.len().min(room)]);
                see(Part::Name { name: value, around: &[] })
            }
            _ => see(Part::String { path: self.name(), value }),
        };
        self.text = text;
        goes_on
    }
}

/// Bytes before the closing quote, or all that is left; and whether none is escaped.
fn end_of_string(text: &[u8]) -> (usize, bool) {
    let mut at = 0;
    let mut plain = true;
    while let Some(found) = memchr::memchr2(b'"', b'\\', &text[at..]) {
        at += found;
        if text[at] == b'"' {
            return (at, plain);
        }
        plain = false;
        at = (at + 2).min(text.len());
    }
    (text.len(), plain)
}

fn unescape(raw: &[u8], out: &mut Vec<u8>) {
    out.clear();
    let mut rest = raw;
    while let Some(byte) = rest.first() {
        let escaped = rest.get(1).filter(|_| *byte == b'\\');
        let Some(escaped) = escaped else {
            out.push(*byte);
            rest = &rest[1..];
            continue;
        };
        let short = match escaped {
            b'n' => b'\n',
            b't' => b'\t',
            b'r' => b'\r',
            b'b' => 8,
            b'f' => 12,
            b'u' => {
                let hex = rest
                    .get(2..6)
                    .and_then(|hex| u32::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
                match hex {
                    Some(code) => {
                        let character = char::from_u32(code).unwrap_or('?');
                        out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
                        rest = &rest[6..];
                    }
                    None => {
                        out.push(b'\\');
                        rest = &rest[1..];
                    }
                }
                continue;
            }
            other => *other,
        };
        out.push(short);
        rest = &rest[2..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(body: &str, expected: &[&str]) {
        let mut found = Vec::new();
        read(body.as_bytes(), &mut |part| {
            if let Part::Field { name, value } | Part::String { path: name, value } = part {
                found.push(format!("{}={}", String::from_utf8_lossy(name), String::from_utf8_lossy(value)));
            }
            true
        });
        assert_eq!(found, expected, "{body}");
    }

    #[test]
    fn strings_have_the_paths_of_their_names() {
        check(
            r#"{"a":"b","c":{"d":["e",1,{"f":"g"}]},"h":null,"i":"j"}"#,
            &["a=b", "c.d=e", "c.d.f=g", "i=j"],
        );
        check(r#"["a","b"]"#, &["=a", "=b"]);
        check(r#""it's \u0027 \" \n""#, &["=it's ' \" \n"]);
        check("{\"a\":\"b\"}\n{\"c\":\"d\"}", &["a=b", "c=d"]);
    }

    #[test]
    fn what_is_no_json_is_text() {
        check("{\"a\": 'b'}", &["='b'}"]);
        check("{a: 1}", &["=a: 1}"]);
        check("{\"a\":\"b\" \"c\":\"d\"}", &["a=b", "=\"c\":\"d\"}"]);
        check("{\"a\":[}\"c\":\"d\"}", &["=\"c\":\"d\"}"]);
        check("{\"a\":1 {\"c\":\"d\"}}", &["={\"c\":\"d\"}}"]);
        check("{\"a\":\"b", &["a=b"]);
        check("{\"a\":\"b\\", &["a=b\\"]);
    }

    #[test]
    fn a_name_is_told_once_however_many_values_it_has() {
        let name = "a'".repeat(100);
        let body = format!("{{\"{name}\":[{}\"\"]}}", "\"\",".repeat(1_000));
        let mut names = Vec::new();
        read(body.as_bytes(), &mut |part| {
            match part {
                Part::Name { name, .. } => names.push(name.to_vec()),
                Part::String { value, .. } => assert_eq!(value, b""),
                _ => panic!("it is JSON"),
            }
            true
        });
        assert_eq!(names, [name.as_bytes()]);
    }

    #[test]
    fn depth_is_bounded() {
        let mut broken = None;
        read(&b"[".repeat(100_000), &mut |part| {
            if let Part::Broken(rule) = part {
                broken = Some(rule);
            }
            true
        });
        assert_eq!(broken, Some(Rule::BodyDepth));
    }
}
