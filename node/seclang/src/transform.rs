//! What a rule does to a value before it looks at it (`t:`), byte by byte as ModSecurity does it.
//!
//! Each takes a value and gives another one, or `None` where it changes nothing. None makes a value longer than four
//! times what it was, and `sqlHexDecode` and all decoders make it shorter.

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use sha1::{Digest, Sha1};

mod decode;

/// In whichever way it is padded or broken off.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

macro_rules! transformations {
    ($($variant:ident = $($name:literal)|+;)+) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub(crate) enum Transformation { $($variant,)+ }

        impl Transformation {
            pub(crate) const COUNT: usize = [$(Self::$variant,)+].len();

            /// In whichever case.
            pub(crate) fn named(name: &str) -> Option<Self> {
                match name.to_ascii_lowercase().as_str() {
                    $($($name)|+ => Some(Self::$variant),)+
                    _ => None,
                }
            }
        }
    };
}

transformations! {
    Base64Decode = "base64decode";
    Base64DecodeExt = "base64decodeext";
    Base64Encode = "base64encode";
    CmdLine = "cmdline";
    CompressWhitespace = "compresswhitespace";
    CssDecode = "cssdecode";
    EscapeSeqDecode = "escapeseqdecode";
    HexDecode = "hexdecode";
    HexEncode = "hexencode";
    HtmlEntityDecode = "htmlentitydecode";
    JsDecode = "jsdecode";
    Length = "length";
    Lowercase = "lowercase";
    NormalizePath = "normalizepath" | "normalisepath";
    NormalizePathWin = "normalizepathwin" | "normalisepathwin";
    RemoveComments = "removecomments";
    RemoveCommentsChar = "removecommentschar";
    RemoveNulls = "removenulls";
    RemoveWhitespace = "removewhitespace";
    ReplaceComments = "replacecomments";
    ReplaceNulls = "replacenulls";
    Sha1 = "sha1";
    SqlHexDecode = "sqlhexdecode";
    Trim = "trim";
    TrimLeft = "trimleft";
    TrimRight = "trimright";
    Uppercase = "uppercase";
    UrlDecode = "urldecode";
    UrlDecodeUni = "urldecodeuni";
    UrlEncode = "urlencode";
    Utf8ToUnicode = "utf8tounicode";
}

impl Transformation {
    /// `None`: it is as it was.
    pub(crate) fn apply(self, value: &[u8]) -> Option<Vec<u8>> {
        let has = |some: fn(&u8) -> bool| value.iter().any(some);
        match self {
            Self::Base64Decode | Self::Base64DecodeExt => base64_decode(value, self == Self::Base64DecodeExt),
            Self::Base64Encode => Some(BASE64.encode(value).into_bytes()),
            Self::CmdLine => changed(value, cmd_line(value)),
            Self::CompressWhitespace => {
                let odd = |pair: &[u8]| pair.iter().all(|b| is_space(*b));
                let is = value.windows(2).any(odd) || has(|b| is_space(*b) && *b != b' ');
                is.then(|| {
                    let mut out: Vec<u8> = Vec::with_capacity(value.len());
                    for byte in value {
                        match is_space(*byte) {
                            true if out.last() == Some(&b' ') => {}
                            true => out.push(b' '),
                            false => out.push(*byte),
                        }
                    }
                    out
                })
            }
            Self::CssDecode => memchr::memchr(b'\\', value).map(|_| decode::css(value)),
            Self::EscapeSeqDecode => memchr::memchr(b'\\', value).map(|_| decode::escapes(value)),
            Self::HexDecode => {
                let nibble = |byte: u8| char::from(byte).to_digit(16).unwrap_or(0) as u8;
                Some(
                    value
                        .chunks_exact(2)
                        .map(|pair| pair.iter().fold(0u8, |all, b| all << 4 | nibble(*b)))
                        .collect(),
                )
            }
            Self::HexEncode => Some(hex(value)),
            Self::HtmlEntityDecode => memchr::memchr(b'&', value).map(|_| decode::html(value)),
            Self::JsDecode => memchr::memchr(b'\\', value).map(|_| decode::js(value)),
            Self::Length => Some(value.len().to_string().into_bytes()),
            Self::Lowercase => has(u8::is_ascii_uppercase).then(|| value.to_ascii_lowercase()),
            Self::Uppercase => has(u8::is_ascii_lowercase).then(|| value.to_ascii_uppercase()),
            Self::NormalizePath => has(|b| *b == b'/').then(|| normalized(value)),
            Self::NormalizePathWin => has(|b| matches!(b, b'/' | b'\\')).then(|| {
                let slashes: Vec<u8> = value.iter().map(|b| if *b == b'\\' { b'/' } else { *b }).collect();
                normalized(&slashes)
            }),
            Self::RemoveComments => changed(value, without_comments(value, b"")),
            Self::ReplaceComments => changed(value, replaced_comments(value)),
            Self::RemoveCommentsChar => changed(value, without_comment_signs(value)),
            Self::RemoveNulls => without(value, |b| b == 0),
            Self::RemoveWhitespace => without(value, |b| is_space(b) || b == 0xa0),
            Self::ReplaceNulls => {
                has(|b| *b == 0).then(|| value.iter().map(|b| if *b == 0 { b' ' } else { *b }).collect())
            }
            Self::Sha1 => Some(Sha1::digest(value).to_vec()),
            Self::SqlHexDecode => changed(value, decode::sql_hex(value)),
            Self::Trim => changed(value, trimmed(value, true, true)),
            Self::TrimLeft => changed(value, trimmed(value, true, false)),
            Self::TrimRight => changed(value, trimmed(value, false, true)),
            Self::UrlDecode => has(|b| matches!(b, b'%' | b'+')).then(|| decode::url(value, false)),
            Self::UrlDecodeUni => has(|b| matches!(b, b'%' | b'+')).then(|| decode::url(value, true)),
            Self::UrlEncode => {
                let mut out = Vec::with_capacity(value.len());
                for byte in value {
                    match byte {
                        b' ' => out.push(b'+'),
                        b'*' => out.push(b'*'),
                        byte if byte.is_ascii_alphanumeric() => out.push(*byte),
                        byte => out.extend(format!("%{byte:02x}").into_bytes()),
                    }
                }
                changed(value, out)
            }
            Self::Utf8ToUnicode => (!value.is_ascii()).then(|| decode::utf8_to_unicode(value)),
        }
    }
}

