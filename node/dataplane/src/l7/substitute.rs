//! Edits of the bodies of members' answers: which answers are edited, and how.
//!
//! A body is edited as a whole, so it is gathered first (`exchange::edited`), up to a bound; one that is longer
//! passes as it is. So does what is encoded, a part of something (206), a stream of events, and gRPC.
//! Members are asked for neither encoded answers nor parts.

use std::time::Duration;

use bytes::Bytes;
use http::header::{
    ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, ETAG, HeaderName, IF_RANGE, RANGE,
};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use http_body::Body;
use tokio::time::Instant;
use trestle_config::model::BodyEdit;
use trestle_config::text::{Piece, Variable};

/// Other connections of the worker wait for no longer while a body is edited.
const TURN: Duration = Duration::from_millis(5);

/// An edit that takes longer is given up: an expression can be so that each place costs a pass over the rest.
const PATIENCE: Duration = Duration::from_secs(2);

/// What tells a body by its bytes (RFC 9530, RFC 3230, RFC 1864).
pub(super) const DIGESTS: [HeaderName; 4] = [
    HeaderName::from_static("content-digest"),
    HeaderName::from_static("repr-digest"),
    HeaderName::from_static("digest"),
    HeaderName::from_static("content-md5"),
];

/// Those of a rule, in their order.
#[derive(Debug)]
pub(crate) struct BodyEdits(Box<[BodyEdit]>);

/// What becomes of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plan {
    /// It goes on as it came.
    Pass,
    /// It has no body, but tells of one that would be edited.
    Header,
    /// Its body is edited, if it has no more bytes than this.
    Body(usize),
}

impl BodyEdits {
    /// `None`: there are none.
    pub(crate) fn compile(edits: &[BodyEdit]) -> Option<Box<Self>> {
        (!edits.is_empty()).then(|| Box::new(Self(edits.into())))
    }

    pub(crate) fn reads_header(&self) -> bool {
        let reads =
            |piece: &Piece| matches!(piece, Piece::Variable(Variable::Header(_) | Variable::Cookie(_)));
        self.0.iter().any(|of| of.edit.with().iter().any(reads))
    }

    /// Asks for an answer that can be edited.
    pub(crate) fn ask(headers: &mut HeaderMap) {
        for name in [ACCEPT_ENCODING, RANGE, IF_RANGE] {
            headers.remove(name);
        }
    }

    pub(crate) fn plan<B: Body>(&self, method: &Method, response: &Response<B>) -> Plan {
        let (status, headers) = (response.status(), response.headers());
        if status == StatusCode::NOT_MODIFIED {
            return Plan::Header;
        }
        let has_none = matches!(status, StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT);
        if status.is_informational()
            || has_none
            || status == StatusCode::PARTIAL_CONTENT
            || is_encoded(headers)
        {
            return Plan::Pass;
        }
        let Some(room) = self.fitting(headers).map(|of| of.max).max() else { return Plan::Pass };
        if *method == Method::HEAD {
            let told = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
            return if told.is_some_and(|told| told > room as u64) { Plan::Pass } else { Plan::Header };
        }
        if response.body().is_end_stream() || response.body().size_hint().lower() > room as u64 {
            return Plan::Pass;
        }
        Plan::Body(room)
    }

    /// Those for an answer of this type.
    fn fitting(&self, headers: &HeaderMap) -> impl Iterator<Item = &BodyEdit> {
        let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let kind = kind.map(|kind| kind.split(';').next().unwrap_or_default().trim());
        let kind = kind.filter(|kind| !is_stream(kind));
        self.0.iter().filter(move |of| {
            kind.is_some_and(|kind| {
                of.types.iter().any(|known| known == "*" || known.eq_ignore_ascii_case(kind))
            })
        })
    }

    /// The body after all edits; `None`: it is as it was. `value` has the values of variables.
    pub(crate) async fn apply(
        &self,
        body: &[u8],
        headers: &HeaderMap,
        value: impl Fn(&Variable) -> Vec<u8>,
    ) -> Option<Bytes> {
        let mut clock = Clock::start();
        let mut edited: Option<Vec<u8>> = None;
        for of in self.fitting(headers) {
            let text = edited.as_deref().unwrap_or(body);
            if text.len() <= of.max
                && let Some(new) = replaced(of, text, &value, &mut clock).await?
            {
                edited = Some(new);
            }
        }
        edited.map(Bytes::from)
    }
}

