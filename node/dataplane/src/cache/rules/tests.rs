use std::time::SystemTime;

use http::HeaderValue;
use proptest::prelude::*;

use super::*;

/// 2026-11-28.
const NOW: u64 = 1_795_824_000;

fn at(seconds: i64) -> String {
    let unix = NOW.saturating_add_signed(seconds);
    httpdate::fmt_http_date(SystemTime::UNIX_EPOCH + Duration::from_secs(unix))
}

/// `@N` in a value: the date N seconds from now.
fn headers(text: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for line in text.split(" | ").filter(|line| !line.is_empty()) {
        let (name, value) = line.split_once(": ").expect("a field");
        let value = match value.strip_prefix('@') {
            Some(offset) => at(offset.parse().expect("seconds")),
            None => value.to_owned(),
        };
        let name = HeaderName::from_bytes(name.to_ascii_lowercase().as_bytes()).expect("a name");
        headers.append(name, HeaderValue::from_str(&value).expect("a value"));
    }
    headers
}

fn came() -> Came {
    Came { wall: Duration::from_secs(NOW), delay: Duration::ZERO }
}

fn judged(request: &str, status: u16, response: &str, leave: Leave) -> Result<Terms, Why> {
    let asked = Asked::of(&headers(request), false);
    judge(&asked, StatusCode::from_u16(status).expect("a status"), &headers(response), &leave, came())
}

/// For how long a response is fresh from now on, or why it is not kept.
fn fresh(request: &str, status: u16, response: &str) -> Result<u64, Why> {
    let terms = judged(request, status, response, Leave::default())?;
    Ok(if terms.validate { 0 } else { terms.lifetime.saturating_sub(terms.age).as_secs() })
}

