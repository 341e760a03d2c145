//! Multipart (RFC 7578): values of fields, and names of files. What is in a file is not looked at.
//!
//! So it matters who takes a part for a file. Where readers differ and no ordinary client writes so, it is a finding
//! ([`Rule::BodyAmbiguous`]); where some client does, the part is looked at as both.

use std::borrow::Cow;

use memchr::memmem;

use super::parameters::{Parameters, is_token};
use super::{Part, WHOLE, is_known_charset};
use crate::waf::inspection::percent;
use crate::waf::rules::Rule;

/// Bytes of the header of a part.
const HEAD_MAX: usize = 8 << 10;

/// As RFC 2046 has it: at most 70 bytes.
const BOUNDARY_MAX: usize = 70;

/// `None`: there is none, or none that all readers take for the same.
pub(super) fn boundary(content_type: &Parameters) -> Option<&[u8]> {
    let boundary = content_type.get(b"boundary")?;
    let is_clear = |byte: &u8| (b' '..0x7f).contains(byte) && !b"\";\\".contains(byte);
    let is_one = (1..=BOUNDARY_MAX).contains(&boundary.len()) && boundary.trim_ascii() == boundary;
    (is_one && boundary.iter().all(is_clear)).then_some(boundary)
}

/// Whether those who look for the first `boundary` in the text, in lower case or any, find another one than that which
/// the parameter has.
pub(super) fn has_other_boundary(text: &[u8], content_type: &Parameters) -> bool {
    const WORD: &[u8] = b"boundary";
    let count = |text: &[u8]| memmem::find_iter(text, WORD).count();
    let lower = text.to_ascii_lowercase();
    // Browsers have the word in the boundary itself.
    let ours = content_type.get(WORD).map_or(0, |own| 1 + count(&own.to_ascii_lowercase()));
    let first = memmem::find(text, WORD);
    count(&lower) != ours || first.is_some() && first != memmem::find(&lower, WORD)
}

pub(super) fn read(body: &[u8], boundary: &[u8], see: &mut dyn FnMut(Part<'_>) -> bool) {
    let delimiter = [b"--", boundary].concat();
    let finder = memmem::Finder::new(&delimiter);
    let Some(first) = finder.find(body) else {
        see(Part::Field { name: WHOLE, value: body });
        return;
    };
    // What stands before the first part is for nobody, unless a lenient reader takes it.
    if !body[..first].trim_ascii().is_empty() && !see(Part::Field { name: WHOLE, value: &body[..first] }) {
        return;
    }
    let mut from = first + delimiter.len();
    let ends = line_end(&body[from..]);
    if !is_line(&body[..first], &body[from..], ends) && !see(Part::Broken(Rule::BodyAmbiguous)) {
        return;
    }
    loop {
        let end = finder.find(&body[from..]).map_or(body.len(), |at| from + at);
        // Behind the last part is nobody's either.
        let goes_on = match body[from..end].strip_prefix(b"--") {
            Some(after) => see(Part::Field { name: WHOLE, value: after.trim_ascii() }),
            None => part(&body[from..end], ends, see),
        };
        if !goes_on || end == body.len() {
            return;
        }
        from = end + delimiter.len();
        if !is_line(&body[..end], &body[from..], ends) && !see(Part::Broken(Rule::BodyAmbiguous)) {
            return;
        }
    }
}

/// How the line that begins here ends, if nothing else is on it.
fn line_end(text: &[u8]) -> &'static [u8] {
    match text {
        [b'\r', b'\n', ..] => b"\r\n",
        [b'\n', ..] => b"\n",
        [b'\r', ..] => b"\r",
        _ => b"",
    }
}

