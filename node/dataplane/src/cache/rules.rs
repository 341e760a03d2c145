//! What RFC 9111 lets a shared cache keep and serve again: pure decisions on heads and ages.
//!
//! Section numbers stand beside the rules. Where the standard leaves a choice, the cautious one is taken:
//! - a response without explicit freshness is kept by the heuristic of section 4.2.2 (a tenth of its age when it was
//!   sent, a day at most) only if neither the request has a cookie nor the response sets one;
//! - a response that sets a cookie is kept only if it is said to be for all (`public`, `s-maxage`,
//!   `CDN-Cache-Control`), or the cookie is withheld by `no-cache="set-cookie"`;
//! - what is stale is served only where the response, or the operator, lets it: a member that can't be reached is no
//!   leave by itself;
//! - directives of requests are honoured.
//!
//! These are our own, not those of the crate `http-cache-semantics`: its policies keep copies of whole request heads,
//! match `Vary` by equal text, and know neither fields named by `no-cache` and `private`, nor `must-understand`, nor
//! `CDN-Cache-Control`, nor collapsed requests.

use std::time::{Duration, UNIX_EPOCH};

use http::header::{AGE, AUTHORIZATION, COOKIE, DATE, ETAG, EXPIRES, LAST_MODIFIED, SET_COOKIE, VARY};
use http::{HeaderMap, HeaderName, StatusCode};

use super::directives::{OfRequest, OfResponse, Scope, seconds};
use super::store::Whom;

/// Of what is kept by the heuristic.
const HEURISTIC_MAX: Duration = Duration::from_secs(24 * 3600);

/// What is known of the request that a response answers.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Asked {
    pub(crate) directives: OfRequest,
    /// It shows who asks: by `Authorization`, or by a certificate that members are told.
    pub(crate) authorized: bool,
    pub(crate) cookie: bool,
}

impl Asked {
    pub(crate) fn of(headers: &HeaderMap, certified: bool) -> Self {
        Self {
            directives: OfRequest::of(headers),
            authorized: certified || headers.contains_key(AUTHORIZATION),
            cookie: headers.contains_key(COOKIE),
        }
    }
}

/// What the operator lets a cache do.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Leave {
    pub(crate) negative: Duration,
    pub(crate) stale_if_error: Duration,
}

/// When a response came.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Came {
    /// What the wall clock shows, since 1970.
    pub(crate) wall: Duration,
    /// After its request was sent.
    pub(crate) delay: Duration,
}

/// How a response that is kept may be served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Terms {
    /// How old it may be and be fresh.
    pub(crate) lifetime: Duration,
    /// How old it was when it came (section 4.2.3).
    pub(crate) age: Duration,
    /// It is validated each time (`no-cache`).
    pub(crate) validate: bool,
    /// It is never served stale because a client does not mind (`must-revalidate` and its kin).
    pub(crate) strict: bool,
    /// For how long after its end it is served while it is validated, and in place of errors (RFC 5861).
    pub(crate) while_revalidate: Duration,
    pub(crate) if_error: Duration,
    /// Fields of it that are not kept.
    pub(crate) withheld: Vec<HeaderName>,
}

/// Why a response is not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    Status,
    NoStore,
    Private,
    Authorization,
    Vary,
    SetCookie,
    /// Only the heuristic says for how long, and the request has a cookie.
    Cookie,
    Partial,
    /// The request wants none of it kept.
    Asked,
    /// Nothing says for how long, or it is for no time and nothing can be validated.
    NotFresh,
    TooLarge,
    /// It has more tags than it could be purged by.
    Tags,
    /// As much is held as may be.
    NoRoom,
}

impl Why {
    /// As `Cache-Status` tells it.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Why::Status => "status",
            Why::NoStore => "no-store",
            Why::Private => "private",
            Why::Authorization => "authorization",
            Why::Vary => "vary",
            Why::SetCookie => "set-cookie",
            Why::Cookie => "cookie",
            Why::Partial => "partial",
            Why::Asked => "request-no-store",
            Why::NotFresh => "not-fresh",
            Why::TooLarge => "too-large",
            Why::Tags => "tags",
            Why::NoRoom => "no-room",
        }
    }

    /// Whether the next response for the same key will most likely not be kept either, whoever asks.
    pub(crate) fn is_of_response(self) -> bool {
        self.whom() == Some(Whom::All)
    }

    /// For whom that is so. `None`: for this client, this time.
    pub(crate) fn whom(self) -> Option<Whom> {
        match self {
            Why::Authorization | Why::Asked | Why::NoRoom => None,
            Why::Cookie => Some(Whom::Cookied),
            _ => Some(Whom::All),
        }
    }
}

