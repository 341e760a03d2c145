//! What a value says once whoever is behind us has decoded it.
//!
//! One [`round`] undoes, side by side, each encoding that hides an attack: of URLs (`%27`, `%u0027`), of HTML
//! (`&#39;`, `&lt;`), of JavaScript and JSON (`\u0027`, `\x27`, `\47`), UTF-7 (`+ADw-`), overlong UTF-8
//! (`C0 BC`), full-width letters and signs, and NULs in between. A backend undoes fewer, in an order that nobody
//! knows; what is found in one of the forms would be found there too. Linear in the value's length, and never longer
//! than it but by a constant factor: each escape stands for fewer bytes than it has.

use std::borrow::Cow;

/// Bytes at which something may begin that a round changes.
const fn marks() -> [bool; 256] {
    let mut marks = [false; 256];
    let bytes = b"%&\\+\0";
    let mut at = 0;
    while at < bytes.len() {
        marks[bytes[at] as usize] = true;
        at += 1;
    }
    // Beginnings of UTF-8 that may be overlong, full-width, a quote, or a space.
    marks[0xc0] = true;
    marks[0xc1] = true;
    marks[0xc2] = true;
    marks[0xca] = true;
    marks[0xe0] = true;
    marks[0xe1] = true;
    marks[0xe2] = true;
    marks[0xe3] = true;
    marks[0xef] = true;
    marks[0xf0] = true;
    marks
}

static MARKS: [bool; 256] = marks();

/// One round of decoding; `None`: there is nothing to decode.
pub(super) fn round(value: &[u8]) -> Option<Vec<u8>> {
    let first = value.iter().position(|byte| MARKS[usize::from(*byte)])?;
    let mut out = Vec::with_capacity(value.len());
    out.extend_from_slice(&value[..first]);
    let mut rest = &value[first..];
    let mut changed = false;
    while let Some(byte) = rest.first() {
        let taken = if MARKS[usize::from(*byte)] { one(rest, &mut out) } else { 0 };
        if taken == 0 {
            out.push(*byte);
            rest = &rest[1..];
        } else {
            changed = true;
            rest = &rest[taken..];
        }
    }
    changed.then_some(out)
}

/// Decodes what begins here; how many bytes it took, 0 if it is nothing.
fn one(rest: &[u8], out: &mut Vec<u8>) -> usize {
    match rest[0] {
        b'%' => percent(rest, out),
        b'&' => entity(rest, out),
        b'\\' => escape(rest, out),
        b'+' => utf7(rest, out),
        0 => 1,
        _ => plain_utf8(rest, out),
    }
}

/// As forms encode, `+` included: what whoever reads the value does first.
pub(super) fn form(value: &[u8]) -> Cow<'_, [u8]> {
    if !value.iter().any(|byte| matches!(byte, b'%' | b'+')) {
        return Cow::Borrowed(value);
    }
    let mut out = Vec::with_capacity(value.len());
    let mut rest = value;
    while let Some(byte) = rest.first() {
        let hex = rest.get(1..3).and_then(|digits| Some(nibble(digits[0])? << 4 | nibble(digits[1])?));
        let (byte, taken) = match (byte, hex) {
            (b'+', _) => (b' ', 1),
            (b'%', Some(byte)) => (byte, 3),
            (byte, _) => (*byte, 1),
        };
        out.push(byte);
        rest = &rest[taken..];
    }
    Cow::Owned(out)
}

fn percent(rest: &[u8], out: &mut Vec<u8>) -> usize {
    if let Some(byte) = hex(rest.get(1..3)) {
        // A NUL ends nothing here.
        out.extend((byte != 0).then_some(byte as u8));
        return 3;
    }
    match (rest.get(1), hex(rest.get(2..6))) {
        (Some(b'u' | b'U'), Some(code)) => {
            push(code, out);
            6
        }
        _ => 0,
    }
}

/// `&#39;`, `&#x27;` and the few names that matter; the semicolon may be missing.
fn entity(rest: &[u8], out: &mut Vec<u8>) -> usize {
    const DIGITS_MAX: usize = 12;
    if rest.get(1) == Some(&b'#') {
        let (radix, from) = if matches!(rest.get(2), Some(b'x' | b'X')) { (16, 3) } else { (10, 2) };
        let digits = &rest[from.min(rest.len())..];
        let count =
            digits.iter().take(DIGITS_MAX).take_while(|digit| (**digit as char).is_digit(radix)).count();
        if count == 0 {
            return 0;
        }
        let code = digits[..count].iter().fold(0u32, |code, digit| {
            code.saturating_mul(radix).saturating_add((*digit as char).to_digit(radix).unwrap_or_default())
        });
        push(code, out);
        return from + count + usize::from(digits.get(count) == Some(&b';'));
    }
    for (name, byte) in ENTITIES {
        let Some(found) = rest.get(1..=name.len()) else { continue };
        if found.eq_ignore_ascii_case(name) {
            let end = 1 + name.len();
            let closed = rest.get(end) == Some(&b';');
            // A parameter may be called `lt`; HTML takes the old names without a semicolon.
            if closed || matches!(*name, b"lt" | b"gt" | b"quot" | b"amp") && !continues(rest.get(end)) {
                out.push(*byte);
                return end + usize::from(closed);
            }
        }
    }
    0
}

