//! What rules hold a value against: operators (`@rx`, `@pm`, ...).

use std::collections::BTreeMap;
use std::ops::Range;

use aho_corasick::AhoCorasick;
use ipnet::IpNet;

use crate::pattern::{Pattern, required};
use crate::variable::Text;

/// Bytes of a value that libinjection reads: it looks at the beginning only, and is slow.
const WINDOW: usize = 4 << 10;

#[derive(Clone, Debug)]
pub(crate) enum Operator {
    /// `SecAction`, `@unconditionalMatch`.
    Always,
    /// What needs somebody else's answer (`@rbl`, `@geoLookup`) finds nothing.
    Never,
    Rx(Pattern),
    /// With something to fill in.
    RxOf(Text),
    Pm(Box<AhoCorasick>),
    Holds(Relation, Text),
    Compares(Order, Text),
    IpMatch(Vec<IpNet>),
    /// Bytes that may be there.
    Bytes(Box<[bool; 256]>),
    UrlEncoding,
    Utf8,
    Sqli,
    Xss,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Relation {
    Equals,
    Contains,
    ContainsWord,
    Begins,
    Ends,
    /// The value stands in the text.
    Within,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
}

/// An operator, read.
#[derive(Debug)]
pub(crate) struct Read {
    pub(crate) operator: Operator,
    pub(crate) negated: bool,
    /// Words of which a value that fits has at least one.
    pub(crate) words: Option<Vec<Vec<u8>>>,
}

/// `lists` has what `@pmFromFile` reads.
pub(crate) fn read(text: &str, lists: &BTreeMap<&str, &str>) -> Result<Read, String> {
    let text = text.trim_start();
    let (negated, text) = match text.strip_prefix('!') {
        Some(text) if text.trim_start().starts_with('@') => (true, text.trim_start()),
        // Without a name it is a pattern, also a negated one.
        Some(text) => (true, text),
        None => (false, text),
    };
    let Some(named) = text.strip_prefix('@') else {
        return pattern(text, negated);
    };
    let (name, argument) = named.split_once(char::is_whitespace).unwrap_or((named, ""));
    let argument_of = || Text::new(argument.trim());
    let list_of = || -> Result<String, String> {
        let mut all = String::new();
        for name in argument.split_whitespace() {
            let list = lists.get(name).ok_or_else(|| format!("the list `{name}` did not come along"))?;
            all.push_str(list);
            all.push('\n');
        }
        Ok(all)
    };
    let mut words = None;
    let operator = match name.to_ascii_lowercase().as_str() {
        "rx" => return pattern(argument, negated),
        "pm" => {
            let (pm, of) = pm(argument.split_whitespace().map(unescaped))?;
            words = Some(of);
            pm
        }
        "pmfromfile" | "pmf" => {
            let list = list_of()?;
            let lines = list.lines().map(str::trim_start).filter(|line| !line.starts_with('#'));
            let (pm, of) = pm(lines.map(|line| line.trim_end_matches('\r').as_bytes().to_vec()))?;
            words = Some(of);
            pm
        }
        "streq" => Operator::Holds(Relation::Equals, argument_of()?),
        "contains" | "strmatch" => Operator::Holds(Relation::Contains, argument_of()?),
        "containsword" => Operator::Holds(Relation::ContainsWord, argument_of()?),
        "beginswith" => Operator::Holds(Relation::Begins, argument_of()?),
        "endswith" => Operator::Holds(Relation::Ends, argument_of()?),
        "within" => Operator::Holds(Relation::Within, argument_of()?),
        "eq" => Operator::Compares(Order::Eq, numeric(argument)?),
        "ne" => Operator::Compares(Order::Ne, numeric(argument)?),
        "lt" => Operator::Compares(Order::Lt, numeric(argument)?),
        "le" => Operator::Compares(Order::Le, numeric(argument)?),
        "gt" => Operator::Compares(Order::Gt, numeric(argument)?),
        "ge" => Operator::Compares(Order::Ge, numeric(argument)?),
        "ipmatch" => networks(argument)?,
        "ipmatchfromfile" | "ipmatchf" => {
            let list = list_of()?;
            let lines = list.lines().map(|line| line.split('#').next().unwrap_or_default());
            networks(&lines.collect::<Vec<_>>().join(","))?
        }
        "validatebyterange" => Operator::Bytes(bytes(argument)?),
        "validateurlencoding" => Operator::UrlEncoding,
        "validateutf8encoding" => Operator::Utf8,
        "detectsqli" => Operator::Sqli,
        "detectxss" => Operator::Xss,
        "unconditionalmatch" => Operator::Always,
        "nomatch" | "rbl" | "geolookup" | "gsblookup" => Operator::Never,
        _ => return Err(format!("there is no operator `@{name}` here")),
    };
    Ok(Read { operator, negated, words: words.filter(|_| !negated) })
}

/// A number, or what variables make one of.
fn numeric(argument: &str) -> Result<Text, String> {
    let is_number = argument.trim().parse::<i64>().is_ok();
    if is_number || argument.contains("%{") {
        Text::new(argument.trim())
    } else {
        Err(format!("{argument:?} is no number to compare with"))
    }
}

fn pattern(text: &str, negated: bool) -> Result<Read, String> {
    let filled = Text::new(text);
    // A pattern may have braces behind a percent sign for other reasons.
    if let Ok(text) = filled
        && text.plain().is_none()
    {
        return Ok(Read { operator: Operator::RxOf(text), negated, words: None });
    }
    let words = if negated { None } else { required(text) };
    Ok(Read { operator: Operator::Rx(Pattern::new(text)?), negated, words })
}

/// `|41 42|` in a word are bytes.
fn unescaped(word: &str) -> Vec<u8> {
    let mut out = Vec::new();
    for (at, part) in word.split('|').enumerate() {
        let bytes: Option<Vec<u8>> = match at % 2 {
            0 => None,
            _ => part.split(' ').map(|hex| u8::from_str_radix(hex, 16).ok()).collect(),
        };
        match bytes {
            Some(bytes) => out.extend(bytes),
            None if at % 2 == 1 => out.extend(format!("|{part}|").into_bytes()),
            None => out.extend(part.as_bytes()),
        }
    }
    out
}

fn pm(words: impl Iterator<Item = Vec<u8>>) -> Result<(Operator, Vec<Vec<u8>>), String> {
    let words: Vec<Vec<u8>> =
        words.filter(|word| !word.is_empty()).map(|word| word.to_ascii_lowercase()).collect();
    if words.is_empty() {
        return Err("there are no words to look for".to_owned());
    }
    let built =
        AhoCorasick::builder().ascii_case_insensitive(true).build(&words).map_err(|e| e.to_string())?;
    Ok((Operator::Pm(Box::new(built)), words))
}

fn networks(text: &str) -> Result<Operator, String> {
    let network = |part: &str| {
        let network = part.parse::<IpNet>().or_else(|_| part.parse::<std::net::IpAddr>().map(IpNet::from));
        network.map_err(|_| format!("`{part}` is no address and no network"))
    };
    let parts = text.split([',', ' ', '\n', '\t']).map(str::trim).filter(|part| !part.is_empty());
    parts.map(network).collect::<Result<_, _>>().map(Operator::IpMatch)
}

fn bytes(text: &str) -> Result<Box<[bool; 256]>, String> {
    let mut allowed = Box::new([false; 256]);
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (Ok(first), Ok(last)) = (first.trim().parse::<u8>(), last.trim().parse::<u8>()) else {
            return Err(format!("`{part}` is no byte and no range of them"));
        };
        for (byte, allowed) in (0..=255u8).zip(allowed.iter_mut()) {
            *allowed |= (first..=last).contains(&byte);
        }
    }
    Ok(allowed)
}