#[test]
fn what_is_kept_and_for_how_long() {
    const V: &str = "ETag: \"v\"";
    for (request, status, response, expected) in [
        // Explicit times, the most specific first.
        ("", 200, "Cache-Control: max-age=60", Ok(60)),
        ("", 200, "Cache-Control: max-age=60, s-maxage=90", Ok(90)),
        ("", 200, "Cache-Control: s-maxage=0, max-age=60 | ETag: \"v\"", Ok(0)),
        ("", 200, "Cache-Control: max-age=60 | CDN-Cache-Control: max-age=600", Ok(600)),
        ("", 200, "CDN-Cache-Control: max-age=0 | Cache-Control: max-age=60", Err(Why::NotFresh)),
        ("", 200, "CDN-Cache-Control: no-store | Cache-Control: max-age=60", Err(Why::NoStore)),
        ("", 200, "CDN-Cache-Control: public | Expires: @60", Err(Why::NotFresh)),
        ("", 200, "Expires: @60 | Date: @0", Ok(60)),
        ("", 200, "Expires: @60", Ok(60)),
        // By the member's clock, which is 100 s slow.
        ("", 200, "Expires: @-40 | Date: @-100 | ETag: \"v\"", Ok(0)),
        ("", 200, "Expires: @-40 | Date: @-100 | Age: 5", Err(Why::NotFresh)),
        ("", 200, "Expires: 0", Err(Why::NotFresh)),
        ("", 200, "Expires: 0 | Cache-Control: max-age=60", Ok(60)),
        ("", 200, "Expires: @60 | Expires: @90", Err(Why::NotFresh)),
        // Ages.
        ("", 200, "Cache-Control: max-age=60 | Age: 20", Ok(40)),
        ("", 200, "Cache-Control: max-age=60 | Age: 20, 50", Ok(40)),
        ("", 200, "Cache-Control: max-age=60 | Age: x", Ok(60)),
        ("", 200, "Cache-Control: max-age=60 | Date: @-20", Ok(40)),
        ("", 200, "Cache-Control: max-age=60 | Date: @-20 | Age: 30", Ok(30)),
        ("", 200, "Cache-Control: max-age=60 | Date: @50", Ok(60)),
        ("", 200, "Cache-Control: max-age=60 | Age: 60", Err(Why::NotFresh)),
        ("", 200, "Cache-Control: max-age=60 | Age: 60 | ETag: \"v\"", Ok(0)),
        // Without them: a tenth of its age, if nobody could be meant by it.
        ("", 200, "Last-Modified: @-1000 | Date: @0", Ok(100)),
        ("", 200, "Last-Modified: @-100000000", Ok(24 * 3600)),
        ("", 404, "Last-Modified: @-1000", Ok(100)),
        ("", 302, "Last-Modified: @-1000", Err(Why::NotFresh)),
        ("", 302, "Last-Modified: @-1000 | Cache-Control: public", Ok(100)),
        ("", 302, "Cache-Control: max-age=60", Ok(60)),
        ("", 200, "Last-Modified: @1000", Err(Why::NotFresh)),
        ("Cookie: a=1", 200, "Last-Modified: @-1000", Err(Why::Cookie)),
        ("Cookie: a=1", 200, "", Err(Why::NotFresh)),
        ("Cookie: a=1", 200, "Cache-Control: max-age=60", Ok(60)),
        ("", 200, V, Err(Why::NotFresh)),
        ("", 200, "", Err(Why::NotFresh)),
        // Not for us.
        ("", 200, "Cache-Control: no-store, max-age=60", Err(Why::NoStore)),
        ("", 200, "Cache-Control: private, max-age=60", Err(Why::Private)),
        ("", 200, "Cache-Control: private=\"x-a\", max-age=60", Ok(60)),
        ("Cache-Control: no-store", 200, "Cache-Control: max-age=60", Err(Why::Asked)),
        ("", 200, "Cache-Control: max-age=60 | Vary: *", Err(Why::Vary)),
        ("", 200, "Cache-Control: max-age=60 | Vary: a, *", Err(Why::Vary)),
        ("", 200, "Cache-Control: max-age=60 | Vary: a", Ok(60)),
        // Known by name.
        ("Authorization: a", 200, "Cache-Control: max-age=60", Err(Why::Authorization)),
        ("Authorization: a", 200, "Cache-Control: max-age=60, must-revalidate", Ok(60)),
        ("Authorization: a", 200, "Cache-Control: public, max-age=60", Ok(60)),
        ("Authorization: a", 200, "Cache-Control: s-maxage=60", Ok(60)),
        // Cookies.
        ("", 200, "Cache-Control: max-age=60 | Set-Cookie: a=1", Err(Why::SetCookie)),
        ("", 200, "Cache-Control: max-age=60, public | Set-Cookie: a=1", Ok(60)),
        ("", 200, "Cache-Control: max-age=60, no-cache=\"set-cookie\" | Set-Cookie: a=1", Ok(60)),
        ("", 200, "CDN-Cache-Control: max-age=60 | Set-Cookie: a=1", Ok(60)),
        // Statuses.
        ("", 206, "Cache-Control: max-age=60", Err(Why::Partial)),
        // It has no meaning there (RFC 9110, section 14.4).
        ("", 200, "Cache-Control: max-age=60 | Content-Range: bytes 0-1/2", Ok(60)),
        ("", 304, "Cache-Control: max-age=60", Err(Why::Status)),
        ("", 429, "Cache-Control: max-age=60", Err(Why::Status)),
        ("", 299, "Cache-Control: max-age=60", Ok(60)),
        ("", 599, "Last-Modified: @-1000", Err(Why::NotFresh)),
        ("", 599, "Last-Modified: @-1000 | Cache-Control: public", Ok(100)),
        ("", 299, "Cache-Control: must-understand, max-age=60", Err(Why::Status)),
        ("", 503, "Cache-Control: max-age=60", Ok(60)),
        ("", 200, "Cache-Control: no-store, must-understand, max-age=60", Ok(60)),
        ("", 299, "Cache-Control: no-store, must-understand, max-age=60", Err(Why::NoStore)),
        // To be validated each time, if that can be.
        ("", 200, "Cache-Control: no-cache, max-age=60 | ETag: \"v\"", Ok(0)),
        ("", 200, "Cache-Control: no-cache, max-age=60", Err(Why::NotFresh)),
        ("", 200, "Cache-Control: no-cache | Last-Modified: @-9", Ok(0)),
        ("", 200, "Pragma: no-cache | Cache-Control: max-age=60", Ok(60)),
    ] {
        assert_eq!(fresh(request, status, response), expected, "{request} -> {status} {response}");
    }
}

#[test]
fn errors_are_kept_as_long_as_the_operator_says_unless_they_say_so_themselves() {
    let leave = Leave { negative: Duration::from_secs(10), ..Leave::default() };
    let lifetime =
        |status, response| judged("", status, response, leave).map(|terms| terms.lifetime.as_secs());
    assert_eq!(lifetime(404, ""), Ok(10));
    assert_eq!(lifetime(410, "Cache-Control: max-age=60"), Ok(60));
    assert_eq!(lifetime(404, "Cache-Control: no-store"), Err(Why::NoStore));
    assert_eq!(lifetime(404, "Cache-Control: max-age=0"), Err(Why::NotFresh));
    for status in [200, 500, 503] {
        assert_eq!(lifetime(status, ""), Err(Why::NotFresh));
    }
}

fn reuse(response: &str, age: u64, request: &str) -> Reuse {
    let terms = judged("", 200, &format!("{response} | ETag: \"v\""), Leave::default()).expect("is kept");
    terms.reuse(Duration::from_secs(age), &Asked::of(&headers(request), false).directives)
}

