//! A request of a rule that keeps responses: served from what is kept, from another's answer that is on its way, or by
//! asking a member, whose answer is then kept if it may be ([`errand`]).
//!
//! GET and HEAD are looked up. A miss of GET is asked for without the client's conditions and ranges, so that the answer is
//! good for all who wait ([`crate::cache::flights`]); its body then comes through a task of its own ([`filler`]), which the
//! client that asked follows like everybody else. A HEAD, or a range, of which nothing is kept goes to a member as it is,
//! and nothing of its answer is kept; what a HEAD says of what is kept and stale counts.

mod errand;
mod filler;
mod lookup;
mod parts;
mod refresh;
mod served;

use std::rc::Rc;
use std::sync::Arc;

use http::header::{CONTENT_LOCATION, LOCATION, RANGE};
use http::request::Parts;
use http::{HeaderValue, Method, StatusCode};
use tokio::time::Instant;
use trestle_config::path;

use super::reply::{Reply, judge};
use super::{Outcome, ask};
use crate::cache::conditional::{Question, is_for_member};
use crate::cache::disk::Ready;
use crate::cache::entry::{Entry, Origin};
use crate::cache::flights::{Joining, Turn, landed};
use crate::cache::key::Subject;
use crate::cache::rules::Asked;
use crate::cache::status::{Fwd, Outcome as Became, Status};
use crate::cache::{Cache, Policy};
use crate::l7::conn::Conn;
use crate::l7::forward::{hides_fields, is_websocket};
use crate::l7::head::Framing;
use crate::l7::record::Record;
use crate::l7::unread::ClientBody;
use crate::metrics::Reason;
use crate::snapshot::Rule;
use errand::Errand;
use filler::{Filler, From};
use lookup::{After, Decision, Lookup};
pub(crate) use served::{Served, Source, Stored};

/// How often one looks again, since what was waited for came to nothing, before one asks oneself.
const ROUNDS_MAX: usize = 4;

pub(super) async fn serve(
    conn: &Conn,
    record: &mut Record,
    (rule, policy): (&Rule, &Policy),
    parts: Parts,
    body: ClientBody,
) -> Result<Outcome, Reason> {
    if let Some(status) = passes(conn, record, (rule, policy), &parts) {
        record.cache = Some(status);
        return ask(conn, record, rule, parts, Some(body)).await.map(Outcome::Reply);
    }
    let worker = Rc::clone(&conn.client.worker);
    let cache = &worker.cache;
    let port = port(conn, record);
    let key = policy.key.key(&cache.secret, &subject(record, &port), &parts.headers);
    let certified = conn.client.tls.as_ref().is_some_and(|tls| tls.certificate.is_some());
    let lookup = Lookup {
        cache,
        key,
        asked: Asked::of(&parts.headers, certified),
        came: record.started,
        request: &parts.headers,
        is_get: record.method == Method::GET,
        edited: rule.body_edits.is_some(),
        coded: record.wish.is_some(),
        split: &rule.split,
    };
    let mut now = record.started;
    for round in 0..=ROUNDS_MAX {
        let mut decision = lookup.decide(now);
        if let (Decision::Ask(miss), Some(disk)) = (&decision, cache.store.disk()) {
            let loaded = Box::pin(lookup.load(disk, miss)).await;
            decision = loaded.unwrap_or(decision);
        }
        if let Decision::Serve(served) | Decision::ServeMeanwhile(served, _) = &mut decision
            && let Err((at, unread)) = served.ready(record).await
        {
            decision = Decision::Ask(lookup.unread(at, unread));
        }
        let miss = match decision {
            Decision::Serve(served) => return Ok(stored(record, served)),
            Decision::ServeMeanwhile(served, entry) => {
                let origin = origin(cache, policy, &subject(record, &port), &lookup);
                let errand = Errand::new(record, &lookup, origin, (entry.at, Some(entry.entry)));
                refresh::begin(record, rule, &parts.uri, errand);
                return Ok(stored(record, served));
            }
            Decision::Ask(miss) => miss,
        };
        if lookup.asked.directives.only_if_cached {
            // No member is asked.
            record.cache = None;
            return Err(Reason::NotCached);
        }
        record.cache = Some(Status::new(Became::Miss, Some(miss.fwd)));
        let wants_part = !lookup.edited && parts.headers.contains_key(RANGE);
        if miss.entry.is_none() && (wants_part || !lookup.is_get) {
            return ask(conn, record, rule, parts, None).await.map(Outcome::Reply);
        }
        let origin = origin(cache, policy, &subject(record, &port), &lookup);
        if !lookup.is_get {
            let mut errand = Errand::new(record, &lookup, origin, (miss.at, miss.entry));
            let asked = ask(conn, record, rule, parts, None).await;
            if let Some(served) = stands_in(&errand, record, &asked, miss.fwd).await {
                return Ok(stored(record, served));
            }
            let reply = asked?;
            if reply.response.status() == StatusCode::OK {
                errand.heard(reply.response.headers(), Instant::now());
            }
            return Ok(Outcome::Reply(reply));
        }
        let mut lead = None;
        if round < ROUNDS_MAX && lookup.may_wait(&miss) {
            let joining = Joining { origin: &origin, wants_newer: lookup.wants_newer(), has_time: false };
            match cache.flights.join(miss.at, joining, &cache.purges) {
                Turn::Lead(own) => {
                    // Somebody may have brought it while nobody led.
                    if lookup.has_changed(&miss) {
                        continue;
                    }
                    lead = Some(own);
                }
                Turn::Wait(landing) => {
                    let landing = Box::pin(landed(landing)).await;
                    now = Instant::now();
                    match lookup.after(landing, &miss, now) {
                        After::Serve(mut served) => match served.ready(record).await {
                            Ok(()) => return Ok(stored(record, served)),
                            Err((at, unread)) => {
                                lookup.unread(at, unread);
                            }
                        },
                        // It may have been about that request: another asks, a few times.
                        After::Fail(Reason::MemberFailed) if round + 1 < ROUNDS_MAX => continue,
                        After::Fail(reason) => return Err(reason),
                        After::Again => continue,
                        After::Alone => {}
                    }
                }
            }
        }
        let mut errand = Errand::new(record, &lookup, origin, (miss.at, miss.entry));
        errand.lead = lead;
        return Box::pin(ask_for_all(conn, record, rule, parts, (errand, miss.fwd))).await;
    }
    Err(Reason::Internal)
}