fn changed(value: &[u8], out: Vec<u8>) -> Option<Vec<u8>> {
    (out != value).then_some(out)
}

fn without(value: &[u8], some: fn(u8) -> bool) -> Option<Vec<u8>> {
    let is = value.iter().any(|byte| some(*byte));
    is.then(|| value.iter().copied().filter(|byte| !some(*byte)).collect())
}

/// As C sees it.
pub(crate) fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t'..=b'\r')
}

pub(crate) fn hex(value: &[u8]) -> Vec<u8> {
    let digit = |nibble: u8| if nibble < 10 { b'0' + nibble } else { b'a' + nibble - 10 };
    value.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

fn trimmed(value: &[u8], left: bool, right: bool) -> Vec<u8> {
    let mut value = value;
    while let Some((first, rest)) = value.split_first()
        && left
        && is_space(*first)
    {
        value = rest;
    }
    while let Some((last, rest)) = value.split_last()
        && right
        && is_space(*last)
    {
        value = rest;
    }
    value.to_vec()
}

/// Up to the first byte that is none of base64, or past such bytes.
fn base64_decode(value: &[u8], lenient: bool) -> Option<Vec<u8>> {
    let is = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
    let mut text: Vec<u8> = match lenient {
        true => value.iter().copied().filter(is).collect(),
        false => value.iter().copied().take_while(is).collect(),
    };
    // A single sign more says nothing.
    if text.len() % 4 == 1 {
        text.pop();
    }
    let decoded = BASE64.decode(&text).unwrap_or_default();
    changed(value, decoded)
}

/// What a shell makes of a line: without signs that hide words.
fn cmd_line(value: &[u8]) -> Vec<u8> {
    let mut out: Vec<u8> = Vec::with_capacity(value.len());
    for byte in value {
        match byte {
            b'"' | b'\'' | b'\\' | b'^' => {}
            b' ' | b',' | b';' | b'\t' | b'\r' | b'\n' => {
                if out.last() != Some(&b' ') {
                    out.push(b' ');
                }
            }
            b'/' | b'(' => {
                if out.last() == Some(&b' ') {
                    out.pop();
                }
                out.push(*byte);
            }
            byte => out.push(byte.to_ascii_lowercase()),
        }
    }
    out
}

/// Without `//`, `/./` and what `/../` takes back.
fn normalized(value: &[u8]) -> Vec<u8> {
    let absolute = value.first() == Some(&b'/');
    let folder = value.last() == Some(&b'/') || value.ends_with(b"/.") || value.ends_with(b"/..");
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in value.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => match parts.last() {
                Some(&last) if last != b".." => {
                    parts.pop();
                }
                _ if absolute => {}
                _ => parts.push(part),
            },
            part => parts.push(part),
        }
    }
    let mut out = Vec::with_capacity(value.len());
    if absolute {
        out.push(b'/');
    }
    out.extend(parts.join(&b'/'));
    if folder && !out.ends_with(b"/") && !out.is_empty() {
        out.push(b'/');
    }
    out
}

fn replaced_comments(value: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(value.len());
    let mut rest = value;
    while let Some((first, after)) = rest.split_first() {
        if let Some(inside) = rest.strip_prefix(b"/*") {
            out.push(b' ');
            rest =
                memchr::memmem::find(inside, b"*/").and_then(|end| inside.get(end + 2..)).unwrap_or_default();
        } else {
            out.push(*first);
            rest = after;
        }
    }
    out
}

