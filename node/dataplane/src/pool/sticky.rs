//! Cookies by which clients come back to their member.
//!
//! A member's cookie is an HMAC-SHA-256 of its pool's and its own name under a key that all nodes of the
//! cluster have, so every node knows every member's, nobody else can make one, and it tells nothing about
//! the member. What is in no member's place here is as good as none. It is a cookie of its own, or the mark
//! of one that members set ([`learned`]).

use std::collections::HashMap;
use std::time::Duration;

use aws_lc_rs::hmac::{self, HMAC_SHA256};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::header::SET_COOKIE;
use http::{HeaderMap, HeaderValue};
use trestle_config::model::{self, Sticky};

use super::learned;

/// Of the HMAC: as hard to guess as a key of AES.
const BYTES: usize = 16;

/// Of one pool's members.
#[derive(Debug)]
pub(crate) struct Cookies {
    name: Box<str>,
    kind: Kind,
    /// Of each member, in the order of the config.
    values: Box<[Box<str>]>,
    members: HashMap<Box<str>, usize, ahash::RandomState>,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Own { ttl: Duration },
    Learned,
}

impl Cookies {
    pub(super) fn of(pool: &str, settings: &model::Pool, secret: &[u8; 32]) -> Option<Cookies> {
        let (name, kind) = match settings.sticky.as_ref()? {
            Sticky::Cookie { name, ttl } => (name, Kind::Own { ttl: *ttl }),
            Sticky::Learned { name } => (name, Kind::Learned),
            Sticky::Client => return None,
        };
        let key = hmac::Key::new(HMAC_SHA256, secret);
        let values: Box<[Box<str>]> =
            settings.members.iter().map(|member| value(&key, pool, &member.name)).collect();
        let members = values.iter().cloned().zip(0..).collect();
        Some(Cookies { name: name.as_str().into(), kind, values, members })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The name of a cookie that members set.
    pub(crate) fn learned(&self) -> Option<&str> {
        matches!(self.kind, Kind::Learned).then_some(&*self.name)
    }

    /// The index of the member whose cookie this is.
    pub(crate) fn member(&self, value: &[u8]) -> Option<usize> {
        let value = match self.kind {
            Kind::Own { .. } => std::str::from_utf8(value).ok()?,
            Kind::Learned => learned::mark_of(value)?,
        };
        self.members.get(value).copied()
    }

    /// Makes an answer of the member with this index keep its client there. `has_it`: the client has our cookie.
    pub(crate) fn keep(&self, index: usize, has_it: bool, secure: bool, headers: &mut HeaderMap) {
        match (self.kind, self.values.get(index)) {
            (Kind::Own { ttl }, Some(value)) if !has_it => {
                headers.extend(self.set(value, ttl, secure).map(|cookie| (SET_COOKIE, cookie)));
            }
            (Kind::Learned, Some(value)) => learned::mark(headers, &self.name, value),
            _ => {}
        }
    }

    /// RFC 6265, section 4.1.1.
    fn set(&self, value: &str, ttl: Duration, secure: bool) -> Option<HeaderValue> {
        let mut text = format!("{}={}; Path=/; HttpOnly; SameSite=Lax", self.name, value);
        if !ttl.is_zero() {
            // Browsers forget a cookie of age 0 at once.
            text.push_str(&format!("; Max-Age={}", ttl.as_secs().max(1)));
        }
        if secure {
            text.push_str("; Secure");
        }
        HeaderValue::try_from(text).ok()
    }
}

fn value(key: &hmac::Key, pool: &str, member: &str) -> Box<str> {
    let mut context = hmac::Context::with_key(key);
    // Two names in a row must not read as two others.
    context.update(&(pool.len() as u64).to_be_bytes());
    context.update(pool.as_bytes());
    context.update(member.as_bytes());
    URL_SAFE_NO_PAD.encode(&context.sign().as_ref()[..BYTES]).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cookies(pool: &str, members: &[&str], ttl: u64, secret: u8) -> Cookies {
        let member = |name: &&str| model::Member::new(name, ([192, 0, 2, 1], 80).into());
        let sticky = Some(Sticky::Cookie { name: "sid".into(), ttl: Duration::from_secs(ttl) });
        let members = members.iter().map(member).collect();
        let settings = model::Pool { members, sticky, ..model::Pool::default() };
        Cookies::of(pool, &settings, &[secret; 32]).expect("it is sticky")
    }

    fn set(cookies: &Cookies, index: usize, secure: bool) -> String {
        let mut headers = HeaderMap::new();
        cookies.keep(index, true, secure, &mut headers);
        assert!(headers.is_empty(), "it has it");
        cookies.keep(index, false, secure, &mut headers);
        headers[SET_COOKIE].to_str().expect("text").to_owned()
    }

    fn value_of(cookies: &Cookies, index: usize) -> String {
        let text = set(cookies, index, false);
        text.strip_prefix("sid=").and_then(|rest| rest.split_once(';')).expect("a value").0.to_owned()
    }

    #[test]
    fn all_nodes_know_a_members_cookie_whatever_the_order_of_the_config() {
        let (one, other) = (cookies("app", &["a", "b"], 0, 1), cookies("app", &["c", "b", "a"], 0, 1));
        assert_eq!(other.member(value_of(&one, 0).as_bytes()), Some(2));
        assert_eq!(other.member(value_of(&one, 1).as_bytes()), Some(1));
        assert_eq!(one.member(value_of(&other, 0).as_bytes()), None, "c is not there");
    }

    #[test]
    fn of_another_pool_or_key_and_forged_ones_are_nobodys() {
        let app = cookies("app", &["a", "b"], 0, 1);
        for strange in
            [cookies("app", &["a"], 0, 2), cookies("ap", &["pa"], 0, 1), cookies("b", &["a"], 0, 1)]
        {
            assert_eq!(app.member(value_of(&strange, 0).as_bytes()), None);
        }
        for forged in [&b""[..], b"a", b"\xff\xfe", &value_of(&app, 0).as_bytes()[1..]] {
            assert_eq!(app.member(forged), None);
        }
        assert!(!value_of(&app, 0).contains("192"));
    }

    #[test]
    fn browsers_are_told_how_to_keep_it() {
        let text = |ttl, secure| {
            let set = set(&cookies("app", &["a"], ttl, 1), 0, secure);
            set.split_once("; ").expect("attributes").1.to_owned()
        };
        assert_eq!(text(0, false), "Path=/; HttpOnly; SameSite=Lax");
        assert_eq!(text(3600, true), "Path=/; HttpOnly; SameSite=Lax; Max-Age=3600; Secure");
    }
}
