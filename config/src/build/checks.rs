//! Checks of members that speak another protocol than HTTP.

use crate::check::Sink;
use crate::model::{CheckKind, Exchange};
use crate::problem::{Fault, shown};
use crate::tree::{NodeId, Place};
use crate::value::Fields;

/// What an exchange may send, and look for.
const EXCHANGE_MAX: usize = 4 << 10;

pub(super) fn exchange(node: NodeId, fields: &Fields, sink: &mut Sink) -> CheckKind {
    let mut bytes = |key: &str| {
        let (Some(text), Some(value)) = (fields.text(key), fields.at(key)) else { return Vec::new() };
        let read = unescape(text).and_then(|bytes| match bytes.len() {
            0..=EXCHANGE_MAX => Ok(bytes),
            _ => Err(Fault::new(format!("expected at most {EXCHANGE_MAX} bytes"))),
        });
        read.unwrap_or_else(|fault| {
            sink.report(Place::Value(value.node), fault);
            Vec::new()
        })
    };
    let (send, expect) = (bytes("send"), bytes("expect"));
    let udp = fields.word("over") == Some("udp");
    let nothing = fields.text("send").is_none_or(str::is_empty);
    if udp && nothing && !(fields.has("send") && fields.at("send").is_none()) {
        let fault = Fault::new("over udp a member answers only what it is sent");
        sink.report(Place::Key(node), fault.help("give `send`"));
    }
    CheckKind::Exchange(Exchange { udp, send, expect })
}

/// `\r`, `\n`, `\t`, `\0`, `\\` and `\xNN` stand for a byte each, all else for itself.
fn unescape(text: &str) -> Result<Vec<u8>, Fault> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        bytes.extend_from_slice(before.as_bytes());
        let (byte, length) = match after.as_bytes() {
            [b'r', ..] => (b'\r', 1),
            [b'n', ..] => (b'\n', 1),
            [b't', ..] => (b'\t', 1),
            [b'0', ..] => (0, 1),
            [b'\\', ..] => (b'\\', 1),
            [b'x', high, low, ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                (digit(*high) << 4 | digit(*low), 3)
            }
            _ => {
                let what: String = after.chars().take(1).collect();
                let fault = Fault::new(format!("{} stands for no byte", shown(&format!("\\{what}"))));
                return Err(fault.help(r"`\r`, `\n`, `\t`, `\0`, `\xNN` do, and `\\` for a backslash"));
            }
        };
        bytes.push(byte);
        // What was looked at is ASCII.
        rest = &after[length..];
    }
    bytes.extend_from_slice(rest.as_bytes());
    Ok(bytes)
}

/// Of a hexadecimal digit.
fn digit(byte: u8) -> u8 {
    match byte {
        b'0'..=b'9' => byte - b'0',
        _ => (byte | 0x20) - b'a' + 10,
    }
}

/// As it goes into a question: lower case, without the final dot (but for the root).
pub(super) fn dns_name(fields: &Fields, sink: &mut Sink) -> String {
    let (Some(text), Some(value)) = (fields.text("name"), fields.at("name")) else { return String::new() };
    let name = text.strip_suffix('.').unwrap_or(text);
    let fits = |label: &str| {
        let known = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        (1..=63).contains(&label.len()) && label.bytes().all(known)
    };
    if text != "." && (name.len() > 253 || !name.split('.').all(fits)) {
        let fault = Fault::new(format!("{} is no DNS name", shown(text)));
        sink.report(Place::Value(value.node), fault.help("such as `example.com`, or `.` for the root"));
    }
    if text == "." { text.to_owned() } else { name.to_ascii_lowercase() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_stand_for_bytes() {
        for (text, expected) in [
            ("", &b""[..]),
            ("PING", b"PING"),
            (r"PING\r\n", b"PING\r\n"),
            (r"\x00\xfF\x7f!", b"\x00\xff\x7f!"),
            (r"\\x41\t\0", b"\\x41\t\0"),
            ("grüße\n", "grüße\n".as_bytes()),
        ] {
            assert_eq!(unescape(text).ok().as_deref(), Some(expected), "{text}");
        }
        for text in [r"\", r"\q", r"\x", r"\x4", r"\xg0", r"\x+1", r"a\ü", r"\xé1"] {
            assert!(unescape(text).is_err(), "{text}");
        }
    }
}