/// `Some(None)`: it is as it was, since nothing was found or it would become too long; `None`: it took too
/// long to find that out.
async fn replaced(
    of: &BodyEdit,
    text: &[u8],
    value: &impl Fn(&Variable) -> Vec<u8>,
    clock: &mut Clock,
) -> Option<Option<Vec<u8>>> {
    let mut out = Vec::new();
    let mut from = 0;
    let mut with = None;
    for place in of.edit.places(text) {
        let with = with.get_or_insert_with(|| {
            out.reserve(text.len());
            filled(of.edit.with(), value)
        });
        out.extend_from_slice(&text[from..place.range().start]);
        for part in with {
            match part {
                Part::Bytes(bytes) => out.extend_from_slice(bytes),
                Part::Group(number) => out.extend_from_slice(place.group(*number)),
            }
            if out.len() > of.max {
                return Some(None);
            }
        }
        from = place.range().end;
        if !clock.goes_on().await {
            return None;
        }
    }
    out.extend_from_slice(&text[from..]);
    Some((with.is_some() && out.len() <= of.max).then_some(out))
}

enum Part {
    Bytes(Vec<u8>),
    Group(usize),
}

/// With the values of variables in them.
fn filled(with: &[Piece], value: &impl Fn(&Variable) -> Vec<u8>) -> Vec<Part> {
    let part = |piece: &Piece| match piece {
        Piece::Text(text) => Part::Bytes(text.clone().into_bytes()),
        Piece::Group(number) => Part::Group(*number),
        Piece::Variable(variable) => Part::Bytes(escaped(&value(variable))),
    };
    with.iter().map(part).collect()
}

/// What a client chose must not become part of a page's markup.
pub(super) fn escaped(value: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(value.len());
    for byte in value {
        match byte {
            b'&' => out.extend_from_slice(b"&amp;"),
            b'<' => out.extend_from_slice(b"&lt;"),
            b'>' => out.extend_from_slice(b"&gt;"),
            b'"' => out.extend_from_slice(b"&quot;"),
            b'\'' => out.extend_from_slice(b"&#39;"),
            byte => out.push(*byte),
        }
    }
    out
}

/// Lets others of the worker have their turn.
struct Clock {
    end: Instant,
    turn: Instant,
}

impl Clock {
    fn start() -> Self {
        let now = Instant::now();
        Self { end: now + PATIENCE, turn: now + TURN }
    }

    /// False: there is no time left.
    async fn goes_on(&mut self) -> bool {
        let now = Instant::now();
        if now >= self.end {
            tracing::warn!(
                seconds = PATIENCE.as_secs(),
                "an edit of a body takes too long, it passes as it is"
            );
            return false;
        }
        if now >= self.turn {
            tokio::task::yield_now().await;
            self.turn = Instant::now() + TURN;
        }
        true
    }
}

/// Makes the header fit a body that was edited.
pub(crate) fn alter(headers: &mut HeaderMap) {
    headers.remove(CONTENT_LENGTH);
    for name in DIGESTS {
        headers.remove(name);
    }
    weaken(headers);
}

pub(crate) fn weaken(headers: &mut HeaderMap) {
    // The same to a reader, not byte by byte (RFC 9110, section 8.8.1).
    let Some(tag) = headers.get(ETAG).map(HeaderValue::as_bytes) else { return };
    if tag.starts_with(b"W/\"") {
        return;
    }
    // What is no tag can't be made a weak one, and would be taken for a strong one.
    match HeaderValue::from_bytes(&[b"W/", tag].concat()).ok().filter(|_| tag.starts_with(b"\"")) {
        Some(weak) => headers.insert(ETAG, weak),
        None => headers.remove(ETAG),
    };
}

fn is_encoded(headers: &HeaderMap) -> bool {
    headers.get_all(CONTENT_ENCODING).iter().any(|value| !value.as_bytes().eq_ignore_ascii_case(b"identity"))
}