#[test]
fn how_what_is_kept_answers_a_request() {
    for (response, age, request, expected) in [
        ("Cache-Control: max-age=60", 59, "", Reuse::Fresh),
        ("Cache-Control: max-age=60", 60, "", Reuse::Validate),
        ("Cache-Control: max-age=60, no-cache", 1, "", Reuse::Validate),
        ("Cache-Control: max-age=60", 1, "Cache-Control: no-cache", Reuse::Validate),
        ("Cache-Control: max-age=60", 1, "Pragma: no-cache", Reuse::Validate),
        ("Cache-Control: max-age=60", 11, "Cache-Control: max-age=10", Reuse::Validate),
        ("Cache-Control: max-age=60", 10, "Cache-Control: max-age=10", Reuse::Fresh),
        ("Cache-Control: max-age=60", 40, "Cache-Control: min-fresh=21", Reuse::Validate),
        ("Cache-Control: max-age=60", 40, "Cache-Control: min-fresh=20", Reuse::Fresh),
        ("Cache-Control: max-age=60", 65, "Cache-Control: max-stale", Reuse::Stale),
        ("Cache-Control: max-age=60", 65, "Cache-Control: max-stale=5", Reuse::Stale),
        ("Cache-Control: max-age=60", 66, "Cache-Control: max-stale=5", Reuse::Validate),
        ("Cache-Control: max-age=60, must-revalidate", 65, "Cache-Control: max-stale", Reuse::Validate),
        ("Cache-Control: max-age=60, proxy-revalidate", 65, "Cache-Control: max-stale", Reuse::Validate),
        ("Cache-Control: s-maxage=60", 65, "Cache-Control: max-stale", Reuse::Validate),
        ("Cache-Control: max-age=60, stale-while-revalidate=30", 89, "", Reuse::StaleMeanwhile),
        ("Cache-Control: max-age=60, stale-while-revalidate=30", 90, "", Reuse::Validate),
        ("Cache-Control: s-maxage=60, stale-while-revalidate=30", 89, "", Reuse::StaleMeanwhile),
        ("Cache-Control: max-age=60, stale-while-revalidate=30, must-revalidate", 61, "", Reuse::Validate),
        (
            "Cache-Control: max-age=60, stale-while-revalidate=30",
            61,
            "Cache-Control: max-age=60",
            Reuse::Validate,
        ),
    ] {
        assert_eq!(reuse(response, age, request), expected, "{response} at {age}, asked {request:?}");
    }
}

#[test]
fn what_stands_in_for_errors() {
    let leave = Leave { stale_if_error: Duration::from_secs(30), ..Leave::default() };
    for (response, until) in [
        ("Cache-Control: max-age=60", 90),
        ("Cache-Control: max-age=60, stale-if-error=5", 65),
        ("Cache-Control: max-age=60, stale-if-error=0", 60),
        ("Cache-Control: s-maxage=60", 60),
        ("Cache-Control: s-maxage=60, stale-if-error=5", 65),
        ("Cache-Control: max-age=60, must-revalidate", 60),
        ("Cache-Control: max-age=60, must-revalidate, stale-if-error=5", 60),
        ("Cache-Control: max-age=60, no-cache", 0),
    ] {
        let terms = judged("", 200, &format!("{response} | ETag: \"v\""), leave).expect("is kept");
        let may = |age| terms.may_stand_in(Duration::from_secs(age));
        assert!(!may(until) && (until == 0 || may(until - 1)), "{response}");
    }
}

proptest! {
    /// Whatever a member says, times are sums that hold, and what is validated each time is never fresh.
    #[test]
    fn any_head_is_judged(
        control in prop::collection::vec(
            "(max-age|s-maxage|stale-while-revalidate|stale-if-error)=[0-9]{0,25}|no-cache|public|private|no-store",
            0..6,
        ),
        age in "[0-9a, -]{0,20}",
        seconds in any::<u32>(),
        status in 100u16..600,
    ) {
        let control = control.join(", ");
        let fields = format!("Cache-Control: {control} | Age: {age} | Expires: {age} | ETag: \"v\"");
        if let Ok(terms) = judged("", status, &fields, Leave::default()) {
            let age = Duration::from_secs(seconds.into());
            let reuse = terms.reuse(age, &OfRequest::default());
            prop_assert!(reuse != Reuse::Fresh || age < terms.lifetime && !terms.validate);
            prop_assert!(!control.contains("no-store"));
            let _ = (terms.may_stand_in(age), terms.ttl(age), terms.is_for_all());
        }
    }
}