/// What is to be served of an entry, if there is one and it can be read.
async fn served(
    entry: Option<Arc<Entry>>,
    errand: &Errand,
    record: &Record,
    became: Status,
) -> Option<Box<Served>> {
    let mut served = errand.serve(entry?, record, became);
    let Err((at, unread)) = served.ready(record).await else { return Some(served) };
    if unread == Ready::Gone {
        errand.cache().store.remove(at);
    }
    None
}

fn stored(record: &mut Record, served: Box<Served>) -> Outcome {
    record.cache = Some(served.status);
    Outcome::Stored(served)
}

/// What is not looked up, and why.
fn passes(conn: &Conn, record: &Record, (rule, policy): (&Rule, &Policy), parts: &Parts) -> Option<Status> {
    let pass = |fwd, detail| Some(Status { detail, ..Status::new(Became::Pass, Some(fwd)) });
    if record.grpc {
        return pass(Fwd::Bypass, Some("grpc"));
    }
    let upgrades = conn.gate.upgrade.get() && rule.websocket && is_websocket(&parts.headers);
    if upgrades || conn.tunnel.borrow().is_some() {
        return pass(Fwd::Bypass, Some("upgrade"));
    }
    if !matches!(record.method, Method::GET | Method::HEAD) {
        return pass(Fwd::Method, None);
    }
    // Of HTTP/1.0: no URL would name it.
    if record.asked_host().or(record.host.as_ref()).is_none_or(|host| host.is_empty()) {
        return pass(Fwd::Bypass, Some("no-host"));
    }
    if conn.gate.framing.get() != Framing::None {
        return pass(Fwd::Bypass, Some("body"));
    }
    if is_for_member(&parts.headers) {
        return pass(Fwd::Bypass, Some("precondition"));
    }
    // Whoever has fields end here asks in a way of its own, of which others should have nothing.
    if hides_fields(&parts.headers) {
        return pass(Fwd::Bypass, Some("connection"));
    }
    if policy.key.is_poisoned(&parts.headers) {
        return pass(Fwd::Bypass, Some("unkeyed-field"));
    }
    None
}

fn port(conn: &Conn, record: &Record) -> HeaderValue {
    let told = record.told.as_ref().and_then(|told| told.port(record.asked_host()));
    told.unwrap_or_else(|| conn.client.port.clone())
}

fn subject<'a>(record: &'a Record, port: &'a HeaderValue) -> Subject<'a> {
    Subject {
        scheme: record.scheme(),
        asked_host: record.asked_host(),
        host: record.host.as_ref(),
        port,
        path: record.target.path(),
        query: record.target.query(),
    }
}

/// Of a request that is sent now.
fn origin(cache: &Cache, policy: &Policy, subject: &Subject<'_>, lookup: &Lookup<'_>) -> Origin {
    Origin {
        url: policy.key.url(subject).into(),
        number: cache.purges.latest(),
        generation: cache.invalidations.generation(lookup.key.slot),
        sent: Instant::now(),
    }
}

