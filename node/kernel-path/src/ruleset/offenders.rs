//! Clients that are turned away since they themselves had or sent too much, counted one by one, where the listener
//! has a `ban` policy. Who should be banned is for others to say: they read the sets.

use trestle_dataplane::KernelListener;
use trestle_netlink::nft::Meter;

use super::{Chain, Family, Making, Set};
use crate::rule::{Client, Does, Rule, When};

/// Most clients of a listener and family that are counted at once: all are read each second. Those behind them are
/// turned away as well, and not counted.
const OFFENDERS_MAX: u32 = 16_384;

/// How long, in milliseconds, a client is kept that does not try again: longer than it takes until it is read.
const KEPT: u64 = 10_000;

/// The listener whose offenders a set has.
pub(crate) fn offenders_of(set: &str) -> Option<&str> {
    let (kind, listener) = set.split_once('.')?;
    matches!(kind, "offends4" | "offends6").then_some(listener)
}

impl Making<'_> {
    /// Where a client's flow goes that is too much of its own: it counts for the client, and is refused by `over`.
    pub(super) fn offends(&mut self, listener: &KernelListener, family: Family, over: String) -> String {
        let Some(offences) = listener.guard.offences else { return over };
        let name = format!("offends{}.{}", family.digit(), listener.name);
        let client = Client { family, prefix_v6: offences.prefix_v6 };
        // A segment in the middle of a flow is no try. Datagrams can be forged without any effort.
        let counts = vec![When::Tcp, When::MuchOf(client, name.clone(), KEPT, Meter::Counted)];
        let rules = vec![
            Rule::Guard(vec![When::Continues], vec![Does::Accept]),
            Rule::Guard(counts, Vec::new()),
            Rule::Guard(Vec::new(), vec![Does::Goto(over)]),
        ];
        self.made.chains.insert(name.clone(), Chain { hook: None, rules });
        let set = Set { metered: Some(OFFENDERS_MAX), timeout: true, ..Set::empty(family.data_type(), None) };
        self.made.sets.insert(name.clone(), set);
        name
    }
}
