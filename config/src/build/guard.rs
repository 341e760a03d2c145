//! Firewalls and bans, as they stand at a listener, a route or a rule.

use super::{network_refs, policies};
use crate::check::Sink;
use crate::model::{Action, BanPolicy, Firewall, FirewallRule};
use crate::problem::Fault;
use crate::tree::Place;
use crate::value::{Fields, Kind, Value};

/// `None`: everybody is let in.
pub(super) fn firewall(root: &Fields, fields: &Fields) -> Option<Firewall> {
    let written = policies::written(root, fields, "firewall")?;
    let rules = written.list("rules").unwrap_or_default().iter().filter_map(Value::as_object).map(rule);
    let firewall = Firewall { rules: rules.collect(), default: action(written, "default") };
    (!firewall.is_empty()).then_some(firewall)
}

fn rule(fields: &Fields) -> FirewallRule {
    let ports = fields.list("ports").unwrap_or_default().iter().filter_map(|value| match value.kind {
        Kind::Ports(ports) => Some(ports),
        _ => None,
    });
    FirewallRule {
        from: network_refs(fields, "from"),
        ports: ports.collect(),
        action: action(fields, "action"),
    }
}

fn action(fields: &Fields, key: &str) -> Action {
    match fields.word(key) {
        Some("deny") => Action::Deny,
        Some("reject") => Action::Reject,
        _ => Action::Allow,
    }
}

pub(super) fn ban(fields: &Fields, sink: &mut Sink) -> BanPolicy {
    let mut ban = BanPolicy::default();
    super::set(&mut ban.after, fields.int32("after"));
    super::set(&mut ban.within, fields.duration("within"));
    super::set(&mut ban.length, fields.duration("for"));
    if let Some(of) = fields.list("of") {
        let has = |word: &str| of.iter().any(|value| value.as_word() == Some(word));
        (ban.of_limits, ban.of_4xx, ban.of_waf) = (has("limit"), has("4xx"), has("waf"));
        for (at, value) in of.iter().enumerate() {
            if of[..at].iter().any(|earlier| earlier.as_word() == value.as_word())
                && value.as_word().is_some()
            {
                sink.report(Place::Value(value.node), Fault::new("it is named twice"));
            }
        }
    }
    ban
}
