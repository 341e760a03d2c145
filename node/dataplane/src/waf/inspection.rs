//! One request's values, each with the rules that hold where it stands.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::HeaderMap;
use trestle_config::model::{WafField, WafMode};

use super::body::{self, Form, Level, Part, WHOLE};
use super::decode;
use super::engine::{Kind, Scratch};
use super::rules::Rules;
use super::{Exception, FINDINGS_MAX, Hit, Place, RuleName, Waf, is_secret};

#[derive(Debug)]
pub(super) struct Inspection<'a> {
    waf: &'a Waf,
    /// Those that are about this path.
    exceptions: Vec<&'a Exception>,
    /// Without what is excepted for all of the request.
    rules: Rules,
    most: usize,
    scratch: Scratch,
    pub(super) hits: Vec<Hit>,
    /// Bytes of all values.
    #[cfg(test)]
    examined: usize,
}

impl<'a> Inspection<'a> {
    pub(super) fn new(waf: &'a Waf, path: &str) -> Self {
        let about = |exception: &&Exception| exception.is_about(path);
        let (everywhere, exceptions): (Vec<_>, Vec<_>) =
            waf.exceptions.iter().filter(about).partition(|exception| exception.field.is_none());
        let rules = everywhere.iter().fold(waf.rules, |rules, exception| rules.without(exception.rules));
        let most = if waf.mode == WafMode::Block { 1 } else { FINDINGS_MAX };
        Self {
            waf,
            exceptions,
            rules,
            most,
            scratch: Scratch::default(),
            hits: Vec::new(),
            #[cfg(test)]
            examined: 0,
        }
    }

    /// Those that hold for a field.
    pub(super) fn rules(&self, place: Place, name: &[u8]) -> Rules {
        let about =
            |exception: &&&Exception| exception.field.as_ref().is_some_and(|field| is_it(field, place, name));
        self.exceptions
            .iter()
            .filter(about)
            .fold(self.rules, |rules, exception| rules.without(exception.rules))
    }

