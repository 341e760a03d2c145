//! What tells two requests apart.
//!
//! Everything that decides which response a member would give, as far as the proxy knows it: the rule that takes the
//! request, scheme, host and port in the very form in which members are told them, the normalised path, the query, and
//! the header fields and cookies that the operator has named. It is hashed, not kept: 128 bits of SipHash under a
//! secret of this node, so nobody can make two keys meet, and no lookup allocates.
//!
//! Fields that a client may send, that members are known to go by and that stand in no key are [`POISON`]: a request
//! that has one is answered without the cache, and nothing of it is kept.

use std::borrow::Cow;
use std::hash::Hasher;

use http::{HeaderMap, HeaderName, HeaderValue};
use siphasher::sip128::{Hasher128, SipHasher13};
use trestle_config::model::{self, CacheQuery, Scheme};

use crate::l7::head::{HTTP_PORT, HTTPS_PORT};
use crate::l7::values;

/// Fields by which frameworks and other proxies change what a request is. (`X-Forwarded-Host` and its like are not
/// among them: members get ours.)
const POISON: [&str; 22] = [
    "x-original-url",
    "x-rewrite-url",
    "x-original-uri",
    "x-original-host",
    "x-http-method-override",
    "x-http-method",
    "x-method-override",
    "x-host",
    "x-http-host-override",
    "x-forwarded-server",
    "x-forwarded-scheme",
    "x-forwarded-ssl",
    "x-forwarded-prefix",
    "x-forwarded-path",
    "x-forwarded-uri",
    "x-forwarded-method",
    "x-forwarded-protocol",
    "x-original-forwarded-host",
    "x-backend-host",
    "x-proxy-url",
    "x-url-scheme",
    "front-end-https",
];

/// By which hashes are made; anew in each process, unless responses outlast it ([`super::disk`]).
#[derive(Clone, Copy)]
pub(crate) struct Secret(u64, u64);

impl Secret {
    pub(super) fn new() -> Self {
        Self(rand::random(), rand::random())
    }

    pub(super) fn of(bytes: [u8; 16]) -> Self {
        let bits = u128::from_le_bytes(bytes);
        Self(bits as u64, (bits >> 64) as u64)
    }

    fn hasher(&self) -> SipHasher13 {
        SipHasher13::new_with_keys(self.0, self.1)
    }

    /// Of a variant of what `key` is of.
    pub(super) fn variant(&self, key: u128, values: &[u8]) -> u128 {
        let mut hasher = self.hasher();
        hasher.write(&key.to_le_bytes());
        hasher.write(values);
        hasher.finish128().as_u128()
    }
}

/// What an operator lets keys be made of.
#[derive(Debug)]
pub(crate) struct KeyRule {
    scope: String,
    headers: Box<[HeaderName]>,
    cookies: Box<[Box<str>]>,
    query: CacheQuery,
}

/// Of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) primary: u128,
    /// Of its URL: see [`super::Invalidations`].
    pub(crate) slot: u16,
}

/// What a key is made of, beside the operator's choice.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Subject<'a> {
    pub(crate) scheme: Scheme,
    /// As members are told of it, and as they get it.
    pub(crate) asked_host: Option<&'a HeaderValue>,
    pub(crate) host: Option<&'a HeaderValue>,
    pub(crate) port: &'a HeaderValue,
    pub(crate) path: &'a str,
    pub(crate) query: Option<&'a str>,
}

impl KeyRule {
    /// `place`: the rule, by a name that no other has.
    pub(crate) fn compile(settings: &model::CacheKey, place: String) -> Self {
        let header = |name: &String| HeaderName::from_bytes(name.as_bytes()).ok();
        Self {
            // Values alone would meet those of another choice.
            scope: format!("{place}\n{settings:?}"),
            headers: settings.headers.iter().filter_map(header).collect(),
            cookies: settings.cookies.iter().map(|name| name.as_str().into()).collect(),
            query: settings.query.clone(),
        }
    }

