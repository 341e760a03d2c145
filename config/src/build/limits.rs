//! Limits on what is open at once, as they stand at a listener, a route or a rule.

use super::policies;
use crate::check::Sink;
use crate::model::{LimitMode, Limits, Protocol};
use crate::problem::{Fault, shown};
use crate::tree::Place;
use crate::value::{Fields, Value};

/// Where limits stand, for that decides what they can be about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum At {
    Listener(Protocol),
    /// A route or a rule.
    Requests,
}

/// `None`: nothing is limited.
pub(super) fn of(root: &Fields, fields: &Fields, at: At, sink: &mut Sink) -> Option<Limits> {
    let limits = policies::written(root, fields, "limits")?;
    let mut refuse = |key: &str, why: String, help: &'static str| {
        let value: Option<&Value> = limits.at(key).filter(|_| limits.int(key) != Some(0));
        if let Some(value) = value {
            sink.report(Place::Key(value.node), Fault::new(why).help(help));
        }
    };
    match at {
        At::Listener(protocol) if !protocol.has_requests() => {
            let why = "what is no http has no requests".to_owned();
            refuse("requests_per_client", why, "it stands on http listeners, routes and rules");
        }
        At::Listener(_) => {}
        At::Requests => {
            for key in ["connections_per_client", "connections"] {
                let why = format!("{} is about a listener's connections", shown(key));
                refuse(key, why, "it stands on listeners; here there is `requests_per_client`");
            }
        }
    }
    let count = |key| limits.int32(key).unwrap_or(0);
    let built = Limits {
        mode: mode(limits),
        wait: limits.duration("wait").unwrap_or_default(),
        prefix_v6: prefix_v6(limits),
        connections_per_client: count("connections_per_client"),
        connections: count("connections"),
        requests_per_client: count("requests_per_client"),
    };
    (!built.is_empty()).then_some(built)
}

fn mode(limits: &Fields) -> LimitMode {
    match limits.word("mode") {
        Some("exact") => LimitMode::Exact,
        _ => LimitMode::Converging,
    }
}

/// Of an object `limits`.
pub(super) fn prefix_v6(limits: &Fields) -> u8 {
    let bits = limits.int("prefix_v6").and_then(|bits| u8::try_from(bits).ok());
    bits.unwrap_or(Limits::default().prefix_v6)
}