/// Asks a member for what all may have, and keeps what comes if that may be kept.
async fn ask_for_all(
    conn: &Conn,
    record: &mut Record,
    rule: &Rule,
    parts: Parts,
    (mut errand, fwd): (Errand, Fwd),
) -> Result<Outcome, Reason> {
    let spare = errand.entry.is_some().then(|| parts.clone());
    record.question = Some(Box::new(errand.question()));
    let asked = ask(conn, record, rule, parts, None).await;
    if let Some(served) = stands_in(&errand, record, &asked, fwd).await {
        errand.failed(asked.err());
        return Ok(stored(record, served));
    }
    let mut reply = asked.inspect_err(|reason| errand.failed(Some(*reason)))?;
    let status = reply.response.status();
    if status == StatusCode::NOT_MODIFIED
        && let Some(parts) = spare
    {
        judge(record, status);
        let confirmed = reply.head(record);
        let fwd_status = Some(status.as_u16());
        let became = Status { fwd_status, ..Status::new(Became::Revalidated, Some(fwd)) };
        let fresh = errand.freshen(confirmed.headers, Instant::now());
        if let Some(served) = served(fresh, &errand, record, became).await {
            return Ok(stored(record, served));
        }
        // It is about something that is not here.
        record.question = Some(Box::new(Question::Whole));
        record.picked = None;
        reply =
            ask(conn, record, rule, parts, None).await.inspect_err(|reason| errand.failed(Some(*reason)))?;
    }
    Ok(keep(record, reply, errand, fwd))
}

/// What is kept, if a member has failed and it may stand in for its answer (RFC 9111, section 4.2.4; RFC 5861, section 4).
async fn stands_in(
    errand: &Errand,
    record: &mut Record,
    asked: &Result<Reply, Reason>,
    fwd: Fwd,
) -> Option<Box<Served>> {
    let fwd_status = match asked {
        Ok(reply) if is_failure(reply.response.status()) => Some(reply.response.status()),
        Err(reason) if is_of_member(*reason) => None,
        _ => return None,
    };
    let became = Status {
        fwd_status: fwd_status.map(|status| status.as_u16()),
        ..Status::new(Became::Stale, Some(fwd))
    };
    let served = served(errand.stands_in(Instant::now()), errand, record, became).await?;
    if let Some(status) = fwd_status {
        judge(record, status);
    }
    Some(served)
}

/// What was kept, in place of an answer that broke off before anything of it had gone out.
pub(super) async fn in_place_of_broken(record: &mut Record) -> Option<Box<Served>> {
    let at = record.supersedes.take()?;
    let worker = Rc::clone(&record.conn.client.worker);
    let entry = worker.cache.store.stale(at)?;
    if record.rule()?.body_edits.is_some() || worker.cache.purges.has(&entry.stem.mark, entry.stem.named()) {
        return None;
    }
    let now = Instant::now();
    let fwd = record.cache.and_then(|status| status.fwd);
    let ttl = Some(entry.stem.terms.ttl(entry.stem.age(now)));
    let became = Status { ttl, ..Status::new(Became::Stale, fwd) };
    let mut served = Served::kept(&entry, None, record.method == Method::GET, now, became);
    served.edited_by = record.rule()?.split.edited_by(&entry.stem.pool);
    served.ready(record).await.ok()?;
    record.cache = Some(became);
    Some(served)
}

/// Of an answer that says that its member can't (RFC 5861, section 4).
fn is_failure(status: StatusCode) -> bool {
    matches!(status.as_u16(), 500 | 502..=504)
}

/// What goes on of an answer, kept or not.
fn keep(record: &mut Record, mut reply: Reply, mut errand: Errand, fwd: Fwd) -> Outcome {
    let now = Instant::now();
    let mut became = Status::new(Became::Miss, Some(fwd));
    errand.pool = record.asked_pool().map(|pool| pool.name().into()).unwrap_or_default();
    let prospect = match errand.judge(&mut reply.response, now) {
        Ok(prospect) => prospect,
        Err(why) => {
            became.detail = Some(why.label());
            record.cache = Some(became);
            let fails = is_failure(reply.response.status());
            record.supersedes = (why.is_of_response() && !fails).then_some(errand.at);
            return Outcome::Reply(reply);
        }
    };
    became.stored = true;
    became.ttl = Some(prospect.stem.terms.ttl(prospect.stem.terms.age));
    judge(record, reply.response.status());
    let member = record.picked.as_ref().map(|picked| Arc::clone(picked.member()));
    let Reply { response, upstream, target, deadline, keep, idle, .. } = reply;
    let (parts, body) = response.into_parts();
    let edited = errand.edited;
    let request = (!edited).then(|| errand.headers.clone());
    let source = From { upstream, target, body, deadline, keep, idle, member };
    let follow = Filler::start(errand, prospect, source, false);
    stored(record, Served::following(follow, parts, request.as_ref(), became))
}