fn continues(byte: Option<&u8>) -> bool {
    byte.is_some_and(|byte| byte.is_ascii_alphanumeric() || *byte == b'=')
}

const ENTITIES: &[(&[u8], u8)] = &[
    (b"lt", b'<'),
    (b"gt", b'>'),
    (b"amp", b'&'),
    (b"quot", b'"'),
    (b"apos", b'\''),
    (b"colon", b':'),
    (b"lpar", b'('),
    (b"rpar", b')'),
    (b"tab", b'\t'),
    (b"newline", b'\n'),
    (b"sol", b'/'),
    (b"equals", b'='),
    (b"nbsp", b' '),
    (b"semi", b';'),
    (b"num", b'#'),
    (b"grave", b'`'),
];

/// `\u0027`, `\u{27}`, `\x27`, `\47`, and a line that goes on. What JSON and JavaScript write with one letter stays.
fn escape(rest: &[u8], out: &mut Vec<u8>) -> usize {
    match rest.get(1) {
        Some(b'u' | b'U') if rest.get(2) == Some(&b'{') => {
            let digits = rest[3..].iter().take(6).take_while(|digit| digit.is_ascii_hexdigit()).count();
            match (hex(rest.get(3..3 + digits)), rest.get(3 + digits)) {
                (Some(code), Some(b'}')) => {
                    push(code, out);
                    4 + digits
                }
                _ => 0,
            }
        }
        Some(b'u' | b'U') => hex(rest.get(2..6)).map_or(0, |code| {
            push(code, out);
            6
        }),
        Some(b'x' | b'X') => hex(rest.get(2..4)).map_or(0, |code| {
            push(code, out);
            4
        }),
        Some(b'0'..=b'7') => {
            let digits = rest[1..].iter().take(3).take_while(|digit| matches!(digit, b'0'..=b'7')).count();
            let code = rest[1..=digits].iter().fold(0, |code, digit| code * 8 + u32::from(digit - b'0'));
            // One digit alone is a back reference in a paste, or half of a path of Windows.
            if digits < 2 {
                return 0;
            }
            push(code, out);
            1 + digits
        }
        _ => 0,
    }
}

