//! Which of the responses for one key fits a request (RFC 9111, section 4.1).
//!
//! A [`Spec`] is the set of request fields that responses for a key were said to vary by; it grows when a response names
//! another one. Values are brought into one form before they are compared, so that clients that mean the same share a
//! response: of `Accept-Encoding` only which codings are accepted, in the order of their names, `Accept-Language` in small
//! letters, in the order of its weights, and `Accept` without the space around its commas. Languages of one weight stay in
//! the order in which they stand: members may go by it (RFC 9110, section 12.5.4). All other fields count byte for byte: who
//! does not know that one is a list can't say what means the same, and would serve a response to those it is not for.
//!
//! Bounds: [`NAMES_MAX`] fields; [`VARIANTS_MAX`] variants of a key, of which the oldest goes for a new one. A response
//! that varies by more, by everything, or by what the proxy itself tells its members is not kept.

use http::header::{ACCEPT, ACCEPT_ENCODING, ACCEPT_LANGUAGE, HeaderName, VARY};
use http::{HeaderMap, HeaderValue};

use super::directives::cut;
use super::key::Secret;
use crate::l7::values::thousandths;

const NAMES_MAX: usize = 8;
pub(super) const VARIANTS_MAX: usize = 64;

/// Fields that members get from us, so that a client's own tell nothing; or that differ for each request.
const OURS: [&str; 9] = [
    "x-forwarded-for",
    "x-request-id",
    "traceparent",
    "tracestate",
    "via",
    "forwarded",
    "client-cert",
    "client-cert-chain",
    "te",
];

/// Fields that are in every key.
const IN_KEY: [&str; 4] = ["host", "x-forwarded-host", "x-forwarded-proto", "x-forwarded-port"];

/// What becomes of a client's field on its way to a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Sent,
    /// From no request does it get there: nobody can be told apart by it.
    Removed,
    Changed,
}

#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) struct Spec {
    names: Box<[HeaderName]>,
}

impl Spec {
    /// What a response varies by. `None`: it can't be told which requests it fits.
    pub(crate) fn of(response: &HeaderMap, fate: impl Fn(&HeaderName) -> Fate) -> Option<Self> {
        let mut names: Vec<HeaderName> = Vec::new();
        for line in response.get_all(VARY) {
            let listed = line.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
            for name in listed.filter(|name| !name.is_empty()) {
                let name = HeaderName::from_bytes(name).ok().filter(|name| name.as_str() != "*")?;
                let fate = fate(&name);
                if OURS.contains(&name.as_str()) || fate == Fate::Changed {
                    return None;
                }
                if fate == Fate::Sent && !IN_KEY.contains(&name.as_str()) && !names.contains(&name) {
                    names.push(name);
                }
            }
        }
        Self::sorted(names)
    }

    fn sorted(mut names: Vec<HeaderName>) -> Option<Self> {
        names.sort_unstable_by(|a, b| a.as_str().cmp(b.as_str()));
        (names.len() <= NAMES_MAX).then(|| Self { names: names.into() })
    }

    /// As it was written down. `None`: it can't have been.
    pub(super) fn of_names(names: Vec<HeaderName>) -> Option<Self> {
        Self::sorted(names)
    }

    pub(super) fn names(&self) -> &[HeaderName] {
        &self.names
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// What both vary by.
    pub(crate) fn with(&self, other: &Spec) -> Option<Self> {
        let more = other.names.iter().filter(|name| !self.names.contains(name));
        Self::sorted(self.names.iter().chain(more).cloned().collect())
    }

    /// Of the request with these fields, for what `key` is of.
    pub(crate) fn variant(&self, secret: &Secret, key: u128, request: &HeaderMap) -> u128 {
        let mut values = Vec::with_capacity(128);
        for name in &self.names {
            values.extend_from_slice(name.as_str().as_bytes());
            values.push(b':');
            write(name, request, &mut values);
            values.push(b'\n');
        }
        secret.variant(key, &values)
    }
}

/// The value of a field in its one form; nothing at all if it is absent.
fn write(name: &HeaderName, request: &HeaderMap, out: &mut Vec<u8>) {
    let mut lines = request.get_all(name).iter().map(HeaderValue::as_bytes).peekable();
    if lines.peek().is_none() {
        return;
    }
    out.push(b'=');
    if *name == ACCEPT_ENCODING {
        return codings(lines, out);
    }
    if *name == ACCEPT_LANGUAGE {
        return languages(lines, out);
    }
    if *name != ACCEPT {
        // With its length before it, so that no two sequences of lines are alike.
        return lines.for_each(|line| {
            out.extend_from_slice(&(line.len() as u64).to_le_bytes());
            out.extend_from_slice(line);
        });
    }
    let mut first = true;
    for mut rest in lines {
        while !rest.is_empty() {
            let (item, after) = cut(rest);
            rest = after;
            // Elements that are empty say nothing (RFC 9110, section 5.6.1.2).
            if item.trim_ascii().is_empty() {
                continue;
            }
            if !std::mem::replace(&mut first, false) {
                out.push(b',');
            }
            out.extend_from_slice(item.trim_ascii());
        }
    }
}

/// By weight, what is preferred first.
fn languages<'a>(lines: impl Iterator<Item = &'a [u8]>, out: &mut Vec<u8>) {
    let mut languages: Vec<(u16, Vec<u8>)> = Vec::new();
    for item in lines.flat_map(|line| line.split(|byte| *byte == b',')) {
        let (weight, language, rest) = weighed(item);
        if !language.is_empty() || !rest.is_empty() {
            languages.push((weight, [language, rest].concat()));
        }
    }
    languages.sort_by_key(|(weight, _)| std::cmp::Reverse(*weight));
    for (weight, language) in languages {
        out.extend_from_slice(&language);
        out.extend_from_slice(b";q=");
        out.extend_from_slice(itoa::Buffer::new().format(weight).as_bytes());
        out.push(b',');
    }
}