/// How what is kept answers a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reuse {
    Fresh,
    /// Stale, and served: the client does not mind.
    Stale,
    /// Stale, and served while it is validated.
    StaleMeanwhile,
    /// Only once its member has said that it still holds.
    Validate,
}

/// Whether this answer to a GET is kept, and how it may then be served (section 3).
pub(crate) fn judge(
    asked: &Asked,
    status: StatusCode,
    headers: &HeaderMap,
    leave: &Leave,
    came: Came,
) -> Result<Terms, Why> {
    let said = OfResponse::of(headers);
    if status == StatusCode::PARTIAL_CONTENT {
        return Err(Why::Partial);
    }
    if status.is_informational() || status == StatusCode::NOT_MODIFIED || is_never_kept(status) {
        return Err(Why::Status);
    }
    let understood = is_understood(status);
    // Section 5.2.2.3: whoever knows the status goes by what else is said of it.
    if said.no_store && !(said.must_understand && understood) {
        return Err(Why::NoStore);
    }
    if said.must_understand && !understood {
        return Err(Why::Status);
    }
    if said.private == Scope::All {
        return Err(Why::Private);
    }
    if asked.directives.no_store {
        return Err(Why::Asked);
    }
    let shared = said.public || said.s_maxage.is_some();
    // Section 3.5.
    if asked.authorized && !shared && !said.must_revalidate {
        return Err(Why::Authorization);
    }
    if headers.get_all(VARY).iter().any(|line| line.as_bytes().contains(&b'*')) {
        return Err(Why::Vary);
    }
    let mut withheld = Vec::new();
    for scope in [&said.no_cache, &said.private] {
        if let Scope::Fields(fields) = scope {
            withheld.extend_from_slice(fields);
        }
    }
    let sets_cookie = headers.contains_key(SET_COOKIE) && !withheld.contains(&SET_COOKIE);
    if sets_cookie && !shared && !said.targeted {
        return Err(Why::SetCookie);
    }
    let explicit = explicit(&said, headers, came);
    let lifetime = match explicit {
        Some(lifetime) => lifetime,
        None if is_negative(status) && !leave.negative.is_zero() => leave.negative,
        None if sets_cookie => return Err(Why::NotFresh),
        None if asked.cookie => {
            // Whether another would have it kept.
            return Err(heuristic(&said, status, headers, came).map_or(Why::NotFresh, |_| Why::Cookie));
        }
        None => heuristic(&said, status, headers, came).ok_or(Why::NotFresh)?,
    };
    let validate = said.no_cache == Scope::All;
    // Section 5.2.2.10: s-maxage has proxy-revalidate in it. What it says of stale responses beside that is its wish.
    let firm = validate || said.must_revalidate || said.proxy_revalidate;
    let strict = firm || said.s_maxage.is_some();
    let grace = |own: Option<Duration>| if firm { Duration::ZERO } else { own.unwrap_or_default() };
    let operators = if strict { Duration::ZERO } else { leave.stale_if_error };
    let if_error = said.stale_if_error.map_or(operators, |own| grace(Some(own)));
    let terms = Terms {
        lifetime,
        age: age(headers, came),
        validate,
        strict,
        while_revalidate: grace(said.stale_while_revalidate),
        if_error,
        withheld,
    };
    let is_validator = |name| headers.contains_key(name);
    let lives = lifetime > terms.age || lifetime + terms.while_revalidate.max(terms.if_error) > terms.age;
    let useful = is_validator(ETAG) || is_validator(LAST_MODIFIED) || lives && !validate;
    if useful { Ok(terms) } else { Err(Why::NotFresh) }
}

/// Section 4.2.1.
fn explicit(said: &OfResponse, headers: &HeaderMap, came: Came) -> Option<Duration> {
    if let Some(lifetime) = said.s_maxage.or(said.max_age) {
        return Some(lifetime);
    }
    if said.targeted {
        // RFC 9213, section 2.1: nothing else counts.
        return (said.no_cache == Scope::All).then_some(Duration::ZERO);
    }
    let mut expires = headers.get_all(EXPIRES).iter();
    match (expires.next(), expires.next()) {
        (Some(value), None) => {
            // What is no date is in the past (section 5.3).
            let at = date_of(value.as_bytes()).unwrap_or_default();
            Some(at.saturating_sub(date(headers, DATE).unwrap_or(came.wall)))
        }
        (Some(_), Some(_)) => Some(Duration::ZERO),
        (None, _) => (said.no_cache == Scope::All).then_some(Duration::ZERO),
    }
}