fn without_comments(value: &[u8], instead: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(value.len());
    let mut rest = value;
    while let Some((first, after)) = rest.split_first() {
        let end = match () {
            () if rest.starts_with(b"/*") => Some(b"*/".as_slice()),
            () if rest.starts_with(b"<!--") => Some(b"-->".as_slice()),
            () if rest.starts_with(b"--") || *first == b'#' => {
                return out;
            }
            () => None,
        };
        match end {
            Some(end) => {
                out.extend(instead);
                rest = memchr::memmem::find(after, end)
                    .and_then(|at| after.get(at + end.len()..))
                    .unwrap_or_default();
            }
            None => {
                out.push(*first);
                rest = after;
            }
        }
    }
    out
}

fn without_comment_signs(value: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(value.len());
    let mut rest = value;
    while let Some((first, after)) = rest.split_first() {
        let signs: [&[u8]; 6] = [b"<!--", b"-->", b"/*", b"*/", b"--", b"#"];
        match signs.iter().find_map(|sign| rest.strip_prefix(*sign)) {
            Some(behind) => rest = behind,
            None => {
                out.push(*first);
                rest = after;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, cases: &[(&str, &str)]) {
        let transformation = Transformation::named(name).unwrap();
        for (value, expected) in cases {
            let got = transformation.apply(value.as_bytes()).unwrap_or_else(|| value.as_bytes().to_vec());
            assert_eq!(String::from_utf8_lossy(&got), *expected, "{name} of {value:?}");
        }
    }

    #[test]
    fn each_does_what_its_name_says() {
        check("base64Decode", &[("aGVsbG8=", "hello"), ("aGVsbG8", "hello"), ("aGVs?", "hel")]);
        check("base64DecodeExt", &[("aGV?sbG8=", "hello")]);
        check("cmdLine", &[("C^md /C  'a',\"B\";c", "cmd/c a b c")]);
        check("compressWhitespace", &[("a \t b", "a b"), ("a b", "a b")]);
        check("cssDecode", &[("\\65 xpr\\65ssion", "expression"), ("ja\\vascript", "javascript")]);
        check("escapeSeqDecode", &[("\\x41\\101\\n\\q", "AA\nq")]);
        check("hexDecode", &[("414a", "AJ")]);
        check("hexEncode", &[("AJ", "414a")]);
        check("htmlEntityDecode", &[("&lt;a&#x3e;&#60;&quot;&unknown;&amp", "<a><\"&unknown;&")]);
        check("jsDecode", &[("\\u0041\\x42\\103\\n\\'", "ABC\n'")]);
        check("length", &[("abc", "3")]);
        check("lowercase", &[("AbC", "abc")]);
        check("normalizePath", &[("/a/../b//./c", "/b/c"), ("../x/..", "../"), ("/../a/", "/a/")]);
        check("normalizePathWin", &[("a\\..\\b", "b")]);
        check("removeComments", &[("a/*x*/b<!--y-->c--d", "abc")]);
        check("replaceComments", &[("a/*x*/b/*", "a b ")]);
        check("removeCommentsChar", &[("a/*x*/b", "axb")]);
        check("removeNulls", &[("a\0b", "ab")]);
        check("removeWhitespace", &[(" a\tb ", "ab")]);
        check("trim", &[(" a b ", "a b")]);
        check("urlDecode", &[("a%41+%4", "aA %4")]);
        check("urlDecodeUni", &[("%u0041%u00e9%zz", "A\u{fffd}%zz"), ("%uff1cb", "<b")]);
        check("urlEncode", &[("a b/", "a+b%2f")]);
        check("utf8ToUnicode", &[("aé", "a%u00e9")]);
        check("sqlHexDecode", &[("a 0x4142", "a AB")]);
        assert_eq!(Transformation::named("md6"), None);
    }

    proptest::proptest! {
        #[test]
        fn none_fails_or_grows_without_bound(value: Vec<u8>, odd in "[\\\\%&u0-9a-fx;#+/*-]{0,40}") {
            for name in ["base64Decode", "base64DecodeExt", "cmdLine", "compressWhitespace", "cssDecode",
                "escapeSeqDecode", "hexDecode", "htmlEntityDecode", "jsDecode", "normalizePathWin", "removeComments",
                "replaceComments", "removeCommentsChar", "sqlHexDecode", "urlDecode", "urlDecodeUni", "utf8ToUnicode"] {
                let transformation = Transformation::named(name).unwrap();
                for value in [&value[..], odd.as_bytes()] {
                    if let Some(made) = transformation.apply(value) {
                        assert!(made.len() <= value.len() * 4 + 1, "{name}");
                    }
                }
            }
        }
    }
}