/// The weight in thousandths, and what has it, in small letters. What can't be read as a weight tells clients apart as it
/// is.
fn weighed(item: &[u8]) -> (u16, Vec<u8>, Vec<u8>) {
    let text = item.to_ascii_lowercase();
    let mut parts = text.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
    let name = parts.next().unwrap_or_default().to_vec();
    let (mut weight, mut rest) = (1000, Vec::new());
    for part in parts {
        match part.strip_prefix(b"q=").and_then(thousandths) {
            Some(told) => weight = told,
            None => {
                rest.push(b';');
                rest.extend_from_slice(part);
            }
        }
    }
    (weight, name, rest)
}

/// Codings that are accepted at all, each once. What refuses one is kept apart: without it, it would be accepted.
fn codings<'a>(lines: impl Iterator<Item = &'a [u8]>, out: &mut Vec<u8>) {
    let mut codings: Vec<(Vec<u8>, bool)> = Vec::new();
    for item in lines.flat_map(|line| line.split(|byte| *byte == b',')) {
        let (weight, coding, rest) = weighed(item);
        if !coding.is_empty() || !rest.is_empty() {
            codings.push(([coding, rest].concat(), weight == 0));
        }
    }
    codings.sort_unstable();
    codings.dedup();
    for (coding, refused) in codings {
        out.extend_from_slice(if refused { b"!" } else { b"" });
        out.extend_from_slice(&coding);
        out.push(b',');
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn spec(vary: &'static str) -> Option<Spec> {
        Spec::of(&HeaderMap::from_iter([(VARY, HeaderValue::from_static(vary))]), |name| {
            match name.as_str() {
                "x-set" => Fate::Changed,
                "x-gone" => Fate::Removed,
                _ => Fate::Sent,
            }
        })
    }

    fn form(name: &'static str, lines: &[&str]) -> String {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(name, HeaderValue::from_str(line).expect("a value"));
        }
        let mut out = Vec::new();
        write(&HeaderName::from_static(name), &headers, &mut out);
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn values_that_mean_the_same_have_one_form() {
        for (name, one, other) in [
            ("accept-language", &["de, en;q=0.5"][..], &["de,en;q=0.5"][..]),
            ("accept-language", &["de", "en"], &["de,en"]),
            ("accept-language", &["de-AT, en;q=0.50"], &["EN;Q=0.5 ,, De-at;q=1"]),
            ("accept-language", &["x, a;q=0.8,b;q=0.9"], &["x,b;q=0.9, a;q=0.800"]),
            ("accept-encoding", &["gzip, br"], &["br;q=0.5,gzip"]),
            ("accept-encoding", &["GZIP"], &["gzip;q=1.0, gzip"]),
            ("accept-encoding", &["gzip;q=0"], &["gzip;Q=0.000"]),
            ("accept", &["text/html, */*;q=0.1"], &["text/html,,*/*;q=0.1"]),
        ] {
            assert_eq!(form(name, one), form(name, other));
        }
        for (name, one, other) in [
            ("accept-language", &["de"][..], &["en"][..]),
            ("accept-language", &[][..], &[""]),
            ("accept-language", &["de,en"], &["en,de"]),
            ("accept-language", &["de;q=0.5,en"], &["de;q=0.6,en"]),
            ("accept-language", &["de;q=2"], &["de"]),
            ("accept-language", &["de;q=0"], &[""]),
            ("accept", &["a/b;x=\"a, b\""], &["a/b;x=\"a,b\""]),
            ("origin", &["https://a.test"], &["https://a.test,"]),
            ("cookie", &["lang=de"], &["lang=de,,"]),
            ("user-agent", &["Moz,X"], &["Moz , X"]),
            ("x", &["1", "2"], &["1,2"]),
            ("x", &["1", "2"], &["12"]),
            ("x", &[""], &[","]),
            ("x", &[""], &["", ""]),
            ("accept-encoding", &["gzip"], &["gzip;q=0"]),
            ("accept-encoding", &["gzip;q=0"], &[""]),
            ("accept-encoding", &["gzip"], &["gzip, br"]),
            ("accept-encoding", &["gzip;q=x"], &["gzip;q=0"]),
            ("accept-encoding", &["gzip; q =0"], &["gzip"]),
        ] {
            assert_ne!(form(name, one), form(name, other));
        }
    }

    #[test]
    fn some_responses_fit_nobody_can_say_whom() {
        for vary in ["*", "a, *", "X-Forwarded-For", "x-set", "a,b,c,d,e,f,g,h,i", "a b"] {
            assert_eq!(spec(vary), None, "{vary}");
        }
        assert!(spec("Host, X-Forwarded-Proto, ,X-Gone").is_some_and(|spec| spec.is_empty()));
        let both = spec("b, A").and_then(|spec| spec.with(&self::spec("c, a").expect("a spec")));
        assert_eq!(both, spec("a,b,c"));
    }

    proptest! {
        #[test]
        fn languages_are_read_whatever_they_are_and_in_any_case(text in "[ -~]{0,40}") {
            let (small, big) = (text.to_ascii_lowercase(), text.to_ascii_uppercase());
            prop_assert_eq!(form("accept-language", &[&small]), form("accept-language", &[&big]));
        }

        #[test]
        fn the_form_is_its_own_form(lines in prop::collection::vec("[a-c,;= \"]{0,8}", 1..3)) {
            let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
            let once = form("accept", &lines);
            if !once.contains('"') {
                prop_assert_eq!(form("accept", &[&once[1..]]), once.clone());
            }
        }
    }
}
