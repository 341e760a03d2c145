//! XML: text between tags, values of attributes, CDATA, and what a document type declares.
//!
//! A field is called as its element, or its attribute. Entities are undone later, with all the other encodings; those
//! that the document itself declares are looked at where they are declared.

use memchr::{memchr, memchr2, memmem};

use super::{Part, WHOLE};

pub(super) fn read(body: &[u8], see: &mut dyn FnMut(Part<'_>) -> bool) {
    let mut rest = body;
    let mut element: &[u8] = WHOLE;
    // Text goes on behind a comment: an attack in two halves is one to whoever reads the document.
    while !rest.is_empty() {
        let open = memchr(b'<', rest).unwrap_or(rest.len());
        let text = rest[..open].trim_ascii();
        if !text.is_empty() && !see(Part::Field { name: element, value: text }) {
            return;
        }
        rest = &rest[open..];
        let goes_on = if let Some(after) = rest.strip_prefix(b"<!--") {
            rest = behind(after, b"-->").1;
            true
        } else if let Some(after) = rest.strip_prefix(b"<![CDATA[") {
            let (text, after) = behind(after, b"]]>");
            rest = after;
            see(Part::Field { name: element, value: text })
        } else if rest.starts_with(b"<!") || rest.starts_with(b"<?") {
            let (declared, after) = behind(&rest[2..], b">");
            rest = after;
            quoted(declared, |_, value| see(Part::Field { name: WHOLE, value }))
        } else if let Some(after) = rest.strip_prefix(b"<") {
            let (tag, after) = tag(after);
            rest = after;
            let end =
                tag.iter().position(|byte| byte.is_ascii_whitespace() || *byte == b'/').unwrap_or(tag.len());
            if end > 0 {
                element = local(&tag[..end]);
            }
            quoted(&tag[end..], |name, value| see(Part::Field { name: local(name), value }))
        } else {
            true
        };
        if !goes_on {
            return;
        }
    }
}

/// What stands before `end`, and after it.
fn behind<'a>(text: &'a [u8], end: &[u8]) -> (&'a [u8], &'a [u8]) {
    match memmem::find(text, end) {
        Some(at) => (&text[..at], &text[at + end.len()..]),
        None => (text, &[]),
    }
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

    #[test]
    fn texts_and_attributes_are_told() {
        let body = "<?xml version='1.0'?><!-- no --><s:a b=\"c > d\" e = 'f'>g<h/>i<![CDATA[<j>]]></s:a>";
        let mut found = Vec::new();
        read(body.as_bytes(), &mut |part| {
            if let Part::Field { name, value } = part {
                found.push(format!("{}={}", String::from_utf8_lossy(name), String::from_utf8_lossy(value)));
            }
            true
        });
        assert_eq!(found, ["body=1.0", "b=c > d", "e=f", "a=g", "h=i", "h=<j>"]);
    }
}