    pub(crate) fn key(&self, secret: &Secret, of: &Subject<'_>, headers: &HeaderMap) -> Key {
        let mut hasher = secret.hasher();
        part(&mut hasher, self.scope.as_bytes());
        part(&mut hasher, of.scheme.as_str().as_bytes());
        for value in [of.asked_host, of.host, Some(of.port)] {
            part(&mut hasher, value.map_or(b"", HeaderValue::as_bytes));
        }
        part(&mut hasher, of.path.as_bytes());
        match (&self.query, of.query) {
            (CacheQuery::All, Some(query)) => part(&mut hasher, query.as_bytes()),
            // Some would find one of the chosen where we see none.
            (CacheQuery::Only(names), Some(query)) if is_ambiguous(query, names) => {
                part(&mut hasher, query.as_bytes());
            }
            (CacheQuery::Only(names), Some(query)) => {
                chosen(query, names).for_each(|pair| part(&mut hasher, pair.as_bytes()));
            }
            (CacheQuery::None, _) | (_, None) => {}
        }
        hasher.write_u8(u8::from(of.query.is_some() && self.query == CacheQuery::All));
        for name in &self.headers {
            list(&mut hasher, values::header(headers, name));
        }
        for name in &self.cookies {
            list(&mut hasher, values::cookie(headers, name));
        }
        let primary = hasher.finish128().as_u128();
        Key { primary, slot: self.slot(secret, of) }
    }

    fn slot(&self, secret: &Secret, of: &Subject<'_>) -> u16 {
        let query = of.query.filter(|_| self.query == CacheQuery::All);
        slot(secret, host_of(of), of.path, query)
    }

    pub(crate) fn query(&self) -> &CacheQuery {
        &self.query
    }

    /// The URL by which it is purged: with what of the query counts.
    pub(crate) fn url(&self, of: &Subject<'_>) -> String {
        let query = counted(&self.query, of.query);
        let host = String::from_utf8_lossy(host_of(of)).to_ascii_lowercase();
        super::purge::join(of.scheme, &host, of.path, query.as_deref())
    }

    /// Whether the request has something that a member may go by and that its key does not tell.
    pub(crate) fn is_poisoned(&self, headers: &HeaderMap) -> bool {
        headers.keys().any(|name| {
            let text = name.as_str();
            matches!(text.as_bytes()[0], b'x' | b'f') && is_poison(text) && !self.headers.contains(name)
        })
    }
}

/// Also where underscores stand in it, which some take for hyphens.
fn is_poison(name: &str) -> bool {
    let same = |(ours, theirs): (u8, u8)| ours == theirs || (ours, theirs) == (b'-', b'_');
    POISON.iter().any(|poison| poison.len() == name.len() && poison.bytes().zip(name.bytes()).all(same))
}

fn host_of<'a>(of: &Subject<'a>) -> &'a [u8] {
    of.asked_host.or(of.host).map_or(b"", HeaderValue::as_bytes)
}

/// Without the port that goes without saying.
pub(super) fn bare_host(scheme: Scheme, host: &str) -> &str {
    let port = if scheme == Scheme::Https { HTTPS_PORT } else { HTTP_PORT };
    // A port may be empty (RFC 3986, section 6.2.3).
    let bare = host.rsplit_once(':').filter(|(_, told)| told.is_empty() || told.parse() == Ok(port));
    bare.map_or(host, |(name, _)| name)
}

const HOST_STEP: usize = 64;

/// Of a URL, whatever its scheme.
pub(super) fn slot(secret: &Secret, host: &[u8], path: &str, query: Option<&str>) -> u16 {
    let mut hasher = secret.hasher();
    let host = host.split(|byte| *byte == b':').next().unwrap_or_default();
    // In steps: each call costs more than its bytes.
    for some in host.chunks(HOST_STEP) {
        let mut small = [0; HOST_STEP];
        let small = &mut small[..some.len()];
        small.copy_from_slice(some);
        small.make_ascii_lowercase();
        hasher.write(small);
    }
    hasher.write_u8(0xff);
    hasher.write(path.as_bytes());
    if let Some(query) = query {
        hasher.write_u8(b'?');
        hasher.write(query.as_bytes());
    }
    (hasher.finish128().as_u128() & 0xffff) as u16
}