/// `+ADw-`: UTF-7 (RFC 2152) of a few characters of ASCII. Text that only looks like it has bits to spare at the end, or
/// has no sign.
fn utf7(rest: &[u8], out: &mut Vec<u8>) -> usize {
    const LENGTH_MAX: usize = 256;
    let sextet = |byte: &u8| match byte {
        b'A'..=b'Z' => Some(byte - b'A'),
        b'a'..=b'z' => Some(byte - b'a' + 26),
        b'0'..=b'9' => Some(byte - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    // Signs of ASCII begin with `A`: anything else is text with a plus in it.
    if rest.get(1) != Some(&b'A') {
        return 0;
    }
    let (mut length, mut bits, mut have, mut units) = (0, 0u32, 0u32, Vec::new());
    for sextet in rest[1..].iter().take(LENGTH_MAX).map_while(sextet) {
        length += 1;
        bits = bits << 6 | u32::from(sextet);
        have += 6;
        if have >= 16 {
            have -= 16;
            match u8::try_from(bits >> have) {
                Ok(unit) if unit.is_ascii() => units.push(unit),
                _ => return 0,
            }
            bits &= (1 << have) - 1;
        }
    }
    let is_text = |unit: &u8| unit.is_ascii_graphic() || unit.is_ascii_whitespace();
    let is_exact = bits == 0 && have < 6 && units.iter().all(is_text);
    if units.is_empty() || !is_exact && !units.iter().any(u8::is_ascii_punctuation) {
        return 0;
    }
    units.iter().for_each(|unit| push(u32::from(*unit), out));
    1 + length + usize::from(rest.get(1 + length) == Some(&b'-'))
}

/// Overlong UTF-8, and characters that decoders of old or databases take for a sign of ASCII.
fn plain_utf8(rest: &[u8], out: &mut Vec<u8>) -> usize {
    let tail =
        |at: usize| rest.get(at).filter(|byte| **byte & 0xc0 == 0x80).map(|byte| u32::from(byte & 0x3f));
    let (code, length) = match (rest[0], tail(1), tail(2), tail(3)) {
        (first @ (0xc0 | 0xc1), Some(a), ..) => (u32::from(first & 0x1f) << 6 | a, 2),
        (0xc2, Some(a), ..) => (0x80 | a, 2),
        (0xca, Some(a), ..) => (0x280 | a, 2),
        (first @ (0xe0..=0xe3 | 0xef), Some(a), Some(b), _) => (u32::from(first & 0xf) << 12 | a << 6 | b, 3),
        (0xf0, Some(a), Some(b), Some(c)) => (a << 12 | b << 6 | c, 4),
        _ => return 0,
    };
    let byte = match code {
        0 => return length,
        // Overlong: fewer bytes would have done.
        1..0x80 => code as u8,
        // No-break space and its kin in other lengths, and marks without a width that readers skip as spaces.
        0x85 | 0xa0 | 0x1680 | 0x180e | 0x2000..=0x200b | 0x2028 | 0x2029 | 0x202f | 0x205f | 0x2060 => b' ',
        0x3000 | 0xfeff => b' ',
        0x2bb..=0x2bc | 0x2018..=0x201b | 0x2032 => b'\'',
        0x201c..=0x201f | 0x2033 => b'"',
        0x2039 => b'<',
        0x203a => b'>',
        0xff01..=0xff5e => (code - 0xff01) as u8 + b'!',
        0xfe64 => b'<',
        0xfe65 => b'>',
        _ => return 0,
    };
    // Quotes of prose stay what they are: ’ is an apostrophe in every word processor.
    if matches!(code, 0x2018..=0x201f | 0x2032 | 0x2033) {
        return 0;
    }
    out.push(byte);
    length
}

fn push(code: u32, out: &mut Vec<u8>) {
    if code == 0 {
        return;
    }
    match char::from_u32(code) {
        Some(character) => out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes()),
        // Half of a pair says nothing that is looked for.
        None => out.push(b'?'),
    }
}

fn hex(digits: Option<&[u8]>) -> Option<u32> {
    let digits = digits.filter(|digits| !digits.is_empty())?;
    digits.iter().try_fold(0, |code: u32, digit| Some(code << 4 | u32::from(nibble(*digit)?)))
}

pub(super) fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(value: &[u8], expected: &str) {
        let decoded = round(value).map(|decoded| String::from_utf8_lossy(&decoded).into_owned());
        assert_eq!(decoded.as_deref(), Some(expected), "{:?}", String::from_utf8_lossy(value));
    }

    #[test]
    fn each_encoding_is_undone() {
        check(b"%27 or %u0027", "' or '");
        check(b"%2527", "%27");
        check(b"&lt;a&#62;&#x3C;b&gt &apos;&#0000060", "<a><b> '<");
        check(b"java&Tab;script&colon;x", "java\tscript:x");
        check(br"\u003cscript\x3e\74\u{3c}", "<script><<");
        check(b"+ADw-script+AD4-x", "<script>x");
        check(b"+AFU-NION +AFMARQ-LECT", "UNION SELECT");
        check("a\u{3000}b\u{feff}c\u{202f}d\u{1680}e".as_bytes(), "a b c d e");
        check(b"\xc0\xbcscript\xc0\xbe \xe0\x80\xa7 \xf0\x80\x80\xbc", "<script> ' <");
        check("＜script＞ ＇".as_bytes(), "<script> '");
        check(b"scr\0ipt", "script");
        check(b"a%00b", "ab");
        check("a\u{a0}b".as_bytes(), "a b");
    }

    #[test]
    fn what_is_no_encoding_stays() {
        for value in [
            "100% of it",
            "a & b &c",
            "C:\\Users\\1",
            "1 + 1",
            "+353 1",
            "it’s “so”",
            "é ü ñ",
            "&copy=1",
            "\\d+\\w",
            "AB+AC",
            "1+ABC",
            "a+AGAINST",
            "日本語。かな",
            "%zz%u12",
        ] {
            assert_eq!(round(value.as_bytes()), None, "{value}");
        }
    }

    #[test]
    fn forms_decode_plus() {
        assert_eq!(form(b"a+b%20c%2Bd%").as_ref(), b"a b c+d%");
        assert_eq!(form(b"plain").as_ref(), b"plain");
    }

    proptest! {
        #[test]
        fn any_bytes_decode_to_no_more_than_they_were(value in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Some(decoded) = round(&value) {
                prop_assert!(decoded.len() <= value.len());
            }
            prop_assert!(form(&value).len() <= value.len());
        }

        #[test]
        fn marks_of_all_kinds_are_survived(value in "([%&\\\\+]|#|x|u|[0-9a-f]|\\{|\\}|;|A|-){0,60}") {
            if let Some(decoded) = round(value.as_bytes()) {
                prop_assert!(decoded.len() <= value.len());
            }
        }
    }
}