/// It says something of the members, not of this client or this node.
fn is_of_member(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::NoMember
            | Reason::Breaker
            | Reason::AdaptiveLimit
            | Reason::QueueFull
            | Reason::QueueTimeout
            | Reason::RetryBudget
            | Reason::ConnectFailed
            | Reason::ConnectTimeout
            | Reason::TlsFailed
            | Reason::UpstreamClosed
            | Reason::UpstreamBroken
            | Reason::UpstreamMalformed
            | Reason::MemberFailed
            | Reason::FirstByteTimeout
            | Reason::AttemptTimeout
            | Reason::RequestTimeout
    )
}

/// After an unsafe request that was not refused, what is kept of its URL and of those that it names is asked for anew
/// (RFC 9111, section 4.4).
pub(super) fn invalidate(record: &Record, reply: &Reply) {
    let cache = &record.conn.client.worker.cache;
    let is_safe = matches!(record.method, Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE);
    let status = reply.response.status();
    if is_safe || !cache.may_hold() || !(status.is_success() || status.is_redirection()) {
        return;
    }
    let host = record.asked_host().map_or(&b""[..], HeaderValue::as_bytes);
    let here = (record.target.path(), record.listener.settings.http.merge_slashes);
    cache.invalidate(host, here.0, record.target.query());
    for name in [LOCATION, CONTENT_LOCATION] {
        let Some(value) = reply.response.headers().get(name) else { continue };
        let Some((there, query)) = target_of(value, host, here) else { continue };
        cache.invalidate(host, &there, query.as_deref());
    }
}

/// Path and query of what a member names, if it is of the same host (RFC 3986, section 5.2.2). `here`: the request's
/// path, and whether slashes are merged.
fn target_of(
    value: &HeaderValue,
    host: &[u8],
    (here, merge): (&str, bool),
) -> Option<(String, Option<String>)> {
    let text = value.to_str().ok()?;
    let is_scheme = |scheme: &str| scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b));
    let absolute = text.split_once("://").filter(|(scheme, _)| is_scheme(scheme));
    let absolute = absolute.or_else(|| Some(("", text.strip_prefix("//")?)));
    let target = match absolute {
        Some((scheme, rest)) => {
            let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
            let (authority, target) = rest.split_at(end);
            let plain = |authority| without_port(authority, scheme.as_bytes());
            if !plain(authority.as_bytes()).eq_ignore_ascii_case(plain(host)) {
                return None;
            }
            target
        }
        None => text,
    };
    let target = target.split('#').next().unwrap_or_default();
    let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
    let folder = here.rfind('/').map_or("/", |at| &here[..=at]);
    let path = match path {
        "" if absolute.is_some() => "/".to_owned(),
        "" => here.to_owned(),
        _ if path.starts_with('/') => path.to_owned(),
        _ => format!("{folder}{path}"),
    };
    let path = path::normalise(&path, merge).ok()?.into_owned();
    Some((path, query.map(str::to_owned)))
}

/// Without the port that `scheme` has anyway (RFC 9110, section 4.2.3). Without a scheme, it is that of the request.
fn without_port<'a>(authority: &'a [u8], scheme: &[u8]) -> &'a [u8] {
    let may_be = |other: &str| scheme.is_empty() || scheme.eq_ignore_ascii_case(other.as_bytes());
    let port = [("http", &b":80"[..]), ("https", b":443")].into_iter().filter(|(scheme, _)| may_be(scheme));
    port.filter_map(|(_, port)| authority.strip_suffix(port)).next().unwrap_or(authority)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_member_names_is_found_on_the_same_host_only() {
        for (named, expected) in [
            ("/b?c", Some(("/b", Some("c")))),
            ("c", Some(("/a/c", None))),
            ("../c", Some(("/c", None))),
            ("http://H:80/x", Some(("/x", None))),
            ("http://other/x", None),
            ("//other/x", None),
            ("//H:80/x#y", Some(("/x", None))),
            ("http://h/x", Some(("/x", None))),
            ("https://h:443/x", None),
            ("http://h", Some(("/", None))),
            ("http://h?q", Some(("/", Some("q")))),
            ("/l?back=http://x/", Some(("/l", Some("back=http://x/")))),
            ("?v=2", Some(("/a/b", Some("v=2")))),
            ("//h//x", Some(("/x", None))),
            ("/x//y", Some(("/x/y", None))),
            ("http://h:8080/x", None),
        ] {
            let found = target_of(&HeaderValue::from_static(named), b"h:80", ("/a/b", true));
            let found = found.as_ref().map(|(path, query)| (path.as_str(), query.as_deref()));
            assert_eq!(found, expected, "{named}");
        }
    }
}
