//! The blocks of a key file: `-----BEGIN LABEL-----`, base64, `-----END LABEL-----`. What stands between
//! blocks is a comment.
//!
//! A reader of our own, since two of the labels are: PEM readers skip what they don't know, and here nothing
//! may be skipped. Whatever holds secrets is wiped.

use zeroize::Zeroizing;

use super::key::KeyError;

const LINE: usize = 64;
const BASE64: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

pub(super) type Secret = Zeroizing<Vec<u8>>;

pub(super) fn block(label: &str, data: &[u8]) -> Zeroizing<String> {
    let encoded = encode(data);
    // Room for all of it: a text that grows leaves pieces behind.
    let room = encoded.len() + encoded.len() / LINE + 2 * label.len() + 64;
    let mut text = Zeroizing::new(String::with_capacity(room));
    text.push_str(&format!("-----BEGIN {label}-----\n"));
    let mut rest = encoded.as_str();
    while !rest.is_empty() {
        let (line, tail) = rest.split_at(rest.len().min(LINE));
        text.push_str(line);
        text.push('\n');
        rest = tail;
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}

/// All blocks in their order, by one of these labels.
pub(super) fn blocks(text: &str, labels: &[&'static str]) -> Result<Vec<(&'static str, Secret)>, KeyError> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some((label, after)) = next_begin(rest) {
        let known = labels.iter().copied().find(|known| *known == label);
        let known = known.ok_or_else(|| {
            let shown: String = label.chars().take(40).collect();
            KeyError::Damaged(format!("unexpected block {shown:?}"))
        })?;
        let (body, tail) = after
            .split_once(&format!("-----END {known}-----"))
            .ok_or_else(|| KeyError::Damaged(format!("{known} does not end")))?;
        let bytes = decode(body).ok_or_else(|| KeyError::Damaged(format!("{known} is not base64")))?;
        found.push((known, bytes));
        rest = tail;
    }
    Ok(found)
}

/// The next block's label, and what comes after its first line.
fn next_begin(text: &str) -> Option<(&str, &str)> {
    let (_, after) = text.split_once("-----BEGIN ")?;
    let line = after.lines().next().unwrap_or_default();
    Some((line.trim_end().trim_end_matches("-----"), &after[line.len()..]))
}

pub(super) fn encode(data: &[u8]) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::with_capacity(data.len().div_ceil(3) * 4));
    for chunk in data.chunks(3) {
        let word =
            chunk.iter().fold(0u32, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for place in 0..4 {
            let six = (word >> (18 - 6 * place)) as usize & 63;
            text.push(if place <= chunk.len() { BASE64[six] as char } else { '=' });
        }
    }
    text
}

fn decode(text: &str) -> Option<Secret> {
    let mut symbols: Secret = Zeroizing::new(Vec::with_capacity(text.len()));
    symbols.extend(text.bytes().filter(|b| !b.is_ascii_whitespace()));
    if symbols.is_empty() || !symbols.len().is_multiple_of(4) {
        return None;
    }
    let padding = symbols.iter().rev().take_while(|b| **b == b'=').count();
    if padding > 2 {
        return None;
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(symbols.len() / 4 * 3));
    let digits = &symbols[..symbols.len() - padding];
    for group in digits.chunks(4) {
        let mut word = 0u32;
        for symbol in group {
            let six = BASE64.iter().position(|b| b == symbol)?;
            word = word << 6 | six as u32;
        }
        word <<= 6 * (4 - group.len());
        bytes.extend_from_slice(&word.to_be_bytes()[1..group.len()]);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn any_bytes_survive_base64(data in proptest::collection::vec(proptest::num::u8::ANY, 1..200)) {
            proptest::prop_assert_eq!(decode(&encode(&data)), Some(Zeroizing::new(data)));
        }

        #[test]
        fn any_blocks_are_read_back(data in proptest::collection::vec(proptest::num::u8::ANY, 1..200)) {
            let text = format!("# a comment\n{}between\n{}", *block("A", &data), *block("B", &data));
            let read = blocks(&text, &["A", "B"]).unwrap();
            proptest::prop_assert_eq!(&read, &[("A", Zeroizing::new(data.clone())), ("B", Zeroizing::new(data))]);
            proptest::prop_assert!(blocks(&text, &["A"]).is_err());
        }

        #[test]
        fn no_text_makes_it_panic(text in "(-----BEGIN |-----END |A-----|\\PC|\n){0,30}") {
            let _ = blocks(&text, &["A"]);
        }
    }
}
