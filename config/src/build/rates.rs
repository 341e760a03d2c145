//! Limits on how many come in a time, as they stand at a listener, a route or a rule.

use super::limits::{At, prefix_v6};
use super::policies::{written, written_value};
use crate::check::Sink;
use crate::model::{LimitBy, Limits, RateLimit, RateOf};
use crate::problem::Fault;
use crate::tree::Place;
use crate::value::{Fields, Kind, Value};

/// A request is held against each of them.
const MOST: usize = 8;

/// Inline, or else of a bundle that `use` pulls in.
pub(super) fn of(root: &Fields, fields: &Fields, at: At, sink: &mut Sink) -> Vec<RateLimit> {
    let Some(value) = written_value(root, fields, "rate_limits") else { return Vec::new() };
    let Kind::List(items) = &value.kind else { return Vec::new() };
    if items.len() > MOST {
        let why = format!("at most {MOST} rates stand at one place, not {}", items.len());
        sink.report(Place::Value(value.node), Fault::new(why).help("routes and rules can have their own"));
    }
    let beside = written(root, fields, "limits");
    let prefix_v6 = beside.map_or(Limits::default().prefix_v6, prefix_v6);
    let mut limits: Vec<RateLimit> = Vec::with_capacity(items.len());
    for item in items {
        let Some(limit) = item.as_object().and_then(|fields| one(fields, prefix_v6)) else { continue };
        if let Some((place, fault)) = misplaced(item, &limit, at) {
            sink.report(place, fault);
        }
        if limits.iter().any(|other| (&other.by, other.of, other.rate) == (&limit.by, limit.of, limit.rate)) {
            let fault = Fault::new("this rate stands here twice").help("leave one of them out");
            sink.report(Place::Value(item.node), fault);
        }
        limits.push(limit);
    }
    limits
}

/// `None`: something is bad or missing, and was reported.
fn one(fields: &Fields, prefix_v6: u8) -> Option<RateLimit> {
    let by = match &fields.at("by")?.kind {
        Kind::LimitBy(by) => by.clone(),
        _ => return None,
    };
    let rate = match &fields.at("rate")?.kind {
        Kind::Rate(rate) => *rate,
        _ => return None,
    };
    let of = match fields.word("of") {
        Some("connections") => RateOf::Connections,
        _ => RateOf::Requests,
    };
    let burst = fields.int32("burst").unwrap_or(rate.count);
    Some(RateLimit { by, rate, burst, of, headers: fields.bool("headers").unwrap_or(false), prefix_v6 })
}

fn misplaced(item: &Value, limit: &RateLimit, at: At) -> Option<(Place, Fault)> {
    let fields = item.as_object()?;
    let place = |key: &str| Place::Value(fields.at(key).map_or(item.node, |value| value.node));
    match (limit.of, at) {
        (RateOf::Connections, At::Requests) => {
            let fault = Fault::new("connections are a listener's");
            Some((place("of"), fault.help("it stands on listeners; here there are `requests`")))
        }
        (RateOf::Connections, At::Listener(_))
            if !matches!(limit.by, LimitBy::Client | LimitBy::Listener) =>
        {
            let fault = Fault::new(format!("a connection has no {}", limit.by));
            Some((place("by"), fault.help("connections are limited by `client` or `listener`")))
        }
        (RateOf::Connections, At::Listener(_)) if limit.headers => {
            let fault = Fault::new("a connection has no answer that could carry headers");
            Some((place("headers"), fault.help("leave it out, or limit requests")))
        }
        (RateOf::Requests, At::Listener(protocol)) if !protocol.has_requests() => {
            let fault = Fault::new("what is no http has no requests");
            Some((place("of"), fault.help("write `of: connections`")))
        }
        _ => None,
    }
}
