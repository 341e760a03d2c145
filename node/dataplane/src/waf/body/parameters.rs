//! What stands before and behind the semicolons of a field such as `content-type`, and whether all who read it agree.

use crate::l7::head;

/// A field, taken apart.
#[derive(Debug, Default)]
pub(super) struct Parameters {
    /// Before the first semicolon, in lower case.
    pub(super) first: Vec<u8>,
    /// Names in lower case, values without their quotes.
    all: Vec<(Vec<u8>, Vec<u8>)>,
    /// By the grammar (RFC 9110, section 5.6.6) it is none, so readers differ.
    pub(super) is_broken: bool,
    /// A space stands beside an equals sign: some take it for a part of the name.
    pub(super) is_spaced: bool,
    /// A value has no quotes that should have them: readers differ in its end.
    pub(super) is_loose: bool,
    /// A quote is escaped, which is the end of its value to some.
    pub(super) is_escaped: bool,
    /// An apostrophe stands outside of quotes, which is a quote to some. Not those two that an extended value has
    /// (RFC 8187): there it ends where it begins to them.
    pub(super) has_apostrophe: bool,
    /// Before `filename` stands anything but a semicolon and one space.
    pub(super) is_crowded: bool,
}

impl Parameters {
    pub(super) fn of(field: &[u8]) -> Self {
        let end = memchr::memchr(b';', field).unwrap_or(field.len());
        let first = field[..end].trim_ascii().to_ascii_lowercase();
        let has_apostrophe = first.contains(&b'\'');
        let mut parameters = Self { first, has_apostrophe, ..Self::default() };
        let mut rest = field.get(end + 1..).unwrap_or_default().trim_ascii_end();
        while !rest.is_empty() {
            rest = parameters.one(rest);
        }
        parameters
    }

    /// Takes what stands before the next semicolon.
    fn one<'a>(&mut self, from: &'a [u8]) -> &'a [u8] {
        let rest = from.trim_ascii_start();
        let space = &from[..from.len() - rest.len()];
        let end = memchr::memchr2(b'=', b';', rest).unwrap_or(rest.len());
        let name = rest[..end].trim_ascii();
        let has_value = rest.get(end) == Some(&b'=');
        self.has_apostrophe |= name.contains(&b'\'');
        self.is_crowded |= has_value && space != b" " && name.eq_ignore_ascii_case(b"filename");
        self.is_broken |= !is_token(name) && (has_value || !name.is_empty());
        if !has_value {
            return rest.get(end + 1..).unwrap_or_default();
        }
        let after = rest[end + 1..].trim_ascii_start();
        self.is_spaced |= name.len() < end || after.len() < rest.len() - end - 1;
        let (value, rest) = match after.strip_prefix(b"\"") {
            Some(quoted) => self.quoted(quoted),
            None => {
                let end = memchr::memchr(b';', after).unwrap_or(after.len());
                let value = after[..end].trim_ascii();
                self.is_loose |= !value.iter().all(|byte| is_plain(*byte));
                let apostrophes = memchr::memchr_iter(b'\'', value).count();
                self.has_apostrophe |= apostrophes > 0 && !(apostrophes == 2 && name.ends_with(b"*"));
                (value.to_vec(), &after[end..])
            }
        };
        self.all.push((name.to_ascii_lowercase(), value));
        rest.get(1..).unwrap_or_default()
    }

    /// Behind the first quote; with what follows, from the semicolon on.
    fn quoted<'a>(&mut self, text: &'a [u8]) -> (Vec<u8>, &'a [u8]) {
        let mut out = Vec::new();
        let mut at = 0;
        while let Some(byte) = text.get(at) {
            match byte {
                b'"' => {
                    let rest = &text[at + 1..];
                    let next = memchr::memchr(b';', rest).unwrap_or(rest.len());
                    self.is_broken |= !rest[..next].trim_ascii().is_empty();
                    return (out, &rest[next..]);
                }
                b'\\' if text.get(at + 1).is_some_and(|next| matches!(next, b'"' | b'\\')) => {
                    self.is_escaped = true;
                    out.push(text[at + 1]);
                    at += 1;
                }
                byte => out.push(*byte),
            }
            at += 1;
        }
        self.is_broken = true;
        (out, &[])
    }

    pub(super) fn get(&self, name: &[u8]) -> Option<&[u8]> {
        self.each(name).next()
    }

    pub(super) fn each(&self, name: &[u8]) -> impl Iterator<Item = &[u8]> {
        self.all.iter().filter(move |(known, _)| known == name).map(|(_, value)| &**value)
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &[u8]> {
        self.all.iter().map(|(name, _)| &**name)
    }

    /// Whether those to whom an escaped quote is a quote may find another parameter of this name, in a value.
    pub(super) fn may_hide(&self, wanted: &[u8]) -> bool {
        let has = |value: &[u8]| memchr::memmem::find(&value.to_ascii_lowercase(), wanted).is_some();
        self.is_escaped && self.all.iter().any(|(name, value)| name != wanted && has(value))
    }

    /// The first counts for some, the last for others.
    pub(super) fn has_one_twice(&self) -> bool {
        let mut names: Vec<_> = self.names().collect();
        names.sort_unstable();
        names.windows(2).any(|pair| pair[0] == pair[1])
    }
}

pub(super) fn is_token(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(|byte| head::is_token(*byte))
}

/// Of values without quotes: those of tokens, and more that clients leave without.
fn is_plain(byte: u8) -> bool {
    byte > b' ' && byte != 0x7f && !b"\",;\\".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_names_and_doubts() {
        let of = Parameters::of(b"Form-Data ; Name=\"a;b\";;x; filename=c d");
        assert_eq!(of.first, b"form-data");
        assert_eq!(of.get(b"name"), Some(b"a;b".as_slice()));
        assert_eq!(of.get(b"filename"), Some(b"c d".as_slice()));
        assert!(of.is_loose && !of.is_broken && !of.is_spaced && !of.has_one_twice());
        for (field, is_broken, is_spaced, is_loose) in [
            ("a/b", false, false, false),
            ("a/b;", false, false, false),
            ("a/b; utf-8; c=----=_d/e", false, false, false),
            ("a/b;c/d", true, false, false),
            ("a/b; c=\"d", true, false, false),
            ("a/b; c=\"d\"e", true, false, false),
            ("a/b; c =d", false, true, false),
            ("a/b; c= d", false, true, false),
            ("a/b; c=d, e/f", false, false, true),
            ("a/b; =d", true, false, false),
        ] {
            let of = Parameters::of(field.as_bytes());
            assert_eq!(
                (of.is_broken, of.is_spaced, of.is_loose),
                (is_broken, is_spaced, is_loose),
                "{field}"
            );
        }
        assert!(Parameters::of(b"a; b=c; B=d").has_one_twice());
        let escaped = Parameters::of(br#"a/b; c="d; e=\"f\"""#);
        assert_eq!(escaped.get(b"c"), Some(br#"d; e="f""#.as_slice()));
        assert!(escaped.is_escaped && escaped.may_hide(b"e") && !escaped.may_hide(b"boundary"));
    }
}