    /// The whole path, since a tag that is closed has a slash, and each of its segments, in which it may begin.
    pub(super) fn path(&mut self, path: &str) {
        let whole = percent(path.as_bytes());
        self.value(Place::Path, b"", &whole, Kind::Free);
        if path.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'/' | b'-' | b'_' | b'.'))
        {
            return;
        }
        // Parameters of a segment, too.
        for part in path.split(['/', ';']).filter(|part| !part.is_empty()) {
            if self.hits.is_empty() {
                self.value(Place::Path, b"", &percent(part.as_bytes()), Kind::Free);
            }
        }
    }

    pub(super) fn query(&mut self, query: &str) {
        body::pairs(query.as_bytes(), &mut |part| self.part(Place::Query, part));
    }

    pub(super) fn headers(&mut self, headers: &HeaderMap) {
        for (name, value) in headers {
            if self.is_full() {
                return;
            }
            match name.as_str() {
                // What nearly all are has nothing in it.
                "host" if value.as_bytes().iter().all(|byte| is_of_host(*byte)) => {}
                // They frame the message.
                "content-length" | "transfer-encoding" | "connection" | "te" | "upgrade" => {}
                "cookie" => self.cookies(value.as_bytes()),
                "authorization" | "proxy-authorization" => self.credentials(name.as_str(), value.as_bytes()),
                name => self.header(name.as_bytes(), value.as_bytes(), kind(name)),
            }
        }
    }

    /// A value, and each of the parameters of a URL.
    fn header(&mut self, name: &[u8], value: &[u8], kind: Kind) {
        let before = self.hits.len();
        self.value(Place::Header, name, value, kind);
        let is_url = value.starts_with(b"http") || value.starts_with(b"/");
        if let Some(mark) = memchr::memchr(b'?', value).filter(|_| is_url) {
            body::pairs(&value[mark + 1..], &mut |part| {
                if let Part::Field { name: parameter, value } = part
                    && !self.is_full()
                {
                    self.value(Place::Header, name, value, kind);
                    self.value(Place::Header, name, parameter, kind);
                }
                !self.is_full()
            });
        }
        if self.hits.len() > before && has_secret_parameter(value) {
            self.hide(before);
        }
    }

    fn cookies(&mut self, line: &[u8]) {
        for pair in line.split(|byte| *byte == b';') {
            let pair = pair.trim_ascii();
            let (name, value) = match memchr::memchr(b'=', pair) {
                Some(at) => (&pair[..at], &pair[at + 1..]),
                // A value without a name (RFC 6265bis, section 5.7).
                None => ([].as_slice(), pair),
            };
            let quoted = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\""));
            let value = quoted.unwrap_or(value);
            let before = self.hits.len();
            let mut goes_on = self.field(Place::Cookie, name, &percent(value));
            // Some readers have a plus for a space, as in forms.
            if self.hits.len() == before && memchr::memchr(b'+', pair).is_some() {
                self.value(Place::Cookie, name, &decode::form(value), Kind::Free);
                if !self.is_full() {
                    self.value(Place::Cookie, name, &decode::form(name), Kind::Free);
                }
                goes_on = !self.is_full();
            }
            if !goes_on {
                return;
            }
        }
    }

    /// The user's name of basic authentication; a password may be anything, and no sane backend does more than hash it.
    fn credentials(&mut self, header: &str, value: &[u8]) {
        let basic = value.split_at_checked(6).filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"basic "));
        let decoded = basic.and_then(|(_, encoded)| STANDARD.decode(encoded.trim_ascii()).ok());
        match decoded {
            Some(decoded) => {
                let end = memchr::memchr(b':', &decoded).unwrap_or(decoded.len());
                self.value(Place::Header, header.as_bytes(), &decoded[..end], Kind::Free);
            }
            None => self.value(Place::Header, header.as_bytes(), value, Kind::Structured),
        }
    }

    pub(super) fn body(&mut self, form: &Form, bytes: &[u8]) {
        form.read(bytes, &mut |part| self.part(Place::Body, part));
    }

    fn part(&mut self, place: Place, part: Part<'_>) -> bool {
        match part {
            Part::Field { name, value } | Part::File { name, file: value } => self.field(place, name, value),
            Part::Name { name, around } => self.within(around, (place, name), name),
            Part::String { path, value } => self.within(&[], (Place::Json, path), value),
            Part::Element { name, value, around } => self.within(around, (place, name), value),
            // Its names stand in it by themselves.
            Part::Head { .. } => true,
            Part::Broken(rule) => {
                let rule_name = RuleName::Builtin(rule);
                let is_new = self.hits.iter().all(|hit| hit.rule != rule_name);
                if is_new && self.rules(place, b"").has(rule) {
                    self.hits.push(Hit::new(rule_name, (place, b""), b""));
                }
                !self.is_full()
            }
        }
    }

    /// A value that stands in elements of which any may be called like a secret.
    fn within(&mut self, around: &[Level<'_>], (place, name): (Place, &[u8]), value: &[u8]) -> bool {
        let before = self.hits.len();
        self.value(place, name, value, Kind::Free);
        if self.hits.len() > before && around.iter().any(|level| is_secret(place, level.name)) {
            self.hide(before);
        }
        !self.is_full()
    }

    /// Of what was found since there were as many hits, no log shows the bytes.
    fn hide(&mut self, since: usize) {
        let found = self.hits.split_off(since);
        self.hits.extend(found.into_iter().map(Hit::hidden));
    }

    /// A field's value, and its name, which a client chooses as freely. False: nothing more is wanted.
    fn field(&mut self, place: Place, name: &[u8], value: &[u8]) -> bool {
        self.value(place, name, value, Kind::Free);
        if !self.is_full() {
            self.value(place, name, name, Kind::Free);
        }
        !self.is_full()
    }

    fn value(&mut self, place: Place, name: &[u8], value: &[u8], kind: Kind) {
        if value.is_empty() {
            return;
        }
        #[cfg(test)]
        {
            self.examined += value.len();
        }
        let rules = if self.exceptions.is_empty() { self.rules } else { self.rules(place, name) };
        if rules.without(Rules::OF_FORM).is_empty() {
            return;
        }
        if let Some(found) = self.waf.engine.examine(value, kind, rules, &mut self.scratch) {
            self.hits.push(Hit::new(RuleName::Builtin(found.rule), (place, name), &found.matched));
        }
    }

    fn is_full(&self) -> bool {
        self.hits.len() >= self.most
    }
}

