//! What listeners and members have carried, from what the kernel's counters say.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;

use trestle_netlink::nft::Counted;

use crate::ruleset::Counts;

/// By listener and by member. A member that stands in several pools is one, and one at a range of ports counts as a
/// whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    pub listeners: BTreeMap<String, Carried>,
    pub members: BTreeMap<SocketAddr, Carried>,
}

/// Packets are those of IP, and so are bytes: headers count. What is refused counts as received.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    /// Begun, or taken over from another node.
    pub flows: u64,
    /// From clients.
    pub received: Counted,
    /// To clients.
    pub sent: Counted,
    /// Flows, or tries, that the firewall turned away.
    pub denied: u64,
    /// Those that were too much.
    pub limited: u64,
}

/// Sums that go on when a counter begins anew, as all do when the table is replaced. As many entries as there
/// are counters.
#[derive(Debug, Default)]
pub(crate) struct Tally(HashMap<String, Entry>);

#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    /// Of counters before this one.
    before: Counted,
    now: Counted,
}

impl Tally {
    pub(crate) fn take(&mut self, counters: Vec<(String, Counted)>) {
        let mut last = std::mem::take(&mut self.0);
        for (name, now) in counters {
            let mut entry = last.remove(&name).unwrap_or_default();
            if now.packets < entry.now.packets || now.bytes < entry.now.bytes {
                entry.before.packets += entry.now.packets;
                entry.before.bytes += entry.now.bytes;
            }
            entry.now = now;
            self.0.insert(name, entry);
        }
    }

    pub(crate) fn traffic(&self) -> Traffic {
        let mut traffic = Traffic::default();
        for (name, Entry { before, now }) in &self.0 {
            let sum = Counted { packets: before.packets + now.packets, bytes: before.bytes + now.bytes };
            let Some(counts) = Counts::of(name) else { continue };
            let carried = match counts {
                Counts::In(listener)
                | Counts::Out(listener)
                | Counts::Begun(listener)
                | Counts::Denied(listener)
                | Counts::Limited(listener) => traffic.listeners.entry(listener.to_owned()).or_default(),
                Counts::To(member) | Counts::From(member) | Counts::Flows(member) => {
                    traffic.members.entry(member).or_default()
                }
            };
            match counts {
                Counts::In(_) | Counts::To(_) => carried.received = sum,
                Counts::Out(_) | Counts::From(_) => carried.sent = sum,
                Counts::Begun(_) | Counts::Flows(_) => carried.flows = sum.packets,
                Counts::Denied(_) => carried.denied = sum.packets,
                Counts::Limited(_) => carried.limited = sum.packets,
            }
        }
        traffic
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_go_on_when_counters_begin_anew() {
        let mut tally = Tally::default();
        let of = |packets| Counted { packets, bytes: packets * 100 };
        for packets in [3, 5, 2] {
            tally.take(vec![
                ("in.web".to_owned(), of(packets)),
                ("flows.[fd00::1]:80".to_owned(), of(packets)),
                ("in.".to_owned(), of(1)),
                ("else".to_owned(), of(9)),
            ]);
        }
        let traffic = tally.traffic();
        assert_eq!(traffic.listeners["web"].received, of(7));
        assert_eq!(traffic.members[&"[fd00::1]:80".parse().unwrap()].flows, 7);
        tally.take(Vec::new());
        assert_eq!(tally.traffic(), Traffic::default(), "who is gone is forgotten");
    }
}
