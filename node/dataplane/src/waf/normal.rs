//! Values as patterns read them: lower case, with spaces that are all the same.

use super::rules::Text;

/// Lower case, and runs of white space and control characters as one space ([`Text::Spaced`]) or none
/// ([`Text::Tight`]). `out` is emptied first.
pub(super) fn fold(value: &[u8], text: Text, out: &mut Vec<u8>) {
    out.clear();
    out.reserve(value.len());
    for (at, byte) in value.iter().enumerate() {
        match *byte {
            0..=b' ' | 0x7f | NO_BREAK if *byte != NO_BREAK || is_lone(value, at) => {
                if text == Text::Spaced && out.last() != Some(&b' ') {
                    out.push(b' ');
                }
            }
            _ => out.push(byte.to_ascii_lowercase()),
        }
    }
}

/// The no-break space of Latin-1, and a part of many a character of UTF-8.
pub(super) const NO_BREAK: u8 = 0xa0;

/// Whether the byte [`NO_BREAK`] that stands here is no part of a character of UTF-8: databases take it for a space.
pub(super) fn is_lone(value: &[u8], at: usize) -> bool {
    let begins = |from: usize| {
        let length = match value[from] {
            0xc2..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xf4 => 4,
            _ => 0,
        };
        let character = value.get(from..from + length).filter(|_| from + length > at);
        character.is_some_and(|bytes| std::str::from_utf8(bytes).is_ok())
    };
    !(at.saturating_sub(3)..at).any(begins)
}

/// Without the comments of SQL, each of which is a space; what MySQL runs all the same (`/*!50000 ... */`) stays.
/// Comments to the end of a line end only where there is one. False: there are none.
pub(super) fn uncomment(value: &[u8], out: &mut Vec<u8>) -> bool {
    out.clear();
    let mut rest = value;
    let mut changed = false;
    // Where the last line begins; nothing there ends at its end.
    let last = memchr::memrchr(b'\n', value).map_or(0, |end| end + 1);
    while let Some(byte) = rest.first() {
        let has_end = value.len() - rest.len() < last;
        let taken = match rest {
            [b'/', b'*', b'!', ..] => {
                let digits = rest[3..].iter().take(6).take_while(|digit| digit.is_ascii_digit()).count();
                3 + digits
            }
            [b'/', b'*', ..] => memchr::memmem::find(&rest[2..], b"*/").map_or(0, |end| end + 4),
            [b'*', b'/', ..] => 2,
            [b'-', b'-', ..] | [b'#', ..] if has_end => memchr::memchr(b'\n', rest).map_or(0, |end| end + 1),
            _ => 0,
        };
        if taken == 0 {
            out.push(*byte);
            rest = &rest[1..];
            if byte == &b'/' && rest.first() == Some(&b'*') {
                // One that does not end; nor does any after it.
                out.extend_from_slice(rest);
                break;
            }
        } else {
            changed = true;
            out.push(b' ');
            rest = &rest[taken..];
        }
    }
    changed
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn spaced(value: &str) -> String {
        let (mut plain, mut out) = (Vec::new(), Vec::new());
        let value = if uncomment(value.as_bytes(), &mut plain) { plain } else { value.into() };
        fold(&value, Text::Spaced, &mut out);
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn comments_are_spaces_and_spaces_are_one() {
        assert_eq!(spaced("1/**/UNION/*a*//*b*/SELECT"), "1 union select");
        assert_eq!(spaced("1 /*!50000UnIoN*/ /*!select*/ 2"), "1 union select 2");
        assert_eq!(spaced("union-- x\nselect#y\n1"), "union select 1");
        assert_eq!(spaced("a\t\r\n b"), "a b");
        assert_eq!(spaced("a'-- x"), "a'-- x");
        assert_eq!(spaced("a /* b"), "a /* b");
        assert_eq!(spaced("\u{e0} la\u{a0}b \u{2020}"), "\u{e0} la\u{a0}b \u{2020}");
        let mut out = Vec::new();
        fold(b"1\xa0union\xa0\xa0all \xc3\xa0\xa0", Text::Spaced, &mut out);
        assert_eq!(out, b"1 union all \xc3\xa0 ");
        fold(b"Java\t\x01Script:", Text::Tight, &mut out);
        assert_eq!(out, b"javascript:");
    }

    proptest! {
        #[test]
        fn any_bytes_get_no_longer(value in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut out = Vec::new();
            uncomment(&value, &mut out);
            prop_assert!(out.len() <= value.len());
            fold(&value, Text::Spaced, &mut out);
            prop_assert!(out.len() <= value.len());
        }
    }
}