/// Whether an answer of this type has messages in it that must not wait for its end.
fn is_stream(kind: &str) -> bool {
    let starts = |with: &str| kind.get(..with.len()).is_some_and(|start| start.eq_ignore_ascii_case(with));
    starts("text/event-stream") || starts("application/grpc")
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use proptest::prelude::*;
    use trestle_config::Source;

    use super::*;

    fn edits(written: &str) -> Box<BodyEdits> {
        let text = format!(
            "policies: {{ p: {{ substitute: {written} }} }}\nroutes: {{ r: {{ use: [p], rules: [{{ respond: {{}} }}] }} }}\n"
        );
        let document = trestle_config::parse(Source { name: "test", text: &text });
        let document = document.unwrap_or_else(|problems| panic!("{problems}"));
        let rule = &document.config().routes["r"].rules[0];
        BodyEdits::compile(rule.policies.substitute.as_deref().expect("edits")).expect("some")
    }

    fn html() -> HeaderMap {
        HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("text/html"))])
    }

    #[test]
    fn a_strong_tag_becomes_weak_and_what_is_no_tag_goes() {
        for (tag, weak) in
            [("\"v\"", Some("W/\"v\"")), ("W/\"v\"", Some("W/\"v\"")), ("abc", None), ("W/abc", None)]
        {
            let mut headers = HeaderMap::from_iter([(ETAG, HeaderValue::from_static(tag))]);
            weaken(&mut headers);
            assert_eq!(headers.get(ETAG).map(HeaderValue::as_bytes), weak.map(str::as_bytes), "{tag}");
        }
    }

    /// Runs at once, since nothing in it waits for anything.
    fn edited(edits: &BodyEdits, body: &str) -> Option<String> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        let edited = runtime.block_on(edits.apply(body.as_bytes(), &html(), |_| b"<x>".to_vec()));
        edited.map(|edited| String::from_utf8(edited.to_vec()).expect("text"))
    }

    #[test]
    fn each_edit_sees_what_those_before_it_made() {
        let edits = edits(r#"[{ find: a, with: b }, { find: bb, with: c }, { find: zzz }]"#);
        assert_eq!(edited(&edits, "aab").as_deref(), Some("cb"));
        assert_eq!(edited(&edits, "none"), None);
    }

    #[test]
    fn an_edit_that_would_make_too_much_of_a_body_is_left_out_and_the_others_are_not() {
        let edits = edits(r#"[{ regex: "(.*)", with: "$1$1$1", max: 8 }, { find: a, with: b }]"#);
        assert_eq!(edited(&edits, "ax").as_deref(), Some("bxbxbx"));
        assert_eq!(edited(&edits, "axy").as_deref(), Some("bxy"));
        assert_eq!(edited(&edits, "123456789a").as_deref(), Some("123456789b"));
    }

    #[test]
    fn values_of_variables_are_no_markup() {
        let edits = edits(r#"[{ find: a, with: "<b>${query.x}" }]"#);
        assert_eq!(edited(&edits, "a").as_deref(), Some("<b>&lt;x&gt;"));
    }

    #[tokio::test]
    async fn others_have_their_turn_while_a_body_is_edited_and_one_that_takes_too_long_is_left_as_it_is() {
        // Each place costs a pass over all that follows.
        let edits = edits(r#"[{ regex: ".*[^A-Z]|[A-Z]", with: b }]"#);
        let body = "A".repeat(100_000);
        let turns = Cell::new(0);
        let (headers, others) = (html(), async {
            loop {
                turns.set(turns.get() + 1);
                tokio::task::yield_now().await;
            }
        });
        let edited = tokio::select! {
            edited = edits.apply(body.as_bytes(), &headers, |_| Vec::new()) => edited,
            () = others => None,
        };
        assert_eq!(edited, None);
        assert!(turns.get() > 3, "{} turns", turns.get());
    }

    #[test]
    fn a_header_says_no_more_than_is_true_of_an_edited_body() {
        let mut headers = HeaderMap::new();
        for (name, value) in [("content-length", "3"), ("etag", "\"a\""), ("repr-digest", "x"), ("vary", "a")]
        {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        alter(&mut headers);
        alter(&mut headers);
        let mut names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["etag", "vary"]);
        assert_eq!(headers[ETAG], "W/\"a\"");
    }

    proptest! {
        #[test]
        fn any_body_is_edited_as_by_replacing_one_after_the_other(body in "[ab<]{0,60}", with in "[ab]{0,2}") {
            let edits = edits(&format!("[{{ find: ab, with: \"{with}\" }}, {{ regex: \"<+\", with: \"[$0]\" }}]"));
            let mut expected = body.replace("ab", &with);
            let mut out = String::new();
            while let Some(at) = expected.find('<') {
                let length = expected[at..].len() - expected[at..].trim_start_matches('<').len();
                out.push_str(&format!("{}[{}]", &expected[..at], &expected[at..at + length]));
                expected = expected[at + length..].to_owned();
            }
            out.push_str(&expected);
            prop_assert_eq!(edited(&edits, &body).unwrap_or(body), out);
        }
    }
}