/// Without `+`, which is a plus in a path.
pub(super) fn percent(text: &[u8]) -> Cow<'_, [u8]> {
    match memchr::memchr(b'%', text) {
        Some(_) => percent_encoding::percent_decode(text).into(),
        None => Cow::Borrowed(text),
    }
}

/// Whether a URL, or one within it, has a parameter that is called like a secret.
pub(super) fn has_secret_parameter(url: &[u8]) -> bool {
    let decoded = percent(url);
    let parameters = decoded.split(|byte| matches!(byte, b'?' | b'&' | b'#' | b';')).skip(1);
    parameters
        .filter_map(|pair| pair.split(|byte| *byte == b'=').next())
        .any(|name| is_secret(Place::Query, name))
}

fn is_of_host(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b':' | b'_' | b'[' | b']')
}

impl Exception {
    pub(super) fn is_about(&self, path: &str) -> bool {
        self.path.as_deref().is_none_or(|prefix| is_below(path, prefix) && !climbs(path))
    }
}

/// Whether some server takes a segment of this path, which is in its normal form, for `..`: with a parameter (`..;`),
/// before a backslash or an encoded slash, or encoded twice.
fn climbs(path: &str) -> bool {
    let is_up = |segment: &[u8]| {
        let end = memchr::memchr(b';', segment).unwrap_or(segment.len());
        segment[..end].iter().filter(|byte| **byte > b' ').eq(b"..")
    };
    let has_up = |path: &[u8]| path.split(|byte| matches!(byte, b'/' | b'\\')).any(is_up);
    let once = percent(path.as_bytes());
    let twice = decode::round(&once);
    has_up(path.as_bytes()) || has_up(&once) || twice.as_deref().is_some_and(has_up)
}