/// What of a query is in the URL by which a response is purged.
pub(super) fn counted<'a>(choice: &CacheQuery, query: Option<&'a str>) -> Option<Cow<'a, str>> {
    match choice {
        CacheQuery::All => query.map(Cow::Borrowed),
        CacheQuery::Only(names) => {
            let pairs: Vec<&str> = chosen(query?, names).collect();
            (!pairs.is_empty()).then(|| pairs.join("&").into())
        }
        CacheQuery::None => None,
    }
}

/// Pairs of the query whose parameter is one of these, as they were sent.
fn chosen<'a>(query: &'a str, names: &'a [String]) -> impl Iterator<Item = &'a str> {
    query.split('&').filter(move |pair| {
        let mut names = names.iter();
        form_urlencoded::parse(pair.as_bytes()).next().is_some_and(|(name, _)| names.any(|n| *n == name))
    })
}

/// Whether some members find one of these where it does not stand as such: they take `;` for the end of a pair, letters
/// in whatever case, what is before a bracket or a NUL for the name, or forgive space around it.
fn is_ambiguous(query: &str, names: &[String]) -> bool {
    query.contains(';')
        || form_urlencoded::parse(query.as_bytes()).any(|(name, _)| {
            let is_exact = names.iter().any(|wanted| *wanted == name);
            !is_exact && names.iter().any(|wanted| may_be(&name, wanted))
        })
}

fn may_be(name: &str, wanted: &str) -> bool {
    let is_space = |c: char| c.is_whitespace() || c.is_control();
    let end = name.find(['[', '\0']).unwrap_or(name.len());
    // PHP has underscores in their place.
    let same = |byte: u8| if matches!(byte, b'.' | b' ') { b'_' } else { byte.to_ascii_lowercase() };
    let (name, wanted) = (name[..end].trim_matches(is_space), wanted.trim_matches(is_space));
    name.len() == wanted.len() && name.bytes().map(same).eq(wanted.bytes().map(same))
}

/// With its length before it, so that no two sequences of parts are alike.
fn part(hasher: &mut SipHasher13, bytes: &[u8]) {
    hasher.write(&(bytes.len() as u64).to_le_bytes());
    hasher.write(bytes);
}

