//! The one YAML text of a document: block style, two spaces, plain words where every reader of YAML
//! takes them for text, double quotes elsewhere.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::Value as Json;

use crate::scalar;

/// `json` must be an object or a list; ends with a line feed.
pub(crate) fn yaml(json: &Json) -> String {
    let mut out = String::new();
    if is_block(json) {
        block(&mut out, json, 0);
    } else {
        inline(&mut out, json);
        out.push('\n');
    }
    out
}

fn is_block(json: &Json) -> bool {
    match json {
        Json::Array(items) => !items.is_empty(),
        Json::Object(entries) => !entries.is_empty(),
        _ => false,
    }
}

/// Writes a map or a list that has something in it, the cursor being at `indent` already or at 0.
fn block(out: &mut String, json: &Json, indent: usize) {
    match json {
        Json::Object(entries) => {
            for (i, (key, value)) in entries.iter().enumerate() {
                // The first line of a map in a list stands behind the dash.
                if i > 0 || at_line_start(out) {
                    pad(out, indent);
                }
                text(out, key);
                out.push(':');
                if is_block(value) {
                    out.push('\n');
                    block(out, value, indent + 2);
                } else {
                    out.push(' ');
                    inline(out, value);
                    out.push('\n');
                }
            }
        }
        Json::Array(items) => {
            for (i, item) in items.iter().enumerate() {
                if i > 0 || at_line_start(out) {
                    pad(out, indent);
                }
                out.push_str("- ");
                if is_block(item) {
                    block(out, item, indent + 2);
                } else {
                    inline(out, item);
                    out.push('\n');
                }
            }
        }
        _ => inline(out, json),
    }
}

fn at_line_start(out: &str) -> bool {
    out.is_empty() || out.ends_with('\n')
}

fn pad(out: &mut String, indent: usize) {
    out.extend(std::iter::repeat_n(' ', indent));
}

fn inline(out: &mut String, json: &Json) {
    match json {
        Json::String(string) => text(out, string),
        Json::Array(_) => out.push_str("[]"),
        Json::Object(_) => out.push_str("{}"),
        Json::Null => out.push_str("null"),
        Json::Bool(_) | Json::Number(_) => {
            // Writing into a string can't fail.
            let _ = write!(out, "{json}");
        }
    }
}

fn text(out: &mut String, text: &str) {
    // `off` is a value of ours as often as a word; both read it the same.
    if text == "off" || is_plain(text) || is_quantity(text) {
        out.push_str(text);
        return;
    }
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            ' ' => out.push(' '),
            c if c.is_ascii_graphic() || c.is_alphanumeric() => out.push(c),
            c => {
                let _ = if u32::from(c) < 0x1_0000 {
                    write!(out, "\\u{:04x}", u32::from(c))
                } else {
                    write!(out, "\\U{:08x}", u32::from(c))
                };
            }
        }
    }
    out.push('"');
}

/// Text that no reader of YAML, of 1.1 either, takes for a number, a boolean or syntax.
fn is_plain(text: &str) -> bool {
    const TYPED: [&str; 9] = ["y", "n", "yes", "no", "on", "off", "true", "false", "null"];
    let head = |c: char| c.is_ascii_alphabetic() || c == '/' || c == '_';
    let body = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '_' | '.' | '-' | '+');
    text.starts_with(head) && text.chars().all(body) && !TYPED.contains(&text.to_ascii_lowercase().as_str())
}

/// `2s`, `150ms-250ms`, `64KiB`, `200-299`: begin with a digit, and are no number to anybody.
fn is_quantity(text: &str) -> bool {
    let has_unit = text.ends_with(|c: char| c.is_ascii_alphabetic());
    (has_unit
        && (scalar::duration(text, Duration::ZERO, scalar::DURATION_MAX).is_ok()
            || scalar::duration_range(text).is_ok()
            || scalar::size(text, 0, scalar::SIZE_MAX).is_ok()))
        || (text.contains('-') && scalar::status_range(text).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn blocks_lists_and_empty_values() {
        let json = json!({
            "a": {"b": [{"c": 1, "d": ["x", {"e": "f"}]}, "z"], "g": {}, "h": []},
            "i": [[1, 2], {"j": {"k": "off"}}],
        });
        assert_eq!(
            yaml(&json),
            "a:\n  b:\n    - c: 1\n      d:\n        - x\n        - e: f\n    - z\n  g: {}\n  h: []\n\
             i:\n  - - 1\n    - 2\n  - j:\n      k: off\n"
        );
        assert_eq!(yaml(&json!({})), "{}\n");
    }

    #[test]
    fn text_that_looks_like_something_else_is_quoted() {
        let printed = |s: &str| {
            let mut out = String::new();
            text(&mut out, s);
            out
        };
        for plain in ["web", "2s", "64KiB", "150ms-250ms", "/api/v1", "off", "tcp+udp", "200-299"] {
            assert_eq!(printed(plain), plain);
        }
        for quoted in
            ["no", "Yes", "", "1.20", "0800", "*", ":80", "a: b", "null", "1e3", "~", "<<", "-", "a b"]
        {
            assert_eq!(printed(quoted), format!("\"{quoted}\""));
        }
        assert_eq!(printed("a\n\u{7}\u{1f600}"), "\"a\\n\\u0007\\U0001f600\"");
    }
}