/// As C's `atoi` reads it.
pub(crate) fn number(text: &[u8]) -> i64 {
    let text = text.trim_ascii_start();
    let (negative, digits) = match text.split_first() {
        Some((b'-', digits)) => (true, digits),
        Some((b'+', digits)) => (false, digits),
        _ => (false, text),
    };
    let digits = digits.iter().take_while(|byte| byte.is_ascii_digit());
    let value =
        digits.fold(0i64, |value, byte| value.saturating_mul(10).saturating_add(i64::from(byte - b'0')));
    if negative { -value } else { value }
}

impl Order {
    pub(crate) fn holds(self, value: &[u8], text: &[u8]) -> bool {
        let (value, text) = (number(value), number(text));
        match self {
            Self::Eq => value == text,
            Self::Ne => value != text,
            Self::Lt => value < text,
            Self::Le => value <= text,
            Self::Gt => value > text,
            Self::Ge => value >= text,
        }
    }
}

impl Relation {
    pub(crate) fn find(self, value: &[u8], text: &[u8]) -> Option<Range<usize>> {
        match self {
            Self::Equals => (value == text).then_some(0..value.len()),
            Self::Contains => memchr::memmem::find(value, text).map(|at| at..at + text.len()),
            Self::ContainsWord => {
                memchr::memmem::find_iter(value, text).map(|at| at..at + text.len()).find(|found| {
                    let is_word =
                        |byte: Option<&u8>| byte.is_some_and(|b| b.is_ascii_alphanumeric() || *b == b'_');
                    !is_word(found.start.checked_sub(1).and_then(|at| value.get(at)))
                        && !is_word(value.get(found.end))
                })
            }
            Self::Begins => value.starts_with(text).then_some(0..text.len()),
            Self::Ends => value.ends_with(text).then(|| value.len() - text.len()..value.len()),
            Self::Within => {
                (value.is_empty() || memchr::memmem::find(text, value).is_some()).then_some(0..value.len())
            }
        }
    }
}