fn list<'a>(hasher: &mut SipHasher13, values: impl Iterator<Item = Cow<'a, [u8]>>) {
    let mut count: u64 = 0;
    for value in values {
        part(hasher, &value);
        count += 1;
    }
    hasher.write(&u64::MAX.to_le_bytes());
    hasher.write(&count.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rule(query: CacheQuery) -> KeyRule {
        let (headers, cookies) = (vec!["x-tenant".to_owned()], vec!["lang".to_owned()]);
        KeyRule::compile(&model::CacheKey { headers, cookies, query }, "all/0".to_owned())
    }

    fn key(rule: &KeyRule, url: &str, fields: &[(&'static str, &'static str)]) -> u128 {
        let (path, query) = url.split_once('?').map_or((url, None), |(path, query)| (path, Some(query)));
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_static(value));
        }
        let host = headers.get("host").cloned();
        let port = HeaderValue::from_static("80");
        let (asked_host, host) = (host.as_ref(), host.as_ref());
        let subject = Subject { scheme: Scheme::Http, asked_host, host, port: &port, path, query };
        rule.key(&Secret(1, 2), &subject, &headers).primary
    }

    #[test]
    fn what_counts_makes_another_key_and_what_does_not_the_same() {
        let all = rule(CacheQuery::All);
        let plain = key(&all, "/a", &[("host", "h")]);
        for (url, fields) in [
            ("/a?", &[("host", "h")][..]),
            ("/a?b", &[("host", "h")]),
            ("/ab", &[("host", "h")]),
            ("/a", &[("host", "h:81")]),
            ("/a", &[("host", "h"), ("x-tenant", "")]),
            ("/a", &[("host", "h"), ("x-tenant", "a")]),
            ("/a", &[("host", "h"), ("x-tenant", "a"), ("x-tenant", "")]),
            ("/a", &[("host", "h"), ("cookie", "lang=de")]),
        ] {
            assert_ne!(key(&all, url, fields), plain, "{url} {fields:?}");
        }
        assert_eq!(key(&all, "/a", &[("host", "h"), ("accept", "x"), ("cookie", "sid=1")]), plain);
        assert_ne!(key(&all, "/a?b&c", &[]), key(&all, "/a?c&b", &[]));
    }

    #[test]
    fn another_choice_makes_another_key() {
        let choices = [
            (vec![], vec![], CacheQuery::All),
            (vec![], vec![], CacheQuery::None),
            (vec![], vec![], CacheQuery::Only(vec!["id".to_owned()])),
            (vec!["x-a"], vec![], CacheQuery::None),
            (vec!["x-b"], vec![], CacheQuery::None),
            (vec![], vec!["x-a"], CacheQuery::None),
            (vec![], vec!["x-b"], CacheQuery::None),
        ];
        let of = |(headers, cookies, query): &(Vec<&str>, Vec<&str>, CacheQuery)| {
            let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
            let (headers, cookies, query) = (owned(headers), owned(cookies), query.clone());
            let rule = KeyRule::compile(&model::CacheKey { headers, cookies, query }, "all/0".to_owned());
            key(&rule, "/a", &[("x-a", "1"), ("x-b", "1"), ("cookie", "x-a=1; x-b=1")])
        };
        let keys: std::collections::BTreeSet<u128> = choices.iter().map(of).collect();
        assert_eq!(keys.len(), choices.len());
        let some = rule(CacheQuery::All);
        let spaced = key(&some, "/a", &[("cookie", "lang =de")]);
        assert_ne!(spaced, key(&some, "/a", &[]), "some read it as a cookie of that name");
    }

    #[test]
    fn of_a_query_what_is_chosen_counts() {
        let none = rule(CacheQuery::None);
        assert_eq!(key(&none, "/a?b=1", &[]), key(&none, "/a", &[]));
        let some = rule(CacheQuery::Only(vec!["id".to_owned(), "p q".to_owned()]));
        assert_eq!(key(&some, "/a?utm=1&id=2&x", &[]), key(&some, "/a?id=2&utm=3", &[]));
        assert_ne!(key(&some, "/a?id=2", &[]), key(&some, "/a?id=3", &[]));
        assert_ne!(key(&some, "/a?p+q=2", &[]), key(&some, "/a", &[]));
        assert_eq!(key(&some, "/a?utm=1", &[]), key(&some, "/a", &[]));
        assert_ne!(key(&some, "/a?id=2&utm=1;id=3", &[]), key(&some, "/a?id=2", &[]));
        for other in
            ["ID=3", "id[]=3", "id%5B%5D=3", "id[x]=3", "+id=3", "%20id=3", "id%00=3", "id%00x=3", "p.q=3"]
        {
            assert_ne!(key(&some, &format!("/a?{other}"), &[]), key(&some, "/a", &[]), "{other}");
        }
        assert_eq!(key(&some, "/a?idx=3&xid=4&i", &[]), key(&some, "/a", &[]));
    }

    #[test]
    fn fields_that_members_go_by_poison_a_request_unless_they_are_in_the_key() {
        let poisoned = |name: &'static str, key: &[&str]| {
            let headers = key.iter().map(|name| (*name).to_owned()).collect();
            let rule = KeyRule::compile(&model::CacheKey { headers, ..Default::default() }, String::new());
            rule.is_poisoned(&HeaderMap::from_iter([(
                HeaderName::from_static(name),
                HeaderValue::from_static("1"),
            )]))
        };
        assert!(poisoned("x-original-url", &[]) && poisoned("x_original_url", &[]));
        assert!(!poisoned("x-original-url", &["x-original-url"]));
        assert!(!poisoned("x-own", &[]) && !poisoned("accept", &[]) && !poisoned("x-forwarded-host", &[]));
    }

    proptest! {
        #[test]
        fn parts_do_not_run_into_each_other(
            a in ("[a-c]{0,3}", "[a-c]{0,3}"),
            b in ("[a-c]{0,3}", "[a-c]{0,3}"),
        ) {
            let all = rule(CacheQuery::All);
            let of = |(path, query): &(String, String)| key(&all, &format!("/{path}?{query}"), &[]);
            prop_assert_eq!(a == b, of(&a) == of(&b));
        }
    }
}