/// By whole segments.
fn is_below(path: &str, prefix: &str) -> bool {
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

pub(super) fn is_it(field: &WafField, place: Place, name: &[u8]) -> bool {
    match (field, place) {
        (WafField::Parameter(wanted), Place::Query | Place::Body) => name == wanted.as_bytes(),
        // `body` is also `body` in `article`.
        (WafField::Parameter(wanted), Place::Json) => name
            .strip_suffix(wanted.as_bytes())
            .is_some_and(|before| before.is_empty() || before.ends_with(b".")),
        (WafField::Body, Place::Body | Place::Json) => name == WHOLE,
        (WafField::Header(wanted), Place::Header) => name.eq_ignore_ascii_case(wanted.as_bytes()),
        (WafField::Cookie(wanted), Place::Cookie) => name == wanted.as_bytes(),
        _ => false,
    }
}

fn kind(header: &str) -> Kind {
    let structured = header.starts_with("accept")
        || header.starts_with("sec-")
        || header.starts_with("if-")
        || matches!(
            header,
            "baggage"
                | "cache-control"
                | "content-disposition"
                | "content-type"
                | "forwarded"
                | "link"
                | "nel"
                | "pragma"
                | "prefer"
                | "priority"
                | "range"
                | "report-to"
                | "traceparent"
                | "tracestate"
                | "via"
                | "want-digest"
        );
    if structured { Kind::Structured } else { Kind::Free }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use http::HeaderValue;
    use trestle_config::Contents;
    use trestle_config::model::{self, WafException};

    use super::*;

    fn waf(mode: WafMode, except: &[WafField]) -> Waf {
        let except =
            except.iter().map(|field| WafException { rule: None, path: None, field: Some(field.clone()) });
        let policy = model::Waf { mode, except: except.collect(), ..model::Waf::default() };
        Waf::compile(&policy, &Arc::default(), &Contents::default()).expect("it is on")
    }

    const ATTACK: &str = "1' union select password from users-- ";

    #[test]
    fn names_cost_their_length_once() {
        let waf = waf(WafMode::Detect, &[]);
        let sign = "a(b=c)or'd'".repeat(1_300);
        let key = "(a=b) or '".repeat(25);
        let part = format!("--b\r\nContent-Disposition: form-data; name=\"{key}\"\r\n\r\n\r\n").repeat(300);
        for (form, body) in [
            (Form::Xml, format!("<{sign}>{}", "a<b/>".repeat(20_000))),
            (Form::Xml, format!("<{sign}>{}", "<b c=''/>a".repeat(10_000))),
            (Form::Json, format!("{{\"{key}\":[{}\"\"]}}", "\"\",".repeat(40_000))),
            (Form::Json, format!("{{\"{sign}\":[{}\"\"]}}", "\"a\",".repeat(30_000))),
            (Form::Urlencoded, format!("{sign}&").repeat(8)),
            (Form::Multipart { boundary: b"b".to_vec() }, part),
        ] {
            let mut inspection = Inspection::new(&waf, "/");
            // As if none were enough.
            inspection.most = usize::MAX;
            inspection.body(&form, body.as_bytes());
            assert!(inspection.examined >= key.len(), "{form:?}");
            assert!(
                inspection.examined <= body.len() * 3,
                "{form:?}: {} of {}",
                inspection.examined,
                body.len()
            );
        }
    }

    #[test]
    fn names_are_looked_at() {
        let waf = waf(WafMode::Block, &[]);
        for (form, body) in [
            (Form::Json, format!("{{\"{ATTACK}\":1}}")),
            (Form::Json, format!("[{{\"a\":{{\"{ATTACK}\":[]}}}}]")),
            (Form::Urlencoded, format!("{ATTACK}=")),
            (Form::Xml, "<a/**/union/**/select/**/b/**/from/**/c>d</a>".replace('/', "&#47;")),
            (Form::Xml, "<a 1'or'1'='1'/*=\"b\"/>".replace('\'', "&#39;").replace(' ', "\t")),
        ] {
            let hits = waf.body("/", &form, body.as_bytes(), None);
            assert!(!hits.is_empty(), "{form:?} {body}");
        }
    }

    #[test]
    fn only_members_of_json_are_excepted_by_their_last_name() {
        let waf = waf(WafMode::Block, &[WafField::Parameter("body".into())]);
        let of = |form: Form, body: String| waf.body("/", &form, body.as_bytes(), None).len();
        assert_eq!(of(Form::Json, format!("{{\"article\":{{\"body\":\"{ATTACK}\"}}}}")), 0);
        assert_eq!(of(Form::Json, format!("{{\"body\":\"{ATTACK}\"}}")), 0);
        assert_eq!(of(Form::Json, format!("{{\"nobody\":\"{ATTACK}\"}}")), 1);
        assert_eq!(of(Form::Urlencoded, format!("body={ATTACK}")), 0);
        assert_eq!(of(Form::Urlencoded, format!("q%00.body={ATTACK}")), 1);
        assert_eq!(of(Form::Urlencoded, format!("q.body={ATTACK}")), 1);
        assert_eq!(of(Form::Xml, format!("<body>{ATTACK}</body>")), 0);
        assert_eq!(of(Form::Xml, format!("<q.body>{ATTACK}</q.body>")), 1);
        let part = |name: &str| {
            format!("--b\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{ATTACK}\r\n--b--\r\n")
        };
        let multipart = || Form::Multipart { boundary: b"b".to_vec() };
        assert_eq!(of(multipart(), part("body")), 0);
        assert_eq!(of(multipart(), part("q.body")), 1);
    }

    #[test]
    fn a_plus_in_a_cookie_may_be_a_space() {
        let waf = waf(WafMode::Block, &[WafField::Cookie("a+b".into())]);
        let of = |line: &'static str| {
            let headers = HeaderMap::from_iter([(http::header::COOKIE, HeaderValue::from_static(line))]);
            waf.header("/", None, &headers).len()
        };
        assert_eq!(of("sid=1'+union+select+password+from+users--+"), 1);
        assert_eq!(of("a=b; sid=1'+union%0aselect+password+from+users"), 1);
        assert_eq!(of("1'+union+select+password+from+users--+=b"), 1);
        assert_eq!(of("a+b=1'+union+select+password+from+users--+"), 0, "it is excepted");
        assert_eq!(of("sid=Zm9v+YmFy/or+and+select=="), 0);
    }

    #[test]
    fn the_space_of_latin_1_is_one() {
        let waf = waf(WafMode::Block, &[]);
        let of = |query: &str| waf.header("/", Some(query), &HeaderMap::new()).len();
        assert_eq!(of("q=1%a0union%a0select%a0password%a0from%a0users"), 1);
        assert_eq!(of("q=1%25a0union%25a0select%25a0password%25a0from%25a0users"), 1);
        assert_eq!(of("q=caf%e9%a0et%a0th%e9"), 0);
    }

    #[test]
    fn a_header_with_a_secret_in_its_url_is_not_shown() {
        let waf = waf(WafMode::Block, &[]);
        let shown = |url: &'static str| {
            let headers = HeaderMap::from_iter([(http::header::REFERER, HeaderValue::from_static(url))]);
            let hits = waf.header("/", None, &headers);
            let hit = hits.first().unwrap_or_else(|| panic!("{url} has one"));
            !hit.matched.ends_with(b"shown)")
        };
        for url in [
            "https://a.test/reset?token=SECRET%27%20union%20select%201,2--%20",
            "https://a.test/reset?a=%27%20union%20select%201,2--%20&token=SECRET",
            "https://a.test/?next=%2Freset%3Ftoken%3DSECRET%27%20union%20select%201,2--%20",
            "https://a.test/#access_token=SECRET%27%20union%20select%201,2--%20",
        ] {
            assert!(!shown(url), "{url}");
        }
        assert!(shown("https://a.test/?q=%27%20union%20select%201,2--%20"));
    }

    #[test]
    fn a_path_that_leads_out_for_some_servers_is_below_nothing() {
        let exception = |path: &str| Exception {
            rules: Rules::NONE,
            of_files: crate::waf::files::OfFiles::None,
            path: Some(path.into()),
            field: None,
        };
        for path in ["/cms", "/cms/a", "/cms/a..b/..c/d..", "/cms/.../x;y", "/cms/a%2Fb", "/cms/%25"] {
            assert!(exception("/cms").is_about(path), "{path}");
        }
        for path in [
            "/cms/..;/x",
            "/cms/..;a=b/x",
            "/cms/..%5cx",
            "/cms/..%5Cx",
            "/cms/a%5c..%5c..%5cx",
            "/cms/..%2fx",
            "/cms/%252e%252e%252fx",
            "/cms/%252e./x",
            "/cms/..%00/x",
            "/cms/%c0%ae%c0%ae/x",
            "/cmsx",
        ] {
            assert!(!exception("/cms").is_about(path), "{path}");
        }
        assert!(Exception { path: None, ..exception("") }.is_about("/cms/..;/x"));
    }
}