/// Where a value holds a byte that it must not.
pub(crate) fn odd_byte(value: &[u8], allowed: &[bool; 256]) -> Option<Range<usize>> {
    let odd = |byte: &u8| !allowed.get(usize::from(*byte)).copied().unwrap_or(false);
    value.iter().position(odd).map(|at| at..at + 1)
}

/// Where a percent sign is not followed by two digits.
pub(crate) fn odd_encoding(value: &[u8]) -> Option<Range<usize>> {
    let odd = |at: &usize| {
        let digits = value.get(at + 1..at + 3).unwrap_or_default();
        digits.len() < 2 || !digits.iter().all(u8::is_ascii_hexdigit)
    };
    memchr::memchr_iter(b'%', value).find(odd).map(|at| at..at + 1)
}

pub(crate) fn odd_utf8(value: &[u8]) -> Option<Range<usize>> {
    let at = std::str::from_utf8(value).err()?.valid_up_to();
    Some(at..at + 1)
}

/// The fingerprint by which libinjection knows it.
pub(crate) fn sqli(value: &[u8]) -> Option<String> {
    let window = value.get(..WINDOW).unwrap_or(value);
    let result = libinjectionrs::detect_sqli(window);
    result.is_injection().then(|| result.fingerprint.map_or_else(String::new, |print| print.to_string()))
}

pub(crate) fn xss(value: &[u8]) -> bool {
    libinjectionrs::detect_xss(value).is_injection()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<Read, String> {
        read(
            text,
            &BTreeMap::from([("words.data", "# c\nOne two\n\nthree\n"), ("nets", "192.0.2.0/24 # x\n")]),
        )
    }

    #[test]
    fn operators_are_read() {
        let pm = of("@pmFromFile words.data").unwrap();
        assert_eq!(pm.words.unwrap(), [b"one two".to_vec(), b"three".to_vec()]);
        assert!(matches!(
            of("!@eq 0").unwrap(),
            Read { operator: Operator::Compares(Order::Eq, _), negated: true, .. }
        ));
        assert!(matches!(of("^a$").unwrap().operator, Operator::Rx(_)));
        assert!(matches!(of("@rx ^%{tx.a}$").unwrap().operator, Operator::RxOf(_)));
        assert!(
            matches!(of("@ipMatchFromFile nets").unwrap().operator, Operator::IpMatch(nets) if nets.len() == 1)
        );
        for (bad, why) in [
            ("@pmFromFile gone", "did not come along"),
            ("@pm", "no words"),
            ("@inspectFile /x", "no operator `@inspectFile`"),
            ("@ipMatch x", "`x` is no address"),
            ("@validateByteRange 1-999", "`1-999`"),
            ("@rx (", "unclosed group"),
            ("@streq %{nope}", "`nope`"),
        ] {
            let told = of(bad).unwrap_err();
            assert!(told.contains(why), "{bad}: {told}");
        }
    }

    #[test]
    fn values_are_held_against_texts() {
        assert_eq!(
            (number(b" 12x"), number(b"-3"), number(b"x"), number(b"99999999999999999999")),
            (12, -3, 0, i64::MAX)
        );
        assert!(Relation::ContainsWord.find(b"a or b", b"or").is_some());
        assert!(Relation::ContainsWord.find(b"aor b", b"or").is_none());
        assert!(Relation::Within.find(b"|a|", b"|a| |b|").is_some());
        assert_eq!(odd_encoding(b"a%20%zz"), Some(4..5));
        assert_eq!(odd_encoding(b"a%2"), Some(1..2));
        assert_eq!(odd_utf8(b"a\xff"), Some(1..2));
        assert_eq!(odd_byte(b"a\0", &bytes("1-255").unwrap()), Some(1..2));
        assert!(sqli(b"1' or '1'='1").is_some() && sqli(b"hello").is_none());
        assert!(xss(b"<script>") && !xss(b"hello"));
        assert_eq!(unescaped("a|41 42|b"), b"aABb");
    }
}