/// Whether a delimiter between these is a line of its own, with the line ends that the first has: one that is not is
/// the end of a part for some, and in the middle of it for others.
fn is_line(before: &[u8], after: &[u8], ends: &[u8]) -> bool {
    let begins = before.is_empty() || before.ends_with(ends) && (ends != b"\n" || !before.ends_with(b"\r\n"));
    let is_end = |rest: &[u8]| rest.is_empty() || !line_end(rest).is_empty();
    // The body may be cut off anywhere.
    let ends_here = match after {
        b"" | b"-" | b"\r" => true,
        [b'-', b'-', rest @ ..] => is_end(rest),
        _ => ends != b"\r" && line_end(after) == ends && !ends.is_empty(),
    };
    begins && ends_here
}

/// The header of a part.
#[derive(Debug, Default)]
struct Head<'a> {
    /// Those that go on in the next one are one.
    lines: Vec<Cow<'a, [u8]>>,
    disposition: Option<Parameters>,
    /// Readers differ in what it says.
    is_ambiguous: bool,
    /// Not all take it for a file, though it has a name of one.
    may_be_field: bool,
    /// Readers differ in the ends of names, so it has none that an exception could be about.
    has_unclear_name: bool,
    is_encoded: bool,
    has_odd_charset: bool,
}

impl<'a> Head<'a> {
    /// Up to the first line that is empty, however it ends, and how long that is. `None`: there is none.
    fn of(bytes: &'a [u8], ends: &[u8]) -> Option<(Self, usize)> {
        let within = &bytes[..bytes.len().min(HEAD_MAX)];
        let mut head = Self::default();
        let mut at = 0;
        loop {
            let end = at + memchr::memchr2(b'\r', b'\n', &within[at..])?;
            let line = &within[at..end];
            let found = line_end(&within[end..]);
            head.is_ambiguous |= found != ends;
            at = end + found.len();
            if line.is_empty() {
                break;
            }
            head.line(line);
        }
        for line in std::mem::take(&mut head.lines) {
            head.field(&line);
            head.lines.push(line);
        }
        Some((head, at))
    }

    fn line(&mut self, line: &'a [u8]) {
        match self.lines.last_mut().filter(|_| line[0] == b' ' || line[0] == b'\t') {
            Some(last) => {
                self.may_be_field = true;
                last.to_mut().extend_from_slice(line);
            }
            None => self.lines.push(Cow::Borrowed(line)),
        }
    }

    fn field(&mut self, line: &[u8]) {
        // It ends the value for some, or the line.
        self.is_ambiguous |= line.iter().any(|byte| byte.is_ascii_control() && *byte != b'\t');
        // A line that is no field ends the header for some.
        let Some(colon) = memchr::memchr(b':', line).filter(|colon| is_token(&line[..*colon])) else {
            self.is_ambiguous = true;
            return;
        };
        let value = line[colon + 1..].trim_ascii();
        match line[..colon].to_ascii_lowercase().as_slice() {
            b"content-disposition" => {
                let read = Parameters::of(value);
                // Continuations and other character sets (RFC 8187) are for file names only.
                let is_odd = |name: &[u8]| name.contains(&b'*') && name != b"filename*";
                self.is_ambiguous |= self.disposition.is_some()
                    || read.is_spaced
                    || read.has_one_twice()
                    || read.names().any(is_odd);
                // Some clients leave quotes in names of files as they are.
                self.has_unclear_name |=
                    read.is_broken || read.is_loose || read.is_escaped || read.has_apostrophe;
                // Some take it for another parameter then.
                self.may_be_field |= read.is_crowded;
                self.may_be_field |= self.has_unclear_name || read.each(b"filename*").any(is_no_name);
                self.disposition.get_or_insert(read);
            }
            b"content-type" => {
                let read = Parameters::of(value);
                self.may_be_field |= read.is_broken || read.first.starts_with(b"multipart/");
                self.has_odd_charset |= !read.each(b"charset").all(is_known_charset);
            }
            b"content-transfer-encoding" => {
                let value = value.to_ascii_lowercase();
                self.is_encoded |= !matches!(value.as_slice(), b"" | b"7bit" | b"8bit" | b"binary");
            }
            _ => {}
        }
    }