/// Section 4.2.2.
fn heuristic(said: &OfResponse, status: StatusCode, headers: &HeaderMap, came: Came) -> Option<Duration> {
    if !said.public && !is_heuristic(status) {
        return None;
    }
    let modified = date(headers, LAST_MODIFIED)?;
    let sent = date(headers, DATE).unwrap_or(came.wall);
    Some((sent.checked_sub(modified)? / 10).min(HEURISTIC_MAX))
}

/// Section 4.2.3.
fn age(headers: &HeaderMap, came: Came) -> Duration {
    let apparent = date(headers, DATE).map_or(Duration::ZERO, |sent| came.wall.saturating_sub(sent));
    // Of several the first that is a number (section 5.1).
    let told = headers.get_all(AGE).iter().flat_map(|line| line.as_bytes().split(|byte| *byte == b','));
    let told = told.map(<[u8]>::trim_ascii).next().and_then(seconds).unwrap_or_default();
    apparent.max(told + came.delay)
}

impl Terms {
    /// How what is this old answers a request (section 4).
    pub(crate) fn reuse(&self, age: Duration, asked: &OfRequest) -> Reuse {
        if self.validate || asked.no_cache || asked.max_age.is_some_and(|most| age > most) {
            return Reuse::Validate;
        }
        let fresh = self.lifetime.saturating_sub(age);
        if age < self.lifetime {
            let enough = asked.min_fresh.is_none_or(|least| fresh >= least);
            return if enough { Reuse::Fresh } else { Reuse::Validate };
        }
        let stale = age - self.lifetime;
        if asked.min_fresh.is_some() {
            return Reuse::Validate;
        }
        if stale < self.while_revalidate {
            return Reuse::StaleMeanwhile;
        }
        let bearable = asked.max_stale.is_some_and(|most| stale <= most);
        if bearable && !self.strict { Reuse::Stale } else { Reuse::Validate }
    }

    /// Whether what is this old stands in for an error.
    pub(crate) fn may_stand_in(&self, age: Duration) -> bool {
        age < self.lifetime.saturating_add(self.if_error) && !self.validate
    }

    /// Whether others that ask now may have it as well without asking the member themselves.
    pub(crate) fn is_for_all(&self) -> bool {
        !self.validate && self.age < self.lifetime.saturating_add(self.while_revalidate)
    }

    /// Seconds for which it is fresh yet; negative: since when it is stale.
    pub(crate) fn ttl(&self, age: Duration) -> i64 {
        let seconds = |time: Duration| i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
        seconds(self.lifetime).saturating_sub(seconds(age))
    }
}

/// RFC 6585: these are about who asks, and say so whatever else stands in them.
fn is_never_kept(status: StatusCode) -> bool {
    matches!(status.as_u16(), 428 | 429 | 431 | 511)
}

/// A final status whose meaning for a cache is known. One that is not is kept all the same if it says for how long, unless
/// it wants to be understood (section 3).
fn is_understood(status: StatusCode) -> bool {
    matches!(
        status.as_u16(),
        200..=204 | 300..=303 | 307 | 308 | 400 | 401 | 403..=405 | 410 | 414 | 421 | 451 | 500..=504
    )
}

/// RFC 9110, section 15.1.
fn is_heuristic(status: StatusCode) -> bool {
    matches!(status.as_u16(), 200 | 203 | 204 | 300 | 301 | 308 | 404 | 405 | 410 | 414 | 501)
}

/// It says something of the resource, not of the server's moment.
fn is_negative(status: StatusCode) -> bool {
    matches!(status.as_u16(), 404 | 405 | 410 | 414 | 451 | 501)
}

/// Since 1970.
pub(crate) fn date(headers: &HeaderMap, name: HeaderName) -> Option<Duration> {
    date_of(headers.get(name)?.as_bytes())
}

/// In any of the forms of RFC 9110, section 5.6.7.
pub(crate) fn date_of(value: &[u8]) -> Option<Duration> {
    let time = httpdate::parse_http_date(std::str::from_utf8(value).ok()?).ok()?;
    Some(time.duration_since(UNIX_EPOCH).unwrap_or_default())
}

#[cfg(test)]
mod tests;
