//! The tables of docs/bad-input.md, which tests replay.

const PAGE: &str = include_str!("../../../../docs/bad-input.md");

/// The rows of a table: its columns as they are written.
pub(crate) fn rows(table: &str) -> Vec<Vec<&'static str>> {
    let marker = format!("<!-- replay: {table} -->");
    let (_, rest) = PAGE.split_once(&marker).expect("the page has the table");
    let lines = rest.trim_start().lines().take_while(|line| line.starts_with('|')).skip(2);
    lines.map(|line| line.trim_matches('|').split(" | ").map(str::trim).collect()).collect()
}

/// Whether the page names this.
pub(crate) fn names(what: &str) -> bool {
    PAGE.contains(&format!("`{what}`"))
}

/// What stands between backticks.
pub(crate) fn spans(cell: &'static str) -> Vec<&'static str> {
    let spans: Vec<_> = cell.split('`').skip(1).step_by(2).collect();
    assert!(!spans.is_empty(), "{cell}");
    spans
}

/// The bytes that a span stands for.
pub(crate) fn bytes(span: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = span;
    while let Some(c) = rest.chars().next() {
        rest = &rest[c.len_utf8()..];
        match c {
            '…' => bytes.extend_from_slice(b"POST / HTTP/1.1\r\nHost: a\r\n"),
            '{' => {
                let (repeated, after) = rest.split_once('}').expect("closed");
                let (text, times) = repeated.rsplit_once('*').expect("a number");
                bytes.extend(self::bytes(text).repeat(times.parse().expect("a number")));
                rest = after;
            }
            '\\' => {
                let (length, byte) = match rest.as_bytes() {
                    [b'r', ..] => (1, b'\r'),
                    [b'n', ..] => (1, b'\n'),
                    [b't', ..] => (1, b'\t'),
                    [b'0', ..] => (1, 0),
                    [b'x', ..] => (3, u8::from_str_radix(&rest[1..3], 16).expect("two digits")),
                    _ => panic!("{span}"),
                };
                bytes.push(byte);
                rest = &rest[length..];
            }
            c => bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    bytes
}