    fn get(&self, name: &[u8]) -> Option<&[u8]> {
        self.disposition.as_ref()?.get(name)
    }
}

/// Of `filename*`: that some who read it have no name then, and so a field.
fn is_no_name(extended: &[u8]) -> bool {
    let name = extended_name(extended).1.unwrap_or_default();
    !name.iter().any(|byte| *byte > b' ')
}

/// Character set and value (RFC 8187, section 3.2).
fn extended_name(extended: &[u8]) -> (&[u8], Option<Cow<'_, [u8]>>) {
    let mut parts = extended.splitn(3, |byte| *byte == b'\'');
    let charset = parts.next().unwrap_or_default();
    (charset, parts.nth(1).map(percent))
}

/// `bytes` stand between two delimiters, from behind the first.
fn part(bytes: &[u8], ends: &[u8], see: &mut dyn FnMut(Part<'_>) -> bool) -> bool {
    let bytes = &bytes[line_end(bytes).len()..];
    let (head, value) = match Head::of(bytes, ends) {
        Some((head, length)) => (head, &bytes[length..]),
        // No header that ends: all of it is looked at. One that is too long here may be none to others.
        None => (Head { is_ambiguous: bytes.len() > HEAD_MAX, ..Head::default() }, bytes),
    };
    let value = value.strip_suffix(b"\n").unwrap_or(value);
    let value = value.strip_suffix(b"\r").unwrap_or(value);
    let name = head.get(b"name").unwrap_or(WHOLE);
    if head.is_ambiguous && !see(Part::Broken(Rule::BodyAmbiguous)) {
        return false;
    }
    for line in head.lines.iter().map(|line| line.trim_ascii()) {
        if !see(Part::Head { name, line }) {
            return false;
        }
    }
    content(&head, name, value, see)
}

fn content(head: &Head<'_>, name: &[u8], value: &[u8], see: &mut dyn FnMut(Part<'_>) -> bool) -> bool {
    let plain = head.get(b"filename").filter(|file| !file.is_empty());
    if plain.is_some_and(|file| !see(Part::File { name, file })) {
        return false;
    }
    // Some take this one if both are there.
    if let Some(extended) = head.get(b"filename*") {
        let (charset, file) = extended_name(extended);
        let (is_odd, file) =
            (file.is_some() && !is_known_charset(charset), file.unwrap_or_else(|| percent(extended)));
        if is_odd && !see(Part::Broken(Rule::BodyCharset)) || !see(Part::File { name, file: &file }) {
            return false;
        }
    }
    // One with the newer parameter only, or without a name, is no file to everybody.
    if plain.is_some() && !head.may_be_field {
        return true;
    }
    if head.is_encoded && !see(Part::Broken(Rule::BodyEncoding)) {
        return false;
    }
    // `_charset_` says what the others are in (RFC 7578, section 4.6).
    let is_odd = head.has_odd_charset || name == b"_charset_" && !is_known_charset(value);
    if is_odd && !see(Part::Broken(Rule::BodyCharset)) {
        return false;
    }
    see(Part::Field { name: if head.has_unclear_name { WHOLE } else { name }, value })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_and_names_of_files_are_told() {
        let body = "--x\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\nb 'c'\r\n\
                    --x\r\ncontent-disposition: form-data; name=f; filename=\"it's.png\"\r\nContent-Type: image/png\r\n\r\n\u{1}<x>\r\n\
                    --x\r\nContent-Disposition: form-data; name=\"e\"; filename=\"\"\r\n\r\ng\r\n--x--\r\n";
        let (mut found, mut heads) = (Vec::new(), Vec::new());
        read(body.as_bytes(), b"x", &mut |part| {
            let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
            match part {
                Part::Field { name, value } => found.push(format!("{}={}", text(name), text(value))),
                Part::File { name, file } => found.push(format!("{}: {}", text(name), text(file))),
                Part::Head { line, .. } => heads.push(text(line)),
                _ => {}
            }
            true
        });
        assert_eq!(found, ["a=b 'c'", "f: it's.png", "e=g", "="]);
        assert_eq!(heads.len(), 4);
        assert_eq!(heads[2], "Content-Type: image/png");
    }

    #[test]
    fn what_is_no_multipart_is_text() {
        let mut found = Vec::new();
        read(b"a=' or 1=1", b"x", &mut |part| {
            if let Part::Field { value, .. } = part {
                found.push(value.to_vec());
            }
            true
        });
        assert_eq!(found, [b"a=' or 1=1"]);
    }

    /// What is told of one part of this header, each line of which ends with CRLF: fields, files and findings.
    fn told(head: &str, value: &str) -> Vec<String> {
        let body = format!("--x\r\n{head}\r\n{value}\r\n--x--\r\n");
        of_body(body.as_bytes())
    }

    fn of_body(body: &[u8]) -> Vec<String> {
        let mut found = Vec::new();
        read(body, b"x", &mut |part| {
            match part {
                Part::Field { value: b"", .. } => {}
                Part::Field { name, value } => {
                    found.push(format!("{}={}", name.escape_ascii(), value.escape_ascii()));
                }
                Part::File { file, .. } => found.push(format!("file {}", file.escape_ascii())),
                Part::Broken(rule) => found.push(rule.id().to_owned()),
                _ => {}
            }
            true
        });
        found
    }

    #[test]
    fn what_browsers_and_libraries_upload_is_a_file_and_nothing_else() {
        for (disposition, more) in [
            ("filename=\"a.png\"", ""),
            ("filename=\"a.png\"", "Content-Type: image/png\r\n"),
            (
                "filename=a.png",
                "Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: binary\r\n",
            ),
            ("filename=\"a.png\"; filename*=UTF-8''%C3%A4.png", ""),
            ("filename=\"it's.png\"; filename*=UTF-8'en'it%27s.png", ""),
            ("filename=\"C:\\a.png\"", "Content-Type: text/plain; charset=utf-16\r\n"),
            ("filename=\"a;b=c.png\"", "Content-Transfer-Encoding: base64\r\nContent-Length: 1\r\n"),
        ] {
            let found =
                told(&format!("Content-Disposition: form-data; name=\"q\"; {disposition}\r\n{more}"), "v");
            assert!(!found.is_empty() && found.iter().all(|told| told.starts_with("file ")), "{found:?}");
        }
    }

    #[test]
    fn a_part_that_is_a_field_to_some_is_looked_at_or_a_finding() {
        let plain = "Content-Disposition: form-data; name=\"q\"";
        for head in [
            "; filename*=UTF-8''x",
            "; filename*=UTF-8''",
            "; filename=\"x\"; filename*=UTF-8''",
            "; filename=\"x\"; filename*=UTF-8''%00",
            "; filename=\"\"",
            "; filename=\"x\"y",
            "; filename=\"x",
            "; filename=\"3/4\".pdf\"",
            "; filename=\"a\\\"b\"",
            "; a='; filename=x",
            "; a=b'; filename=x",
            "; a'; filename=x",
            "; 'a; filename=\"x\"",
            ";filename=\"x\"",
            ";\tfilename=\"x\"",
            ";  filename=\"x\"",
            "; a=\"; filename=\";filename=\"x\"",
            ";\r\n filename=\"x\"",
            "; filename=x\r\nContent-Type: multipart/mixed; boundary=y",
        ] {
            let found = told(&format!("{plain}{head}\r\n"), "v");
            assert!(found.iter().any(|told| told == "q=v" || told == "=v"), "{head}: {found:?}");
            assert!(!found.iter().any(|told| told == "body-ambiguous"), "{head}: {found:?}");
        }
        for head in [
            "; filename =\"x\"",
            "; filename= \"x\"",
            "; filename=\"x\"; name=\"r\"",
            "; filename=\"x\"; filename=\"\"",
            "; filename*0=x",
            "; name*=UTF-8''r; filename=x",
            "; filename=x\r\nContent-Disposition: form-data; name=r",
            "; filename=x\r\nno field",
            "; filename=x\r\nA : b",
            "; filename=x\nA: b",
            "; filename=x\rA: b",
            "; filename=\"x\0y\"",
            "; filename=x\0",
            "; a=\"\x08\"; filename=x",
            "; filename=x\r\nA: b\0c",
        ] {
            let found = told(&format!("{plain}{head}\r\n"), "v");
            assert!(found.iter().any(|told| told == "body-ambiguous"), "{head:?}: {found:?}");
        }
        for (head, rule) in [
            ("Content-Transfer-Encoding: base64", "body-encoding"),
            ("content-transfer-encoding:Quoted-Printable", "body-encoding"),
            ("Content-Type: text/plain; charset=ibm037", "body-charset"),
            ("Content-Type: text/plain; charset=utf-8; charset=ibm037", "body-charset"),
        ] {
            assert_eq!(told(&format!("{plain}\r\n{head}\r\n"), "v"), [rule, "q=v"], "{head}");
        }
        let charset = told("Content-Disposition: form-data; name=_charset_\r\n", "ibm037");
        assert_eq!(charset[0], "body-charset");
    }

    #[test]
    fn both_names_of_a_file_are_told() {
        let of = |more: &str| {
            told(&format!("Content-Disposition: form-data; name=q; filename=x; {more}\r\n"), "v")
        };
        assert_eq!(of("filename*=UTF-8''%27y"), ["file x", "file \\'y"]);
        assert_eq!(of("filename*=%27y"), ["file x", "file \\'y", "q=v"]);
        assert_eq!(of("filename*=utf-16''%00y"), ["file x", "body-charset", "file \\x00y"]);
    }

    #[test]
    fn a_header_ends_at_the_first_empty_line_however_it_ends() {
        for ends in ["\n\n", "\r\r", "\n\r\n", "\r\n\n", "\n\r", "\r\n\r"] {
            let head = format!("Content-Disposition: form-data; name=q{ends}");
            let body = format!("--x\n{head}v\r\n\r\n\r\n--x--");
            let found = of_body(body.as_bytes());
            assert!(found.iter().any(|told| told.starts_with("q=v")), "{ends:?}: {found:?}");
            assert!(found.iter().any(|told| told == "body-ambiguous"), "{ends:?}: {found:?}");
        }
        let body = b"--x\nContent-Disposition: form-data; name=q\n\nv\n--x--\n";
        assert_eq!(of_body(body), ["q=v"], "all of one kind");
    }

    #[test]
    fn a_delimiter_that_is_no_line_of_its_own_is_a_finding() {
        let file = "Content-Disposition: form-data; name=z; filename=f\r\n\r\nw\r\n--x--";
        for delimiter in ["--x\r\n", "\n--x\r\n", "\r--x\r\n", "\r\n--x \r\n", "\r\n--xy\r\n", "\r\n--x\n"] {
            let found = told("Content-Disposition: form-data; name=q\r\n", &format!("v{delimiter}{file}"));
            assert!(found.iter().any(|told| told == "body-ambiguous"), "{delimiter:?}: {found:?}");
        }
        let found = told("Content-Disposition: form-data; name=q\r\n", &format!("v\r\n--x\r\n{file}"));
        assert_eq!(found, ["q=v", "file f"]);
        // As much as is looked at of a longer one.
        let whole = b"--x\r\nContent-Disposition: form-data; name=q\r\n\r\nv\r\n--x\r\n";
        for length in whole.len() - 7..=whole.len() {
            assert!(!of_body(&whole[..length]).iter().any(|told| told == "body-ambiguous"), "{length}");
        }
    }
}
