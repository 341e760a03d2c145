//! Decoders: of URLs, HTML, CSS, JavaScript and SQL.

/// The value of a hexadecimal digit.
fn digit(byte: Option<&u8>) -> Option<u32> {
    byte.and_then(|byte| char::from(*byte).to_digit(16))
}

/// Of `count` digits at the beginning.
fn digits(text: &[u8], count: usize) -> Option<u32> {
    (0..count).try_fold(0, |value, at| Some(value << 4 | digit(text.get(at))?))
}

/// As many hexadecimal digits as are there, at most `most`: value and count.
fn up_to(text: &[u8], most: usize) -> (u32, usize) {
    let count = text.iter().take(most).take_while(|byte| byte.is_ascii_hexdigit()).count();
    (digits(text, count).unwrap_or(0), count)
}

/// What a code point becomes in one byte: full-width forms become what they look like.
fn byte_of(code: u32) -> u8 {
    let low = (code & 0xff) as u8;
    if code & 0xff00 == 0xff00 && (1..0x5f).contains(&low) { low.wrapping_add(0x20) } else { low }
}

fn behind(text: &[u8], count: usize) -> &[u8] {
    text.get(count..).unwrap_or_default()
}

pub(super) fn url(value: &[u8], uni: bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(value.len());
    let mut rest = value;
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        match first {
            b'+' => out.push(b' '),
            b'%' if uni && matches!(after.first(), Some(b'u' | b'U')) => match digits(behind(after, 1), 4) {
                Some(code) => {
                    out.push(byte_of(code));
                    rest = behind(after, 5);
                }
                None => out.push(b'%'),
            },
            b'%' => match digits(after, 2) {
                Some(code) => {
                    out.push(code as u8);
                    rest = behind(after, 2);
                }
                None => out.push(b'%'),
            },
            byte => out.push(*byte),
        }
    }
    out
}

pub(super) fn html(value: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(value.len());
    let mut rest = value;
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first != b'&' {
            out.push(*first);
            continue;
        }
        let (byte, used) = match after {
            [b'#', b'x' | b'X', digits @ ..] => match up_to(digits, 6) {
                (_, 0) => (None, 0),
                (code, count) => (Some(code as u8), count + 2),
            },
            [b'#', digits @ ..] => {
                let count = digits.iter().take(7).take_while(|byte| byte.is_ascii_digit()).count();
                let code =
                    digits.iter().take(count).fold(0u32, |code, byte| code * 10 + u32::from(byte - b'0'));
                if count == 0 { (None, 0) } else { (Some(code as u8), count + 1) }
            }
            text => named(text),
        };
        match byte {
            Some(byte) => {
                out.push(byte);
                rest = behind(after, used);
                rest = rest.strip_prefix(b";").unwrap_or(rest);
            }
            None => out.push(b'&'),
        }
    }
    out
}

fn named(text: &[u8]) -> (Option<u8>, usize) {
    let count = text.iter().take(8).take_while(|byte| byte.is_ascii_alphanumeric()).count();
    let name = text.get(..count).unwrap_or_default().to_ascii_lowercase();
    let byte = match name.as_slice() {
        b"quot" => b'"',
        b"amp" => b'&',
        b"lt" => b'<',
        b"gt" => b'>',
        b"nbsp" => 0xa0,
        b"apos" => b'\'',
        b"tab" => b'\t',
        b"newline" => b'\n',
        b"colon" => b':',
        b"lpar" => b'(',
        b"rpar" => b')',
        _ => return (None, 0),
    };
    (Some(byte), count)
}

pub(super) fn css(value: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(value.len());
    let mut rest = value;
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first != b'\\' {
            out.push(*first);
            continue;
        }
        match (up_to(after, 6), after.first()) {
            ((code, count), _) if count > 0 => {
                out.push(if (4..=6).contains(&count) { byte_of(code) } else { code as u8 });
                rest = behind(after, count);
                // One blank ends the digits.
                if let Some((b' ' | b'\t' | b'\r' | b'\n' | 0x0c, behind)) = rest.split_first() {
                    rest = behind;
                }
            }
            (_, Some(b'\n')) => rest = behind(after, 1),
            (_, Some(byte)) => {
                out.push(*byte);
                rest = behind(after, 1);
            }
            (_, None) => {}
        }
    }
    out
}

pub(super) fn js(value: &[u8]) -> Vec<u8> {
    escaped(value, true)
}

pub(super) fn escapes(value: &[u8]) -> Vec<u8> {
    escaped(value, false)
}

/// With `\uHHHH` in scripts.
fn escaped(value: &[u8], script: bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(value.len());
    let mut rest = value;
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first != b'\\' {
            out.push(*first);
            continue;
        }
        let octal = after.iter().take(3).take_while(|byte| matches!(byte, b'0'..=b'7')).count();
        // At most 255.
        let octal = if octal == 3 && after.first() > Some(&b'3') { 2 } else { octal };
        let (byte, used) = match after.first() {
            Some(b'u') if script => match digits(behind(after, 1), 4) {
                Some(code) => (byte_of(code), 5),
                None => (b'u', 1),
            },
            Some(b'x') => match digits(behind(after, 1), 2) {
                Some(code) => (code as u8, 3),
                None => (b'x', 1),
            },
            Some(b'0'..=b'7') => {
                let code =
                    after.iter().take(octal).fold(0u32, |code, byte| code << 3 | u32::from(byte - b'0'));
                (code as u8, octal)
            }
            Some(b'a') => (7, 1),
            Some(b'b') => (8, 1),
            Some(b'f') => (12, 1),
            Some(b'n') => (b'\n', 1),
            Some(b'r') => (b'\r', 1),
            Some(b't') => (b'\t', 1),
            Some(b'v') => (11, 1),
            Some(byte) => (*byte, 1),
            None => (b'\\', 0),
        };
        out.push(byte);
        rest = behind(after, used);
    }
    out
}

/// `0x4142` as the text that databases read in it.
pub(super) fn sql_hex(value: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(value.len());
    let mut rest = value;
    while let Some((first, after)) = rest.split_first() {
        let count = match rest {
            [b'0', b'x' | b'X', hex @ ..] => {
                hex.iter().take_while(|byte| byte.is_ascii_hexdigit()).count() & !1
            }
            _ => 0,
        };
        if count == 0 {
            out.push(*first);
            rest = after;
            continue;
        }
        let hex = rest.get(2..2 + count).unwrap_or_default();
        out.extend(hex.chunks_exact(2).map(|pair| digits(pair, 2).unwrap_or(0) as u8));
        rest = behind(rest, 2 + count);
    }
    out
}

/// Characters beyond ASCII as `%uHHHH`, also where they are longer than they need be.
pub(super) fn utf8_to_unicode(value: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(value.len() * 2);
    let mut rest = value;
    while let Some((first, after)) = rest.split_first() {
        let count = match first {
            0xc0..=0xdf => 1,
            0xe0..=0xef => 2,
            0xf0..=0xf7 => 3,
            _ => 0,
        };
        let tail = after.get(..count).filter(|tail| count > 0 && tail.iter().all(|byte| byte & 0xc0 == 0x80));
        match tail {
            Some(tail) => {
                let head = u32::from(*first) & (0x3f >> count);
                let code = tail.iter().fold(head, |code, byte| code << 6 | u32::from(byte & 0x3f));
                out.extend(format!("%u{:04x}", code & 0xf_ffff).into_bytes());
                rest = behind(after, count);
            }
            None => {
                out.push(*first);
                rest = after;
            }
        }
    }
    out
}
