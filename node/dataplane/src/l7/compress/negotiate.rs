//! What a client takes (RFC 9110, section 12.5.3), and what it is given of that.

use http::HeaderMap;
use http::header::ACCEPT_ENCODING;
use trestle_config::model::Algorithm;

use crate::l7::values;

/// In thousandths.
type Weight = u16;

/// The weight of each coding that a request names.
#[derive(Debug, Default)]
struct Accepted {
    of: [Option<Weight>; Algorithm::ALL.len()],
    identity: Option<Weight>,
    /// `*`: what is not named.
    others: Option<Weight>,
}

/// What a client gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    /// `None`: a response as it is.
    pub(crate) algorithm: Option<Algorithm>,
    /// It does not want a response as it is, however short.
    pub(crate) refuses_identity: bool,
}

impl Choice {
    pub(crate) const NONE: Self = Self { algorithm: None, refuses_identity: false };

    /// Of the algorithms in use, that which the client likes best; of those that it likes equally, the first.
    /// A client that says nothing gets a response as it is, and so does one that takes nothing that is in use: the
    /// section lets a server do that, and 406 helps nobody.
    pub(crate) fn of(request: &HeaderMap, in_use: &[Algorithm]) -> Self {
        if !request.contains_key(ACCEPT_ENCODING) {
            return Self::NONE;
        }
        let accepted = Accepted::of(request);
        let mut best: Option<(Algorithm, Weight)> = None;
        for algorithm in in_use {
            let weight = accepted.of[*algorithm as usize].or(accepted.others).unwrap_or(0);
            if weight > best.map_or(0, |(_, best)| best) {
                best = Some((*algorithm, weight));
            }
        }
        let refuses_identity = accepted.identity.or(accepted.others) == Some(0);
        match best {
            // It would rather have it as it is.
            Some((_, weight)) if accepted.identity.is_some_and(|identity| identity > weight) => Self::NONE,
            best => Self { algorithm: best.map(|(algorithm, _)| algorithm), refuses_identity },
        }
    }
}

impl Accepted {
    /// What can't be read does not count. Of a coding that is named twice, the first counts.
    fn of(request: &HeaderMap) -> Self {
        let mut accepted = Self::default();
        for item in values::listed(request, ACCEPT_ENCODING) {
            let mut parts = item.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
            let coding = parts.next().unwrap_or_default();
            let Some(weight) = parts.next().map_or(Some(1000), weight) else { continue };
            let is = |name: &str| coding.eq_ignore_ascii_case(name.as_bytes());
            let slot = if coding == b"*" {
                &mut accepted.others
            } else if is("identity") {
                &mut accepted.identity
            } else if let Some(known) = Algorithm::ALL.into_iter().find(|known| is(known.name())) {
                &mut accepted.of[known as usize]
            } else if is("x-gzip") {
                // An old name of it (section 8.4.1.3).
                &mut accepted.of[Algorithm::Gzip as usize]
            } else {
                continue;
            };
            slot.get_or_insert(weight);
        }
        accepted
    }
}

/// `q=0.5`.
fn weight(part: &[u8]) -> Option<Weight> {
    let value = part.strip_prefix(b"q").or_else(|| part.strip_prefix(b"Q"))?.trim_ascii_start();
    values::thousandths(value.strip_prefix(b"=")?.trim_ascii_start())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn request(lines: &[&str]) -> HeaderMap {
        let value = |line: &&str| (ACCEPT_ENCODING, HeaderValue::from_str(line).expect("a value"));
        let mut headers = HeaderMap::new();
        for (name, value) in lines.iter().map(value) {
            headers.append(name, value);
        }
        headers
    }

    fn chosen(lines: &[&str]) -> Option<&'static str> {
        Choice::of(&request(lines), &Algorithm::ALL).algorithm.map(Algorithm::name)
    }

    #[test]
    fn a_client_gets_what_it_likes_best_and_of_equals_what_comes_first_here() {
        for (lines, expected) in [
            (&["gzip, deflate, br, zstd"][..], Some("zstd")),
            (&["gzip, deflate, br"], Some("br")),
            (&["gzip"], Some("gzip")),
            (&["GZip"], Some("gzip")),
            (&["x-gzip"], Some("gzip")),
            (&["gzip;q=1.0, br;q=0.5"], Some("gzip")),
            (&["gzip ; q=0.001"], Some("gzip")),
            (&["br;q=0.8", "gzip;q=0.9"], Some("gzip")),
            (&["*"], Some("zstd")),
            (&["*;q=0.5, zstd;q=0"], Some("br")),
            (&["zstd;q=0, gzip;q=0, *"], Some("br")),
            (&["gzip;q=0.5, identity"], None),
            (&["gzip;q=0.5, identity;q=0.5"], Some("gzip")),
            (&["gzip, identity;q=0"], Some("gzip")),
            (&["identity"], None),
            (&["deflate, compress"], None),
            (&["gzip;q=0"], None),
            (&["gzip;q=0.000"], None),
            (&["*;q=0"], None),
            (&[""], None),
            (&[], None),
            (&["gzip;q=2"], None),
            (&["gzip;q=0.0001"], None),
            (&["gzip;level=1"], None),
            (&["gzip;q="], None),
            (&[",, gzip ,"], Some("gzip")),
        ] {
            assert_eq!(chosen(lines), expected, "{lines:?}");
        }
        let few = [Algorithm::Gzip, Algorithm::Brotli];
        assert_eq!(Choice::of(&request(&["zstd, br, gzip"]), &few).algorithm, Some(Algorithm::Gzip));
    }

    #[test]
    fn who_refuses_responses_as_they_are_is_known() {
        for (line, expected) in [
            ("gzip, identity;q=0", true),
            ("gzip, *;q=0", true),
            ("identity;q=0.1, *;q=0", false),
            ("gzip", false),
            ("", false),
        ] {
            assert_eq!(Choice::of(&request(&[line]), &Algorithm::ALL).refuses_identity, expected, "{line}");
        }
        let nothing = Choice::of(&request(&["identity;q=0"]), &Algorithm::ALL);
        assert_eq!(nothing, Choice { algorithm: None, refuses_identity: true });
    }

    proptest! {
        #[test]
        fn any_field_is_read(line in "[ -~]{0,40}") {
            let choice = Choice::of(&request(&[&line]), &Algorithm::ALL);
            if let Some(algorithm) = choice.algorithm {
                let line = line.to_ascii_lowercase();
                prop_assert!(line.contains(algorithm.name()) || line.contains('*'));
            }
        }

        #[test]
        fn nothing_is_chosen_that_is_refused(weights in prop::array::uniform3(0u16..=1000)) {
            let written: Vec<String> = Algorithm::ALL.iter().zip(weights)
                .map(|(of, weight)| format!("{};q={}.{:03}", of.name(), weight / 1000, weight % 1000))
                .collect();
            let choice = Choice::of(&request(&[&written.join(", ")]), &Algorithm::ALL).algorithm;
            let most = *weights.iter().max().expect("three");
            match choice {
                Some(algorithm) => prop_assert!(most > 0 && weights[algorithm as usize] == most),
                None => prop_assert_eq!(most, 0),
            }
        }
    }
}
