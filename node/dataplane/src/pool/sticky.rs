//! Cookies by which clients come back to their member.
//!
//! A member's cookie is an HMAC-SHA-256 of its pool's and its own name under a key that all nodes of the
//! cluster have, so every node knows every member's, nobody else can make one, and it tells nothing about
//! the member. While that key is exchanged there are two: each member has a cookie of either, and who comes with
//! one of the key that is not in use is given one that is. What is in no member's place here is as good as none. It is a cookie of its own, or the mark
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

/// What cookies are made with.
#[derive(Clone, Copy, Default)]
pub struct CookieKeys {
    pub current: [u8; 32],
    /// With which other nodes may make them, while keys are exchanged.
    pub other: Option<[u8; 32]>,
}

impl From<[u8; 32]> for CookieKeys {
    fn from(current: [u8; 32]) -> Self {
        Self { current, other: None }
    }
}

/// Whose a client's cookie is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CookieOf {
    /// The member's index.
    pub(crate) index: usize,
    /// It is made with the key in use.
    pub(crate) is_current: bool,
}

/// Of one pool's members.
#[derive(Debug)]
pub(crate) struct Cookies {
    name: Box<str>,
    kind: Kind,
    /// Of each member, in the order of the config.
    values: Box<[Box<str>]>,
    members: HashMap<Box<str>, CookieOf, ahash::RandomState>,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Own { ttl: Duration },
    Learned,
}

impl Cookies {
    pub(super) fn of(pool: &str, settings: &model::Pool, keys: &CookieKeys) -> Option<Cookies> {
        let (name, kind) = match settings.sticky.as_ref()? {
            Sticky::Cookie { name, ttl } => (name, Kind::Own { ttl: *ttl }),
            Sticky::Learned { name } => (name, Kind::Learned),
            Sticky::Client => return None,
        };
        let values = |key: &[u8; 32]| -> Box<[Box<str>]> {
            let key = hmac::Key::new(HMAC_SHA256, key);
            settings.members.iter().map(|member| value(&key, pool, &member.name)).collect()
        };
        let owned = |values: &[Box<str>], is_current| {
            let of = (0..).map(move |index| CookieOf { index, is_current });
            values.iter().cloned().zip(of).collect::<Vec<_>>()
        };
        let mut members: HashMap<_, _, _> =
            keys.other.iter().flat_map(|key| owned(&values(key), false)).collect();
        let values = values(&keys.current);
        members.extend(owned(&values, true));
        Some(Cookies { name: name.as_str().into(), kind, values, members })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The name of a cookie that members set.
    pub(crate) fn learned(&self) -> Option<&str> {
        matches!(self.kind, Kind::Learned).then_some(&*self.name)
    }

    /// The member whose cookie this is.
    pub(crate) fn member(&self, value: &[u8]) -> Option<CookieOf> {
        let value = match self.kind {
            Kind::Own { .. } => std::str::from_utf8(value).ok()?,
            Kind::Learned => learned::mark_of(value)?,
        };
        self.members.get(value).copied()
    }

    /// Makes an answer of the member with this index keep its client there. `has_it`: the client has our cookie,
    /// of the key in use.
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

    fn cookies(pool: &str, members: &[&str], ttl: u64, key: u8) -> Cookies {
        with_keys(pool, members, ttl, [key; 32].into())
    }

    fn with_keys(pool: &str, members: &[&str], ttl: u64, keys: CookieKeys) -> Cookies {
        let member = |name: &&str| model::Member::new(name, ([192, 0, 2, 1], 80).into());
        let sticky = Some(Sticky::Cookie { name: "sid".into(), ttl: Duration::from_secs(ttl) });
        let members = members.iter().map(member).collect();
        let settings = model::Pool { members, sticky, ..model::Pool::default() };
        Cookies::of(pool, &settings, &keys).expect("it is sticky")
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
        let of = |index| Some(CookieOf { index, is_current: true });
        assert_eq!(other.member(value_of(&one, 0).as_bytes()), of(2));
        assert_eq!(other.member(value_of(&one, 1).as_bytes()), of(1));
        assert_eq!(one.member(value_of(&other, 0).as_bytes()), None, "c is not there");
    }

    #[test]
    fn while_keys_are_exchanged_cookies_of_both_count_and_that_in_use_is_given() {
        let members = ["a", "b"];
        let [old, new] = [1, 2].map(|key| cookies("app", &members, 0, key));
        let both =
            [(1, 2), (2, 1)].map(|(key, other)| CookieKeys { current: [key; 32], other: Some([other; 32]) });
        for (keys, current, other) in [(both[0], &old, &new), (both[1], &new, &old)] {
            let cookies = with_keys("app", &members, 0, keys);
            for index in 0..2 {
                let of = |is_current| Some(CookieOf { index, is_current });
                assert_eq!(cookies.member(value_of(current, index).as_bytes()), of(true));
                assert_eq!(cookies.member(value_of(other, index).as_bytes()), of(false));
                assert_eq!(value_of(&cookies, index), value_of(current, index));
            }
        }
        assert_eq!(new.member(value_of(&old, 0).as_bytes()), None, "once the old key is gone");
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
